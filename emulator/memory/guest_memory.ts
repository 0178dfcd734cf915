/** First byte of RAM in guest physical space (QEMU `-M virt`) */
export const RAM_BASE = 0x8000_0000;
export const PAGE_BYTES = 4096;
export const PAGE_SHIFT = 12;

/** A device asked for guest memory that is not RAM. The device goes to its broken state; the machine lives. */
export class GuestMemoryError extends Error {
  override readonly name = 'GuestMemoryError';
  readonly code = 'ERR_GUEST_MEMORY';
}

/**
 * Guest RAM as devices see it. Addresses are guest physical and come from the guest: every access is checked
 * here, in subtract form, and nothing outside RAM can be reached (DMA to MMIO is refused by design).
 * Stores mark the dirty map, after the data, one byte a page with a bit for each consumer.
 */
export class GuestMemory {
  readonly base = RAM_BASE;
  /** In `bytes`, a multiple of the page size */
  readonly sizeBytes: number;
  readonly #ram: Uint8Array;
  readonly #ramView: DataView;
  readonly #dirty: Uint8Array;
  readonly #u16: Uint16Array;

  /** `ram` and `dirty` are views of the shared memory: `dirty` has one byte for each page of `ram`. */
  constructor(ram: Uint8Array, dirty: Uint8Array) {
    if (ram.length % PAGE_BYTES !== 0 || dirty.length !== ram.length / PAGE_BYTES) {
      throw new RangeError('Cannot map guest memory: one dirty byte is needed for each whole page');
    }
    this.#ram = ram;
    this.#ramView = new DataView(ram.buffer, ram.byteOffset, ram.byteLength);
    this.#u16 = new Uint16Array(ram.buffer, ram.byteOffset, ram.byteLength / 2);
    this.#dirty = dirty;
    this.sizeBytes = ram.length;
  }

  /** True where `[address, address + lengthBytes)` is RAM. */
  contains(address: number, lengthBytes: number): boolean {
    const offset = address - RAM_BASE;
    return (
      Number.isSafeInteger(offset) &&
      Number.isSafeInteger(lengthBytes) &&
      offset >= 0 &&
      lengthBytes >= 0 &&
      lengthBytes <= this.sizeBytes &&
      offset <= this.sizeBytes - lengthBytes
    );
  }

  /** Copies out of the guest, once: what was read is private from then on. */
  read(address: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
    const offset = this.#offset(address, lengthBytes);
    const copy = new Uint8Array(lengthBytes);
    copy.set(this.#ram.subarray(offset, offset + lengthBytes));
    return copy;
  }

  readInto(address: number, into: Uint8Array): void {
    const offset = this.#offset(address, into.length);
    into.set(this.#ram.subarray(offset, offset + into.length));
  }

  write(address: number, bytes: Uint8Array): void {
    const offset = this.#offset(address, bytes.length);
    this.#ram.set(bytes, offset);
    this.#markDirty(offset, bytes.length);
  }

  fill(address: number, lengthBytes: number, value: number): void {
    const offset = this.#offset(address, lengthBytes);
    this.#ram.fill(value, offset, offset + lengthBytes);
    this.#markDirty(offset, lengthBytes);
  }

  /**
   * A live view of RAM for bulk data that a backend reads or writes in place. The guest can change it at any
   * time: never parse from it. Call {@link markDirty} after storing through it.
   */
  view(address: number, lengthBytes: number): Uint8Array {
    const offset = this.#offset(address, lengthBytes);
    return this.#ram.subarray(offset, offset + lengthBytes);
  }

  markDirty(address: number, lengthBytes: number): void {
    this.#markDirty(this.#offset(address, lengthBytes), lengthBytes);
  }

  u8(address: number): number {
    return this.#ramView.getUint8(this.#offset(address, 1));
  }
  u16(address: number): number {
    return this.#ramView.getUint16(this.#offset(address, 2), true);
  }
  u32(address: number): number {
    return this.#ramView.getUint32(this.#offset(address, 4), true);
  }
  u64(address: number): bigint {
    return this.#ramView.getBigUint64(this.#offset(address, 8), true);
  }
  setU8(address: number, value: number): void {
    const offset = this.#offset(address, 1);
    this.#ramView.setUint8(offset, value);
    this.#markDirty(offset, 1);
  }
  setU16(address: number, value: number): void {
    const offset = this.#offset(address, 2);
    this.#ramView.setUint16(offset, value, true);
    this.#markDirty(offset, 2);
  }
  setU32(address: number, value: number): void {
    const offset = this.#offset(address, 4);
    this.#ramView.setUint32(offset, value, true);
    this.#markDirty(offset, 4);
  }
  setU64(address: number, value: bigint): void {
    const offset = this.#offset(address, 8);
    this.#ramView.setBigUint64(offset, value, true);
    this.#markDirty(offset, 8);
  }

  /** Ring indices are read and published with ordering; `address` must be even. */
  atomicU16(address: number): number {
    return Atomics.load(this.#u16, this.#halfword(address));
  }
  setAtomicU16(address: number, value: number): void {
    const index = this.#halfword(address);
    Atomics.store(this.#u16, index, value);
    this.#markDirty(index * 2, 2);
  }

  #halfword(address: number): number {
    const offset = this.#offset(address, 2);
    if (offset % 2 !== 0) throw new GuestMemoryError(`Cannot access 0x${address.toString(16)} atomically: odd address`);
    return offset / 2;
  }

  #offset(address: number, lengthBytes: number): number {
    if (!this.contains(address, lengthBytes)) {
      throw new GuestMemoryError(
        `Cannot access guest memory 0x${address.toString(16)}+${lengthBytes}: RAM is 0x${RAM_BASE.toString(16)}+${this.sizeBytes}`,
      );
    }
    return address - RAM_BASE;
  }

  #markDirty(offset: number, lengthBytes: number): void {
    if (lengthBytes === 0) return;
    this.#dirty.fill(0xff, offset >>> PAGE_SHIFT, ((offset + lengthBytes - 1) >>> PAGE_SHIFT) + 1);
  }
}
