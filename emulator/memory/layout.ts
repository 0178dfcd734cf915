import {
  CODE_KEY_BYTES,
  CODE_KEYS,
  CODE_META_BYTES,
  CODE_PAGE_BYTES,
  ENTRIES,
  ENTRY_BYTES,
  HART_STRIDE,
} from '../kernel/assembly/hart_layout.ts';
import { PAGE_BYTES } from './guest_memory.ts';

/** The kernel module keeps its static data here; nothing below is ever used, so address 0 stays invalid */
export const KERNEL_STATIC = 0x10000;
/** The decoder's tables: buckets, entries, 16-bit expansions */
export const TABLE_BUCKETS = 0x20000;
export const TABLE_ENTRIES = 0x21000;
export const TABLE_COMPRESSED = 0x30000;
/** Words of the devices that every thread can serve */
export const DEVICE_WORDS = 0x80000;
export const DEVICE_WORDS_BYTES = 0x180000;
/** Machine-wide words: time base, run requests */
export const MACHINE_WORDS = 0x1f0000;
export const HARTS = 0x200000;

export const MAX_HARTS = 8;
/** Mask ROM at 0x1000..0xffff of guest physical space lies just before RAM */
export const ROM_BYTES = 0x10000;
/** Predecoded pages that one hart keeps */
export const CODE_PAGES = 1024;
/** Bytes of the tables by which translated switches of one hart jump */
export const SWITCH_TABLE_BYTES = 0x100000;
const WASM_PAGE = 65536;

/** Where everything lies in the one shared memory. All values are byte addresses in it. */
export interface MemoryLayout {
  readonly harts: number;
  readonly ramBytes: number;
  hart(index: number): number;
  /**
   * Predecoded pages of a hart, their metadata, for each RAM/ROM page a u16 (1 + its index, 0 none), and the entries
   * of its translated functions; records of code keys, and the tables by which translated switches jump
   */
  code(index: number): { pages: number; meta: number; index: number; entries: number; keys: number; tables: number };
  /** One byte for each RAM page */
  readonly dirty: number;
  /** u32 for each ROM and RAM page: raised when predecoded code of it went stale */
  readonly codeVersion: number;
  /** Dirty bytes for ROM pages lie just before those of RAM, so that one index serves both */
  readonly rom: number;
  readonly ram: number;
  readonly wasmPages: number;
}

const align = (value: number, to: number): number => Math.ceil(value / to) * to;

/** @throws RangeError where it does not fit 4 GiB */
export function planMemory(harts: number, ramBytes: number): MemoryLayout {
  if (!Number.isInteger(harts) || harts < 1 || harts > MAX_HARTS) {
    throw new RangeError(`Cannot make ${harts} harts: 1..${MAX_HARTS} are possible`);
  }
  if (!Number.isSafeInteger(ramBytes) || ramBytes < 1 << 20 || ramBytes % PAGE_BYTES !== 0) {
    throw new RangeError(`Cannot make ${ramBytes} bytes of RAM: at least 1 MiB in whole pages is needed`);
  }
  const romPages = ROM_BYTES / PAGE_BYTES;
  const pages = romPages + ramBytes / PAGE_BYTES;
  const codeStart = HARTS + MAX_HARTS * HART_STRIDE;
  const metaAt = CODE_PAGES * CODE_PAGE_BYTES;
  const entriesAt = metaAt + CODE_PAGES * CODE_META_BYTES;
  const keysAt = entriesAt + ENTRIES * ENTRY_BYTES;
  const tablesAt = keysAt + CODE_KEYS * CODE_KEY_BYTES;
  const indexAt = tablesAt + SWITCH_TABLE_BYTES;
  const codeStride = align(indexAt + pages * 2, 64);
  const dirtyAll = align(codeStart + harts * codeStride, PAGE_BYTES);
  const codeVersion = align(dirtyAll + pages, 64);
  const rom = align(codeVersion + pages * 4, WASM_PAGE);
  const ram = rom + ROM_BYTES;
  const wasmPages = align(ram + ramBytes, WASM_PAGE) / WASM_PAGE;
  if (wasmPages > 65536) {
    const most = Math.floor((65536 * WASM_PAGE - ram) / (1 << 20));
    throw new RangeError(
      `Cannot make ${ramBytes / (1 << 20)} MiB of RAM with ${harts} harts: at most about ${most} MiB fit`,
    );
  }
  return {
    harts,
    ramBytes,
    hart: (index) => HARTS + index * HART_STRIDE,
    code: (index) => {
      const base = codeStart + index * codeStride;
      return {
        pages: base,
        meta: base + metaAt,
        index: base + indexAt,
        entries: base + entriesAt,
        keys: base + keysAt,
        tables: base + tablesAt,
      };
    },
    dirty: dirtyAll + romPages,
    codeVersion,
    rom,
    ram,
    wasmPages,
  };
}
