// What the host gives the kernel. Values are fixed for the life of the instance, so they are imported globals.

// @ts-ignore: decorators on declarations exist in AssemblyScript only
@external("env", "CODE_PAGES_AT")
export declare const CODE_PAGES_AT: u32;
// @ts-ignore: decorator
@external("env", "CODE_META_AT")
export declare const CODE_META_AT: u32;
// @ts-ignore: decorator
@external("env", "CODE_INDEX_AT")
export declare const CODE_INDEX_AT: u32;
/** Predecoded pages that this hart may keep */
// @ts-ignore: decorator
@external("env", "CODE_PAGE_COUNT")
export declare const CODE_PAGE_COUNT: u32;
/** Dirty byte of the first ROM page; RAM's follow */
// @ts-ignore: decorator
@external("env", "DIRTY_AT")
export declare const DIRTY_AT: u32;
// @ts-ignore: decorator
@external("env", "CODE_VERSION_AT")
export declare const CODE_VERSION_AT: u32;
/** Host address that stands for guest physical 0; ROM is 0x1000..0xffff, RAM follows it */
// @ts-ignore: decorator
@external("env", "ROM_AT")
export declare const ROM_AT: u32;
// @ts-ignore: decorator
@external("env", "RAM_AT")
export declare const RAM_AT: u32;
// @ts-ignore: decorator
@external("env", "RAM_BYTES")
export declare const RAM_BYTES: u32;
// @ts-ignore: decorator
@external("env", "TABLE_BUCKETS")
export declare const TABLE_BUCKETS: u32;
// @ts-ignore: decorator
@external("env", "TABLE_ENTRIES")
export declare const TABLE_ENTRIES: u32;
// @ts-ignore: decorator
@external("env", "TABLE_COMPRESSED")
export declare const TABLE_COMPRESSED: u32;

/** Records of code keys and entries of this hart (hart_layout.ts) */
// @ts-ignore: decorator
@external("env", "CODE_KEYS_AT")
export declare const CODE_KEYS_AT: u32;
// @ts-ignore: decorator
@external("env", "ENTRIES_AT")
export declare const ENTRIES_AT: u32;
/** How deep translated functions may call each other, << 16 */
// @ts-ignore: decorator
@external("env", "CALL_DEPTH")
export declare const CALL_DEPTH: u32;

/** mtime in ticks of 10 MHz; an integer */
// @ts-ignore: decorator
@external("env", "now")
export declare function now(): f64;
/** Timers, requests: sets bits in HART_MIP; nonzero where the run must end */
// @ts-ignore: decorator
@external("env", "poll")
export declare function hostPoll(): i32;
/** `size` 1, 2 or 4 bytes, aligned; sets HART_MMIO_FAULT where no device answers */
// @ts-ignore: decorator
@external("env", "mmioRead")
export declare function mmioRead(low: u32, high: u32, size: u32): u32;
// @ts-ignore: decorator
@external("env", "mmioWrite")
export declare function mmioWrite(low: u32, high: u32, size: u32, value: u32): void;

/** Only where HART_LOG has the bit `kind`; what the values are stands there */
// @ts-ignore: decorator
@external("env", "log")
export declare function hostLog(kind: u32, first: u64, second: u64, third: u32): void;

export const ROM_BASE: u64 = 0x1000;
export const ROM_END: u64 = 0x10000;
export const RAM_BASE: u64 = 0x80000000;

/** Host address of a physical range of at most a page that is all RAM or all ROM; 0 where it is not. */
// @ts-ignore: decorator
@inline
export function hostAddress(pa: u64, size: u64): u32 {
  const offset = pa - RAM_BASE;
  if (offset < <u64>RAM_BYTES && <u64>RAM_BYTES - offset >= size) return RAM_AT + <u32>offset;
  if (pa >= ROM_BASE && pa < ROM_END && ROM_END - pa >= size) return ROM_AT + <u32>pa; // ROM_AT stands for address 0 of 64 KiB
  return 0;
}
// @ts-ignore: decorator
@inline
export function isRam(host: u32): bool {
  return host >= RAM_AT;
}
