import process from 'node:process';
import test from 'ava';
import fc from 'fast-check';
import { MAX_HELD_BYTES, SparseBits } from '../../../services/nbd/images/sparse_bits.ts';

/** Bits of one piece that is held as a whole */
const PIECE = 65_536 * 8;

function bytesOf(bits: SparseBits): Uint8Array {
  const bytes = new Uint8Array(bits.lengthBytes);
  bits.read(0, bytes);
  return bytes;
}

test('Q13 SparseBits does what an array of bits does', (t) => {
  const counts = [1, 7, 8, 1000, PIECE - 1, PIECE, PIECE + 5, 2 * PIECE + 13];
  const step = fc.record({
    kind: fc.constantFrom('set', 'clear', 'write', 'copy', 'all' as const),
    from: fc.double({ min: 0, max: 1, noNaN: true }),
    length: fc.double({ min: 0, max: 1, noNaN: true }),
    byte: fc.constantFrom(0, 0xff, 0x5a),
  });
  fc.assert(
    fc.property(fc.constantFrom(...counts), fc.array(step, { maxLength: 12 }), (count, steps) => {
      let bits = new SparseBits(count);
      const model = new Uint8Array(count);
      for (const { kind, from, length, byte } of steps) {
        const first = Math.floor(from * count);
        const end = Math.min(count, first + Math.ceil(length * (count - first)));
        if (kind === 'all') {
          bits.clear();
          model.fill(0);
        } else if (kind === 'copy') bits = bits.copy();
        else if (kind === 'write') {
          const bytes = new Uint8Array(Math.ceil(end / 8) - Math.floor(first / 8)).fill(byte);
          const at = Math.floor(first / 8);
          bits.write(at, bytes);
          for (let bit = at * 8; bit < Math.min(count, (at + bytes.length) * 8); bit++)
            model[bit] = (byte >> (bit & 7)) & 1;
        } else {
          bits.fill(first, end, kind === 'set');
          model.fill(kind === 'set' ? 1 : 0, first, end);
        }
        const total = model.reduce((sum, bit) => sum + bit, 0);
        if (bits.total !== total) return false;
        for (const at of [0, first, end]) {
          for (const set of [true, false]) {
            const found = model.indexOf(set ? 1 : 0, at);
            if (bits.find(at, set) !== (found === -1 ? count : found)) return false;
          }
        }
      }
      const bytes = bytesOf(bits);
      return model.every((bit, at) => (bytes[at >> 3]! >> (at & 7)) % 2 === bit && bits.has(at) === (bit === 1));
    }),
    { numRuns: 60 },
  );
  t.pass();
});

test('Q13 a longer copy has the same bits and no others, a shorter one what is left of them', (t) => {
  for (const count of [5, 8, 13, PIECE, PIECE + 3]) {
    const bits = new SparseBits(count);
    bits.fill(0, count, true);
    for (const other of [count + 1, count + 9, count + PIECE, 2 * count]) {
      const longer = bits.copy(other);
      t.is(longer.total, count, `${count} of ${other}`);
      t.is(longer.find(0, false), count);
      t.is(longer.copy(count).total, count);
    }
    t.is(bits.copy(count - 1).total, count - 1);
  }
});

test('Q13 the bits that a bitmap of QEMU’s largest size may have take no more memory than they may', (t) => {
  const count = 512 * 2 ** 23;
  const bits = new SparseBits(count);
  bits.fill(0, count, true);
  t.is(bits.total, count);
  bits.clear();
  const before = process.memoryUsage().arrayBuffers;
  // One bit in each piece, and then some: more pieces than there is memory for.
  const pieces = count / PIECE;
  for (let piece = 0; piece < pieces; piece++) bits.fill(piece * PIECE + 77, piece * PIECE + 78, true);
  t.true(process.memoryUsage().arrayBuffers - before < 2 * MAX_HELD_BYTES);
  for (let piece = 0; piece < pieces; piece++) t.true(bits.has(piece * PIECE + 77));
  const held = MAX_HELD_BYTES / 65_536;
  t.false(bits.has(76), 'exact as long as there is memory');
  t.false(bits.has((held - 1) * PIECE + 76));
  t.true(bits.has(held * PIECE + 76), 'then whole pieces are set: nothing that was changed is missed');
  t.is(bits.find(held * PIECE, false), count);
});
