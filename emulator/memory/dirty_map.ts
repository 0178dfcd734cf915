import type { MemoryLayout } from './layout.ts';

/** One byte for each page of RAM, one bit of it for each reader: a store sets all bits, a reader clears its own. */
export class DirtyMap {
  readonly #pages: Uint8Array;

  /** `bytes`: all of the machine's memory */
  constructor(bytes: Uint8Array, layout: MemoryLayout, pages: number) {
    this.#pages = bytes.subarray(layout.dirty, layout.dirty + pages);
  }

  /** Collects and clears a reader's pages: ascending, at most `maxPages` from `fromPage` on. */
  harvest(reader: number, fromPage: number, maxPages: number): Uint32Array {
    const dirty = this.#pages;
    const found = new Uint32Array(Math.min(maxPages, dirty.length));
    let count = 0;
    for (let page = fromPage; page < dirty.length && count < found.length; page++) {
      if ((dirty[page]! & reader) === 0) continue;
      // Cleared before the caller reads the page: a store that races marks it again
      Atomics.and(dirty, page, ~reader & 0xff);
      found[count++] = page;
    }
    return found.subarray(0, count);
  }

  markAll(reader: number): void {
    for (let page = 0; page < this.#pages.length; page++) Atomics.or(this.#pages, page, reader);
  }
}
