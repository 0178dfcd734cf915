import type { Extent } from '../../protocols/nbd/mod.ts';
import { type DiskImage, ImageError, type ZeroOptions } from './images/disk_image.ts';

/** A part of another image, as `qemu-nbd --offset` serves it. */
export class SliceImage implements DiskImage {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly blockBytes: number;
  readonly canFastZero: boolean;
  readonly #image: DiskImage;
  readonly #offset: number;

  /** From `offset` to the end; the image is taken over. @throws ImageError where it ends before, or blocks straddle */
  constructor(image: DiskImage, offset: number) {
    if (!Number.isSafeInteger(offset) || offset < 0 || offset > image.sizeBytes || offset % image.blockBytes !== 0) {
      throw new ImageError('EINVAL', `Cannot serve the image from ${offset} on: it has ${image.sizeBytes} bytes`);
    }
    this.#image = image;
    this.#offset = offset;
    this.sizeBytes = image.sizeBytes - offset;
    this.readOnly = image.readOnly;
    this.blockBytes = image.blockBytes;
    this.canFastZero = image.canFastZero;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#image.read(this.#offset + offset, into);
  }
  write(offset: number, data: Uint8Array): Promise<void> {
    return this.#image.write(this.#offset + offset, data);
  }
  flush(): Promise<void> {
    return this.#image.flush();
  }
  discard(offset: number, lengthBytes: number): Promise<void> {
    return this.#image.discard(this.#offset + offset, lengthBytes);
  }
  writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    return this.#image.writeZeroes(this.#offset + offset, lengthBytes, options);
  }
  blockStatus(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#image.blockStatus(this.#offset + offset, lengthBytes, maxExtents);
  }
  readNow(offset: number, into: Uint8Array, alone?: boolean): boolean {
    return this.#image.readNow(this.#offset + offset, into, alone);
  }
  writeNow(offset: number, data: Uint8Array): boolean {
    return this.#image.writeNow(this.#offset + offset, data);
  }
  get canSend(): boolean {
    return this.#image.canSend === true;
  }
  sendNow(socket: number, offset: number, lengthBytes: number): number | undefined {
    return this.#image.sendNow?.(socket, this.#offset + offset, lengthBytes);
  }
  willSend(offset: number, lengthBytes: number): void {
    this.#image.willSend?.(this.#offset + offset, lengthBytes);
  }
  close(): Promise<void> {
    return this.#image.close();
  }
}
