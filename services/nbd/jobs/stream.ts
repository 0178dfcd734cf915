import type { Qcow2Image } from '../images/qcow2/mod.ts';
import type { BlockJob, JobWork } from './block_job.ts';
import type { Layers } from './chain.ts';
import type { BackingName } from './commit.ts';
import { JOB_GRAIN_BYTES } from './copy.ts';
import type { JobDisk } from './job_disk.ts';

/** What is looked at and copied while the disk stands still, in `bytes`: a guest waits for one at most */
const STEP_BYTES = 8 * JOB_GRAIN_BYTES;

/** What stays below: the images between it and the disk's own are streamed, and it is not */
export interface StreamBase {
  readonly between: Layers;
  readonly name: BackingName;
}

/**
 * Copies what an image has from below into the image itself, so that it needs nothing below any more, or nothing of
 * what is above a base.
 */
export class StreamWork implements JobWork {
  readonly type = 'stream';
  readonly lengthBytes: number;
  readonly #disk: JobDisk;
  readonly #image: Qcow2Image;
  readonly #base: StreamBase | undefined;

  constructor(disk: JobDisk, image: Qcow2Image, base?: StreamBase) {
    this.#disk = disk;
    this.#image = image;
    this.#base = base;
    this.lengthBytes = image.sizeBytes;
  }

  async run(job: BlockJob): Promise<void> {
    for (let at = 0; at < this.lengthBytes; ) {
      await job.next();
      const length = Math.min(STEP_BYTES, this.lengthBytes - at);
      const copied = await this.#disk.alone(() => this.#fill(at, length));
      job.progress(length, copied);
      at += length;
    }
  }

  async finish(): Promise<void> {
    const base = this.#base;
    await this.#disk.alone(async () => {
      if (base === undefined) return this.#image.changeBacking(undefined, { name: null });
      const { between, name } = base;
      const { below } = between;
      between.lowest.keepBacking();
      await this.#image.changeBacking(below, { name });
    });
  }

  async close(): Promise<void> {}

  /** Gives how much was copied, in `bytes`. */
  async #fill(offset: number, lengthBytes: number): Promise<number> {
    let copied = 0;
    for (let at = offset; at < offset + lengthBytes; ) {
      for (const extent of await this.#image.ownExtents(at, offset + lengthBytes - at)) {
        if (extent.flags === 0) copied += await this.#fillHole(at, extent.lengthBytes);
        at += extent.lengthBytes;
      }
    }
    return copied;
  }

  async #fillHole(offset: number, lengthBytes: number): Promise<number> {
    if (this.#base === undefined) {
      await this.#image.fillFromBelow(offset, lengthBytes);
      return lengthBytes;
    }
    let copied = 0;
    for await (const range of this.#base.between.ranges(offset, offset + lengthBytes)) {
      await this.#image.fillFromBelow(range.offset, range.lengthBytes, true);
      copied += range.lengthBytes;
    }
    return copied;
  }
}
