import type { DirtyBitmap } from '../images/dirty_bitmap.ts';
import { type DiskImage, ImageError } from '../images/disk_image.ts';
import type { BlockJob, JobWork } from './block_job.ts';
import { copyRange, jobBitmap, markContents, PIECE_BYTES } from './copy.ts';
import type { JobDisk, WriteWatcher } from './job_disk.ts';

export interface BackupOptions {
  /** All of the disk, or what a bitmap says */
  readonly sync: 'full' | 'incremental';
  /** Of `incremental`: cleared when the backup begins, and given its bits back when it fails */
  readonly bitmap?: { readonly name: string; readonly bits: DirtyBitmap };
  readonly targetIsZero: boolean;
}

/** The disk as it is when the job begins: what the guest is about to overwrite is copied before it may. */
export class BackupWork implements JobWork {
  readonly type = 'backup';
  readonly lengthBytes: number;
  readonly #disk: JobDisk;
  readonly #target: DiskImage;
  readonly #todo: DirtyBitmap;
  readonly #bitmap: BackupOptions['bitmap'];
  readonly #before: DirtyBitmap | undefined;
  readonly #copying = new Set<{ from: number; to: number; done: Promise<void> }>();
  readonly #watcher: WriteWatcher;
  #failed: Error | undefined;

  private constructor(disk: JobDisk, target: DiskImage, todo: DirtyBitmap, bitmap: BackupOptions['bitmap']) {
    this.#disk = disk;
    this.#target = target;
    this.#todo = todo;
    this.#bitmap = bitmap;
    this.#before = bitmap?.bits.copy();
    this.lengthBytes = disk.sizeBytes;
    this.#watcher = { before: (offset, length) => this.#rescue(offset, length) };
  }

  /** The moment whose state is kept is this call's. @throws ImageError where the bitmap cannot be used */
  static async begin(disk: JobDisk, target: DiskImage, id: string, options: BackupOptions): Promise<BackupWork> {
    const { bitmap } = options;
    if ((options.sync === 'incremental') !== (bitmap !== undefined)) {
      throw new ImageError('EINVAL', 'Cannot begin the backup: a bitmap goes with sync=incremental, and only there');
    }
    if (bitmap !== undefined && (bitmap.bits.inconsistent || bitmap.bits.busy !== undefined)) {
      throw new ImageError('EINVAL', `Cannot begin the backup: bitmap '${bitmap.name}' is in use or inconsistent`);
    }
    return disk.alone(async () => {
      const todo = jobBitmap(disk.sizeBytes);
      if (bitmap !== undefined) todo.merge(bitmap.bits);
      else if (options.targetIsZero) await markContents(disk.image, todo);
      else todo.mark(0, disk.sizeBytes);
      const work = new BackupWork(disk, target, todo, bitmap);
      if (bitmap !== undefined) {
        bitmap.bits.busy = id;
        bitmap.bits.clear();
      }
      disk.watch(work.#watcher);
      return work;
    });
  }

  async run(job: BlockJob): Promise<void> {
    const clean = this.lengthBytes - this.#todo.dirtyBytes;
    if (clean > 0) job.progress(clean, 0);
    for (;;) {
      await job.next();
      if (this.#failed !== undefined) throw this.#failed;
      const run = this.#todo.next(0, PIECE_BYTES);
      if (run === undefined) break;
      await this.#copy(run.offset, run.lengthBytes);
      job.progress(run.lengthBytes);
    }
    await Promise.all([...this.#copying].map(({ done }) => done));
    if (this.#failed !== undefined) throw this.#failed;
  }

  async finish(): Promise<void> {
    await this.#target.flush();
  }

  async close(failed: boolean): Promise<void> {
    this.#disk.unwatch(this.#watcher);
    if (this.#bitmap !== undefined) {
      if (failed && this.#before !== undefined) this.#bitmap.bits.merge(this.#before);
      this.#bitmap.bits.busy = undefined;
    }
    await this.#target.close();
  }

  /** Before the guest's write: what it overwrites goes to the target, unless it is there. */
  async #rescue(offset: number, lengthBytes: number): Promise<void> {
    if (this.#failed !== undefined) return;
    const end = offset + lengthBytes;
    const { granularityBytes } = this.#todo;
    try {
      let run = this.#todo.next(offset - (offset % granularityBytes), PIECE_BYTES);
      while (run !== undefined && run.offset < end) {
        await this.#copy(run.offset, run.lengthBytes);
        run = this.#todo.next(run.offset, PIECE_BYTES);
      }
      // Somebody else may be copying what this write is about to change.
      const busy = [...this.#copying].filter(({ from, to }) => from < end && offset < to);
      await Promise.all(busy.map(({ done }) => done));
    } catch (error) {
      // The guest must not suffer for its backup: the job fails, the write goes on.
      this.#failed ??= error as Error;
    }
  }

  async #copy(offset: number, lengthBytes: number): Promise<void> {
    this.#todo.unmark(offset, lengthBytes);
    const done = copyRange(this.#disk.image, this.#target, offset, lengthBytes);
    const entry = { from: offset, to: offset + lengthBytes, done };
    this.#copying.add(entry);
    try {
      await done;
    } finally {
      this.#copying.delete(entry);
    }
  }
}
