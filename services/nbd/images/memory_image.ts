import { type Extent, STATE } from '../../../protocols/nbd/mod.ts';
import { DirtyBitmaps } from './dirty_bitmap.ts';
import { type DiskImage, ImageError, type ZeroOptions } from './disk_image.ts';
import { ExtentList } from './extent_list.ts';

const PAGE_BYTES = 64 * 1024;

/** A disk in memory: pages appear when written, and go when zeroed or discarded. Its contents end with the process. */
export class MemoryImage implements DiskImage {
  readonly readOnly: boolean;
  readonly blockBytes: number = 1;
  readonly canFastZero: boolean = true;
  /** Filled by every change; what clients read as qemu:dirty-bitmap */
  readonly bitmaps = new DirtyBitmaps();
  #sizeBytes: number;
  readonly #pages = new Map<number, Uint8Array>();

  /** `sizeBytes` up to 2^53 - 1; only what is written takes memory. */
  constructor(sizeBytes: number, options: { readOnly?: boolean } = {}) {
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
      throw new ImageError('EINVAL', `Cannot make a memory disk of ${sizeBytes} bytes: not a size`);
    }
    this.#sizeBytes = sizeBytes;
    this.readOnly = options.readOnly ?? false;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Memory in use for contents, in `bytes` */
  get allocatedBytes(): number {
    return this.#pages.size * PAGE_BYTES;
  }

  readNow(offset: number, into: Uint8Array): boolean {
    this.#eachPage(offset, into.length, (index, start, end, done) => {
      const page = this.#pages.get(index);
      if (page === undefined) into.fill(0, done, done + end - start);
      else into.set(page.subarray(start, end), done);
    });
    return true;
  }

  writeNow(offset: number, data: Uint8Array): boolean {
    this.#writable();
    this.bitmaps.mark(offset, data.length);
    this.#eachPage(offset, data.length, (index, start, end, done) => {
      let page = this.#pages.get(index);
      if (page === undefined) {
        page = new Uint8Array(PAGE_BYTES);
        this.#pages.set(index, page);
      }
      page.set(data.subarray(done, done + end - start), start);
    });
    return true;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.readNow(offset, into);
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.writeNow(offset, data);
  }

  async flush(): Promise<void> {}

  async discard(offset: number, lengthBytes: number): Promise<void> {
    this.#writable();
    this.#clear(offset, lengthBytes, false);
  }

  async writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    this.#writable();
    this.#clear(offset, lengthBytes, !options.mayUnmap);
  }

  async blockStatus(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const list = new ExtentList();
    const end = Math.min(offset + lengthBytes, this.sizeBytes);
    // A hole may be far larger than what is there: look at the pages that exist, not at every index.
    const first = Math.floor(offset / PAGE_BYTES);
    const last = Math.ceil(end / PAGE_BYTES);
    const present =
      last - first <= this.#pages.size
        ? Array.from({ length: last - first }, (_, index) => first + index).filter((index) => this.#pages.has(index))
        : [...this.#pages.keys()].filter((index) => index >= first && index < last).sort((a, b) => a - b);
    let at = offset;
    const add = (to: number, flags: number): void => {
      if (to <= at) return;
      list.add(to - at, flags);
      at = to;
    };
    for (const index of present) {
      if (list.length > maxExtents) break;
      add(index * PAGE_BYTES, STATE.HOLE | STATE.ZERO);
      add(Math.min((index + 1) * PAGE_BYTES, end), 0);
    }
    if (list.length <= maxExtents) add(end, STATE.HOLE | STATE.ZERO);
    return list.extents;
  }

  dirtyBitmaps(): readonly string[] {
    return this.bitmaps.names;
  }

  async dirtyBitmap(name: string, offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.bitmaps.get(name).extents(offset, lengthBytes, maxExtents);
  }

  async allocationDepth(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const extents = await this.blockStatus(offset, lengthBytes, maxExtents);
    return extents.map((extent) => ({ ...extent, flags: (extent.flags & STATE.HOLE) === 0 ? 1 : 0 }));
  }

  async resize(sizeBytes: number): Promise<void> {
    this.#writable();
    if (sizeBytes < this.#sizeBytes) this.#clear(sizeBytes, this.#sizeBytes - sizeBytes, false);
    this.#sizeBytes = sizeBytes;
    this.bitmaps.resize(sizeBytes);
  }

  async close(): Promise<void> {
    this.#pages.clear();
  }

  #clear(offset: number, lengthBytes: number, keep: boolean): void {
    this.bitmaps.mark(offset, lengthBytes);
    const end = offset + lengthBytes;
    const clearOne = (index: number): void => {
      const page = this.#pages.get(index);
      if (page === undefined) return;
      const start = Math.max(offset - index * PAGE_BYTES, 0);
      const stop = Math.min(end - index * PAGE_BYTES, PAGE_BYTES);
      if (start === 0 && stop === PAGE_BYTES && !keep) this.#pages.delete(index);
      else page.fill(0, start, stop);
    };
    const first = Math.floor(offset / PAGE_BYTES);
    const last = Math.ceil(end / PAGE_BYTES);
    if (last - first <= this.#pages.size) for (let index = first; index < last; index++) clearOne(index);
    else for (const index of [...this.#pages.keys()]) if (index >= first && index < last) clearOne(index);
  }

  #eachPage(
    offset: number,
    lengthBytes: number,
    visit: (index: number, start: number, end: number, done: number) => void,
  ): void {
    let done = 0;
    while (done < lengthBytes) {
      const at = offset + done;
      const index = Math.floor(at / PAGE_BYTES);
      const start = at - index * PAGE_BYTES;
      const end = Math.min(PAGE_BYTES, start + lengthBytes - done);
      visit(index, start, end, done);
      done += end - start;
    }
  }

  #writable(): void {
    if (this.readOnly) throw new ImageError('EPERM', 'Cannot write: image is read-only');
  }
}
