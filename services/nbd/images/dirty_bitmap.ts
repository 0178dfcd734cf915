import { type Extent, STATE_DIRTY } from '../../../protocols/nbd/mod.ts';
import { ImageError } from './disk_image.ts';

/** QEMU's default and bounds, in `bytes` */
const DEFAULT_GRANULARITY_BYTES = 64 * 1024;
const MIN_GRANULARITY_BYTES = 512;
const MAX_GRANULARITY_BYTES = 2 ** 31;
/** A bitmap takes no more memory than this, in `bytes`: 16 TiB at 64 KiB */
const MAX_BITMAP_BYTES = 32 << 20;

/** Which parts of a disk were changed, in memory. A part is dirty as soon as a byte of it may have changed. */
export class DirtyBitmap {
  /** In `bytes`, a power of two */
  readonly granularityBytes: number;
  #bits: Uint8Array;
  #sizeBytes: number;

  /** @throws ImageError for a granularity that is none, or a bitmap that would be too large */
  constructor(sizeBytes: number, granularityBytes: number = DEFAULT_GRANULARITY_BYTES) {
    const isPower = Number.isInteger(Math.log2(granularityBytes));
    if (!isPower || granularityBytes < MIN_GRANULARITY_BYTES || granularityBytes > MAX_GRANULARITY_BYTES) {
      throw new ImageError(
        'EINVAL',
        `Cannot make a bitmap of granularity ${granularityBytes}: expected a power of two from ${MIN_GRANULARITY_BYTES}`,
      );
    }
    this.granularityBytes = granularityBytes;
    this.#sizeBytes = sizeBytes;
    this.#bits = newBits(sizeBytes, granularityBytes);
  }

  mark(offset: number, lengthBytes: number): void {
    if (lengthBytes <= 0) return;
    const first = Math.floor(offset / this.granularityBytes);
    const last = Math.min(Math.floor((offset + lengthBytes - 1) / this.granularityBytes), this.#bits.length * 8 - 1);
    for (let index = first; index <= last; index++) {
      if ((index & 7) === 0 && index + 7 <= last) {
        this.#bits[index >>> 3] = 0xff;
        index += 7;
      } else this.#bits[index >>> 3]! |= 1 << (index & 7);
    }
  }

  clear(): void {
    this.#bits.fill(0);
  }

  /** The disk has another size: what it gained is dirty. */
  resize(sizeBytes: number): void {
    const bits = newBits(sizeBytes, this.granularityBytes);
    bits.set(this.#bits.subarray(0, bits.length));
    this.#bits = bits;
    const before = this.#sizeBytes;
    this.#sizeBytes = sizeBytes;
    this.mark(before, sizeBytes - before);
  }

  /** Extents from `offset` on, STATE_DIRTY or 0; fewer than asked for where there are more than `maxExtents`. */
  extents(offset: number, lengthBytes: number, maxExtents: number): Extent[] {
    const end = Math.min(offset + lengthBytes, this.#sizeBytes);
    const extents: { lengthBytes: number; flags: number }[] = [];
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / this.granularityBytes);
      const next = Math.min((index + 1) * this.granularityBytes, end);
      const flags = (this.#bits[index >>> 3]! >>> (index & 7)) & 1 ? STATE_DIRTY : 0;
      const before = extents.at(-1);
      if (before?.flags === flags) before.lengthBytes += next - at;
      else if (extents.length === maxExtents) break;
      else extents.push({ lengthBytes: next - at, flags });
      at = next;
    }
    return extents;
  }
}

/** Bitmaps of one image by name, and the answers of {@link DiskImage} about them. */
export class DirtyBitmaps {
  readonly #bitmaps = new Map<string, DirtyBitmap>();

  /** @throws ImageError where the name is in use */
  add(name: string, bitmap: DirtyBitmap): void {
    if (this.#bitmaps.has(name)) throw new ImageError('EINVAL', `Cannot add bitmap ${name}: the name is in use`);
    this.#bitmaps.set(name, bitmap);
  }

  remove(name: string): boolean {
    return this.#bitmaps.delete(name);
  }

  get names(): string[] {
    return [...this.#bitmaps.keys()];
  }

  /** @throws ImageError where there is none of that name */
  get(name: string): DirtyBitmap {
    const bitmap = this.#bitmaps.get(name);
    if (bitmap === undefined) throw new ImageError('EINVAL', `Cannot read bitmap ${name}: there is none`);
    return bitmap;
  }

  mark(offset: number, lengthBytes: number): void {
    for (const bitmap of this.#bitmaps.values()) bitmap.mark(offset, lengthBytes);
  }

  resize(sizeBytes: number): void {
    for (const bitmap of this.#bitmaps.values()) bitmap.resize(sizeBytes);
  }
}

function newBits(sizeBytes: number, granularityBytes: number): Uint8Array {
  const bytes = Math.ceil(Math.ceil(sizeBytes / granularityBytes) / 8);
  if (bytes > MAX_BITMAP_BYTES) {
    throw new ImageError('EINVAL', `Cannot make a bitmap of ${bytes} bytes: limit is ${MAX_BITMAP_BYTES}`);
  }
  return new Uint8Array(bytes);
}
