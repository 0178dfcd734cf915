import { expandCompressed } from './compressed.ts';
import type { Row } from './row.ts';
import { findInstruction } from './table.ts';

/** Registers by their names in the ABI (RISC-V ELF psABI, "Register Convention") */
export const X_NAMES = [
  'zero', 'ra', 'sp', 'gp', 'tp', 't0', 't1', 't2', 's0', 's1', 'a0', 'a1', 'a2', 'a3', 'a4', 'a5',
  'a6', 'a7', 's2', 's3', 's4', 's5', 's6', 's7', 's8', 's9', 's10', 's11', 't3', 't4', 't5', 't6',
] as const; // biome-ignore format: a table
export const F_NAMES = [
  'ft0', 'ft1', 'ft2', 'ft3', 'ft4', 'ft5', 'ft6', 'ft7', 'fs0', 'fs1', 'fa0', 'fa1', 'fa2', 'fa3', 'fa4', 'fa5',
  'fa6', 'fa7', 'fs2', 'fs3', 'fs4', 'fs5', 'fs6', 'fs7', 'fs8', 'fs9', 'fs10', 'fs11', 'ft8', 'ft9', 'ft10', 'ft11',
] as const; // biome-ignore format: a table
const ROUNDING = ['rne', 'rtz', 'rdn', 'rup', 'rmm', undefined, undefined, 'dyn'] as const;
const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/**
 * Text of the instruction that `word` begins with: a 16-bit form is shown as what it stands for, after `c:`.
 * Names are the table's, registers the ABI's; branch targets are addresses where `pc` is given. Words that are no
 * instruction give `.half` or `.word`.
 */
export function disassemble(word: number, pc = 0n): string {
  if ((word & 3) !== 3) {
    const expansion = expandCompressed(word & 0xffff);
    return expansion === 0 ? `.half ${hex(word & 0xffff)}` : `c: ${disassemble(expansion, pc)}`;
  }
  const row = findInstruction(word);
  return row === undefined ? `.word ${hex(word >>> 0)}` : `${row.name} ${operandsOf(row, word, pc)}`.trimEnd();
}

function operandsOf(row: Row, word: number, pc: bigint): string {
  const rd = (word >>> 7) & 31;
  const rs1 = (word >>> 15) & 31;
  const rs2 = (word >>> 20) & 31;
  const x = (register: number): string => X_NAMES[register]!;
  const target = (offset: number): string => hex(BigInt.asUintN(64, pc + BigInt(offset)));
  const floats = row.extension === 'F' || row.extension === 'D';
  switch (row.format) {
    case 'R':
      return `${x(rd)},${x(rs1)},${x(rs2)}`;
    case 'R2':
      return `${x(rd)},${x(rs1)}`;
    case 'I':
      return row.name === 'jalr' ? `${x(rd)},${word >> 20}(${x(rs1)})` : `${x(rd)},${x(rs1)},${word >> 20}`;
    case 'SHIFT':
      return `${x(rd)},${x(rs1)},${hex((word >>> 20) & 63)}`;
    case 'SHIFTW':
      return `${x(rd)},${x(rs1)},${hex(rs2)}`;
    case 'LOAD':
      return `${x(rd)},${word >> 20}(${x(rs1)})`;
    case 'FLOAD':
      return `${F_NAMES[rd]},${word >> 20}(${x(rs1)})`;
    case 'S':
    case 'FSTORE':
      return `${floats ? F_NAMES[rs2] : x(rs2)},${((word >> 25) << 5) | rd}(${x(rs1)})`;
    case 'B':
      return `${x(rs1)},${x(rs2)},${target(branchOffset(word))}`;
    case 'U':
      return `${x(rd)},${hex(word >>> 12)}`;
    case 'J':
      return `${x(rd)},${target(jumpOffset(word))}`;
    case 'AMO':
      return row.name.startsWith('lr.') ? `${x(rd)},(${x(rs1)})` : `${x(rd)},${x(rs2)},(${x(rs1)})`;
    case 'SYS':
      return systemOperands(row, word, x);
    case 'NONE':
      return '';
    default:
      return floatOperands(row, word);
  }
}

function systemOperands(row: Row, word: number, x: (register: number) => string): string {
  const rs1 = (word >>> 15) & 31;
  if (row.extension === 'Zicsr') {
    const source = row.name.endsWith('i') ? String(rs1) : x(rs1);
    return `${x((word >>> 7) & 31)},${hex(word >>> 20)},${source}`;
  }
  if (row.name.endsWith('.vma')) return `${x(rs1)},${x((word >>> 20) & 31)}`;
  return row.name.startsWith('cbo.') ? `(${x(rs1)})` : '';
}

/** Registers by the file that each operand is in, then the rounding mode where it is not the dynamic one. */
function floatOperands(row: Row, word: number): string {
  const shifts = [7, 15, 20, 27];
  const names = [...(row.operands ?? '')].map((file, index): string => {
    const register = (word >>> shifts[index]!) & 31;
    return file === 'x' ? X_NAMES[register]! : F_NAMES[register]!;
  });
  const mode = (word >>> 12) & 7;
  if ((row.mask & 0x7000) === 0 && mode !== 7) names.push(ROUNDING[mode] ?? `rm${mode}`);
  return names.join(',');
}

const branchOffset = (word: number): number =>
  ((word >> 31) << 12) | (((word >>> 7) & 1) << 11) | (((word >>> 25) & 63) << 5) | (((word >>> 8) & 15) << 1);
const jumpOffset = (word: number): number =>
  ((word >> 31) << 20) | (word & 0xf_f000) | (((word >>> 20) & 1) << 11) | (((word >>> 21) & 1023) << 1);
