import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { decodeLuksHeader, encodeLuksHeader, LUKS_HEADER_BYTES } from '../../../protocols/luks/mod.ts';
import { refusesEveryTruncation, roundTrips, survivesEveryByteChange } from '../../macros/codec.ts';

const AREA = 3 << 20;
const slot = { iterations: 1000, salt: new Uint8Array(32).fill(7) };
const header = {
  hash: 'sha256' as const,
  keyBytes: 64 as const,
  payloadOffset: 2 << 20,
  digest: new Uint8Array(20).fill(1),
  digestSalt: new Uint8Array(32).fill(2),
  digestIterations: 2000,
  uuid: '00000000-0000-4000-8000-000000000000',
  slots: [slot, undefined, slot, undefined, undefined, undefined, undefined, undefined],
  materialOffsets: [1, 70, 300, 140, 210, 370, 440, 510].map((page) => page * 4096),
};

test('Q14 a LUKS header is what it was after encoding and decoding', (t) => {
  const bytes = encodeLuksHeader(header);
  t.is(bytes.length, LUKS_HEADER_BYTES);
  roundTrips(t, header, encodeLuksHeader, (given) => decodeLuksHeader(given, AREA));
  refusesEveryTruncation(t, bytes, (given) => decodeLuksHeader(given, AREA));
  survivesEveryByteChange(t, bytes, (given) => decodeLuksHeader(given, AREA));
});

const cases: readonly [name: string, change: (view: DataView) => void, expected: RegExp][] = [
  ['iterations 2^32-1', (v) => v.setUint32(208 + 4, 0xffff_ffff), /iterations, limit is/],
  ['digest iterations 2^32-1', (v) => v.setUint32(164, 0xffff_ffff), /iterations, limit is/],
  [
    'few iterations in each slot, and too many in all',
    (v) => {
      for (const at of [164, 208 + 4, 208 + 2 * 48 + 4]) v.setUint32(at, 20_000_000);
    },
    /80000000 iterations of all key slots together, limit is 64000000/,
  ],
  ['no iterations', (v) => v.setUint32(208 + 4, 0), /0 iterations/],
  ['stripes 2^32-1', (v) => v.setUint32(208 + 44, 0xffff_ffff), /stripes/],
  ['key material past the end', (v) => v.setUint32(208 + 40, 0xffff_ffff), /key material of slot 0 up to/],
  ['key material over the header', (v) => v.setUint32(208 + 40, 0), /overlaps/],
  ['key material over another slot', (v) => v.setUint32(208 + 2 * 48 + 40, 9), /overlaps/],
  ['key material inside the disk', (v) => v.setUint32(104, 1), /inside the disk/],
  ['another cipher', (v) => v.setUint8(8, 0x62), /cipher bes/],
  ['CBC', (v) => v.setUint32(40, 0x6362_6300), /cipher aes-cbc/],
  ['another hash', (v) => v.setUint8(72, 0x6d), /hash mha256/],
  ['a key of 2^32-1 bytes', (v) => v.setUint32(108, 0xffff_ffff), /a key of 4294967295 bytes/],
  ['version 2', (v) => v.setUint16(6, 2), /version/],
  ['a slot of no state', (v) => v.setUint32(208, 5), /neither in use nor free/],
];
for (const [name, change, expected] of cases) {
  test(`Q14 a LUKS header is refused: ${name}`, (t) => {
    const bytes = encodeLuksHeader(header);
    change(new DataView(bytes.buffer, bytes.byteOffset));
    t.throws(() => decodeLuksHeader(bytes, AREA), { instanceOf: WireError, message: expected });
  });
}
