import { type Extent, STATE_DIRTY } from '../../../protocols/nbd/mod.ts';
import { ImageError } from './disk_image.ts';
import { SparseBits } from './sparse_bits.ts';

/** QEMU's default and bounds, in `bytes` */
const DEFAULT_GRANULARITY_BYTES = 64 * 1024;
const MIN_GRANULARITY_BYTES = 512;
const MAX_GRANULARITY_BYTES = 2 ** 31;
/** All bits of one, in `bytes`: QEMU's limit, 256 TiB at 64 KiB. SparseBits says how many are in memory */
const MAX_BITMAP_BYTES = 512 << 20;
const MAX_NAME_BYTES = 1023;

export interface DirtyBitmapOptions {
  /** Kept in the image when it is closed (default false) */
  readonly persistent?: boolean;
  /** Does not record writes (default false) */
  readonly disabled?: boolean;
}

/** Which parts of a disk were changed, in memory. A part is dirty as soon as a byte of it may have changed. */
export class DirtyBitmap {
  /** In `bytes`, a power of two */
  readonly granularityBytes: number;
  readonly persistent: boolean;
  recording: boolean;
  /** Not written back by who used it last: its bits mean nothing, and it can only be removed */
  readonly inconsistent: boolean;
  /** The job that works with it */
  busy: string | undefined;
  #sizeBytes: number;
  #bits: SparseBits;

  /** @throws ImageError for a granularity that is none, or a bitmap that would be too large */
  constructor(
    sizeBytes: number,
    granularityBytes: number = DEFAULT_GRANULARITY_BYTES,
    options: DirtyBitmapOptions & { readonly inconsistent?: boolean } = {},
  ) {
    const { persistent = false, disabled = false, inconsistent = false } = options;
    const isPower = Number.isInteger(Math.log2(granularityBytes));
    if (!isPower || granularityBytes < MIN_GRANULARITY_BYTES || granularityBytes > MAX_GRANULARITY_BYTES) {
      throw new ImageError(
        'EINVAL',
        `Cannot make a bitmap of granularity ${granularityBytes}: expected a power of two from ${MIN_GRANULARITY_BYTES} to ${MAX_GRANULARITY_BYTES}`,
      );
    }
    this.granularityBytes = granularityBytes;
    this.persistent = persistent;
    this.recording = !disabled && !inconsistent;
    this.inconsistent = inconsistent;
    this.#sizeBytes = sizeBytes;
    this.#bits = new SparseBits(inconsistent ? 0 : granulesOf(sizeBytes, granularityBytes));
  }

  get bits(): SparseBits {
    return this.#bits;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** In whole granules, in `bytes` */
  get dirtyBytes(): number {
    return this.#bits.total * this.granularityBytes;
  }

  mark(offset: number, lengthBytes: number): void {
    if (lengthBytes <= 0 || this.inconsistent) return;
    const last = Math.floor((Math.min(offset + lengthBytes, this.#sizeBytes) - 1) / this.granularityBytes);
    this.#bits.fill(Math.floor(offset / this.granularityBytes), last + 1, true);
  }

  /** Whole granules of the range become clean. */
  unmark(offset: number, lengthBytes: number): void {
    const first = Math.ceil(offset / this.granularityBytes);
    const end = offset + lengthBytes;
    const after = end >= this.#sizeBytes ? this.#bits.count : Math.floor(end / this.granularityBytes);
    this.#bits.fill(first, after, false);
  }

  clear(): void {
    this.#bits.clear();
  }

  isDirty(offset: number): boolean {
    return this.#bits.has(Math.floor(offset / this.granularityBytes));
  }

  /** The next run of dirty granules at or behind `offset`, cut off at the disk's end; undefined where there is none. */
  next(offset: number, maxBytes = Number.POSITIVE_INFINITY): { offset: number; lengthBytes: number } | undefined {
    const first = this.#bits.find(Math.floor(offset / this.granularityBytes), true);
    if (first >= this.#bits.count) return undefined;
    const most = Math.max(1, Math.floor(maxBytes / this.granularityBytes));
    const end = this.#bits.find(first, false, Math.min(this.#bits.count, first + most));
    const start = first * this.granularityBytes;
    return { offset: start, lengthBytes: Math.min(end * this.granularityBytes, this.#sizeBytes) - start };
  }

  /** Extents from `offset` on, STATE_DIRTY or 0; fewer than asked for where there are more than `maxExtents`. */
  extents(offset: number, lengthBytes: number, maxExtents: number): Extent[] {
    const extents: Extent[] = [];
    const end = Math.min(offset + lengthBytes, this.#sizeBytes);
    for (let at = offset; at < end && extents.length < maxExtents; ) {
      const run = this.next(at);
      const dirty = run !== undefined && run.offset <= at;
      const next = Math.min(end, run === undefined ? end : dirty ? run.offset + run.lengthBytes : run.offset);
      extents.push({ lengthBytes: next - at, flags: dirty ? STATE_DIRTY : 0 });
      at = next;
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
    const copy = new DirtyBitmap(this.#sizeBytes, this.granularityBytes, { disabled: true });
    copy.#bits = this.#bits.copy();
    return copy;
  }

  /** The disk has another size: what it gained is dirty. */
  resize(sizeBytes: number): void {
    if (this.inconsistent) return;
    this.#bits = this.#bits.copy(granulesOf(sizeBytes, this.granularityBytes));
    const before = this.#sizeBytes;
    this.#sizeBytes = sizeBytes;
    this.mark(before, sizeBytes - before);
  }
}

/** Bitmaps of one image by name, and the answers of {@link DiskImage} about them. */
export class DirtyBitmaps implements Iterable<[name: string, bitmap: DirtyBitmap]> {
  readonly #bitmaps = new Map<string, DirtyBitmap>();

  get size(): number {
    return this.#bitmaps.size;
  }

  /** Of those that may be read */
  get names(): string[] {
    return [...this.#bitmaps].flatMap(([name, { inconsistent }]) => (inconsistent ? [] : [name]));
  }

  [Symbol.iterator](): Iterator<[name: string, bitmap: DirtyBitmap]> {
    return this.#bitmaps[Symbol.iterator]();
  }

  find(name: string): DirtyBitmap | undefined {
    return this.#bitmaps.get(name);
  }

  /** @throws ImageError where there is none of that name */
  get(name: string): DirtyBitmap {
    const bitmap = this.#bitmaps.get(name);
    if (bitmap === undefined) throw new ImageError('EINVAL', `Cannot read bitmap ${shown(name)}: there is none`);
    return bitmap;
  }

  /** @throws ImageError where the name is in use, or none */
  add(name: string, bitmap: DirtyBitmap): void {
    const nameBytes = new TextEncoder().encode(name).length;
    if (nameBytes === 0 || nameBytes > MAX_NAME_BYTES || name.includes('\0')) {
      throw new ImageError('EINVAL', `Cannot add bitmap ${shown(name)}: a name of ${nameBytes} bytes`);
    }
    if (this.#bitmaps.has(name)) {
      throw new ImageError('EINVAL', `Cannot add bitmap ${shown(name)}: the name is in use`);
    }
    this.#bitmaps.set(name, bitmap);
  }

  /** False where there is none. @throws ImageError where a job works with it */
  remove(name: string): boolean {
    const busy = this.#bitmaps.get(name)?.busy;
    if (busy !== undefined) {
      throw new ImageError('EINVAL', `Cannot remove bitmap ${shown(name)}: job ${busy} works with it`);
    }
    return this.#bitmaps.delete(name);
  }

  /** A range was changed. */
  mark(offset: number, lengthBytes: number): void {
    for (const bitmap of this.#bitmaps.values()) if (bitmap.recording) bitmap.mark(offset, lengthBytes);
  }

  resize(sizeBytes: number): void {
    for (const bitmap of this.#bitmaps.values()) bitmap.resize(sizeBytes);
  }
}

/** @throws ImageError for more than a bitmap may have */
function granulesOf(sizeBytes: number, granularityBytes: number): number {
  const granules = Math.ceil(sizeBytes / granularityBytes);
  if (granules > MAX_BITMAP_BYTES * 8) {
    const bytes = Math.ceil(granules / 8);
    throw new ImageError('EINVAL', `Cannot make a bitmap of ${bytes} bytes: limit is ${MAX_BITMAP_BYTES}`);
  }
  return granules;
}

function shown(name: string): string {
  return JSON.stringify(name.slice(0, 64));
}
