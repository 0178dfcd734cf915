import type { Qcow2Image } from '../images/qcow2/mod.ts';
import type { BlockJob, JobWork } from './block_job.ts';
import { JOB_GRAIN_BYTES } from './copy.ts';
import type { JobDisk } from './job_disk.ts';

/** What is looked at and copied while the disk stands still, in `bytes`: a guest waits for one at most */
const STEP_BYTES = 8 * JOB_GRAIN_BYTES;

/** Copies what an image has from below into the image itself, so that it needs nothing below any more. */
export class StreamWork implements JobWork {
  readonly type = 'stream';
  readonly lengthBytes: number;
  readonly #disk: JobDisk;
  readonly #image: Qcow2Image;

  constructor(disk: JobDisk, image: Qcow2Image) {
    this.#disk = disk;
    this.#image = image;
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
    await this.#disk.alone(() => this.#image.changeBacking(undefined, { name: null }));
  }

  async close(): Promise<void> {}

  /** Gives how much was copied, in `bytes`. */
  async #fill(offset: number, lengthBytes: number): Promise<number> {
    let copied = 0;
    for (let at = offset; at < offset + lengthBytes; ) {
      for (const extent of await this.#image.ownExtents(at, offset + lengthBytes - at)) {
        if (extent.flags === 0) {
          await this.#image.fillFromBelow(at, extent.lengthBytes);
          copied += extent.lengthBytes;
        }
        at += extent.lengthBytes;
      }
    }
    return copied;
  }
}
