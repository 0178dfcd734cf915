// Hart fields as typed accessors: the kernel reads like the specification.
import { HART } from './hart';

// @ts-ignore: decorator
@inline
export function get64(offset: u32): u64 {
  return load<u64>(HART + offset);
}
// @ts-ignore: decorator
@inline
export function set64(offset: u32, value: u64): void {
  store<u64>(HART + offset, value);
}
// @ts-ignore: decorator
@inline
export function get32(offset: u32): u32 {
  return load<u32>(HART + offset);
}
// @ts-ignore: decorator
@inline
export function set32(offset: u32, value: u32): void {
  store<u32>(HART + offset, value);
}
// @ts-ignore: decorator
@inline
export function getX(index: u32): u64 {
  return index == 0 ? 0 : load<u64>(HART + (index << 3));
}
// @ts-ignore: decorator
@inline
export function setX(index: u32, value: u64): void {
  if (index != 0) store<u64>(HART + (index << 3), value);
}

/** Adds one to a COUNT_ word */
// @ts-ignore: decorator
@inline
export function count(offset: u32): void {
  store<u64>(HART + offset, load<u64>(HART + offset) + 1);
}

// mstatus (privileged specification, "Machine Status")
export const SIE: u64 = 1 << 1;
export const MIE: u64 = 1 << 3;
export const SPIE: u64 = 1 << 5;
export const MPIE: u64 = 1 << 7;
export const SPP: u64 = 1 << 8;
export const MPP: u64 = 3 << 11;
export const FS: u64 = 3 << 13;
export const MPRV: u64 = 1 << 17;
export const SUM: u64 = 1 << 18;
export const MXR: u64 = 1 << 19;
export const TVM: u64 = 1 << 20;
export const TW: u64 = 1 << 21;
export const TSR: u64 = 1 << 22;
export const UXL_SXL: u64 = 0xa00000000;

export const PRIV_U: u32 = 0;
export const PRIV_S: u32 = 1;
export const PRIV_M: u32 = 3;

export const MENVCFG_FIOM: u64 = 1;
export const ENVCFG_CBIE: u64 = 3 << 4;
export const ENVCFG_CBCFE: u64 = 1 << 6;
export const ENVCFG_CBZE: u64 = 1 << 7;
export const MENVCFG_ADUE: u64 = 1 << 61;
export const MENVCFG_PBMTE: u64 = 1 << 62;
export const MENVCFG_STCE: u64 = 1 << 63;
