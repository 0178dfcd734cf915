import type { DirtyBitmap } from '../images/dirty_bitmap.ts';
import type { DiskImage } from '../images/disk_image.ts';
import type { BlockJob, JobType, JobWork } from './block_job.ts';
import type { Layers } from './chain.ts';
import { copyRange, jobBitmap, markContents, PIECE_BYTES } from './copy.ts';
import type { JobDisk, WriteWatcher } from './job_disk.ts';

export interface MirrorOptions {
  /** What the target gets before it follows: all, what the top image has by itself, or nothing */
  readonly sync: 'full' | 'top' | 'none';
  /** The target is new and reads as zeroes */
  readonly targetIsZero: boolean;
}

/** What a `commit` brings into the image below it: the disk's own and more images under that */
export interface MirrorLayers {
  readonly type: 'commit';
  readonly layers: Layers;
}

/** Anything that says what of a disk is its own */
interface Layer extends DiskImage {
  ownExtents?(offset: number, lengthBytes: number): Promise<readonly { lengthBytes: number; flags: number }[]>;
}

/**
 * Copies a disk that is written to, and then follows it until it is told to complete: then target and disk are the
 * same, and the disk goes on with the target. `commit` is the same with the image below as target, from which nothing
 * has to be copied but what the image above has.
 */
export class MirrorWork implements JobWork {
  readonly type: JobType;
  readonly lengthBytes: number;
  readonly follows = true;
  readonly #disk: JobDisk;
  readonly #target: DiskImage;
  readonly #options: MirrorOptions & Partial<MirrorLayers>;
  readonly #dirty: DirtyBitmap;
  readonly #watcher: WriteWatcher;
  readonly #onPivot: (before: DiskImage) => Promise<void>;
  #pivoted = false;

  /** `onPivot` gets the image that the disk has left. */
  constructor(
    disk: JobDisk,
    target: DiskImage,
    options: MirrorOptions & Partial<MirrorLayers>,
    onPivot: (before: DiskImage) => Promise<void>,
  ) {
    this.type = options.type ?? 'mirror';
    this.#disk = disk;
    this.#target = target;
    this.#options = options;
    this.#onPivot = onPivot;
    this.lengthBytes = disk.sizeBytes;
    this.#dirty = jobBitmap(disk.sizeBytes);
    this.#watcher = { after: (offset, length) => this.#dirty.mark(offset, length) };
    disk.watch(this.#watcher);
  }

  async run(job: BlockJob): Promise<void> {
    const { sync, targetIsZero } = this.#options;
    if (sync === 'full' && targetIsZero) await markContents(this.#disk, this.#dirty);
    else if (sync === 'full') this.#dirty.mark(0, this.#disk.sizeBytes);
    else if (sync === 'top') await this.#markTop();
    const clean = this.#disk.sizeBytes - this.#dirty.dirtyBytes;
    if (clean > 0) job.progress(clean, 0);
    while (await this.follow(job)) await job.next();
  }

  async follow(job: BlockJob): Promise<boolean> {
    const run = this.#dirty.next(0, PIECE_BYTES);
    if (run === undefined) return false;
    // Clean first: what the guest writes during the copy is marked again.
    this.#dirty.unmark(run.offset, run.lengthBytes);
    try {
      await copyRange(this.#disk.image, this.#target, run.offset, run.lengthBytes);
    } catch (error) {
      this.#dirty.mark(run.offset, run.lengthBytes);
      throw error;
    }
    job.progress(run.lengthBytes);
    return true;
  }

  async finish(pivot: boolean): Promise<void> {
    await this.#disk.alone(async () => {
      for (let run = this.#dirty.next(0, PIECE_BYTES); run !== undefined; run = this.#dirty.next(0, PIECE_BYTES)) {
        this.#dirty.unmark(run.offset, run.lengthBytes);
        await copyRange(this.#disk.image, this.#target, run.offset, run.lengthBytes);
      }
      await this.#target.flush();
      this.#disk.unwatch(this.#watcher);
      if (!pivot) return;
      const before = this.#disk.replace(this.#target);
      this.#pivoted = true;
      await this.#onPivot(before);
    });
  }

  async close(): Promise<void> {
    this.#disk.unwatch(this.#watcher);
    // The image below a committed one stays under the disk.
    if (!this.#pivoted && this.type === 'mirror') await this.#target.close();
    // Nobody writes to that one then, and it may be opened for writing again.
    else if (!this.#pivoted) await this.#target.inactivate?.();
  }

  async #markTop(): Promise<void> {
    const { layers } = this.#options;
    if (layers !== undefined) {
      for await (const { offset, lengthBytes } of layers.ranges()) this.#dirty.mark(offset, lengthBytes);
      return;
    }
    const top = this.#disk.image as Layer;
    if (top.ownExtents === undefined) {
      this.#dirty.mark(0, top.sizeBytes);
      return;
    }
    for (let at = 0; at < top.sizeBytes; ) {
      for (const { lengthBytes, flags } of await top.ownExtents(at, top.sizeBytes - at)) {
        if (flags !== 0) this.#dirty.mark(at, lengthBytes);
        at += lengthBytes;
      }
    }
  }
}
