import { randomBytes, randomUUID } from 'node:crypto';
import { open } from 'node:fs/promises';
import { encodeLuksHeader, LUKS_LIMITS, type LuksHash, luksMaterialOffset } from '../../../../protocols/luks/mod.ts';
import { type IterationOptions, iterationsOf, sealKey } from './seal.ts';
import { derive } from './unlock.ts';

const KEY_BYTES = 64;
const DIGEST_BYTES = 20;

export interface CreateLuksOptions extends IterationOptions {
  readonly passphrase: Uint8Array;
}

/**
 * Makes a raw disk behind a new LUKS header at `path`, which must not exist; what is on it is noise until it is
 * written. @throws the errno error of open(2)
 */
export async function createLuks(path: string, sizeBytes: number, options: CreateLuksOptions): Promise<void> {
  const header = await createLuksHeader(options);
  const handle = await open(path, 'wx', 0o600);
  try {
    for (let done = 0; done < header.length; ) {
      done += (await handle.write(header, done, header.length - done, done)).bytesWritten;
    }
    await handle.truncate(header.length + Math.ceil(sizeBytes / 512) * 512);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** A header of version 1 with a new key in its first slot: AES-256-XTS, SHA-256. The disk begins where it ends. */
export async function createLuksHeader(options: CreateLuksOptions): Promise<Uint8Array> {
  const hash: LuksHash = 'sha256';
  const iterations = await iterationsOf(options, hash, KEY_BYTES);
  const key = randomBytes(KEY_BYTES);
  const digestSalt = randomBytes(32);
  const materialOffsets = Array.from({ length: LUKS_LIMITS.slots }, (_, slot) => luksMaterialOffset(slot, KEY_BYTES));
  const payloadOffset = luksMaterialOffset(LUKS_LIMITS.slots, KEY_BYTES);
  const { slot, material } = await sealKey(key, options.passphrase, iterations, hash);
  const header = encodeLuksHeader({
    hash,
    keyBytes: KEY_BYTES,
    payloadOffset,
    digest: await derive(key, digestSalt, iterations, DIGEST_BYTES, hash),
    digestSalt,
    digestIterations: iterations,
    uuid: randomUUID(),
    slots: [slot],
    materialOffsets,
  });
  const bytes = new Uint8Array(payloadOffset);
  bytes.set(header);
  bytes.set(material, materialOffsets[0]);
  return bytes;
}
