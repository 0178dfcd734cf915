import type { DiskImage } from '../images/disk_image.ts';
import type { ImageFile, Qcow2Image } from '../images/qcow2/mod.ts';
import { renameBacking } from '../images/qcow2/mod.ts';
import type { BlockJob, JobWork } from './block_job.ts';
import type { Layers } from './chain.ts';
import { copyRange, PIECE_BYTES } from './copy.ts';
import type { JobDisk } from './job_disk.ts';

/** What a backing file is called in the header of the image above it */
export interface BackingName {
  readonly file: string;
  readonly format: string;
}

export interface CommitOptions {
  readonly layers: Layers;
  /** Open for writing; it is under the layers already, and under the disk when the job has ended */
  readonly base: DiskImage;
  /** The image above the layers, whose header names the base afterwards */
  readonly overlay: Qcow2Image;
  readonly name: BackingName;
  /** The overlay's file, open for writing, where the overlay itself is read-only */
  readonly overlayFile: ImageFile | undefined;
  /** Called when the disk goes on over the base */
  readonly onDone?: () => void;
}

/**
 * Brings what lies between a disk's image and a base into the base: nobody writes to those images, so that the job ends
 * by itself, and the disk goes on over the base.
 */
export class CommitWork implements JobWork {
  readonly type = 'commit';
  readonly lengthBytes: number;
  readonly #disk: JobDisk;
  readonly #options: CommitOptions;

  constructor(disk: JobDisk, options: CommitOptions) {
    this.#disk = disk;
    this.#options = options;
    this.lengthBytes = options.layers.top.sizeBytes;
  }

  async run(job: BlockJob): Promise<void> {
    const { layers, base } = this.#options;
    let done = 0;
    for await (const { offset, lengthBytes } of layers.ranges()) {
      job.progress(offset - done, 0);
      for (let at = offset; at < offset + lengthBytes; ) {
        await job.next();
        const length = Math.min(PIECE_BYTES, offset + lengthBytes - at);
        await copyRange(layers.top, base, at, length);
        job.progress(length);
        at += length;
      }
      done = offset + lengthBytes;
    }
    job.progress(this.lengthBytes - done, 0);
  }

  async finish(): Promise<void> {
    const { layers, base, overlay, name, overlayFile, onDone } = this.#options;
    // All of it is in the base before the overlay's header names that.
    await base.flush();
    await this.#disk.alone(async () => {
      layers.lowest.keepBacking();
      if (overlayFile === undefined) await overlay.changeBacking(base, { name });
      else {
        await renameBacking(overlayFile, name);
        await overlay.swapBacking(base);
      }
      onDone?.();
    });
  }

  async close(): Promise<void> {
    await this.#options.overlayFile?.close();
    // It is read only from here on, and may be opened for writing again.
    await this.#options.base.inactivate?.();
  }
}
