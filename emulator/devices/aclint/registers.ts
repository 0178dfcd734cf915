// Register map of the SiFive CLINT, which is the ACLINT's MSWI and MTIMER side by side (RISC-V ACLINT 1.0), as byte
// offsets in its window.

/** One word for each hart; bit 0 is MSIP */
export const MSIP_BASE = 0x0;
/** 64 bits for each hart */
export const MTIMECMP_BASE = 0x4000;
/** 64 bits */
export const MTIME = 0xbff8;

/** SETSSIP of the SSWI: one word for each hart, reads 0 */
export const SETSSIP_BASE = 0x0;

/** What a word-sized access of the CLINT means; `high` is the upper half of 64 bits */
export type ClintRegister =
  | { readonly kind: 'msip'; readonly hart: number }
  | { readonly kind: 'mtimecmp'; readonly hart: number; readonly high: boolean }
  | { readonly kind: 'mtime'; readonly high: boolean };

/** Which register is at a word-aligned offset, or undefined where there is none. */
export function clintRegister(offset: number, harts: number): ClintRegister | undefined {
  const high = (offset & 4) !== 0;
  if (offset >= MTIME) return offset < MTIME + 8 ? { kind: 'mtime', high } : undefined;
  if (offset >= MTIMECMP_BASE) {
    const hart = (offset - MTIMECMP_BASE) >>> 3;
    return hart < harts ? { kind: 'mtimecmp', hart, high } : undefined;
  }
  const hart = (offset - MSIP_BASE) >>> 2;
  return hart < harts ? { kind: 'msip', hart } : undefined;
}
