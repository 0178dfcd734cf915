export { type CreateVhdOptions, createVhd, emptyVhd, vhdDiskBytes } from './create.ts';
export { inspectVhd, openVhd, openVhdFile, type VhdDetails, type VhdMap } from './open.ts';
