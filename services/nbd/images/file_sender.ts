import process from 'node:process';
import { loadFfi } from './load_ffi.ts';

/** From linux/fadvise.h */
const WILLNEED = 3;

interface Calls {
  sendfile(socket: number, fd: number, offset: BigInt64Array, count: bigint): bigint;
  posix_fadvise(fd: number, offset: bigint, count: bigint, advice: number): number;
}

/** Calls that sent nothing, before any that did, until it is taken for granted that this file has no way out */
const FRUITLESS_CALLS = 64;

/**
 * sendfile(2) from one file: the kernel hands its own pages to a socket, and nothing is copied. Plain Node has no call for
 * that; this goes through `node:ffi`. What crosses are numbers and one offset of 8 bytes, no address of ours.
 */
export class FileSender {
  readonly #fd: number;
  readonly #calls: Calls;
  readonly #offset = new BigInt64Array(1);
  #fruitless = 0;

  private constructor(fd: number, calls: Calls) {
    this.#fd = fd;
    this.#calls = calls;
  }

  /** Undefined where this Node, this system or its permissions do not have it. The file stays the caller's. */
  static load(fd: number): FileSender | undefined {
    if (process.platform !== 'linux') return undefined;
    try {
      const ffi = loadFfi(true);
      if (ffi === undefined) return undefined;
      const { functions } = ffi.dlopen(null, {
        sendfile: { arguments: ['i32', 'i32', 'buffer', 'u64'], return: 'i64' },
        posix_fadvise: { arguments: ['i32', 'i64', 'i64', 'i32'], return: 'i32' },
      });
      return new FileSender(fd, functions as unknown as Calls);
    } catch {
      return undefined; // no permission, or no such call: the caller goes on without
    }
  }

  /**
   * False: its calls have come to nothing, and there is no use in more of them. Once one has sent something there is:
   * clients who take nothing must not spoil it for others.
   */
  get works(): boolean {
    return this.#fruitless < FRUITLESS_CALLS;
  }

  /** Lets the system fetch a range from storage meanwhile. */
  willSend(offset: number, lengthBytes: number): void {
    this.#calls.posix_fadvise(this.#fd, BigInt(offset), BigInt(lengthBytes), WILLNEED);
  }

  /**
   * Sends up to `lengthBytes` from `offset` on, and gives how many went, in `bytes`. 0: the socket takes nothing now, the
   * file ends there, or it failed: which of these, a read and a write of the next bytes will say.
   */
  send(socket: number, offset: number, lengthBytes: number): number {
    this.#offset[0] = BigInt(offset);
    const sent = Number(this.#calls.sendfile(socket, this.#fd, this.#offset, BigInt(lengthBytes)));
    this.#fruitless = sent > 0 ? Number.NEGATIVE_INFINITY : this.#fruitless + 1;
    return Math.max(sent, 0);
  }
}
