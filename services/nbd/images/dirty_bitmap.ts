import type { Extent } from '../../../protocols/nbd/mod.ts';
import { ImageError } from './disk_image.ts';

/** Flag of an extent of `qemu:dirty-bitmap:NAME` */
export const DIRTY = 1;
/** Of one bitmap, in `bytes`: 2 TiB of disk in steps of 64 KiB need 4 MiB */
const MAX_BITMAP_BYTES = 64 << 20;
const MAX_NAME_BYTES = 1023;

export interface DirtyBitmapOptions {
  /** A power of two from 512 bytes to 2 GiB (default 64 KiB), in `bytes` */
  readonly granularityBytes?: number;
  /** Kept in the image when it is closed (default false) */
  readonly persistent?: boolean;
  /** Does not record writes (default false) */
  readonly disabled?: boolean;
}

/** Which parts of a disk were written, one bit for each granule. */
export class DirtyBitmap {
  readonly name: string;
  readonly granularityBytes: number;
  readonly persistent: boolean;
  recording: boolean;
  /** Not written back by who used it last: its bits mean nothing, and it can only be removed */
  readonly inconsistent: boolean;
  /** A job works with it, under its name */
  busy: string | undefined;
  #sizeBytes: number;
  #bits: Uint8Array;

  /** @throws ImageError where name or granularity are not possible, or the bits would be too many */
  constructor(name: string, sizeBytes: number, options: DirtyBitmapOptions & { inconsistent?: boolean } = {}) {
    const { granularityBytes = 65_536, persistent = false, disabled = false, inconsistent = false } = options;
    const bits = Math.log2(granularityBytes);
    const refuse = (why: string): never => {
      throw new ImageError('EINVAL', `Cannot make bitmap ${JSON.stringify(name.slice(0, 64))}: ${why}`);
    };
    const nameBytes = new TextEncoder().encode(name).length;
    if (nameBytes === 0 || nameBytes > MAX_NAME_BYTES || name.includes('\0')) refuse(`a name of ${nameBytes} bytes`);
    if (!Number.isInteger(bits) || bits < 9 || bits > 31) {
      refuse(`granularity ${granularityBytes}, expected a power of two from 512 to 2147483648`);
    }
    if (sizeBytes / granularityBytes / 8 > MAX_BITMAP_BYTES) refuse(`more than ${MAX_BITMAP_BYTES} bytes of bits`);
    this.name = name;
    this.granularityBytes = granularityBytes;
    this.persistent = persistent;
    this.recording = !disabled && !inconsistent;
    this.inconsistent = inconsistent;
    this.#sizeBytes = sizeBytes;
    this.#bits = new Uint8Array(inconsistent ? 0 : Math.ceil(sizeBytes / granularityBytes / 8));
  }

  /** Least significant bit of the first byte first, as qcow2 stores them */
  get bits(): Uint8Array {
    return this.#bits;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** In whole granules, in `bytes` */
  get dirtyBytes(): number {
    let count = 0;
    for (const byte of this.#bits) {
      for (let rest = byte; rest !== 0; rest &= rest - 1) count++;
    }
    return count * this.granularityBytes;
  }

  mark(offset: number, lengthBytes: number): void {
    if (lengthBytes <= 0 || this.inconsistent) return;
    const last = Math.floor((Math.min(offset + lengthBytes, this.#sizeBytes) - 1) / this.granularityBytes);
    this.#fill(Math.floor(offset / this.granularityBytes), last, true);
  }

  /** Whole granules of the range become clean. */
  unmark(offset: number, lengthBytes: number): void {
    const first = Math.ceil(offset / this.granularityBytes);
    const end = offset + lengthBytes;
    const after = end >= this.#sizeBytes ? this.#granules : Math.floor(end / this.granularityBytes);
    this.#fill(first, after - 1, false);
  }

  clear(): void {
    this.#bits.fill(0);
  }

  isDirty(offset: number): boolean {
    const granule = Math.floor(offset / this.granularityBytes);
    return ((this.#bits[granule >> 3] ?? 0) >> (granule & 7)) % 2 === 1;
  }

  /** The next run of dirty granules at or behind `offset`, cut off at the disk's end; undefined where there is none. */
  next(offset: number, maxBytes = Number.POSITIVE_INFINITY): { offset: number; lengthBytes: number } | undefined {
    const granules = this.#granules;
    let granule = Math.floor(offset / this.granularityBytes);
    while (granule < granules && !this.#at(granule)) granule += this.#bits[granule >> 3] === 0 ? 8 - (granule & 7) : 1;
    if (granule >= granules) return undefined;
    const most = Math.max(1, Math.min(granules - granule, Math.floor(maxBytes / this.granularityBytes)));
    let count = 1;
    while (count < most && this.#at(granule + count)) count++;
    const start = granule * this.granularityBytes;
    return { offset: start, lengthBytes: Math.min(count * this.granularityBytes, this.#sizeBytes - start) };
  }

  /** As NBD tells them: neighbours differ, and together they cover the range unless `maxExtents` are too few. */
  extents(offset: number, lengthBytes: number, maxExtents: number): Extent[] {
    const extents: { lengthBytes: number; flags: number }[] = [];
    const end = offset + lengthBytes;
    for (let at = offset; at < end; ) {
      const dirty = this.isDirty(at);
      const run = dirty ? this.next(at) : this.next(at + 1);
      const next = Math.min(end, run === undefined ? end : dirty ? run.offset + run.lengthBytes : run.offset);
      if (extents.length === maxExtents) break;
      extents.push({ lengthBytes: Math.max(next, at + 1) - at, flags: dirty ? DIRTY : 0 });
      at = Math.max(next, at + 1);
    }
    return extents;
  }

  /** What is dirty in `other` is dirty here, too. */
  merge(other: DirtyBitmap): void {
    if (other.inconsistent || this.inconsistent) {
      throw new ImageError('EINVAL', 'Cannot merge bitmaps: one is inconsistent');
    }
    for (let run = other.next(0); run !== undefined; run = other.next(run.offset + run.lengthBytes)) {
      this.mark(run.offset, run.lengthBytes);
    }
  }

  /** A copy that records nothing. */
  copy(): DirtyBitmap {
    const { name, granularityBytes } = this;
    const copy = new DirtyBitmap(name, this.#sizeBytes, { granularityBytes, disabled: true });
    copy.#bits.set(this.#bits);
    return copy;
  }

  /** The disk has another size; what is new is clean. */
  resize(sizeBytes: number): void {
    if (this.inconsistent) return;
    const bits = new Uint8Array(Math.ceil(sizeBytes / this.granularityBytes / 8));
    bits.set(this.#bits.subarray(0, bits.length));
    this.#bits = bits;
    this.#sizeBytes = sizeBytes;
    const granules = this.#granules;
    if (granules % 8 !== 0) bits[bits.length - 1]! &= (1 << (granules % 8)) - 1;
  }

  get #granules(): number {
    return Math.ceil(this.#sizeBytes / this.granularityBytes);
  }

  #at(granule: number): boolean {
    return (this.#bits[granule >> 3]! >> (granule & 7)) % 2 === 1;
  }

  #fill(first: number, last: number, dirty: boolean): void {
    for (let granule = first; granule <= last; ) {
      if (granule % 8 === 0 && last - granule >= 7) {
        const bytes = Math.floor((last - granule + 1) / 8);
        this.#bits.fill(dirty ? 0xff : 0, granule >> 3, (granule >> 3) + bytes);
        granule += bytes * 8;
        continue;
      }
      if (dirty) this.#bits[granule >> 3]! |= 1 << (granule & 7);
      else this.#bits[granule >> 3]! &= ~(1 << (granule & 7));
      granule++;
    }
  }
}

/** The bitmaps of one disk, by name. */
export class DirtyBitmapSet implements Iterable<DirtyBitmap> {
  readonly #bitmaps = new Map<string, DirtyBitmap>();

  get size(): number {
    return this.#bitmaps.size;
  }

  [Symbol.iterator](): Iterator<DirtyBitmap> {
    return this.#bitmaps.values();
  }

  find(name: string): DirtyBitmap | undefined {
    return this.#bitmaps.get(name);
  }

  /** @throws ImageError where there is none */
  get(name: string): DirtyBitmap {
    const bitmap = this.#bitmaps.get(name);
    if (bitmap === undefined) throw unknown(name);
    return bitmap;
  }

  /** @throws ImageError where the name is taken */
  add(bitmap: DirtyBitmap): void {
    if (this.#bitmaps.has(bitmap.name)) {
      throw new ImageError('EINVAL', `Bitmap already exists: ${bitmap.name.slice(0, 64)}`);
    }
    this.#bitmaps.set(bitmap.name, bitmap);
  }

  /** @throws ImageError where there is none, or a job works with it */
  remove(name: string): void {
    const { busy } = this.get(name);
    if (busy !== undefined) throw new ImageError('EINVAL', `Bitmap '${name.slice(0, 64)}' is in use by job ${busy}`);
    this.#bitmaps.delete(name);
  }

  /** A range was written. */
  mark(offset: number, lengthBytes: number): void {
    for (const bitmap of this.#bitmaps.values()) if (bitmap.recording) bitmap.mark(offset, lengthBytes);
  }

  resize(sizeBytes: number): void {
    for (const bitmap of this.#bitmaps.values()) bitmap.resize(sizeBytes);
  }
}

function unknown(name: string): ImageError {
  return new ImageError('EINVAL', `Dirty bitmap '${name.slice(0, 64)}' not found`);
}
