import type { Extent } from '../../../protocols/nbd/mod.ts';
import type { DirtyBitmaps } from '../images/dirty_bitmap.ts';
import { type DiskImage, ImageError, type ZeroOptions } from '../images/disk_image.ts';
import type { Throttle } from './throttle.ts';

/** What a job does around the changes of a disk. */
export interface WriteWatcher {
  /** A range is about to change, and waits for this */
  before?(offset: number, lengthBytes: number): Promise<void>;
  /** A range has changed, or may have */
  after?(offset: number, lengthBytes: number): void;
}

/**
 * A disk as the guest and all others see it, over the image that holds it: jobs watch its changes, stop it for a
 * moment, and put another image under it; a throttle holds it back. Without any of these it passes everything on.
 */
export class JobDisk implements DiskImage {
  #image: DiskImage;
  #throttle: Throttle | undefined;
  readonly #watchers = new Set<WriteWatcher>();
  #inFlight = 0;
  #stopped = 0;
  readonly #drained: (() => void)[] = [];
  readonly #waiting: (() => void)[] = [];
  #turn: Promise<unknown> = Promise.resolve();

  constructor(image: DiskImage) {
    this.#image = image;
  }

  get image(): DiskImage {
    return this.#image;
  }
  get sizeBytes(): number {
    return this.#image.sizeBytes;
  }
  get readOnly(): boolean {
    return this.#image.readOnly;
  }
  get blockBytes(): number {
    return this.#image.blockBytes;
  }
  get canFastZero(): boolean {
    return this.#image.canFastZero;
  }
  get bitmaps(): DirtyBitmaps {
    const { bitmaps } = this.#image;
    if (bitmaps === undefined) throw new ImageError('ENOTSUP', 'Cannot use bitmaps: this kind of disk has none');
    return bitmaps;
  }
  get throttle(): Throttle | undefined {
    return this.#throttle;
  }
  set throttle(throttle: Throttle | undefined) {
    this.#throttle = throttle?.limitless === true ? undefined : throttle;
  }

  watch(watcher: WriteWatcher): void {
    this.#watchers.add(watcher);
  }
  unwatch(watcher: WriteWatcher): void {
    this.#watchers.delete(watcher);
  }

  /** Runs while no request of anybody is in work; those that come wait. One such run at a time. */
  async alone<T>(run: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(() => this.#stopAndRun(run));
    this.#turn = turn.catch(() => {});
    return turn;
  }

  /** Puts another image of the same size under the disk; inside {@link alone}. The one before is the caller's. */
  replace(image: DiskImage): DiskImage {
    if (image.sizeBytes !== this.#image.sizeBytes || image.blockBytes > this.#image.blockBytes) {
      throw new ImageError('EINVAL', 'Cannot take the other image: its size is not the same');
    }
    const before = this.#image;
    this.#image = image;
    return before;
  }

  readNow(offset: number, into: Uint8Array, alone?: boolean): boolean {
    return this.#throttle === undefined && this.#stopped === 0 && this.#image.readNow(offset, into, alone);
  }

  writeNow(offset: number, data: Uint8Array): boolean {
    if (this.#throttle !== undefined || this.#stopped > 0) return false;
    for (const { before } of this.#watchers) if (before !== undefined) return false;
    if (!this.#image.writeNow(offset, data)) return false;
    this.#changed(offset, data.length);
    return true;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#request('read', into.length, () => this.#image.read(offset, into));
  }

  write(offset: number, data: Uint8Array): Promise<void> {
    return this.#change(offset, data.length, data.length, () => this.#image.write(offset, data));
  }

  discard(offset: number, lengthBytes: number): Promise<void> {
    return this.#change(offset, lengthBytes, 0, () => this.#image.discard(offset, lengthBytes));
  }

  writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    return this.#change(offset, lengthBytes, 0, () => this.#image.writeZeroes(offset, lengthBytes, options));
  }

  flush(): Promise<void> {
    return this.#request('write', 0, () => this.#image.flush());
  }

  async blockStatus(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#request(undefined, 0, () => this.#image.blockStatus(offset, lengthBytes, maxExtents));
  }

  dirtyBitmaps(): readonly string[] {
    return this.#image.dirtyBitmaps?.() ?? [];
  }

  async dirtyBitmap(name: string, offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return (await this.#image.dirtyBitmap?.(name, offset, lengthBytes, maxExtents)) ?? [];
  }

  async allocationDepth(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#request(
      undefined,
      0,
      async () => (await this.#image.allocationDepth?.(offset, lengthBytes, maxExtents)) ?? [{ lengthBytes, flags: 1 }],
    );
  }

  async resize(sizeBytes: number): Promise<void> {
    if (this.#image.resize === undefined) throw new ImageError('ENOTSUP', 'Cannot resize this kind of disk');
    await this.#image.resize(sizeBytes);
  }

  async activate(): Promise<void> {
    await this.#image.activate?.();
  }

  async inactivate(): Promise<void> {
    await this.alone(async () => this.#image.inactivate?.());
  }

  close(): Promise<void> {
    return this.#image.close();
  }

  #change(offset: number, lengthBytes: number, payloadBytes: number, run: () => Promise<void>): Promise<void> {
    return this.#request('write', payloadBytes, async () => {
      for (const watcher of this.#watchers) await watcher.before?.(offset, lengthBytes);
      try {
        await run();
      } finally {
        this.#changed(offset, lengthBytes);
      }
    });
  }

  #changed(offset: number, lengthBytes: number): void {
    for (const watcher of this.#watchers) watcher.after?.(offset, lengthBytes);
  }

  async #request<T>(direction: 'read' | 'write' | undefined, bytes: number, run: () => Promise<T>): Promise<T> {
    if (direction !== undefined) await this.#throttle?.take(direction, bytes);
    while (this.#stopped > 0) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    this.#inFlight++;
    try {
      return await run();
    } finally {
      this.#inFlight--;
      if (this.#inFlight === 0) for (const resolve of this.#drained.splice(0)) resolve();
    }
  }

  async #stopAndRun<T>(run: () => Promise<T>): Promise<T> {
    this.#stopped++;
    try {
      while (this.#inFlight > 0) await new Promise<void>((resolve) => this.#drained.push(resolve));
      return await run();
    } finally {
      this.#stopped--;
      for (const resolve of this.#waiting.splice(0)) resolve();
    }
  }
}
