import { ImageError, type ImageLock } from '../../../../services/nbd/images/mod.ts';
import type { ImageFile } from '../../../../services/nbd/images/qcow2/mod.ts';

/** One step of what reached the file: a write, or a sync */
export type LogStep = { offset: number; data: Uint8Array } | 'sync';

/** A file in memory that remembers every write, in order. */
export class LogImageFile implements ImageFile {
  readonly log: LogStep[] = [];
  closed = false;
  /** Set it to let writes fail with ENOSPC beyond so many bytes */
  limitBytes = Number.POSITIVE_INFINITY;
  #bytes: Uint8Array;
  #sizeBytes: number;

  constructor(contents: Uint8Array) {
    this.#bytes = contents.slice();
    this.#sizeBytes = contents.length;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get contents(): Uint8Array {
    return this.#bytes.subarray(0, this.#sizeBytes);
  }

  refresh(): void {}

  readNow(offset: number, into: Uint8Array): void {
    const there = this.contents.subarray(offset, offset + into.length);
    into.set(there);
    into.fill(0, there.length);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.readNow(offset, into);
  }

  writeNow(offset: number, data: Uint8Array): void {
    const end = offset + data.length;
    if (end > this.limitBytes) throw new ImageError('ENOSPC', 'Cannot write: no space left');
    if (end > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(end, this.#bytes.length * 2));
      grown.set(this.contents);
      this.#bytes = grown;
    }
    this.#bytes.set(data, offset);
    this.#sizeBytes = Math.max(this.#sizeBytes, end);
    this.log.push({ offset, data: data.slice() });
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.writeNow(offset, data);
  }

  async sync(): Promise<void> {
    this.log.push('sync');
  }

  async lock(): Promise<ImageLock> {
    return { release: async () => {} };
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}

/** Same numbers for the same seed: mulberry32. */
export function randomNumbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}
