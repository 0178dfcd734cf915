import process from 'node:process';
import { loadFfi } from './load_ffi.ts';

/** From linux/fs.h and linux/falloc.h */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 0x10;
/** One call holds up everybody: larger ranges are several, in `bytes` */
const MAX_CALL_BYTES = 1 << 30;

interface Calls {
  lseek(fd: number, offset: bigint, whence: number): bigint;
  fallocate(fd: number, mode: number, offset: bigint, length: bigint): number;
}

/**
 * Holes of regular files as the file system keeps them: where they are, and how to make them. Plain Node has no calls
 * for that; this goes through `node:ffi`, which is experimental and prints a warning, so that it is used only where
 * somebody asked for it. The calls take numbers only, no address goes in or out.
 */
export class FileHoles {
  readonly #calls: Calls;

  private constructor(calls: Calls) {
    this.#calls = calls;
  }

  /**
   * Undefined where this Node, this system or its permissions do not have it. `quiet`: without Node's warning, where
   * the person at the terminal can neither decide nor change anything.
   */
  static load({ quiet = false }: { readonly quiet?: boolean } = {}): FileHoles | undefined {
    if (process.platform !== 'linux') return undefined;
    try {
      const ffi = loadFfi(quiet);
      if (ffi === undefined) return undefined;
      const { functions } = ffi.dlopen(null, {
        lseek: { arguments: ['i32', 'i64', 'i32'], return: 'i64' },
        fallocate: { arguments: ['i32', 'i32', 'i64', 'i64'], return: 'i32' },
      });
      return new FileHoles(functions as unknown as Calls);
    } catch {
      return undefined; // no permission, or no such library: the caller goes on without
    }
  }

  /** The run that begins at `offset`, which is inside the file; undefined where the file system does not say. */
  runAt(fd: number, offset: number, fileBytes: number): { hole: boolean; end: number } | undefined {
    const hole = Number(this.#calls.lseek(fd, BigInt(offset), SEEK_HOLE));
    if (hole < 0) return undefined;
    if (hole > offset) return { hole: false, end: hole };
    // ENXIO, as -1: no data behind it.
    const data = Number(this.#calls.lseek(fd, BigInt(offset), SEEK_DATA));
    return { hole: true, end: data < 0 ? fileBytes : data };
  }

  /** Gives a range back to the file system; it reads as zeroes then. Gives how much of it, in `bytes`: 0 on some files */
  punch(fd: number, offset: number, lengthBytes: number): number {
    return this.#each(fd, PUNCH_HOLE | KEEP_SIZE, offset, lengthBytes);
  }

  /** Lets a range read as zeroes, and keeps its space. Gives how much of it, in `bytes`, as {@link punch} */
  zero(fd: number, offset: number, lengthBytes: number): number {
    return this.#each(fd, ZERO_RANGE | KEEP_SIZE, offset, lengthBytes);
  }

  #each(fd: number, mode: number, offset: number, lengthBytes: number): number {
    for (let done = 0; done < lengthBytes; done += MAX_CALL_BYTES) {
      const length = Math.min(MAX_CALL_BYTES, lengthBytes - done);
      if (this.#calls.fallocate(fd, mode, BigInt(offset + done), BigInt(length)) !== 0) return done;
    }
    return lengthBytes;
  }
}
