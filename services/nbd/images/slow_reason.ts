import { openSync, readSync } from 'node:fs';

/** Says whether an access that took long had to wait for storage. */
export interface SlowReason {
  /** Looks at what has happened since the last look. True where the system does not tell */
  since(): boolean;
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
 * For reads: whether the process has had anything read from storage. An access that was late without had to wait for a
 * core that others had. A look costs a few microseconds.
 */
export class StorageReads implements SlowReason {
  #before = storageBytesRead();

  since(): boolean {
    const now = storageBytesRead();
    const changed = now === undefined || now !== this.#before;
    this.#before = now;
    return changed;
  }
}

/** For writes, whose way to storage is nobody's in particular: whether this thread has not had to wait for a core. */
export class CoreAtHand implements SlowReason {
  #before = nanosecondsWaited();

  since(): boolean {
    const now = nanosecondsWaited();
    const waited = now !== undefined && this.#before !== undefined && now - this.#before > 100_000;
    this.#before = now;
    return !waited;
  }
}

function storageBytesRead(): number | undefined {
  return counter('/proc/self/io', /^read_bytes: (\d+)$/m);
}

/** "time spent on the cpu, time spent waiting on a runqueue, timeslices" */
function nanosecondsWaited(): number | undefined {
  return counter('/proc/thread-self/schedstat', /^\d+ (\d+) /);
}
