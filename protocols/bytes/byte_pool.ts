const MIN_SHIFT = 13;
const MAX_SHIFT = 25;

/**
 * Large memory begins this much behind where it was given, in `bytes`. The C library gives it 16 bytes behind the start of a
 * page. The kernel copies from pages and to pages: a processor that writes 16 bytes behind, in the low twelve bits of the
 * address, what it reads next takes the two for the same place, and copies a quarter slower than from 64 bytes on, or, as
 * AMD Zen 3, four times.
 */
export const COPY_SKEW_BYTES = 48;
/** Less is not given by whole pages, in `bytes` */
const SKEWED_BYTES = 128 * 1024;

/**
 * Reused buffers of 8 KiB to 32 MiB, powers of two: a fresh 1 MiB buffer costs more than the copy into it, and makes an
 * engine collect its garbage. Contents are whatever was there: only bytes that were written may be shown to anybody.
 */
export class BytePool<Bytes extends Uint8Array = Uint8Array<ArrayBuffer>> {
  readonly #allocate: (lengthBytes: number) => Bytes;
  readonly #maxIdleBytes: number;
  readonly #classes: Bytes[][] = [];
  readonly #kept = new WeakSet<Bytes>();
  #idle = 0;

  /** Keeps at most `maxIdleBytes` of unused buffers. */
  constructor(allocate: (lengthBytes: number) => Bytes, maxIdleBytes: number) {
    this.#allocate = allocate;
    this.#maxIdleBytes = maxIdleBytes;
  }

  /** False: what is given back is dropped, and every buffer is used once */
  get recycles(): boolean {
    return this.#maxIdleBytes > 0;
  }

  /** Unused and kept, in `bytes` */
  get idleBytes(): number {
    return this.#idle;
  }

  /** At least `lengthBytes` long */
  take(lengthBytes: number): Bytes {
    const kept = this.takeIdle(lengthBytes);
    if (kept !== undefined) return kept;
    const shift = shiftFor(lengthBytes);
    const size = shift <= MAX_SHIFT ? 1 << shift : lengthBytes;
    if (size < SKEWED_BYTES) return this.#allocate(size);
    return this.#allocate(size + COPY_SKEW_BYTES).subarray(COPY_SKEW_BYTES) as Bytes;
  }

  /** One that is kept and at least `lengthBytes` long, at most twice that; undefined: there is none */
  takeIdle(lengthBytes: number): Bytes | undefined {
    const kept = this.#classes[shiftFor(lengthBytes)]?.pop();
    if (kept !== undefined) {
      this.#idle -= kept.length;
      this.#kept.delete(kept);
    }
    return kept;
  }

  /**
   * One that take() gave, whole; the caller must not touch it afterwards. @throws Error where it was given back before: two
   * who use one buffer would see each other's data, and nothing is worse than that
   */
  give(buffer: Bytes): void {
    const { length } = buffer;
    if (length > 1 << MAX_SHIFT || this.#idle + length > this.#maxIdleBytes) return;
    const shift = 31 - Math.clz32(length);
    if (shift < MIN_SHIFT || length !== 1 << shift) return;
    if (this.#kept.has(buffer)) throw new Error('Cannot give a buffer back: it was given back already');
    this.#kept.add(buffer);
    this.#classes[shift] ??= [];
    this.#classes[shift].push(buffer);
    this.#idle += length;
  }
}

function shiftFor(lengthBytes: number): number {
  return Math.max(MIN_SHIFT, 32 - Math.clz32(lengthBytes - 1));
}
