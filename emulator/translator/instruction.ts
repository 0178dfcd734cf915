// Guest instructions as the translator sees them: read from the slots that the interpreter decoded, or from words.
import type { Row } from '../isa/row.ts';
import { HANDLER_FIRST_ROW, HANDLER_ILLEGAL, HANDLER_UNDECODED, INSTRUCTIONS } from '../isa/table.ts';
import * as H from '../kernel/assembly/hart_layout.ts';

/** Register files of operands */
export const NONE = 0;
export const X = 1;
export const F = 2;
export type RegisterFile = typeof NONE | typeof X | typeof F;

/** What an instruction does to the flow of control */
export type Flow = 'next' | 'branch' | 'jal' | 'jalr' | 'system';

/** What the translator needs to know of a row beside its semantics */
export interface RowFacts {
  readonly row: Row;
  readonly flow: Flow;
  readonly rd: RegisterFile;
  readonly rs1: RegisterFile;
  readonly rs2: RegisterFile;
  readonly rs3: RegisterFile;
  /** It may be left to the interpreter: a miss of the TLB, a trap, a value that native arithmetic does not serve */
  readonly leaves: boolean;
  readonly loads: boolean;
  readonly floats: boolean;
  /** Its funct3 is a rounding mode */
  readonly rounds: boolean;
}

export interface Instruction {
  readonly facts: RowFacts;
  /** Bytes from the region's base page */
  readonly at: number;
  readonly length: number;
  readonly rd: number;
  readonly rs1: number;
  readonly rs2: number;
  readonly rs3: number;
  /** Sign-extended; every immediate of RV64GC fits 32 bits */
  readonly imm: number;
  /** Rounding mode as encoded */
  readonly rm: number;
}

const file = (letter: string | undefined): RegisterFile => (letter === undefined ? NONE : letter === 'x' ? X : F);

function factsOf(row: Row): RowFacts {
  const { format, name, operands } = row;
  const floats = row.extension === 'F' || row.extension === 'D';
  let [rd, rs1, rs2, rs3]: RegisterFile[] = [NONE, NONE, NONE, NONE];
  switch (format) {
    case 'R':
    case 'AMO':
      [rd, rs1, rs2] = [X, X, X];
      break;
    case 'I':
    case 'SHIFT':
    case 'SHIFTW':
    case 'R2':
    case 'LOAD':
      [rd, rs1] = [X, X];
      break;
    case 'S':
    case 'FSTORE':
      [rs1, rs2] = [X, floats ? F : X];
      break;
    case 'B':
      [rs1, rs2] = [X, X];
      break;
    case 'U':
    case 'J':
      rd = X;
      break;
    case 'FLOAD':
      [rd, rs1] = [F, X];
      break;
    case 'F':
    case 'F2':
    case 'F4':
      [rd, rs1, rs2, rs3] = [file(operands![0]), file(operands![1]), file(operands![2]), file(operands![3])];
      break;
    default:
  }
  const flow: Flow =
    format === 'SYS'
      ? 'system'
      : format === 'B'
        ? 'branch'
        : name === 'jal'
          ? 'jal'
          : name === 'jalr'
            ? 'jalr'
            : 'next';
  const loads = format === 'LOAD' || format === 'FLOAD' || format === 'S' || format === 'FSTORE' || format === 'AMO';
  return {
    row,
    flow,
    rd: rd!,
    rs1: rs1!,
    rs2: rs2!,
    rs3: rs3!,
    leaves: loads || floats,
    loads,
    floats,
    rounds: (format === 'F' || format === 'F2' || format === 'F4') && (row.mask & 0x7000) === 0,
  };
}

const FACTS: readonly RowFacts[] = INSTRUCTIONS.map(factsOf);

/** A slot's instruction; undefined where it is not decoded yet, 'illegal' where it always traps. */
export function readSlot(view: DataView, slot: number, at: number): Instruction | 'illegal' | undefined {
  const handler = view.getUint16(slot, true) & (H.HANDLER_TRANSLATED - 1);
  if (handler === HANDLER_UNDECODED) return undefined;
  if (handler === HANDLER_ILLEGAL) return 'illegal';
  const facts = FACTS[(handler - HANDLER_FIRST_ROW) >> 1];
  if (facts === undefined) return undefined;
  const rd = view.getUint16(slot + H.SLOT_RD, true);
  return {
    facts,
    at,
    length: view.getUint8(slot + H.SLOT_LENGTH),
    rd: rd === H.HART_X_DISCARD ? 0 : rd >> 3,
    rs1: view.getUint8(slot + H.SLOT_RS1) >> 3,
    rs2: view.getUint8(slot + H.SLOT_RS2) >> 3,
    rs3: view.getUint8(slot + H.SLOT_RS3) >> 3,
    imm: facts.rounds ? 0 : view.getInt32(slot + H.SLOT_IMM, true),
    rm: facts.rounds ? view.getUint8(slot + H.SLOT_RM) : 0,
  };
}

/** A 32-bit word's instruction, for one that straddles two pages and so has no slot; undefined where it is illegal. */
export function readWord(word: number, at: number): Instruction | undefined {
  const facts = FACTS.find(({ row }) => (word & row.mask) >>> 0 === row.match);
  if (facts === undefined) return undefined;
  const rm = (word >>> 12) & 7;
  if (facts.rounds && (rm === 5 || rm === 6)) return undefined;
  return {
    facts,
    at,
    length: 4,
    rd: (word >>> 7) & 31,
    rs1: (word >>> 15) & 31,
    rs2: (word >>> 20) & 31,
    rs3: word >>> 27,
    imm: immediate(word | 0, facts.row.format),
    rm: facts.rounds ? rm : 0,
  };
}

function immediate(word: number, format: string): number {
  switch (format) {
    case 'I':
    case 'LOAD':
    case 'FLOAD':
      return word >> 20;
    case 'S':
    case 'FSTORE':
      return ((word >> 25) << 5) | ((word >> 7) & 31);
    case 'B':
      return ((word >> 31) << 12) | (((word >> 7) & 1) << 11) | (((word >> 25) & 63) << 5) | (((word >> 8) & 15) << 1);
    case 'U':
      return word & ~0xfff;
    case 'J':
      return ((word >> 31) << 20) | (word & 0xff000) | (((word >> 20) & 1) << 11) | (((word >> 21) & 1023) << 1);
    case 'NONE':
      return word;
    case 'SHIFT':
      return (word >> 20) & 63;
    case 'SHIFTW':
      return (word >> 20) & 31;
    default:
      return 0;
  }
}
