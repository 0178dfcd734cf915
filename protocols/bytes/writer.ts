const textEncoder = new TextEncoder();

/**
 * Builds one message. Grows as needed; `finish()` gives exactly the bytes written.
 * Values out of range are our own bug, not a peer's: they throw RangeError.
 */
export class Writer {
  #bytes: Uint8Array<ArrayBuffer>;
  #view: DataView;
  #length = 0;

  constructor(capacity = 64) {
    this.#bytes = new Uint8Array(capacity);
    this.#view = new DataView(this.#bytes.buffer);
  }

  /** Written so far, in `bytes` */
  get length(): number {
    return this.#length;
  }

  // In each of these #reserve() comes before #view is read: growing replaces the view.
  u8(value: number): this {
    check(value, 0xff);
    const at = this.#reserve(1);
    this.#view.setUint8(at, value);
    return this;
  }
  u16(value: number): this {
    check(value, 0xffff);
    const at = this.#reserve(2);
    this.#view.setUint16(at, value);
    return this;
  }
  u32(value: number): this {
    check(value, 0xffff_ffff);
    const at = this.#reserve(4);
    this.#view.setUint32(at, value);
    return this;
  }
  u64(value: bigint): this {
    if (value < 0n || value > 0xffff_ffff_ffff_ffffn) throw new RangeError(`Cannot write ${value} as 64 bits`);
    const at = this.#reserve(8);
    this.#view.setBigUint64(at, value);
    return this;
  }
  i32(value: number): this {
    const at = this.#reserve(4);
    this.#view.setInt32(at, value);
    return this;
  }
  u16le(value: number): this {
    check(value, 0xffff);
    const at = this.#reserve(2);
    this.#view.setUint16(at, value, true);
    return this;
  }
  u32le(value: number): this {
    check(value, 0xffff_ffff);
    const at = this.#reserve(4);
    this.#view.setUint32(at, value, true);
    return this;
  }
  u64le(value: bigint): this {
    if (value < 0n || value > 0xffff_ffff_ffff_ffffn) throw new RangeError(`Cannot write ${value} as 64 bits`);
    const at = this.#reserve(8);
    this.#view.setBigUint64(at, value, true);
    return this;
  }
  bytes(value: Uint8Array): this {
    const at = this.#reserve(value.length);
    this.#bytes.set(value, at);
    return this;
  }
  zeroes(count: number): this {
    this.#reserve(count);
    return this;
  }
  utf8(text: string): this {
    return this.bytes(textEncoder.encode(text));
  }

  /** Overwrites four bytes written before: a length that is known only afterwards. */
  patchU32(offset: number, value: number): this {
    check(value, 0xffff_ffff);
    if (offset < 0 || offset + 4 > this.#length) throw new RangeError(`Cannot patch at ${offset}`);
    this.#view.setUint32(offset, value);
    return this;
  }

  /** The message, as a view of the writer's buffer; the writer must not be used afterwards. */
  finish(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.#length);
  }

  #reserve(count: number): number {
    const at = this.#length;
    const needed = at + count;
    if (needed > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(needed, this.#bytes.length * 2));
      grown.set(this.#bytes.subarray(0, at));
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    this.#length = needed;
    return at;
  }
}

function check(value: number, max: number): void {
  if (!Number.isInteger(value) || value < 0 || value > max)
    throw new RangeError(`Cannot write ${value}: range is 0..${max}`);
}
