import type { DiskImage } from '../images/disk_image.ts';
import { Qcow2Image } from '../images/qcow2/mod.ts';
import { JobError } from './block_job.ts';

const STATUS_BYTES = 1 << 30;
const MAX_EXTENTS = 1024;

/** Images that lie under each other, the upper first, which a job makes one with what is below them. */
export class Layers {
  readonly images: readonly Qcow2Image[];

  /** `count` images from `top` on; below the last there is one more. @throws JobError */
  constructor(top: DiskImage | undefined, count: number) {
    const images: Qcow2Image[] = [];
    for (let image = top; images.length < count; ) {
      if (!(image instanceof Qcow2Image) || image.backing === undefined) {
        throw new JobError(
          `Cannot work on ${count} images under each other: number ${images.length + 1} has none below`,
        );
      }
      images.push(image);
      image = image.backing;
    }
    this.images = images;
  }

  get top(): Qcow2Image {
    return this.images[0]!;
  }

  get lowest(): Qcow2Image {
    return this.images.at(-1)!;
  }

  get below(): DiskImage {
    return this.lowest.backing!;
  }

  /** Takes these images away, and leaves what is below them open. */
  async close(): Promise<void> {
    this.lowest.keepBacking();
    await this.top.close();
  }

  /**
   * The ranges of the upper image that come from these images and not from below, between `offset` and its end. Where
   * one of them is shorter, what is below does not show through it: that counts, too.
   */
  async *ranges(offset = 0, end = this.top.sizeBytes): AsyncGenerator<{ offset: number; lengthBytes: number }> {
    const shortest = Math.min(...this.images.slice(1).map(({ sizeBytes }) => sizeBytes), end);
    for (let at = offset; at < shortest; ) {
      const extents = await this.top.allocationDepth(at, Math.min(STATUS_BYTES, shortest - at), MAX_EXTENTS);
      for (const { lengthBytes, flags } of extents) {
        const length = Math.min(lengthBytes, shortest - at);
        if (flags !== 0 && flags <= this.images.length) yield { offset: at, lengthBytes: length };
        at += length;
      }
    }
    const rest = Math.max(offset, shortest);
    if (rest < end) yield { offset: rest, lengthBytes: end - rest };
  }
}
