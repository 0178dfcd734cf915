import test from 'ava';
import fc from 'fast-check';
import type { Request, TransmissionTerms } from '../../../protocols/nbd/mod.ts';
import { CMD, CMD_FLAG, NBD_ERROR, TRANSMISSION_FLAG, validateRequest } from '../../../protocols/nbd/mod.ts';

const F = TRANSMISSION_FLAG;
const SIZE = 1 << 20;
const terms: TransmissionTerms = {
  sizeBytes: BigInt(SIZE),
  flags: F.HAS_FLAGS | F.SEND_FLUSH | F.SEND_FUA | F.SEND_TRIM | F.SEND_WRITE_ZEROES | F.SEND_DF | F.SEND_CACHE,
  blockSizes: { minimum: 1, preferred: 4096, maximum: 32 << 20 },
  structured: true,
  contexts: 1,
  maxPayloadBytes: 32 << 20,
};
const readOnly: TransmissionTerms = { ...terms, flags: F.HAS_FLAGS | F.READ_ONLY | F.SEND_FLUSH | F.SEND_FUA };
const plain: TransmissionTerms = { ...terms, flags: F.HAS_FLAGS, structured: false, contexts: 0 };
const huge: TransmissionTerms = { ...terms, sizeBytes: (1n << 63n) - 1n };
const sectors: TransmissionTerms = { ...terms, blockSizes: { ...terms.blockSizes, minimum: 512 }, sizeBytes: 1300n };

function verdict(request: Partial<Request>, against: TransmissionTerms = terms): number {
  const whole = { flags: 0, type: CMD.READ, cookie: 1n, offset: 0n, length: 512, ...request };
  const judged = validateRequest(whole, against);
  return judged.accepted ? NBD_ERROR.OK : judged.error;
}

const cases: [string, Partial<Request>, number, TransmissionTerms?][] = [
  ['T2: accepts a read of one byte', { offset: 511n, length: 1 }, NBD_ERROR.OK],
  ['T2: accepts 32 MiB', { length: 32 << 20 }, NBD_ERROR.OK, huge],
  ['T2: refuses a read above 32 MiB', { length: (32 << 20) + 1 }, NBD_ERROR.EINVAL, huge],
  ['T2: refuses a write above 32 MiB', { type: CMD.WRITE, length: (32 << 20) + 1 }, NBD_ERROR.EINVAL, huge],
  ['T3: refuses offsets from 2^53', { offset: (1n << 53n) - 256n }, NBD_ERROR.EINVAL, huge],
  ['T3: refuses a wrapping offset', { offset: (1n << 64n) - 256n }, NBD_ERROR.EINVAL, huge],
  ['T3: accepts below 2^53 of 2^63-1', { offset: (1n << 53n) - 513n }, NBD_ERROR.OK, huge],
  ['T4: refuses a read past the end', { offset: BigInt(SIZE), length: 1 }, NBD_ERROR.EINVAL],
  ['T4: refuses a read across the end', { offset: BigInt(SIZE - 1), length: 2 }, NBD_ERROR.EINVAL],
  ['T4: refuses a trim past the end', { type: CMD.TRIM, offset: BigInt(SIZE) }, NBD_ERROR.EINVAL],
  ['T4: refuses block status past the end', { type: CMD.BLOCK_STATUS, offset: BigInt(SIZE) }, NBD_ERROR.EINVAL],
  ['T4: refuses a write past the end', { type: CMD.WRITE, offset: BigInt(SIZE) }, NBD_ERROR.ENOSPC],
  ['T4: refuses zeroes past the end', { type: CMD.WRITE_ZEROES, length: 0xffff_ffff }, NBD_ERROR.ENOSPC],
  ['T4: refuses a write to a read-only export', { type: CMD.WRITE }, NBD_ERROR.EPERM, readOnly],
  ['T4: refuses a trim of a read-only export', { type: CMD.TRIM }, NBD_ERROR.EPERM, readOnly],
  ['T4: refuses zeroes on a read-only export', { type: CMD.WRITE_ZEROES }, NBD_ERROR.EPERM, readOnly],
  ['T5: refuses an unknown command', { type: 99 }, NBD_ERROR.EINVAL],
  ['T5: refuses RESIZE, which was not advertised', { type: CMD.RESIZE }, NBD_ERROR.EINVAL],
  ['T5: refuses an unknown flag', { flags: 1 << 12 }, NBD_ERROR.EINVAL],
  ['T5: refuses REQ_ONE on a read', { flags: CMD_FLAG.REQ_ONE }, NBD_ERROR.EINVAL],
  ['T5: refuses DF on a write', { type: CMD.WRITE, flags: CMD_FLAG.DF }, NBD_ERROR.EINVAL],
  ['T5: refuses DF without structured replies', { flags: CMD_FLAG.DF }, NBD_ERROR.EINVAL, plain],
  ['T5: refuses FUA without SEND_FUA', { type: CMD.WRITE, flags: CMD_FLAG.FUA }, NBD_ERROR.EINVAL, plain],
  ['T5: refuses FLUSH without SEND_FLUSH', { type: CMD.FLUSH, length: 0 }, NBD_ERROR.EINVAL, plain],
  ['T5: refuses TRIM without SEND_TRIM', { type: CMD.TRIM }, NBD_ERROR.EINVAL, plain],
  ['T5: refuses CACHE without SEND_CACHE', { type: CMD.CACHE }, NBD_ERROR.EINVAL, plain],
  ['T5: refuses WRITE_ZEROES without its flag', { type: CMD.WRITE_ZEROES }, NBD_ERROR.EINVAL, plain],
  ['T5: refuses FAST_ZERO that was not advertised', { type: CMD.WRITE_ZEROES, flags: 16 }, NBD_ERROR.EINVAL],
  ['T5: refuses block status without a context', { type: CMD.BLOCK_STATUS }, NBD_ERROR.EINVAL, plain],
  ['T6: accepts a read of nothing', { length: 0 }, NBD_ERROR.OK],
  ['T6: accepts a write of nothing at the end', { type: CMD.WRITE, offset: BigInt(SIZE), length: 0 }, NBD_ERROR.OK],
  ['T6: refuses block status of nothing', { type: CMD.BLOCK_STATUS, length: 0, flags: 8 }, NBD_ERROR.EINVAL],
  ['T10: accepts FUA on a read', { flags: CMD_FLAG.FUA }, NBD_ERROR.OK],
  ['T10: accepts FUA on a trim', { type: CMD.TRIM, flags: CMD_FLAG.FUA }, NBD_ERROR.OK],
  ['T10: refuses FLUSH with a length', { type: CMD.FLUSH, length: 1 }, NBD_ERROR.EINVAL],
  ['T10: refuses FLUSH with an offset', { type: CMD.FLUSH, offset: 1n, length: 0 }, NBD_ERROR.EINVAL],
  ['T13: refuses any flag on CACHE', { type: CMD.CACHE, flags: CMD_FLAG.FUA }, NBD_ERROR.EINVAL],
  ['T2: refuses half a block', { length: 100 }, NBD_ERROR.EINVAL, sectors],
  ['T2: refuses an offset between blocks', { offset: 100n }, NBD_ERROR.EINVAL, sectors],
  ['T2: accepts the odd end of a disk of blocks', { offset: 1024n, length: 276 }, NBD_ERROR.OK, sectors],
];
for (const [name, request, expected, against] of cases) {
  test(name, (t) => {
    t.is(verdict(request, against), expected);
  });
}

test('what validateRequest() accepts is inside the export, for any request', (t) => {
  const anyRequest = fc.record({
    flags: fc.oneof(fc.constant(0), fc.nat(0xffff)),
    type: fc.oneof(fc.nat(9), fc.nat(0xffff)),
    cookie: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
    offset: fc.oneof(fc.bigInt({ min: 0n, max: BigInt(SIZE) }), fc.bigInt({ min: 0n, max: (1n << 64n) - 1n })),
    length: fc.oneof(fc.nat(SIZE), fc.nat(0xffff_ffff)),
  });
  fc.assert(
    fc.property(anyRequest, fc.constantFrom(terms, readOnly, plain, huge, sectors), (request, against) => {
      const judged = validateRequest(request, against);
      if (!judged.accepted) return;
      const { offset, length, type } = judged.request;
      if (!Number.isSafeInteger(offset) || BigInt(offset) + BigInt(length) > against.sizeBytes)
        throw new Error('outside');
      if (against === readOnly && [1, 4, 6].includes(type)) throw new Error('writes');
    }),
    { numRuns: 5000 },
  );
  t.pass();
});
