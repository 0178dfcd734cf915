export { FDT_LIMITS, FDT_MAGIC } from './constants.ts';
export { decodeFdt } from './decode.ts';
export { encodeFdt } from './encode.ts';
export { type Fdt, FdtNode, type FdtReservation, split64 } from './tree.ts';
