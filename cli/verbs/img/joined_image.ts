import type { Extent } from '../../../protocols/nbd/mod.ts';
import { type DiskImage, ReadOnlyImage } from '../../../services/nbd/images/mod.ts';

/** Several disks one behind the other, for reading; they stay their owner's. */
export class JoinedImage extends ReadOnlyImage {
  readonly sizeBytes: number;
  readonly #parts: readonly { readonly image: DiskImage; readonly start: number }[];

  constructor(images: readonly DiskImage[]) {
    super('several images one behind the other');
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

  #at(offset: number): { readonly image: DiskImage; readonly start: number } {
    // Empty disks end where they begin, and have nothing.
    return this.#parts.findLast(({ image, start }) => start <= offset && offset < start + image.sizeBytes)!;
  }
}
