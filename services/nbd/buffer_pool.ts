const MIN_SHIFT = 13;
const MAX_SHIFT = 25;

/**
 * Reused buffers of 8 KiB to 32 MiB, powers of two: a fresh 1 MiB buffer costs more than the copy into it.
 * Contents are whatever was there: only bytes that were written for a reply may be sent.
 */
export class BufferPool {
  readonly #classes: Buffer[][] = [];
  readonly #maxIdleBytes: number;
  #idle = 0;

  /** Keeps at most `maxIdleBytes` of unused buffers (default 64 MiB) */
  constructor(maxIdleBytes = 64 << 20) {
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
  take(lengthBytes: number): Buffer {
    const kept = this.takeIdle(lengthBytes);
    if (kept !== undefined) return kept;
    const shift = Math.max(MIN_SHIFT, 32 - Math.clz32(lengthBytes - 1));
    return Buffer.allocUnsafeSlow(shift <= MAX_SHIFT ? 1 << shift : lengthBytes);
  }

  /** One that is kept and at least `lengthBytes` long, at most twice that; undefined: there is none */
  takeIdle(lengthBytes: number): Buffer | undefined {
    const shift = Math.max(MIN_SHIFT, 32 - Math.clz32(lengthBytes - 1));
    const kept = this.#classes[shift]?.pop();
    if (kept !== undefined) this.#idle -= kept.length;
    return kept;
  }

  /** The caller must not touch it afterwards. */
  give(buffer: Uint8Array): void {
    const { length } = buffer;
    if (!Buffer.isBuffer(buffer) || length > 1 << MAX_SHIFT || this.#idle + length > this.#maxIdleBytes) return;
    const shift = 31 - Math.clz32(length);
    if (shift < MIN_SHIFT || length !== 1 << shift) return;
    this.#classes[shift] ??= [];
    this.#classes[shift].push(buffer);
    this.#idle += length;
  }
}
