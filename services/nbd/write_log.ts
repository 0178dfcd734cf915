import type { NbdDisk } from './nbd_disk.ts';

interface Entry {
  readonly offset: number;
  readonly length: number;
  /** Memory that it holds, in `bytes` */
  readonly bytes: number;
  apply(disk: NbdDisk): Promise<void>;
}

/** What an entry without data counts for, in `bytes`: a million trims take memory, too */
const ENTRY_BYTES = 256;

/**
 * Changes that a server has answered and not yet flushed, in the order of the answers. A server that ends without
 * having flushed may have lost them; the next one gets them again, before anything else.
 */
export class WriteLog {
  readonly #entries: Entry[] = [];
  #forgotten = 0;
  #bytes = 0;

  /** Memory held, in `bytes` */
  get bytes(): number {
    return this.#bytes;
  }

  get length(): number {
    return this.#entries.length;
  }

  /** Keeps a copy of `data`. */
  write(offset: number, data: Uint8Array): void {
    const copy = data.slice();
    this.#add(offset, data.length, data.length, (disk) => disk.write(offset, copy));
  }

  writeZeroes(offset: number, lengthBytes: number, options: { readonly mayUnmap: boolean }): void {
    this.#add(offset, lengthBytes, 0, (disk) => disk.writeZeroes(offset, lengthBytes, options));
  }

  trim(offset: number, lengthBytes: number): void {
    this.#add(offset, lengthBytes, 0, (disk) => disk.trim(offset, lengthBytes));
  }

  /** To give to forget() once a flush that starts now has been answered. */
  mark(): number {
    return this.#forgotten + this.#entries.length;
  }

  /** What was there at `mark` is on stable storage. */
  forget(mark: number): void {
    const stable = this.#entries.splice(0, Math.max(mark - this.#forgotten, 0));
    this.#forgotten += stable.length;
    for (const { bytes } of stable) this.#bytes -= bytes;
  }

  /** Does everything again, in order where ranges overlap. @throws NbdError of the first that fails */
  async replay(disk: NbdDisk): Promise<void> {
    let running: { entry: Entry; over: Promise<void> }[] = [];
    for (const entry of this.#entries) {
      const overlaps = running.some(
        ({ entry: other }) => entry.offset < other.offset + other.length && other.offset < entry.offset + entry.length,
      );
      if (overlaps || running.length >= 32) {
        await settle(running);
        running = [];
      }
      running.push({ entry, over: entry.apply(disk) });
    }
    await settle(running);
  }

  #add(offset: number, length: number, dataBytes: number, apply: Entry['apply']): void {
    const bytes = ENTRY_BYTES + dataBytes;
    this.#entries.push({ offset, length, bytes, apply });
    this.#bytes += bytes;
  }
}

/** Waits for all before the first failure is told: none may go on behind the caller's back. */
async function settle(running: readonly { readonly over: Promise<void> }[]): Promise<void> {
  const results = await Promise.allSettled(running.map(({ over }) => over));
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
}
