import { type Extent, STATE } from '../../../protocols/nbd/mod.ts';
import type { DiskImage, StatusBudget } from './disk_image.ts';

/** What is known of a range of a disk, from its start on: neighbours of the same kind are one extent. */
export class ExtentList {
  readonly #extents: { lengthBytes: number; flags: number }[] = [];
  readonly #most: number;

  /** `most`: extents that fit (default: all) */
  constructor(most = Number.POSITIVE_INFINITY) {
    this.#most = most;
  }

  get length(): number {
    return this.#extents.length;
  }

  /** The list itself, as it is then */
  get extents(): Extent[] {
    return this.#extents;
  }

  /** False where it does not fit any more: what there is is the answer. */
  add(lengthBytes: number, flags: number): boolean {
    const before = this.#extents.at(-1);
    if (before?.flags === flags) before.lengthBytes += lengthBytes;
    else if (this.#extents.length >= this.#most) return false;
    else this.#extents.push({ lengthBytes, flags });
    return true;
  }

  /**
   * The status of a range that the image above has nothing of; behind the end of the one below are zeroes. False where
   * it does not fit, or nothing is left of `budget` to look with.
   */
  async addBelow(backing: DiskImage, offset: number, lengthBytes: number, budget: StatusBudget): Promise<boolean> {
    const end = offset + lengthBytes;
    let at = offset;
    while (at < end && at < backing.sizeBytes) {
      const below = await backing.blockStatus(at, Math.min(end, backing.sizeBytes) - at, this.#most, budget);
      for (const extent of below) {
        const length = Math.min(extent.lengthBytes, end - at);
        if (!this.add(length, extent.flags)) return false;
        at += length;
      }
      // Each time costs, also where the images below have no tables.
      if (below.length === 0 || --budget.left <= 0) return false;
    }
    return at >= end || this.add(end - at, STATE.HOLE | STATE.ZERO);
  }
}
