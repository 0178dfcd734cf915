import { LUKS_LIMITS, type LuksHeader } from '../../../protocols/luks/mod.ts';

/** A LUKS header with the keys of qemu-img's JSON, in its order; `format` inside a qcow2 image. */
export function luksInfo(header: LuksHeader, format?: 'luks'): Readonly<Record<string, unknown>> {
  const { hash, keyBytes, uuid, slots, materialOffsets, payloadOffset, digestIterations } = header;
  return {
    'ivgen-alg': 'plain64',
    'hash-alg': hash,
    'cipher-alg': keyBytes === 32 ? 'aes-128' : 'aes-256',
    uuid,
    ...(format === undefined ? {} : { format }),
    'cipher-mode': 'xts',
    slots: slots.map((slot, index) =>
      slot === undefined
        ? { active: false, 'key-offset': materialOffsets[index] }
        : {
            active: true,
            iters: slot.iterations,
            'key-offset': materialOffsets[index],
            stripes: LUKS_LIMITS.stripes,
          },
    ),
    'payload-offset': payloadOffset,
    'master-key-iters': digestIterations,
  };
}
