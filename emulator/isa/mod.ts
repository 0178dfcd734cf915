export { expandCompressed } from './compressed.ts';
export type { Emitter } from './emitter.ts';
export { FORMATS, type Format, type FpOperands, type Row } from './row.ts';
export { buildDecodeTables, findInstruction, INSTRUCTIONS } from './table.ts';
