import { type Extent, STATE } from '../../../protocols/nbd/mod.ts';
import { type DiskImage, ReadOnlyImage } from '../../../services/nbd/images/mod.ts';

const SECTOR_BYTES = 512;

/** A raw disk whose file ends inside a sector: the rest of that reads as zeroes, as for qemu-img. For reading. */
export class WholeSectors extends ReadOnlyImage {
  readonly sizeBytes: number;
  readonly #image: DiskImage;

  constructor(image: DiskImage) {
    super('a file that ends inside a sector');
    this.#image = image;
    this.sizeBytes = Math.ceil(image.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    const there = Math.min(into.length, Math.max(0, this.#image.sizeBytes - offset));
    into.fill(0, there);
    if (there > 0) await this.#image.read(offset, into.subarray(0, there));
  }

  async blockStatus(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const there = Math.min(lengthBytes, this.#image.sizeBytes - offset);
    if (there <= 0) return [{ lengthBytes, flags: STATE.ZERO | STATE.HOLE }];
    const extents = await this.#image.blockStatus(offset, there, maxExtents);
    const told = extents.reduce((sum, extent) => sum + extent.lengthBytes, 0);
    // The last sector is one, whatever its first part is.
    if (told < there || offset + lengthBytes <= this.#image.sizeBytes) return extents;
    const { flags, lengthBytes: last } = extents.at(-1)!;
    return [...extents.slice(0, -1), { flags, lengthBytes: last + lengthBytes - there }];
  }

  override async close(): Promise<void> {
    await this.#image.close();
  }
}
