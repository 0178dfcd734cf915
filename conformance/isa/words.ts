// Words of an instruction: its fixed bits, and everything else at random within what the specification allows.
import { findInstruction, INSTRUCTIONS, type Row } from '../../emulator/isa/mod.ts';
import { branchOffset, jumpOffset } from './assembler.ts';
import type { Random } from './random.ts';

const ROUNDING_MODES = [0, 1, 2, 3, 4, 7] as const;
const isFloat = (word: number) => (word & 0x7f) === 0x53 || (word & 0x73) === 0x43;
const hasRoundingMode = (row: Row) => isFloat(row.match) && (row.mask & 0x7000) === 0;

/** Mostly near; sometimes far, and the furthest there is (for jal, less what the harness's own jal adds to go back) */
function distance(random: Random, reach: number, rarelyFar: number): number {
  const back = reach > 4096 ? reach - 32 : reach;
  if (random.once(rarelyFar)) return random.pick([reach - 2, reach - 4, -back, 2 - back]);
  const limit = random.once(16) ? Math.min(reach, 4096) : 64;
  const size = 16 + 2 * random.below((limit - 16) >> 1);
  return random.once(2) ? size : -size;
}

export function randomWord(row: Row, random: Random): number {
  const opcode = row.match & 0x7f;
  const free = (random.u32() & ~row.mask) >>> 0;
  if (opcode === 0x63) return (row.match | (free & 0x01ff_8000) | branchOffset(distance(random, 4096, 128))) >>> 0;
  if (opcode === 0x6f) return (row.match | (free & 0xf80) | jumpOffset(distance(random, 1 << 20, 256))) >>> 0;
  if (hasRoundingMode(row)) {
    return (row.match | (free & ~0x7000) | (random.pick(ROUNDING_MODES) << 12)) >>> 0;
  }
  return (row.match | free) >>> 0;
}

/** Illegal by the table, or for a reserved rounding mode in the word */
function isIllegal(word: number): boolean {
  const row = findInstruction(word);
  if (row === undefined) return true;
  const rm = (word >>> 12) & 7;
  return hasRoundingMode(row) && (rm === 5 || rm === 6);
}

/** Whole-register loads and stores of vectors, which QEMU 7.2 runs even with v=false */
const isWholeVectorAccess = (word: number): boolean => (word & 0x5f) === 0x07 && ((word >>> 20) & 0x1ff) === 0x028;

/** 32 bits that are no instruction of ours: a legal word with one bit changed, or any bits */
export function randomIllegalWord(random: Random): number {
  for (;;) {
    const row = random.pick(INSTRUCTIONS);
    const near = (row.match | (random.u32() & ~row.mask)) ^ (1 << random.below(32));
    const word = (random.once(4) ? random.u32() | 3 : near) >>> 0;
    const is32 = (word & 3) === 3 && (word & 0x1f) !== 0x1f;
    if (is32 && isIllegal(word) && !isWholeVectorAccess(word)) return word;
  }
}

/** A word of the row that rounds by frm; undefined if it does not round */
export function randomDynamicRounding(row: Row, random: Random): number | undefined {
  return hasRoundingMode(row) ? (randomWord(row, random) | 0x7000) >>> 0 : undefined;
}
