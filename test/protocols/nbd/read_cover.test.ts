import test from 'ava';
import fc from 'fast-check';
import { CMD, encodeChunkHeader, MAX_REPLY_CHUNKS, REPLY_TYPE, ReplyAssembler } from '../../../protocols/nbd/mod.ts';
import { ReadCover } from '../../../protocols/nbd/read_cover.ts';

test('C5 pieces of a read in any order cover it once, and nothing twice', (t) => {
  const pieces = fc.array(fc.tuple(fc.nat(99), fc.integer({ min: 1, max: 40 })), { maxLength: 40 });
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 100 }), pieces, (lengthBytes, tries) => {
      const cover = new ReadCover(lengthBytes);
      const model = new Set<number>();
      for (const [start, length] of tries) {
        const end = Math.min(start + length, lengthBytes);
        if (start >= end) continue;
        const bytes = Array.from({ length: end - start }, (_, index) => start + index);
        const isNew = !bytes.some((byte) => model.has(byte));
        t.is(cover.add(start, end), isNew);
        if (isNew) for (const byte of bytes) model.add(byte);
        t.is(cover.isWhole, model.size === lengthBytes);
      }
    }),
  );
});

test('C5 chunks from the last to the first, no two of which are neighbours, are told apart to the byte', (t) => {
  const assembler = new ReplyAssembler({ structured: true, contextIds: [] });
  const bytes = 2 * (MAX_REPLY_CHUNKS - 1);
  assembler.expect({ cookie: 1, type: CMD.READ, offset: 0, length: bytes, into: new Uint8Array(bytes) });
  const chunk = (at: number): Uint8Array => {
    const whole = new Uint8Array(29);
    whole.set(encodeChunkHeader({ flags: 0, type: REPLY_TYPE.OFFSET_DATA, cookie: 1n, length: 9 }));
    new DataView(whole.buffer).setBigUint64(20, BigInt(at));
    return whole;
  };
  const pushed = [];
  for (let at = bytes - 1; at > 0; at -= 2) pushed.push(...assembler.push(chunk(at)));
  t.deepEqual(pushed, [], 'half of it is there');
  t.throws(() => assembler.push(chunk(bytes / 2)), { message: /came before/ });
});
