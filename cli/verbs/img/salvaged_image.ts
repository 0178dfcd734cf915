import type { Extent } from '../../../protocols/nbd/mod.ts';
import { type DiskImage, ReadOnlyImage, type StatusBudget } from '../../../services/nbd/images/mod.ts';

const SECTOR_BYTES = 512;
/** What is taken for data where nothing is said about it, in `bytes` */
const UNKNOWN_BYTES = 65_536;

/** A damaged disk, for reading: sectors that cannot be read are zeroes, and somebody hears of them. */
export class SalvagedImage extends ReadOnlyImage {
  readonly sizeBytes: number;
  readonly #image: DiskImage;
  readonly #lost: (what: string) => void;

  constructor(image: DiskImage, lost: (what: string) => void) {
    super('a disk that is salvaged');
    this.#image = image;
    this.#lost = lost;
    this.sizeBytes = image.sizeBytes;
  }

  /** All at once where that goes; else by halves, down to the sectors that are lost. */
  async read(offset: number, into: Uint8Array): Promise<void> {
    try {
      await this.#image.read(offset, into);
    } catch (error) {
      const half = Math.floor(into.length / 2 / SECTOR_BYTES) * SECTOR_BYTES;
      if (half > 0) {
        await this.read(offset, into.subarray(0, half));
        await this.read(offset + half, into.subarray(half));
        return;
      }
      into.fill(0);
      this.#lost(`error while reading offset ${offset}: ${textOf(error)}`);
    }
  }

  async blockStatus(offset: number, lengthBytes: number, maxExtents: number, budget?: StatusBudget): Promise<Extent[]> {
    try {
      return await this.#image.blockStatus(offset, lengthBytes, maxExtents, budget);
    } catch (error) {
      this.#lost(`error while reading block status at offset ${offset}: ${textOf(error)}`);
      return [{ lengthBytes: Math.min(lengthBytes, UNKNOWN_BYTES - (offset % UNKNOWN_BYTES)), flags: 0 }];
    }
  }
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
