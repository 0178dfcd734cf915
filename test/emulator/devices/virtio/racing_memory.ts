import { GuestMemory, PAGE_BYTES } from '../../../../emulator/memory/guest_memory.ts';

/** A guest that rewrites all that a device has just read: who reads it a second time sees something else. */
export class RacingMemory extends GuestMemory {
  racing = false;

  static make(pages = 1024): RacingMemory {
    return new RacingMemory(new Uint8Array(pages * PAGE_BYTES), new Uint8Array(pages));
  }

  override read(address: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
    const copy = super.read(address, lengthBytes);
    this.#rewrite(address, lengthBytes);
    return copy;
  }
  override readInto(address: number, into: Uint8Array): void {
    super.readInto(address, into);
    this.#rewrite(address, into.length);
  }
  override u16(address: number): number {
    const value = super.u16(address);
    this.#rewrite(address, 2);
    return value;
  }

  #rewrite(address: number, lengthBytes: number): void {
    if (this.racing) this.fill(address, lengthBytes, 0xff);
  }
}
