export { expandCompressed } from './compressed.ts';
export { disassemble } from './disassemble.ts';
export type { Emitter } from './emitter.ts';
export { encode, type Operands } from './encode.ts';
export { FORMATS, type Format, type FpOperands, type Row } from './row.ts';
export { buildDecodeTables, findInstruction, INSTRUCTIONS } from './table.ts';
