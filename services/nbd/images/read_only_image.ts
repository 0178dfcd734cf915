import type { Extent } from '../../../protocols/nbd/mod.ts';
import { type DiskImage, ImageError, type StatusBudget } from './disk_image.ts';

/** A disk that is made of others, for reading: what would change it fails with EPERM. The others stay their owner's. */
export abstract class ReadOnlyImage implements DiskImage {
  readonly readOnly = true;
  readonly blockBytes: number = 1;
  readonly canFastZero = false;
  abstract readonly sizeBytes: number;
  /** What it is, for errors: `a part of another image` */
  readonly #what: string;

  constructor(what: string) {
    this.#what = what;
  }

  abstract read(offset: number, into: Uint8Array): Promise<void>;
  abstract blockStatus(
    offset: number,
    lengthBytes: number,
    maxExtents: number,
    budget?: StatusBudget,
  ): Promise<Extent[]>;

  readNow(_offset: number, _into: Uint8Array): boolean {
    return false;
  }
  writeNow(): boolean {
    throw this.#refusal();
  }
  async write(): Promise<void> {
    throw this.#refusal();
  }
  async discard(): Promise<void> {
    throw this.#refusal();
  }
  async writeZeroes(): Promise<void> {
    throw this.#refusal();
  }
  async flush(): Promise<void> {}
  async close(): Promise<void> {}

  #refusal(): ImageError {
    return new ImageError('EPERM', `Cannot write: ${this.#what}`);
  }
}
