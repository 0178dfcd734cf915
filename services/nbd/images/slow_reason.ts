import { openSync, readSync } from 'node:fs';

/** Says whether an access that took long had to wait for storage. */
export interface SlowReason {
  /** What takes longer, beside the time for its bytes, needs a reason, in `ms` */
  readonly slowMs: number;
  /**
   * What part of the accesses since the last look, of `lengthBytes` together, had to wait for it, from 0 to 1. 1 where the
   * system does not tell
   */
  share(lengthBytes: number): number;
  /** A share of 0 acquits, however often: what else takes long is nothing that the pool does better (default false) */
  readonly acquits?: boolean;
}

/** Longer than the files are */
const FILE_BYTES = 512;
const text = Buffer.alloc(FILE_BYTES);
/** By path, open for as long as the thread runs; null: not to be had */
const files = new Map<string, number | null>();

/** One number of a file that the kernel keeps about us; undefined: it does not tell. */
function counter(path: string, field: RegExp): number | undefined {
  let file = files.get(path);
  try {
    file ??= file === null ? null : openSync(path, 'r');
    files.set(path, file);
    if (file === null) return undefined;
    const found = field.exec(text.toString('latin1', 0, readSync(file, text, 0, FILE_BYTES, 0)));
    return found === null ? undefined : Number(found[1]);
  } catch {
    files.set(path, null);
    return undefined;
  }
}

/**
 * For reads: how much the process has had read from storage. An access that was late without had to wait for a core that
 * others had. What is read ahead, or for somebody else in the process, makes the share larger than it is. A look costs a
 * few microseconds.
 */
export class StorageReads implements SlowReason {
  /** There are disks that answer within 80 µs */
  readonly slowMs = 0.04;
  #before = storageBytesRead();

  share(lengthBytes: number): number {
    const now = storageBytesRead();
    const read = now === undefined || this.#before === undefined ? lengthBytes : now - this.#before;
    this.#before = now;
    return read === 0 ? 0 : Math.min(read / lengthBytes, 1);
  }
}

/** For sends, which are slow as well where the socket is: over the loopback device they do much of the receiver's work. */
export class StorageSends extends StorageReads {
  readonly acquits = true;
}

/** For writes, whose way to storage is nobody's in particular: whether this thread has not had to wait for a core. */
export class CoreAtHand implements SlowReason {
  /** A file system has work of its own now and then, which would take as long elsewhere */
  readonly slowMs = 0.12;
  #before = nanosecondsWaited();

  share(): number {
    const now = nanosecondsWaited();
    const waited = now !== undefined && this.#before !== undefined && now - this.#before > 100_000;
    this.#before = now;
    return waited ? 0 : 1;
  }
}

function storageBytesRead(): number | undefined {
  return counter('/proc/self/io', /^read_bytes: (\d+)$/m);
}

/** "time spent on the cpu, time spent waiting on a runqueue, timeslices" */
export function nanosecondsWaited(): number | undefined {
  return counter('/proc/thread-self/schedstat', /^\d+ (\d+) /);
}
