import {
  close as closeFd,
  constants,
  fdatasync,
  fstatSync,
  ftruncate,
  openSync,
  read as readFd,
  readSync,
  write as writeFd,
  writeSync,
} from 'node:fs';
import type { Server } from 'node:net';
import { performance } from 'node:perf_hooks';
import { type Extent, STATE } from '../../../protocols/nbd/mod.ts';
import { DirtyBitmaps } from './dirty_bitmap.ts';
import { asImageError, type DiskImage, ImageError, type StatusBudget, type ZeroOptions } from './disk_image.ts';
import { FileHoles } from './file_holes.ts';
import { FileSender } from './file_sender.ts';
import { type ImageLock, lockImage } from './image_lock.ts';
import { InPlaceGate } from './in_place_gate.ts';
import { checkWritable, sizeOf } from './raw_file.ts';
import { nextMultiple, scanBudget, scanZeroes } from './scan_zeroes.ts';
import { CoreAtHand, StorageReads, StorageSends } from './slow_reason.ts';
import { isZero, zeroes } from './zeroes.ts';

/** Larger accesses always go to the pool, in `bytes`: one must not hold up the other peers for long */
const MAX_IN_PLACE_BYTES = 1 << 20;
const PIECE_BYTES = 1 << 20;
/** What file systems allocate at least, in `bytes` */
const BLOCK_BYTES = 4096;

export interface RawImageOptions {
  /** Opened O_RDONLY, no lock taken */
  readonly readOnly: boolean;
  /** Refuse an image that another writer has open (default true). False where someone else sees to it */
  readonly lock?: boolean;
  /** Not locked and not written to until activate(): a migration target opens what its source still holds */
  readonly inactive?: boolean;
  /** Ask the file system for its holes, and make some: needs node:ffi, an experiment of Node's (default false) */
  readonly unmap?: boolean;
  /**
   * Ask the file system for its holes, without Node's warning of node:ffi (default false): for a program that serves
   * nobody
   */
  readonly holes?: boolean;
  /** Large reads may go to sockets by sendfile(2): needs node:ffi, an experiment of Node's (default false) */
  readonly sendfile?: boolean;
  /** flush() does nothing (default false) */
  readonly unsafe?: boolean;
}

/**
 * A raw image in a regular file or block device: byte n of the disk is byte n of the file. Nothing is ever probed:
 * a guest may write any format's header into its raw disk.
 *
 * Plain Node has no SEEK_HOLE and no fallocate: holes are kept because zeroes are not written over zeroes, the map
 * of them is found by reading, and discard() keeps the data. With `holes` the file system is asked, with `unmap` it is
 * given space back, too.
 */
export class RawImage implements DiskImage {
  readonly readOnly: boolean;
  readonly blockBytes: number = 1;
  readonly canFastZero: boolean;
  /** Filled by every change of this object's; what clients read as qemu:dirty-bitmap */
  readonly bitmaps = new DirtyBitmaps();
  /** Called once, when a flush has failed */
  onFlushFailure: (() => void) | undefined;
  #sizeBytes: number;
  readonly #fd: number;
  readonly #wantsLock: boolean;
  readonly #unsafe: boolean;
  /** The file system's holes; undefined where they are not asked for, or not known */
  readonly #holes: FileHoles | undefined;
  /** Holes are made, too */
  readonly #unmaps: boolean;
  /** Loaded when the first large read comes; undefined then, too: this Node or system has none. null: not loaded */
  #sender: FileSender | undefined | null;
  #lock: ImageLock | undefined;
  #active = false;
  readonly #reads = new InPlaceGate(new StorageReads());
  /** Of their own: a client's socket says nothing about the reads of others */
  readonly #sends = new InPlaceGate(new StorageSends());
  readonly #writes = new InPlaceGate(new CoreAtHand());
  /** After a failed flush the page cache may have dropped what it could not write: no later flush can vouch for it */
  #flushError: ImageError | undefined;
  #closed = false;

  private constructor(fd: number, sizeBytes: number, options: RawImageOptions) {
    this.#fd = fd;
    this.#sizeBytes = sizeBytes;
    this.readOnly = options.readOnly;
    this.#wantsLock = !options.readOnly && options.lock !== false;
    this.#unsafe = options.unsafe === true;
    this.#sender = options.sendfile === true ? null : undefined;
    const wanted = options.unmap === true || options.holes === true;
    const quiet = options.unmap !== true;
    this.#holes = wanted && fstatSync(fd).isFile() ? FileHoles.load({ quiet }) : undefined;
    this.#unmaps = this.#holes !== undefined && options.unmap === true;
    this.canFastZero = this.#unmaps && !options.readOnly;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** @throws ImageError, or the errno error of open(2) for whoever named the path */
  static async open(path: string, options: RawImageOptions): Promise<RawImage> {
    // O_NONBLOCK: a FIFO must be refused below, not waited for.
    const access = options.readOnly ? constants.O_RDONLY : constants.O_RDWR;
    const fd = openSync(path, access | constants.O_NONBLOCK);
    try {
      return await RawImage.fromFd(fd, options);
    } catch (error) {
      closeFd(fd, () => {});
      throw error;
    }
  }

  /** Takes over an open descriptor, also one that was inherited; it is closed with the image. */
  static async fromFd(fd: number, options: RawImageOptions): Promise<RawImage> {
    const sizeBytes = sizeOf(fstatSync(fd));
    if (!options.readOnly) checkWritable(fd);
    const image = new RawImage(fd, sizeBytes, options);
    if (!options.inactive) await image.activate();
    return image;
  }

  /** Takes the lock; the image may be written from here on. @throws ImageError where another writer has it */
  async activate(): Promise<void> {
    this.#open();
    if (this.#active) return;
    if (this.#wantsLock) this.#lock = await lockImage(fstatSync(this.#fd));
    this.#active = true;
  }

  /** Everything written is on stable storage, the lock is free, and writing fails with EPERM until activate(). */
  async inactivate(): Promise<void> {
    this.#active = false;
    await this.flush();
    const lock = this.#lock;
    this.#lock = undefined;
    await lock?.release();
  }

  /** What holds the lock, for a process that is to hold it, too, for as long as it runs; undefined: nothing does */
  get lockHolder(): Server | undefined {
    return this.#lock?.holder;
  }

  readNow(offset: number, into: Uint8Array, alone = false): boolean {
    if (into.length > MAX_IN_PLACE_BYTES || !this.#reads.enter(alone)) return false;
    this.#open();
    let done = 0;
    try {
      while (done < into.length) {
        const count = readSync(this.#fd, into, done, into.length - done, offset + done);
        if (count === 0) throw shrunk(offset + done);
        done += count;
      }
    } catch (error) {
      throw asImageError(error);
    } finally {
      this.#reads.done(into.length);
    }
    return true;
  }

  writeNow(offset: number, data: Uint8Array): boolean {
    if (data.length > MAX_IN_PLACE_BYTES || !this.#writes.enter()) return false;
    this.#writable();
    this.bitmaps.mark(offset, data.length);
    let done = 0;
    try {
      while (done < data.length) done += writeSync(this.#fd, data, done, data.length - done, offset + done);
    } catch (error) {
      throw asImageError(error);
    } finally {
      this.#writes.done(data.length);
    }
    return true;
  }

  get canSend(): boolean {
    if (this.#sender === null) this.#sender = FileSender.load(this.#fd);
    return this.#sender?.works === true;
  }

  sendNow(socket: number, offset: number, lengthBytes: number): number | undefined {
    this.#open();
    const sender = this.#sender;
    if (!sender?.works || !this.#sends.enter()) return undefined;
    const sent = sender.send(socket, offset, Math.min(lengthBytes, MAX_IN_PLACE_BYTES));
    this.#sends.done(sent);
    return sent;
  }

  willSend(offset: number, lengthBytes: number): void {
    if (!this.#closed) this.#sender?.willSend(offset, lengthBytes);
  }

  /** One promise and one callback: on a cold disk all requests come this way. */
  read(offset: number, into: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#open();
      const startedMs = performance.now();
      let done = 0;
      const next = (): void => {
        readFd(this.#fd, into, done, into.length - done, offset + done, (error, count) => {
          if (error !== null) reject(asImageError(error));
          else if (count === 0) reject(shrunk(offset + done));
          else {
            done += count;
            if (done < into.length) next();
            else {
              this.#reads.pooled(into.length, performance.now() - startedMs);
              resolve();
            }
          }
        });
      };
      if (into.length === 0) resolve();
      else next();
    });
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#writable();
    this.bitmaps.mark(offset, data.length);
    let done = 0;
    while (done < data.length) done += await this.#writeOnce(data, done, data.length - done, offset + done);
  }

  async flush(): Promise<void> {
    this.#open();
    if (this.readOnly || this.#unsafe) return;
    if (this.#flushError !== undefined) throw this.#flushError;
    await new Promise<void>((resolve, reject) => {
      fdatasync(this.#fd, (error) => {
        if (error === null) resolve();
        else {
          const failure = asImageError(error);
          if (this.#flushError === undefined) this.onFlushFailure?.();
          this.#flushError = failure;
          reject(failure);
        }
      });
    });
  }

  /** A flush of the same file has failed elsewhere: what was written before may be gone, so all of ours fail, too. */
  distrustFlushes(): void {
    this.#flushError ??= new ImageError('EIO', 'Cannot flush the image: what was written before may be lost');
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    this.#writable();
    // "NBD_CMD_TRIM is a hint": without holes the data stays, which is one of the allowed outcomes.
    if (this.#unmaps) this.bitmaps.mark(offset, this.#holes?.punch(this.#fd, offset, lengthBytes) ?? 0);
  }

  async writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    this.#writable();
    const end = offset + lengthBytes;
    const from = offset + this.#zeroByHoles(offset, lengthBytes, options);
    if (from === end) return;
    if (options.fast) throw new ImageError('ENOTSUP', 'Cannot write zeroes fast: the file must be written');
    const scratch = Buffer.allocUnsafe(Math.min(PIECE_BYTES, end - from));
    let next: number;
    for (let at = from; at < end; at = next) {
      next = Math.min(end, nextMultiple(at, PIECE_BYTES));
      const piece = scratch.subarray(0, next - at);
      const count = await this.#readOnce(piece, 0, at);
      if (count < piece.length) await this.write(at, zeroes().subarray(0, piece.length));
      else await this.#zeroWhatIsNot(at, piece);
    }
  }

  /** Gives how much of the range is done, in `bytes`: the rest has to be written. */
  #zeroByHoles(offset: number, lengthBytes: number, { mayUnmap }: ZeroOptions): number {
    const holes = this.#holes;
    if (holes === undefined || !this.#unmaps) return 0;
    const done = mayUnmap ? holes.punch(this.#fd, offset, lengthBytes) : holes.zero(this.#fd, offset, lengthBytes);
    this.bitmaps.mark(offset, done);
    return done;
  }

  /** Zeroes are not written over zeroes: what is a hole stays one, and nothing new is allocated. */
  async #zeroWhatIsNot(offset: number, contents: Buffer): Promise<void> {
    if (isZero(contents)) return;
    const end = offset + contents.length;
    /** Start of the run of blocks that are not zero, or -1 */
    let run = -1;
    for (let at = offset; at < end; at = nextMultiple(at, BLOCK_BYTES)) {
      const block = contents.subarray(at - offset, Math.min(end, nextMultiple(at, BLOCK_BYTES)) - offset);
      if (!isZero(block)) {
        if (run < 0) run = at;
        continue;
      }
      if (run >= 0) await this.write(run, zeroes().subarray(0, at - run));
      run = -1;
    }
    if (run >= 0) await this.write(run, zeroes().subarray(0, end - run));
  }

  async blockStatus(
    offset: number,
    lengthBytes: number,
    maxExtents: number,
    budget: StatusBudget = scanBudget(),
  ): Promise<Extent[]> {
    this.#open();
    const known = this.#fileExtents(offset, lengthBytes, maxExtents);
    if (known !== undefined) return known;
    const stats = fstatSync(this.#fd);
    // Fully allocated (or a device): no holes to look for. The opposite, 0 blocks, proves nothing: some file
    // systems keep small files elsewhere or count late.
    if (!stats.isFile() || stats.blocks * 512 >= this.sizeBytes) return [{ lengthBytes, flags: 0 }];
    const read = (at: number, into: Uint8Array): Promise<void> => this.read(at, into);
    return scanZeroes(read, { offset, lengthBytes }, maxExtents, budget);
  }

  dirtyBitmaps(): readonly string[] {
    return this.bitmaps.names;
  }

  async dirtyBitmap(name: string, offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.bitmaps.get(name).extents(offset, lengthBytes, maxExtents);
  }

  /** A raw file has all of its disk in itself, holes and all, as QEMU says of one. */
  async allocationDepth(_offset: number, lengthBytes: number): Promise<Extent[]> {
    return [{ lengthBytes, flags: 1 }];
  }

  /** @throws ImageError with ENOTSUP for a device */
  async resize(sizeBytes: number): Promise<void> {
    this.#writable();
    if (!fstatSync(this.#fd).isFile()) throw new ImageError('ENOTSUP', 'Cannot resize the image: it is a device');
    await new Promise<void>((resolve, reject) => {
      ftruncate(this.#fd, sizeBytes, (error) => (error === null ? resolve() : reject(asImageError(error))));
    });
    this.#sizeBytes = sizeBytes;
    this.bitmaps.resize(sizeBytes);
  }

  /** As the file system says; undefined where it does not. */
  #fileExtents(offset: number, lengthBytes: number, maxExtents: number): Extent[] | undefined {
    if (this.#holes === undefined) return undefined;
    const extents: { lengthBytes: number; flags: number }[] = [];
    const end = offset + lengthBytes;
    for (let at = offset; at < end && extents.length < maxExtents; ) {
      const run = this.#holes.runAt(this.#fd, at, this.sizeBytes);
      if (run === undefined || run.end <= at) return undefined;
      const length = Math.min(run.end, end) - at;
      extents.push({ lengthBytes: length, flags: run.hole ? STATE.HOLE | STATE.ZERO : 0 });
      at += length;
    }
    return extents;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await new Promise<void>((resolve) => closeFd(this.#fd, () => resolve()));
    await this.#lock?.release();
  }

  #readOnce(into: Uint8Array, from: number, position: number): Promise<number> {
    return new Promise((resolve, reject) => {
      readFd(this.#fd, into, from, into.length - from, position, (error, count) => {
        if (error === null) resolve(count);
        else reject(asImageError(error));
      });
    });
  }

  #writeOnce(data: Uint8Array, from: number, count: number, position: number): Promise<number> {
    return new Promise((resolve, reject) => {
      writeFd(this.#fd, data, from, count, position, (error, written) => {
        if (error === null) resolve(written);
        else reject(asImageError(error));
      });
    });
  }

  #open(): void {
    if (this.#closed) throw new ImageError('ESHUTDOWN', 'Cannot access the image: it is closed');
  }

  #writable(): void {
    this.#open();
    if (this.readOnly) throw new ImageError('EPERM', 'Cannot write: image is read-only');
    if (!this.#active) throw new ImageError('EPERM', 'Cannot write: another machine owns the image now');
  }
}

function shrunk(offset: number): ImageError {
  return new ImageError('EIO', 'Cannot read the image: its file is shorter than when it was opened', { offset });
}
