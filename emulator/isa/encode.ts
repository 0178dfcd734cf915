import type { Format } from './row.ts';
import { INSTRUCTIONS } from './table.ts';

/** Operands of one instruction; those that its format does not have are ignored, those left out are 0. */
export interface Operands {
  readonly rd?: number;
  readonly rs1?: number;
  readonly rs2?: number;
  readonly rs3?: number;
  /** Immediate in `bytes` for branches and jumps, the upper value in full for `lui` and `auipc`, else as written */
  readonly imm?: number;
  /** CSR number; `rs1` is then the register or the 5-bit immediate */
  readonly csr?: number;
  /** Rounding mode where the instruction has one; 7, dynamic, if left out */
  readonly rm?: number;
}

const BY_NAME = new Map(INSTRUCTIONS.map((row) => [row.name, row]));
/** Inclusive limits of the immediate by format; those not listed have none */
const IMMEDIATE_LIMITS: Partial<Record<Format, readonly [number, number]>> = {
  I: [-2048, 2047],
  LOAD: [-2048, 2047],
  FLOAD: [-2048, 2047],
  S: [-2048, 2047],
  FSTORE: [-2048, 2047],
  B: [-4096, 4094],
  J: [-1048576, 1048574],
  U: [-0x8000_0000, 0x7fff_f000],
  SHIFT: [0, 63],
  SHIFTW: [0, 31],
};

/**
 * The word of an instruction of the table, for tests and tools.
 * @throws RangeError where the name is unknown, a register is none, or the immediate does not fit
 */
export function encode(name: string, operands: Operands = {}): number {
  const row = BY_NAME.get(name);
  if (row === undefined) throw new RangeError(`Cannot encode ${name}: no such instruction`);
  const { rd = 0, rs1 = 0, rs2 = 0, rs3 = 0, imm = 0, csr = 0, rm = 7 } = operands;
  for (const register of [rd, rs1, rs2, rs3]) {
    if (!Number.isInteger(register) || register < 0 || register > 31) {
      throw new RangeError(`Cannot encode ${name}: register ${register}, expected 0..31`);
    }
  }
  const limits = IMMEDIATE_LIMITS[row.format];
  if (limits !== undefined && !(Number.isInteger(imm) && imm >= limits[0] && imm <= limits[1])) {
    throw new RangeError(`Cannot encode ${name}: immediate ${imm}, expected ${limits[0]}..${limits[1]}`);
  }
  if ((row.format === 'B' || row.format === 'J') && imm % 2 !== 0) {
    throw new RangeError(`Cannot encode ${name}: offset ${imm} is odd`);
  }
  const bits = fields(row.format, { rd, rs1, rs2, rs3, csr, imm, rm });
  return (row.match | (bits & ~row.mask)) >>> 0;
}

/** Operand bits of the word; a field that belongs to the opcode is masked out by the caller. */
function fields(format: Format, { rd, rs1, rs2, rs3, csr, imm, rm }: Required<Operands>): number {
  const destination = rd << 7;
  const source = rs1 << 15;
  const second = rs2 << 20;
  switch (format) {
    case 'I':
    case 'LOAD':
    case 'FLOAD':
      return destination | source | (imm << 20);
    case 'SHIFT':
    case 'SHIFTW':
      return destination | source | (imm << 20);
    case 'SYS':
      return destination | source | second | (csr << 20);
    case 'S':
    case 'FSTORE':
      return ((imm & 31) << 7) | source | second | ((imm >> 5) << 25);
    case 'B':
      return source | second | branchBits(imm);
    case 'U':
      return destination | (imm & ~0xfff);
    case 'J':
      return destination | jumpBits(imm);
    case 'R2':
      return destination | source;
    case 'R':
    case 'AMO':
      return destination | source | second;
    case 'F2':
      return destination | source | (rm << 12);
    case 'F':
      return destination | source | second | (rm << 12);
    case 'F4':
      return destination | source | second | (rs3 << 27) | (rm << 12);
    case 'NONE':
      return 0;
  }
}

const branchBits = (imm: number): number =>
  (((imm >> 11) & 1) << 7) | (((imm >> 1) & 15) << 8) | (((imm >> 5) & 63) << 25) | (((imm >> 12) & 1) << 31);
const jumpBits = (imm: number): number =>
  (((imm >> 12) & 255) << 12) | (((imm >> 11) & 1) << 20) | (((imm >> 1) & 1023) << 21) | (((imm >> 20) & 1) << 31);
