// Which registers and memory an instruction word uses, read from its bits alone and not from the table under test.

/** Bytes that a memory operand covers and whether it must be aligned */
export interface MemoryOperand {
  readonly bytes: number;
  readonly aligned: boolean;
}

export interface Operands {
  readonly rd: { readonly file: 'x' | 'f'; readonly index: number } | undefined;
  readonly xSources: readonly number[];
  /** With whether the register is read as a single */
  readonly fSources: readonly { readonly index: number; readonly single: boolean }[];
  /** Address is x[rs1] + offset */
  readonly memory: (MemoryOperand & { readonly rs1: number; readonly offset: number }) | undefined;
}

export const fieldOf = (word: number, from: number, width: number): number => (word >>> from) & ((1 << width) - 1);
export const rdOf = (word: number): number => fieldOf(word, 7, 5);
export const rs1Of = (word: number): number => fieldOf(word, 15, 5);
export const rs2Of = (word: number): number => fieldOf(word, 20, 5);
const funct3Of = (word: number): number => fieldOf(word, 12, 3);
const offsetI = (word: number): number => (word | 0) >> 20;
const offsetS = (word: number): number => (((word | 0) >> 25) << 5) | rdOf(word);

export const branchOffsetOf = (word: number): number =>
  (((word | 0) >> 31) << 12) | (fieldOf(word, 7, 1) << 11) | (fieldOf(word, 25, 6) << 5) | (fieldOf(word, 8, 4) << 1);
export const jumpOffsetOf = (word: number): number =>
  (((word | 0) >> 31) << 20) |
  (fieldOf(word, 12, 8) << 12) |
  (fieldOf(word, 20, 1) << 11) |
  (fieldOf(word, 21, 10) << 1);

const NOTHING: Operands = { rd: undefined, xSources: [], fSources: [], memory: undefined };

/** Operands of a 32-bit word, or of a 16-bit word's expansion. Jumps have their registers here, not their targets. */
export function operandsOf(word: number): Operands {
  const x = { file: 'x', index: rdOf(word) } as const;
  const f = { file: 'f', index: rdOf(word) } as const;
  const rs1 = rs1Of(word);
  const rs2 = rs2Of(word);
  const access = (bytes: number, offset: number, aligned = false) => ({ rs1, offset, bytes, aligned });
  const size = 1 << (funct3Of(word) & 3);
  switch (word & 0x7f) {
    case 0x33: // OP
    case 0x3b: // OP-32
      return { ...NOTHING, rd: x, xSources: [rs1, rs2] };
    case 0x13: // OP-IMM
    case 0x1b: // OP-IMM-32
    case 0x67: // JALR
      return { ...NOTHING, rd: x, xSources: [rs1] };
    case 0x37: // LUI
    case 0x17: // AUIPC
    case 0x6f: // JAL
      return { ...NOTHING, rd: x };
    case 0x63: // BRANCH
      return { ...NOTHING, xSources: [rs1, rs2] };
    case 0x03: // LOAD
      return { ...NOTHING, rd: x, memory: access(size, offsetI(word)) };
    case 0x23: // STORE
      return { ...NOTHING, xSources: [rs2], memory: access(size, offsetS(word)) };
    case 0x07: // LOAD-FP
      return { ...NOTHING, rd: f, memory: access(size, offsetI(word)) };
    case 0x27: // STORE-FP
      return { ...NOTHING, fSources: [{ index: rs2, single: size === 4 }], memory: access(size, offsetS(word)) };
    case 0x2f: // AMO
      return { ...NOTHING, rd: x, xSources: [rs2], memory: access(size, 0, true) };
    case 0x73: // SYSTEM: Zicsr with a register
      return { ...NOTHING, rd: x, xSources: funct3Of(word) < 4 ? [rs1] : [] };
    case 0x43:
    case 0x47:
    case 0x4b:
    case 0x4f: {
      const single = fieldOf(word, 25, 2) === 0;
      const fSources = [rs1, rs2, word >>> 27].map((index) => ({ index, single }));
      return { ...NOTHING, rd: f, fSources };
    }
    case 0x53:
      return floatOperands(word);
    default:
      return NOTHING;
  }
}

function floatOperands(word: number): Operands {
  const x = { file: 'x', index: rdOf(word) } as const;
  const f = { file: 'f', index: rdOf(word) } as const;
  const single = fieldOf(word, 25, 2) === 0;
  const rs1 = rs1Of(word);
  switch (word >>> 27) {
    case 0x08: // FCVT.S.D, FCVT.D.S: the rs2 field names the source's format
      return { ...NOTHING, rd: f, fSources: [{ index: rs1, single: rs2Of(word) === 0 }] };
    case 0x0b: // FSQRT
      return { ...NOTHING, rd: f, fSources: [{ index: rs1, single }] };
    case 0x14: // FEQ, FLT, FLE
      return { ...NOTHING, rd: x, fSources: [rs1, rs2Of(word)].map((index) => ({ index, single })) };
    case 0x18: // FCVT to an integer
    case 0x1c: // FMV.X, FCLASS
      return { ...NOTHING, rd: x, fSources: [{ index: rs1, single }] };
    case 0x1a: // FCVT from an integer
    case 0x1e: // FMV from X
      return { ...NOTHING, rd: f, xSources: [rs1] };
    default:
      return { ...NOTHING, rd: f, fSources: [rs1, rs2Of(word)].map((index) => ({ index, single })) };
  }
}
