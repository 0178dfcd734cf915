import {
  close as closeFd,
  constants,
  fdatasync,
  fstatSync,
  ftruncateSync,
  openSync,
  read as readFd,
  readSync,
  write as writeFd,
  writeSync,
} from 'node:fs';
import { asImageError, ImageError } from '../disk_image.ts';
import { FileHoles } from '../file_holes.ts';
import { type ImageLock, lockImage } from '../image_lock.ts';

/** In `bytes` */
export interface FileRange {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** The bytes that hold an image: a file, or in tests a log of what was written. */
export interface ImageFile {
  /** As of opening, and of what was written since, in `bytes` */
  readonly sizeBytes: number;
  /** Fills `into`; what is behind the end reads as zeroes. @throws ImageError, also where the file has shrunk */
  read(offset: number, into: Uint8Array): Promise<void>;
  readNow(offset: number, into: Uint8Array): void;
  write(offset: number, data: Uint8Array): Promise<void>;
  writeNow(offset: number, data: Uint8Array): void;
  /** Everything written before is on stable storage */
  sync(): Promise<void>;
  lock(): Promise<ImageLock>;
  /** Where space can be given back: the file ends at `endBytes` at the latest, and `holes` take none where that can be */
  release?(endBytes: number, holes: readonly FileRange[]): Promise<void>;
  /** Learns the size anew */
  refresh(): void;
  close(): Promise<void>;
}

/** A file that shows another one changed: what does not look at bytes is that one's. */
export abstract class ImageFileOver implements ImageFile {
  protected readonly file: ImageFile;

  constructor(file: ImageFile) {
    this.file = file;
  }

  abstract readonly sizeBytes: number;
  abstract read(offset: number, into: Uint8Array): Promise<void>;
  abstract readNow(offset: number, into: Uint8Array): void;
  abstract write(offset: number, data: Uint8Array): Promise<void>;
  abstract writeNow(offset: number, data: Uint8Array): void;

  sync(): Promise<void> {
    return this.file.sync();
  }

  lock(): Promise<ImageLock> {
    return this.file.lock();
  }

  refresh(): void {
    this.file.refresh();
  }

  close(): Promise<void> {
    return this.file.close();
  }
}

/** An image in a regular file, the only place that qcow2 is served from. */
export class FdImageFile implements ImageFile {
  readonly #fd: number;
  readonly #unsafe: boolean;
  #sizeBytes: number;
  #syncError: ImageError | undefined;

  /** Takes over `fd`. `unsafe`: sync() does nothing. @throws ImageError where it is no regular file */
  constructor(fd: number, unsafe = false) {
    this.#fd = fd;
    this.#unsafe = unsafe;
    this.#sizeBytes = 0;
    this.refresh();
  }

  /** A path, or a descriptor that it takes over. */
  static from(
    source: string | number,
    options: { readonly readOnly: boolean; readonly unsafe?: boolean },
  ): FdImageFile {
    const { readOnly, unsafe = false } = options;
    return typeof source === 'string' ? FdImageFile.open(source, readOnly, unsafe) : new FdImageFile(source, unsafe);
  }

  static open(path: string, readOnly: boolean, unsafe = false): FdImageFile {
    // O_NONBLOCK: a FIFO must be refused, not waited for.
    const fd = openSync(path, (readOnly ? constants.O_RDONLY : constants.O_RDWR) | constants.O_NONBLOCK);
    try {
      return new FdImageFile(fd, unsafe);
    } catch (error) {
      closeFd(fd, () => {});
      throw error;
    }
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  refresh(): void {
    const stats = fstatSync(this.#fd);
    if (!stats.isFile()) throw new ImageError('EINVAL', 'Cannot use the image: not a regular file');
    this.#sizeBytes = stats.size;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    const there = this.#there(offset, into);
    let done = 0;
    while (done < there) {
      const count = await new Promise<number>((resolve, reject) => {
        readFd(this.#fd, into, done, there - done, offset + done, (error, got) => {
          if (error === null) resolve(got);
          else reject(asImageError(error));
        });
      });
      if (count === 0) throw shrunk();
      done += count;
    }
  }

  readNow(offset: number, into: Uint8Array): void {
    const there = this.#there(offset, into);
    let done = 0;
    while (done < there) {
      let count: number;
      try {
        count = readSync(this.#fd, into, done, there - done, offset + done);
      } catch (error) {
        throw asImageError(error);
      }
      if (count === 0) throw shrunk();
      done += count;
    }
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    let done = 0;
    while (done < data.length) {
      done += await new Promise<number>((resolve, reject) => {
        writeFd(this.#fd, data, done, data.length - done, offset + done, (error, count) => {
          if (error === null) resolve(count);
          else reject(asImageError(error));
        });
      });
    }
    this.#sizeBytes = Math.max(this.#sizeBytes, offset + data.length);
  }

  writeNow(offset: number, data: Uint8Array): void {
    let done = 0;
    try {
      while (done < data.length) done += writeSync(this.#fd, data, done, data.length - done, offset + done);
    } catch (error) {
      throw asImageError(error);
    }
    this.#sizeBytes = Math.max(this.#sizeBytes, offset + data.length);
  }

  async sync(): Promise<void> {
    if (this.#unsafe) return;
    // After a failed sync the page cache may have dropped what it could not write: no later one can vouch for it.
    if (this.#syncError !== undefined) throw this.#syncError;
    await new Promise<void>((resolve, reject) => {
      fdatasync(this.#fd, (error) => {
        if (error === null) resolve();
        else {
          this.#syncError = asImageError(error);
          reject(this.#syncError);
        }
      });
    });
  }

  async release(endBytes: number, holes: readonly FileRange[]): Promise<void> {
    try {
      if (endBytes < this.#sizeBytes) ftruncateSync(this.#fd, endBytes);
    } catch (error) {
      throw asImageError(error);
    } finally {
      this.refresh();
    }
    const calls = holes.length === 0 ? undefined : FileHoles.load({ quiet: true });
    for (const { offset, lengthBytes } of holes) calls?.punch(this.#fd, offset, lengthBytes);
  }

  lock(): Promise<ImageLock> {
    return lockImage(fstatSync(this.#fd));
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => closeFd(this.#fd, () => resolve()));
  }

  #there(offset: number, into: Uint8Array): number {
    const there = Math.max(0, Math.min(into.length, this.#sizeBytes - offset));
    if (there < into.length) into.fill(0, there);
    return there;
  }
}

function shrunk(): ImageError {
  return new ImageError('EIO', 'Cannot read the image: its file is shorter than when it was opened');
}
