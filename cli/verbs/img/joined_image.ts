import type { Extent } from '../../../protocols/nbd/mod.ts';
import { type DiskImage, ImageError } from '../../../services/nbd/images/mod.ts';

/** Several disks one behind the other, for reading; they stay their owner's. */
export class JoinedImage implements DiskImage {
  readonly sizeBytes: number;
  readonly readOnly = true;
  readonly blockBytes = 1;
  readonly canFastZero = false;
  readonly #parts: readonly { readonly image: DiskImage; readonly start: number }[];

  constructor(images: readonly DiskImage[]) {
    let start = 0;
    this.#parts = images.map((image) => {
      const part = { image, start };
      start += image.sizeBytes;
      return part;
    });
    this.sizeBytes = start;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    for (let done = 0; done < into.length; ) {
      const { image, start } = this.#at(offset + done);
      const from = offset + done - start;
      const length = Math.min(into.length - done, image.sizeBytes - from);
      await image.read(from, into.subarray(done, done + length));
      done += length;
    }
  }

  /** Of the disk at `offset` alone: the rest comes with the next call. */
  blockStatus(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const { image, start } = this.#at(offset);
    const from = offset - start;
    return image.blockStatus(from, Math.min(lengthBytes, image.sizeBytes - from), maxExtents);
  }

  readNow(): boolean {
    return false;
  }
  writeNow(): boolean {
    throw readOnly();
  }
  write(): Promise<void> {
    return Promise.reject(readOnly());
  }
  discard(): Promise<void> {
    return Promise.reject(readOnly());
  }
  writeZeroes(): Promise<void> {
    return Promise.reject(readOnly());
  }
  async flush(): Promise<void> {}
  async close(): Promise<void> {}

  #at(offset: number): { readonly image: DiskImage; readonly start: number } {
    // Empty disks end where they begin, and have nothing.
    return this.#parts.findLast(({ image, start }) => start <= offset && offset < start + image.sizeBytes)!;
  }
}

function readOnly(): ImageError {
  return new ImageError('EPERM', 'Cannot write: several images one behind the other');
}
