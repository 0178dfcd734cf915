import { openSync, readSync } from 'node:fs';

/** Longer than the file is */
const FILE_BYTES = 512;
const FIELD = /^read_bytes: (\d+)$/m;

/** Open for as long as the process runs; null: it is not to be had */
let file: number | null | undefined;
const text = Buffer.alloc(FILE_BYTES);

/** What storage has been read for this process so far, in `bytes`, as the kernel counts it; undefined: it does not tell. */
function storageBytesRead(): number | undefined {
  try {
    file ??= openSync('/proc/self/io', 'r');
    const found = FIELD.exec(text.toString('latin1', 0, readSync(file, text, 0, FILE_BYTES, 0)));
    return found === null ? undefined : Number(found[1]);
  } catch {
    file = null;
    return undefined;
  }
}

/**
 * Tells an access that had to wait for a disk from one that had to wait for a core: only for the former has storage
 * been read. Costs a few microseconds.
 */
export class StorageReads {
  #before: number | undefined = storageBytesRead();

  /** Whether storage has been read since the last look; true where the system does not say. */
  since(): boolean {
    const now = storageBytesRead();
    const changed = now === undefined || now !== this.#before;
    this.#before = now;
    return changed;
  }
}
