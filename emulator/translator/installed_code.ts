// The translated functions of one hart: how calls, the kernel and the interpreter find them, and whether they still hold.
import * as H from '../kernel/assembly/hart_layout.ts';
import { type MemoryLayout, SWITCH_TABLE_BYTES } from '../memory/layout.ts';
import type { WasmTable } from '../wasm/platform.ts';
import { ARGUMENT_PAGES_SHIFT, type EntryPoint } from './function_context.ts';
import type { Region } from './region.ts';

/** Places in the table of functions; 0 is never used */
export const TABLE_SIZE = 32768;
/** Entries that a hart may hold: the table of them is at most half full */
const MAX_ENTRIES = H.ENTRIES / 2;
const NO_KEY = 0xffff;

/** What the kernel of the hart does for its installed code: it knows where entries belong */
export interface EntryKernel {
  /** Address of the entry of a host address, or of the free one where it belongs */
  entryAt(host: number): number;
  /** Entries of the page of a host address are looked for from now on. */
  noteEntryPage(host: number): void;
  flushInstructions(): void;
}

export interface InstalledCodeOptions {
  readonly view: DataView;
  readonly layout: MemoryLayout;
  readonly hart: number;
  readonly table: WasmTable;
  /** What stands in empty places of the table */
  readonly leave: unknown;
  readonly kernel: EntryKernel;
}

export class InstalledCode {
  readonly #view: DataView;
  readonly #layout: MemoryLayout;
  readonly #hart: number;
  readonly #areas: ReturnType<MemoryLayout['code']>;
  readonly #table: WasmTable;
  readonly #leave: unknown;
  readonly #kernel: EntryKernel;
  /** By host page, privilege and version */
  readonly #keys = new Map<string, number>();
  /**
   * By host address and privilege: place in the table by which calls go there, translated or not. Never a function's
   * own place: what stands here changes when the code is translated again, and its entries are numbered anew then
   */
  readonly #links = new Map<string, number>();
  /** By host address and privilege: what is translated, the code keys of its pages and its own place */
  readonly #translated = new Map<string, { readonly keys: readonly number[]; readonly place: number }>();
  #tableNext = 1;
  #entries = 0;
  #switchBytes = 0;

  constructor(options: InstalledCodeOptions) {
    this.#view = options.view;
    this.#layout = options.layout;
    this.#hart = options.layout.hart(options.hart);
    this.#areas = options.layout.code(options.hart);
    this.#table = options.table;
    this.#leave = options.leave;
    this.#kernel = options.kernel;
  }

  /** Forgets everything. No translated function may be running. */
  clear(): void {
    for (let i = 1; i < this.#tableNext; i++) this.#table.set(i, this.#leave);
    this.#tableNext = 1;
    this.#entries = 0;
    this.#switchBytes = 0;
    this.#keys.clear();
    this.#links.clear();
    this.#translated.clear();
    const { buffer } = this.#view;
    new Uint8Array(buffer, this.#areas.entries, H.ENTRIES * H.ENTRY_BYTES).fill(0);
    new Uint8Array(buffer, this.#hart + H.HART_ENTRY_PAGES, 1 << H.ENTRY_PAGES_BITS).fill(0);
    new Uint8Array(buffer, this.#hart + H.HART_ENTRY_CACHE, H.ENTRY_CACHE_ENTRIES * 16).fill(0);
    new Uint8Array(buffer, this.#hart + H.HART_JUMP_CACHE, H.JUMP_CACHE_ENTRIES * 16).fill(0xff);
    this.#kernel.flushInstructions();
  }

  /** By what the regions can need at most: a place for each and each call, an entry for each block, a key a page */
  hasRoomFor(regions: readonly Region[]): boolean {
    let [places, entries, keys] = [this.#tableNext + regions.length, this.#entries, this.#keys.size];
    for (const region of regions) {
      for (const { end } of region.blocks.values()) if (end.kind === 'call') places++;
      entries += region.blocks.size;
      keys += region.pages.size;
    }
    return places <= TABLE_SIZE && entries <= MAX_ENTRIES && keys <= H.CODE_KEYS;
  }

  // --- what holds -------------------------------------------------------------------------------------------------

  /** Whether a function begins at a host address, made of code that is there still. */
  isTranslated(host: number, privilege: number): boolean {
    const known = this.#translated.get(`${host}:${privilege}`);
    return known?.keys.every((key) => this.#isCurrent(key)) ?? false;
  }

  /** Whether a function may be entered at a host address, at its beginning or elsewhere. */
  isEntered(host: number, privilege: number): boolean {
    const entry = this.#kernel.entryAt(host) >>> 0;
    if (this.#view.getUint32(entry, true) === 0 || this.#view.getUint32(entry + 4, true) === 0) return false;
    return this.#view.getUint32(entry + 8, true) >>> 16 === privilege;
  }

  #isCurrent(key: number): boolean {
    const at = this.#areas.keys + key * H.CODE_KEY_BYTES;
    return this.#view.getUint32(at + 4, true) === this.version(this.#view.getUint32(at, true));
  }

  /** Of the code in the page of a host address */
  version(host: number): number {
    const { codeVersion, rom } = this.#layout;
    return this.#view.getUint32(codeVersion + ((host - rom) >>> 12) * 4, true);
  }

  // --- what a function is written with ----------------------------------------------------------------------------

  /** Places in the table for so many functions, one after the other; the first of them */
  takePlaces(count: number): number {
    const first = this.#tableNext;
    this.#tableNext += count;
    return first;
  }

  /** The code key of a host page as it is now */
  keyOf(host: number, privilege: number): number {
    const version = this.version(host);
    const name = `${host}:${privilege}:${version}`;
    let key = this.#keys.get(name);
    if (key === undefined) {
      key = this.#keys.size;
      this.#keys.set(name, key);
      const at = this.#areas.keys + key * H.CODE_KEY_BYTES;
      this.#view.setUint32(at, host, true);
      this.#view.setUint32(at + 4, version, true);
      this.#view.setUint32(at + 8, privilege, true);
      this.#view.setBigUint64(this.#hart + H.HART_EXEC_CELLS + key * 8, 0xffff_ffff_ffff_ffffn, true);
    }
    return key;
  }

  /** The place in the table by which calls of other modules reach a host address */
  linkOf(host: number, privilege: number): number {
    const name = `${host}:${privilege}`;
    let link = this.#links.get(name);
    if (link === undefined) {
      link = this.takePlaces(1);
      this.#links.set(name, link);
      const known = this.#translated.get(name);
      if (known !== undefined) this.#table.set(link, this.#table.get(known.place));
    }
    return link;
  }

  /** Address of the table of a switch; undefined: there is no room for it */
  byteTable(bytes: Uint8Array): number | undefined {
    if (this.#switchBytes + bytes.length > SWITCH_TABLE_BYTES) return undefined;
    const at = this.#areas.tables + this.#switchBytes;
    new Uint8Array(this.#view.buffer).set(bytes, at);
    this.#switchBytes += bytes.length;
    return at;
  }

  // --- what is entered --------------------------------------------------------------------------------------------

  /**
   * Makes the entries of the function at a place of the table known, to calls by the table and to the interpreter by its
   * slots. `host`: base page of the region that the function was made of
   */
  install(region: Region, host: number, privilege: number, place: number, entries: readonly EntryPoint[]): void {
    const start = `${host + region.start}:${privilege}`;
    const keys = [...region.pages.values()].map((page) => this.keyOf(page.host, privilege));
    this.#translated.set(start, { keys, place });
    const link = this.#links.get(start);
    if (link !== undefined) this.#table.set(link, this.#table.get(place));
    for (const { at, number, leastFuel } of entries) {
      const page = region.pages.get(at >> 12)!;
      const offset = at & 0xfff;
      const packed = number | (((at >> 12) & 0xff) << ARGUMENT_PAGES_SHIFT) | (privilege << 16);
      this.#enter(page.host + offset, place, packed, leastFuel, keys);
      const slot = page.slots + offset * 8;
      this.#view.setUint16(slot, this.#view.getUint16(slot, true) | H.HANDLER_TRANSLATED, true);
      // Another function may have been cached for it
      const line = this.#hart + H.HART_ENTRY_CACHE + (slot & ((H.ENTRY_CACHE_ENTRIES - 1) << 4));
      this.#view.setUint32(line, 0, true);
    }
  }

  #enter(host: number, place: number, packed: number, leastFuel: number, keys: readonly number[]): void {
    this.#kernel.noteEntryPage(host);
    const entry = this.#kernel.entryAt(host) >>> 0;
    if (this.#view.getUint32(entry, true) === 0) this.#entries++;
    this.#view.setUint32(entry, host, true);
    this.#view.setUint32(entry + 4, place, true);
    this.#view.setUint32(entry + 8, packed, true);
    this.#view.setUint32(entry + 12, leastFuel, true);
    for (let i = 0; i < H.ENTRY_MAX_KEYS; i++) {
      this.#view.setUint16(entry + H.ENTRY_KEYS + i * 2, keys[i] ?? NO_KEY, true);
    }
  }
}
