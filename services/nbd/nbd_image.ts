import { BASE_ALLOCATION, type Extent, QEMU_ALLOCATION_DEPTH, QEMU_DIRTY_BITMAP } from '../../protocols/nbd/mod.ts';
import { type DiskImage, ImageError, type ZeroOptions } from './images/disk_image.ts';
import { zeroes } from './images/zeroes.ts';
import type { NbdDisk } from './nbd_disk.ts';
import { NbdError } from './nbd_error.ts';

/** An export of another NBD server as an image: a guest's disk may live on another host. */
export class NbdImage implements DiskImage {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly blockBytes: number;
  readonly canFastZero: boolean;
  readonly allocationDepth?: NonNullable<DiskImage['allocationDepth']>;
  readonly #disk: NbdDisk;
  readonly #statusContext: string;
  #active: boolean;

  /**
   * The disk is taken over: it is closed with the image. `inactive`: not written to until activate(). `statusContext`:
   * what blockStatus() tells the flags of (default base:allocation).
   */
  constructor(
    disk: NbdDisk,
    options: { readonly readOnly?: boolean; readonly inactive?: boolean; readonly statusContext?: string } = {},
  ) {
    if (!options.readOnly && disk.readOnly) {
      throw new ImageError('EPERM', 'Cannot open the disk for writing: its server exports it read-only');
    }
    this.#disk = disk;
    this.#statusContext = options.statusContext ?? BASE_ALLOCATION;
    this.#active = options.inactive !== true;
    this.sizeBytes = disk.sizeBytes;
    this.readOnly = options.readOnly ?? false;
    this.blockBytes = disk.blockSizes.minimum;
    this.canFastZero = disk.canFastZero;
    if (disk.contexts.includes(QEMU_ALLOCATION_DEPTH)) {
      this.allocationDepth = (offset, lengthBytes) => this.#status(QEMU_ALLOCATION_DEPTH, offset, lengthBytes);
    }
  }

  /** Where the data is depends on somebody else: nothing is ever done in place. */
  readNow(): boolean {
    return false;
  }

  writeNow(): boolean {
    return false;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return run(() => this.#disk.read(offset, into));
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#writable();
    await run(() => this.#disk.write(offset, data));
  }

  async flush(): Promise<void> {
    if (!this.readOnly) await run(() => this.#disk.flush());
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    this.#writable();
    if (this.#disk.canTrim) await run(() => this.#disk.trim(offset, lengthBytes));
  }

  async writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    this.#writable();
    if (this.#disk.canWriteZeroes) {
      await run(() => this.#disk.writeZeroes(offset, lengthBytes, options));
      return;
    }
    if (options.fast) throw new ImageError('ENOTSUP', 'Cannot write zeroes fast: they have to be sent');
    const zero = zeroes();
    for (let done = 0; done < lengthBytes; done += zero.length) {
      await this.write(offset + done, zero.subarray(0, Math.min(zero.length, lengthBytes - done)));
    }
  }

  async blockStatus(offset: number, lengthBytes: number): Promise<Extent[]> {
    // A server that does not tell has data everywhere, for all that is known.
    if (!this.#disk.contexts.includes(this.#statusContext)) return [{ lengthBytes, flags: 0 }];
    return this.#status(this.#statusContext, offset, lengthBytes);
  }

  dirtyBitmaps(): readonly string[] {
    return this.#disk.contexts
      .filter((name) => name.startsWith(QEMU_DIRTY_BITMAP))
      .map((name) => name.slice(QEMU_DIRTY_BITMAP.length));
  }

  dirtyBitmap(name: string, offset: number, lengthBytes: number): Promise<Extent[]> {
    return this.#status(`${QEMU_DIRTY_BITMAP}${name}`, offset, lengthBytes);
  }

  async activate(): Promise<void> {
    this.#active = true;
  }

  async inactivate(): Promise<void> {
    this.#active = false;
    await this.flush();
  }

  close(): Promise<void> {
    return this.#disk.close();
  }

  async #status(context: string, offset: number, lengthBytes: number): Promise<Extent[]> {
    const found = await run(() => this.#disk.status(offset, lengthBytes, { contexts: [context] }));
    return [...found.get(context)!];
  }

  #writable(): void {
    if (this.readOnly) throw new ImageError('EPERM', 'Cannot write: disk is read-only');
    if (!this.#active) throw new ImageError('EPERM', 'Cannot write: another machine owns the disk now');
  }
}

async function run<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof NbdError)) throw error;
    throw new ImageError(error.code === 'EOVERFLOW' ? 'EINVAL' : error.code, error.message, { cause: error });
  }
}
