import test from 'ava';
import fc from 'fast-check';
import { expandCompressed, findInstruction, INSTRUCTIONS, type Row } from '../../../emulator/isa/mod.ts';
import { buildDecodeTables, DECODE_BUCKETS, DECODE_ENTRY_BYTES, handlerOf } from '../../../emulator/isa/table.ts';

const hex = (word: number): string => `0x${(word >>> 0).toString(16).padStart(8, '0')}`;
const isRow = (row: Row, word: number): boolean => (word & row.mask) >>> 0 === row.match;
const bucketOf = (word: number): number => ((word >>> 2) & 31) | (((word >>> 12) & 7) << 5);
const tables = buildDecodeTables();
const buckets = new DataView(tables.buckets.buffer);
const entries = new DataView(tables.entries.buffer, tables.entries.byteOffset);

/** As the kernel's fillSlot searches; 0 where the word is illegal */
function decode(word: number): number {
  const bucket = bucketOf(word) * 4;
  const first = buckets.getUint16(bucket, true);
  const count = buckets.getUint16(bucket + 2, true);
  for (let entry = first; entry < first + count; entry++) {
    const at = entry * DECODE_ENTRY_BYTES;
    if ((word & entries.getUint32(at, true)) >>> 0 === entries.getUint32(at + 4, true)) {
      return entries.getUint16(at + 8, true);
    }
  }
  return 0;
}

test('No two rows of the table can match one word', (t) => {
  for (const [index, a] of INSTRUCTIONS.entries()) {
    for (const b of INSTRUCTIONS.slice(index + 1)) {
      // Two patterns share a word exactly where they agree on the bits that both look at
      const common = a.mask & b.mask;
      t.not((a.match & common) >>> 0, (b.match & common) >>> 0, `${a.name} and ${b.name}`);
    }
  }
});

test('Every row is a 32-bit encoding, matches itself and asks for no bit outside its mask', (t) => {
  const names = new Set<string>();
  for (const row of INSTRUCTIONS) {
    t.is(row.mask & 0x7f, 0x7f, row.name);
    t.is(row.match & 3, 3, row.name);
    t.is((row.match & ~row.mask) >>> 0, 0, row.name);
    t.false(names.has(row.name), `${row.name} is there twice`);
    names.add(row.name);
  }
});

test('The decode tables find what the table has, for structured words', (t) => {
  // All opcode, funct3 and funct7 values, with the register fields that some rows look at
  let compared = 0;
  for (let bucket = 0; bucket < DECODE_BUCKETS; bucket++) {
    for (let funct7 = 0; funct7 < 128; funct7++) {
      for (const [rs2, rs1, rd] of [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 5, 7], [5, 31, 31], [24, 1, 0]] as const) {
        const word =
          (((bucket & 31) << 2) | 3 | ((bucket >> 5) << 12) | (funct7 << 25) | (rs2 << 20) | (rs1 << 15) | (rd << 7)) >>>
          0;
        const row = INSTRUCTIONS.findIndex((candidate) => isRow(candidate, word));
        if (decode(word) !== (row < 0 ? 0 : handlerOf(row, false))) t.fail(hex(word));
        compared++;
      }
    }
  }
  t.is(compared, 196_608);
}); // biome-ignore format: short rows

test('The decode tables find what the table has, for random words', (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 0x3fff_ffff }), (high) => {
      const word = ((high << 2) | 3) >>> 0;
      const row = findInstruction(word);
      return decode(word) === (row === undefined ? 0 : handlerOf(INSTRUCTIONS.indexOf(row), false));
    }),
    { numRuns: 20_000, seed: 1 },
  );
  t.pass();
});

test('Every 16-bit word is illegal or expands to a row that says it has a 16-bit form', (t) => {
  const used = new Set<string>();
  let illegal = 0;
  for (let word = 0; word < 0x1_0000; word++) {
    if ((word & 3) === 3) continue;
    const expansion = expandCompressed(word);
    t.is(tables.compressed[word], expansion);
    if (expansion === 0) {
      illegal++;
      continue;
    }
    const row = findInstruction(expansion);
    if (row?.compressed !== true) t.fail(`${hex(word)} → ${hex(expansion)}: ${row?.name}`);
    else used.add(row.name);
  }
  t.true(illegal > 0);
  const flagged = INSTRUCTIONS.filter((row) => row.compressed === true).map((row) => row.name);
  t.deepEqual([...used].sort(), flagged.sort(), 'no row claims a 16-bit form that none expands to');
});

const RESERVED_COMPRESSED: readonly (readonly [string, number])[] = [
  ['all zeros', 0x0000],
  ['c.addi4spn with immediate 0', 0x0004],
  ['quadrant 0, funct3 4', 0x8000],
  ['c.addiw to x0', 0x2001],
  ['c.addi16sp by 0', 0x6101],
  ['c.lui by 0', 0x6081],
  ['quadrant 1, c.subw group, funct2 2', 0x9c41],
  ['quadrant 1, c.subw group, funct2 3', 0x9c61],
  ['c.lwsp to x0', 0x4002],
  ['c.ldsp to x0', 0x6002],
  ['c.jr by x0', 0x8002],
];
for (const [name, word] of RESERVED_COMPRESSED) {
  test(`The 16-bit word of ${name} is illegal`, (t) => t.is(expandCompressed(word), 0));
}

const ILLEGAL_WORDS: readonly (readonly [string, number])[] = [
  ['slliw with shamt 32', 0x0205_1513 | 8],
  ['srliw with shamt 32', 0x0205_551b],
  ['slli with a seventh shamt bit', 0x0405_1513],
  ['load of funct3 7', 0x0005_7503],
  ['store of funct3 4', 0x00a5_c023],
  ['branch of funct3 2', 0x00a5_2063],
  ['jalr of funct3 1', 0x0005_1067],
  ['lr with rs2', 0x1015_252f],
  ['AMO of a byte', 0x0005_052f],
  ['AMO of 16 bytes', 0x0005_452f],
  ['mul group with funct7 3', 0x06c5_8533],
  ['half-precision add', 0x04c5_8553],
  ['quad-precision add', 0x06c5_8553],
  ['fsqrt with rs2 1', 0x5815_7553],
  ['fsgnj with funct3 3', 0x20c5_b553],
  ['mret with rd', 0x3020_00f3],
  ['uret', 0x0020_0073],
  ['hret', 0x2020_0073],
  ['sfence.vma with rd', 0x1200_00f3],
  ['ecall with rs1', 0x0000_8073],
  ['CSR of funct3 4', 0x3000_4073],
  ['vector load', 0x0205_7007 | 0],
  ['custom-0', 0x0000_000b],
  ['custom-3', 0x0000_007b],
  ['48-bit prefix', 0x0000_001f],
  ['all ones', 0xffff_ffff],
];
for (const [name, word] of ILLEGAL_WORDS) {
  test(`The word of ${name} is illegal`, (t) => t.is(findInstruction(word)?.name, undefined, hex(word)));
}
