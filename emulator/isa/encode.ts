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
  const fields =
    (rd << 7) | (rs1 << 15) | (rs2 << 20) | (rs3 << 27) | ((rm & 7) << 12) | immediateBits(row.format, imm, csr);
  return ((row.match | (fields & operandMask(row.format) & ~row.mask)) >>> 0) as number;
}

const RD = 0xf80;
const RS1 = 0xf_8000;
const RS2 = 0x1f0_0000;
const RM = 0x7000;
const HIGH12 = 0xfff0_0000 | 0;

/** Bits of the word that operands of a format may set */
function operandMask(format: Format): number {
  switch (format) {
    case 'I':
    case 'LOAD':
    case 'FLOAD':
    case 'SYS':
      return RD | RS1 | HIGH12;
    case 'S':
    case 'FSTORE':
    case 'B':
      return RD | RS1 | RS2 | (0xfe00_0000 | 0);
    case 'U':
    case 'J':
      return RD | (0xffff_f000 | 0);
    case 'SHIFT':
    case 'SHIFTW':
      return RD | RS1 | 0x3f0_0000;
    case 'R2':
      return RD | RS1;
    case 'F2':
      return RD | RS1 | RM;
    case 'F':
      return RD | RS1 | RS2 | RM;
    case 'F4':
      return RD | RS1 | RS2 | RM | (0xf800_0000 | 0);
    case 'NONE':
      return 0;
    default:
      return RD | RS1 | RS2;
  }
}

function immediateBits(format: Format, imm: number, csr: number): number {
  switch (format) {
    case 'I':
    case 'LOAD':
    case 'FLOAD':
      return imm << 20;
    case 'SYS':
      return csr << 20;
    case 'SHIFT':
    case 'SHIFTW':
      return imm << 20;
    case 'S':
    case 'FSTORE':
      return ((imm & 31) << 7) | ((imm >> 5) << 25);
    case 'B':
      return (
        (((imm >> 11) & 1) << 7) | (((imm >> 1) & 15) << 8) | (((imm >> 5) & 63) << 25) | (((imm >> 12) & 1) << 31)
      );
    case 'U':
      return imm & (0xffff_f000 | 0);
    case 'J':
      return (
        (((imm >> 12) & 255) << 12) |
        (((imm >> 11) & 1) << 20) |
        (((imm >> 1) & 1023) << 21) |
        (((imm >> 20) & 1) << 31)
      );
    default:
      return 0;
  }
}
