import { type Extent, STATE } from '../../../protocols/nbd/mod.ts';
import type { DirtyBitmaps } from './dirty_bitmap.ts';
import { type DiskImage, ImageError, type ZeroOptions } from './disk_image.ts';
import { looksLikeSomeFormat } from './guess_format.ts';
import type { RawImage } from './raw_image.ts';

const SECTOR_BYTES = 512;

export interface SectorImageOptions {
  /**
   * Nobody said that the disk is raw, it was guessed: access is by sectors, and the first one never becomes that of
   * another format, which the next guess would believe (default false)
   */
  readonly guessed?: boolean;
}

/**
 * A raw disk in whole sectors, as QEMU shows one: a last sector that the file holds a part of reads as zeroes behind it,
 * and the file grows when something is written there. Takes over the image.
 */
export class SectorImage implements DiskImage {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly blockBytes: number;
  readonly canFastZero: boolean;
  readonly #image: RawImage;
  readonly #guessed: boolean;
  /** Where the file ends, in `bytes` */
  #end: number;

  constructor(image: RawImage, options: SectorImageOptions = {}) {
    this.#image = image;
    this.#guessed = options.guessed === true;
    this.#end = image.sizeBytes;
    this.sizeBytes = Math.ceil(image.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
    this.readOnly = image.readOnly;
    this.blockBytes = this.#guessed ? Math.max(SECTOR_BYTES, image.blockBytes) : image.blockBytes;
    this.canFastZero = image.canFastZero;
  }

  get bitmaps(): DirtyBitmaps {
    return this.#image.bitmaps;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    const there = this.#there(offset, into.length);
    if (there > 0) await this.#image.read(offset, into.subarray(0, there));
    into.fill(0, there);
  }

  readNow(offset: number, into: Uint8Array, alone?: boolean): boolean {
    const there = this.#there(offset, into.length);
    if (there < into.length) return false;
    return this.#image.readNow(offset, into, alone);
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    await this.#checkStart(offset, data);
    await this.#growTo(offset + data.length);
    await this.#image.write(offset, data);
  }

  writeNow(offset: number, data: Uint8Array): boolean {
    if (offset + data.length > this.#end || (this.#guessed && offset < SECTOR_BYTES)) return false;
    return this.#image.writeNow(offset, data);
  }

  flush(): Promise<void> {
    return this.#image.flush();
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    const there = this.#there(offset, lengthBytes);
    if (there > 0) await this.#image.discard(offset, there);
  }

  async writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    // What is behind the file's end reads as zeroes already.
    const there = this.#there(offset, lengthBytes);
    if (there > 0) await this.#image.writeZeroes(offset, there, options);
  }

  async blockStatus(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const there = this.#there(offset, lengthBytes);
    const tail = { lengthBytes: lengthBytes - there, flags: STATE.HOLE | STATE.ZERO };
    if (there === 0) return [tail];
    const extents = await this.#image.blockStatus(offset, there, maxExtents);
    const covered = extents.reduce((sum, extent) => sum + extent.lengthBytes, 0);
    if (covered < there || tail.lengthBytes === 0 || extents.length >= maxExtents) return extents;
    // Guessed disks know whole sectors only: the last one is what its first byte is.
    if (!this.#guessed) return [...extents, tail];
    const last = extents.at(-1)!;
    return [...extents.slice(0, -1), { ...last, lengthBytes: last.lengthBytes + tail.lengthBytes }];
  }

  dirtyBitmaps(): readonly string[] {
    return this.#image.dirtyBitmaps();
  }

  async dirtyBitmap(name: string, offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const there = this.#there(offset, lengthBytes);
    if (there === 0) return [{ lengthBytes, flags: 0 }];
    return this.#image.dirtyBitmap(name, offset, there, maxExtents);
  }

  allocationDepth(offset: number, lengthBytes: number): Promise<Extent[]> {
    return this.#image.allocationDepth(offset, lengthBytes);
  }

  close(): Promise<void> {
    return this.#image.close();
  }

  /** How much of a range the file has, in `bytes` */
  #there(offset: number, lengthBytes: number): number {
    return Math.max(0, Math.min(lengthBytes, this.#end - offset));
  }

  /** The file's last sector becomes whole; nothing that is there moves. */
  async #growTo(end: number): Promise<void> {
    if (end <= this.#end) return;
    await this.#image.resize(this.sizeBytes);
    this.#end = this.sizeBytes;
  }

  async #checkStart(offset: number, data: Uint8Array): Promise<void> {
    if (!this.#guessed || offset >= SECTOR_BYTES || data.length === 0) return;
    const start = new Uint8Array(SECTOR_BYTES);
    await this.read(0, start.subarray(0, Math.min(SECTOR_BYTES, this.sizeBytes)));
    start.set(data.subarray(0, SECTOR_BYTES - offset), offset);
    if (looksLikeSomeFormat(start)) {
      throw new ImageError(
        'EPERM',
        'Cannot write: the first sector would be that of another format, and the disk was only guessed to be raw',
      );
    }
  }
}
