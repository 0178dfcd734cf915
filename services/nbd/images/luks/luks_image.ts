import { LUKS_HEADER_BYTES } from '../../../../protocols/luks/mod.ts';
import type { Extent } from '../../../../protocols/nbd/mod.ts';
import { DirtyBitmaps } from '../dirty_bitmap.ts';
import { type DiskImage, ImageError, type ZeroOptions } from '../disk_image.ts';
import type { ImageLock } from '../image_lock.ts';
import { FdImageFile, type ImageFile } from '../qcow2/image_file.ts';
import { CryptFile } from './crypt_file.ts';
import { SECTOR_BYTES } from './sector_cipher.ts';
import { readLuksHeader, unlockLuks } from './unlock.ts';

const PIECE_BYTES = 1 << 20;

export interface LuksImageOptions {
  readonly readOnly: boolean;
  readonly passphrase?: Uint8Array;
  /** Refuse an image that another writer has open (default true) */
  readonly lock?: boolean;
  /** flush() does nothing (default false) */
  readonly unsafe?: boolean;
  /** Not locked and not written to until activate() */
  readonly inactive?: boolean;
}

/** A raw disk behind a LUKS header of version 1, as cryptsetup and qemu-img make them. */
export class LuksImage implements DiskImage {
  readonly readOnly: boolean;
  readonly blockBytes = SECTOR_BYTES;
  readonly canFastZero = false;
  readonly sizeBytes: number;
  /** Filled by every change */
  readonly bitmaps = new DirtyBitmaps();
  readonly #file: ImageFile;
  readonly #wantsLock: boolean;
  #lock: ImageLock | undefined;
  #active = false;

  private constructor(file: ImageFile, { readOnly, lock }: LuksImageOptions) {
    this.#file = file;
    this.#wantsLock = !readOnly && lock !== false;
    this.readOnly = readOnly;
    this.sizeBytes = Math.floor(file.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
  }

  /** @throws WireError where the header is wrong, ImageError where the passphrase is, errno errors of open(2) */
  static async open(source: string | number, options: LuksImageOptions): Promise<LuksImage> {
    const { passphrase } = options;
    const file = FdImageFile.from(source, options);
    try {
      const area = {
        lengthBytes: file.sizeBytes,
        read: (offset: number, into: Uint8Array) => file.read(offset, into),
      };
      const header = await readLuksHeader(area);
      if (passphrase === undefined) {
        throw new ImageError('EINVAL', 'Cannot open the LUKS image: it is encrypted, and no passphrase was given');
      }
      // 0 says that the header stands alone; here the disk is behind it, in the same file.
      if (header.payloadOffset < LUKS_HEADER_BYTES) {
        throw new ImageError(
          'EINVAL',
          `Cannot open the LUKS disk: the disk begins at ${header.payloadOffset}, inside the header`,
        );
      }
      const cipher = await unlockLuks(area, header, passphrase);
      const image = new LuksImage(new CryptFile(file, cipher, header.payloadOffset), options);
      if (!options.inactive) await image.activate();
      return image;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  async activate(): Promise<void> {
    if (this.#active) return;
    if (this.#wantsLock) this.#lock = await this.#file.lock();
    this.#active = true;
  }

  async inactivate(): Promise<void> {
    this.#active = false;
    await this.flush();
    const lock = this.#lock;
    this.#lock = undefined;
    await lock?.release();
  }

  dirtyBitmaps(): readonly string[] {
    return this.bitmaps.names;
  }

  async dirtyBitmap(name: string, offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.bitmaps.get(name).extents(offset, lengthBytes, maxExtents);
  }

  readNow(): boolean {
    return false;
  }

  writeNow(): boolean {
    return false;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#file.read(offset, into);
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#writable();
    // Also where it fails half way: what a bitmap does not know of is not copied.
    this.bitmaps.mark(offset, data.length);
    await this.#file.write(offset, data);
  }

  async flush(): Promise<void> {
    if (!this.readOnly) await this.#file.sync();
  }

  async discard(): Promise<void> {
    // What stays is one of the allowed outcomes; a hole would not decrypt to zeroes.
    this.#writable();
  }

  async writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    if (options.fast) throw new ImageError('ENOTSUP', 'Cannot write zeroes fast: they are encrypted');
    const end = offset + lengthBytes;
    for (let at = offset; at < end; at += PIECE_BYTES) {
      await this.write(at, new Uint8Array(Math.min(PIECE_BYTES, end - at)));
    }
  }

  async blockStatus(_offset: number, lengthBytes: number): Promise<Extent[]> {
    return [{ lengthBytes, flags: 0 }];
  }

  async close(): Promise<void> {
    await this.#file.close();
    await this.#lock?.release();
  }

  #writable(): void {
    if (this.readOnly) throw new ImageError('EPERM', 'Cannot write: image is read-only');
    if (!this.#active) throw new ImageError('EPERM', 'Cannot write: another machine owns the image now');
  }
}
