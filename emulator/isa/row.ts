import type { Emitter } from './emitter.ts';

/** How operands sit in the word; decides how a slot is filled and what the disassembler prints. */
export const FORMATS = [
  'R',
  'I',
  'S',
  'B',
  'U',
  'J',
  'SHIFT',
  'SHIFTW',
  'R2',
  'LOAD',
  'SYS',
  'AMO',
  'F',
  'F2',
  'F4',
  'FLOAD',
  'FSTORE',
  'NONE',
] as const;
export type Format = (typeof FORMATS)[number];

/** Register file and role of the operands of a floating-point row: x integer, f floating point. */
export type FpOperands = 'fff' | 'ff' | 'xff' | 'xf' | 'fx' | 'ffff';

/** One instruction: encoding, operands, semantics. The disassembly follows from format and name. */
export interface Row {
  readonly name: string;
  /** A word is this instruction where `(word & mask) === match` */
  readonly mask: number;
  readonly match: number;
  readonly format: Format;
  /** As in the ISA string: I M A F D Zba … */
  readonly extension: string;
  /** Has a 16-bit form that expands to it */
  readonly compressed?: boolean;
  readonly operands?: FpOperands;
  readonly emit: (e: Emitter) => void;
}

export type Emit = Row['emit'];
const MASK_R = 0xfe00_707f;
const u = (value: number): number => value >>> 0;

type Extra = { compressed?: true };
const make = (name: string, mask: number, match: number, format: Format, extension: string, emit: Emit, extra: Partial<Row> = {}): Row => ({
  name, mask: u(mask), match: u(match), format, extension, emit, ...extra,
}); // biome-ignore format: one call

/** Register-register: opcode, funct3, funct7 */
export const r = (name: string, ext: string, op: number, f3: number, f7: number, emit: Emit, extra: Extra = {}): Row =>
  make(name, MASK_R, op | (f3 << 12) | (f7 << 25), 'R', ext, emit, extra);
/** Register-immediate of 12 bits */
export const i = (
  name: string,
  ext: string,
  op: number,
  f3: number,
  emit: Emit,
  extra: Extra & { format?: Format } = {},
): Row =>
  make(name, 0x707f, op | (f3 << 12), extra.format ?? 'I', ext, emit, extra.compressed ? { compressed: true } : {});
/** Shift by a 6-bit amount; `f6` is the top 6 bits */
export const shift = (
  name: string,
  ext: string,
  op: number,
  f3: number,
  f6: number,
  emit: Emit,
  extra: Extra = {},
): Row => make(name, 0xfc00_707f, op | (f3 << 12) | (f6 << 26), 'SHIFT', ext, emit, extra);
/** Shift of a word by a 5-bit amount */
export const shiftw = (
  name: string,
  ext: string,
  op: number,
  f3: number,
  f7: number,
  emit: Emit,
  extra: Extra = {},
): Row => make(name, MASK_R, op | (f3 << 12) | (f7 << 25), 'SHIFTW', ext, emit, extra);
/** One source register; rs2 field is part of the opcode */
export const r2 = (name: string, ext: string, op: number, f3: number, f12: number, emit: Emit): Row =>
  make(name, 0xfff0_707f, op | (f3 << 12) | (f12 << 20), 'R2', ext, emit);
export const s = (name: string, ext: string, op: number, f3: number, emit: Emit, extra: Extra = {}): Row =>
  make(name, 0x707f, op | (f3 << 12), 'S', ext, emit, extra);
export const b = (name: string, f3: number, emit: Emit, extra: Extra = {}): Row =>
  make(name, 0x707f, 0x63 | (f3 << 12), 'B', 'I', emit, extra);
export const upper = (name: string, op: number, emit: Emit, extra: Extra = {}): Row =>
  make(name, 0x7f, op, 'U', 'I', emit, extra);
export const jump = (name: string, op: number, emit: Emit): Row =>
  make(name, 0x7f, op, 'J', 'I', emit, { compressed: true });
/** All bits given */
export const exact = (
  name: string,
  ext: string,
  match: number,
  mask: number,
  format: Format,
  emit: Emit,
  extra: Extra = {},
): Row => make(name, mask, match, format, ext, emit, extra);
export const amo = (name: string, f5: number, width: 2 | 3, emit: Emit): Row =>
  make(name, f5 === 2 ? 0xf9f0_707f : 0xf800_707f, 0x2f | (width << 12) | (f5 << 27), 'AMO', 'A', emit);
/** Floating point with a rounding mode in funct3 */
export const fr = (name: string, ext: string, f7: number, operands: FpOperands, emit: Emit): Row =>
  make(name, 0xfe00_007f, 0x53 | (f7 << 25), 'F', ext, emit, { operands });
/** Floating point with funct3 fixed */
export const fx = (name: string, ext: string, f7: number, f3: number, operands: FpOperands, emit: Emit): Row =>
  make(name, MASK_R, 0x53 | (f3 << 12) | (f7 << 25), 'F', ext, emit, { operands });
/** One source; rs2 field is part of the opcode, rounding mode in funct3 */
export const f2r = (name: string, ext: string, f7: number, rs2: number, operands: FpOperands, emit: Emit): Row =>
  make(name, 0xfff0_007f, 0x53 | (rs2 << 20) | (f7 << 25), 'F2', ext, emit, { operands });
/** One source, funct3 fixed */
export const f2x = (
  name: string,
  ext: string,
  f7: number,
  rs2: number,
  f3: number,
  operands: FpOperands,
  emit: Emit,
): Row => make(name, 0xfff0_707f, 0x53 | (f3 << 12) | (rs2 << 20) | (f7 << 25), 'F2', ext, emit, { operands });
export const f4 = (name: string, ext: string, op: number, fmt: number, emit: Emit): Row =>
  make(name, 0x0600_007f, op | (fmt << 25), 'F4', ext, emit, { operands: 'ffff' });
