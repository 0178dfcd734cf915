import { expandAllCompressed } from './compressed.ts';
import { FORMATS, type Row } from './row.ts';
import { ATOMIC_ROWS } from './rows_atomic.ts';
import { BIT_ROWS } from './rows_bits.ts';
import { FLOAT_ROWS } from './rows_float.ts';
import { BASE_ROWS, MULTIPLY_ROWS } from './rows_integer.ts';
import { SYSTEM_ROWS } from './rows_system.ts';

/** Every 32-bit instruction of the machine, once. Order is not significant: no word matches two rows (tested). */
export const INSTRUCTIONS: readonly Row[] = [
  ...BASE_ROWS,
  ...MULTIPLY_ROWS,
  ...ATOMIC_ROWS,
  ...FLOAT_ROWS,
  ...BIT_ROWS,
  ...SYSTEM_ROWS,
];

/** The row of a 32-bit word, or undefined where it is illegal. Slow: for tools and tests. */
export function findInstruction(word: number): Row | undefined {
  return INSTRUCTIONS.find((row) => (word & row.mask) >>> 0 === row.match);
}

// --- the decoder's tables, as the kernel reads them --------------------------------------------------------------

/** Handler numbers: 0 and 1 are the interpreter's own; each row then has two, the second for its 16-bit form */
export const HANDLER_UNDECODED = 0;
export const HANDLER_PAGE_END = 1;
export const HANDLER_ILLEGAL = 2;
export const HANDLER_FIRST_ROW = 4;

export const handlerOf = (rowIndex: number, compressed: boolean): number =>
  HANDLER_FIRST_ROW + rowIndex * 2 + (compressed ? 1 : 0);

/** Bytes of one entry: u32 mask, u32 match, u16 handler, u16 format */
export const DECODE_ENTRY_BYTES = 12;
/** Buckets by opcode bits 6..2 and funct3: u16 first entry, u16 count */
export const DECODE_BUCKETS = 256;

export interface DecodeTables {
  readonly buckets: Uint8Array;
  readonly entries: Uint8Array;
  readonly compressed: Uint32Array;
}

/** Builds what the kernel's decoder searches: each word's bucket holds the few rows that can match it. */
export function buildDecodeTables(): DecodeTables {
  const buckets = new Uint8Array(DECODE_BUCKETS * 4);
  const bucketView = new DataView(buckets.buffer);
  const entries: { row: Row; handler: number }[] = [];
  // All rows look at the whole opcode
  const byOpcode: { row: Row; handler: number }[][] = Array.from({ length: 32 }, () => []);
  for (const [index, row] of INSTRUCTIONS.entries()) {
    byOpcode[(row.match >>> 2) & 31]!.push({ row, handler: handlerOf(index, false) });
  }
  for (let bucket = 0; bucket < DECODE_BUCKETS; bucket++) {
    const funct3 = (bucket >> 5) << 12;
    const first = entries.length;
    for (const entry of byOpcode[bucket & 31]!) {
      const { mask, match } = entry.row;
      if ((funct3 & mask & 0x7000) === (match & mask & 0x7000)) entries.push(entry);
    }
    bucketView.setUint16(bucket * 4, first, true);
    bucketView.setUint16(bucket * 4 + 2, entries.length - first, true);
  }
  const bytes = new Uint8Array(entries.length * DECODE_ENTRY_BYTES);
  const view = new DataView(bytes.buffer);
  for (const [index, { row, handler }] of entries.entries()) {
    view.setUint32(index * DECODE_ENTRY_BYTES, row.mask, true);
    view.setUint32(index * DECODE_ENTRY_BYTES + 4, row.match, true);
    view.setUint16(index * DECODE_ENTRY_BYTES + 8, handler, true);
    view.setUint16(index * DECODE_ENTRY_BYTES + 10, FORMATS.indexOf(row.format) | (operandCode(row) << 8), true);
  }
  return { buckets, entries: bytes, compressed: expandAllCompressed() };
}

/** Bit 0: rd is an integer register of a floating-point row, so writes to x0 are discarded */
function operandCode(row: Row): number {
  return row.operands?.startsWith('x') === true ? 1 : 0;
}
