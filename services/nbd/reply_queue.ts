import type { Duplex } from 'node:stream';
import type { BufferPool } from './buffer_pool.ts';

const SLAB_BYTES = 256 * 1024;

/**
 * Builds replies back to back in reused slabs and sends all that one turn made in one write. A read's data can be
 * read straight behind its header: {@link reserve}, fill, {@link commit}; nothing else may touch the queue between.
 */
export class ReplyQueue {
  readonly #stream: Duplex;
  readonly #pool: BufferPool;
  readonly #onSent: () => void;
  #slab: Buffer | undefined;
  #view: DataView | undefined;
  /** First byte of the slab that is not handed to the stream yet */
  #start = 0;
  #end = 0;
  #writing = 0;

  /** `onSent` is called whenever {@link pendingBytes} has become smaller. */
  constructor(stream: Duplex, pool: BufferPool, onSent: () => void) {
    this.#stream = stream;
    this.#pool = pool;
    this.#onSent = onSent;
  }

  /** Built and not yet taken by the kernel, in `bytes` */
  get pendingBytes(): number {
    return this.#writing + this.#end - this.#start;
  }

  /** Largest piece that fits a slab, in `bytes` */
  static readonly maxPieceBytes = 64 * 1024 + 64;

  /** Room for `lengthBytes` (at most maxPieceBytes) behind what is built so far; gives its place in {@link bytes}. */
  reserve(lengthBytes: number): number {
    if (this.#slab !== undefined && this.#end + lengthBytes > this.#slab.length) this.flush();
    if (this.#slab === undefined) {
      this.#slab = this.#pool.take(SLAB_BYTES);
      this.#view = new DataView(this.#slab.buffer, this.#slab.byteOffset, this.#slab.length);
      this.#start = 0;
      this.#end = 0;
    }
    return this.#end;
  }

  /** The slab, valid from reserve() to commit() */
  get bytes(): Buffer {
    return this.#slab!;
  }

  get view(): DataView {
    return this.#view!;
  }

  commit(lengthBytes: number): void {
    this.#end += lengthBytes;
  }

  append(bytes: Uint8Array): void {
    if (bytes.length > ReplyQueue.maxPieceBytes) {
      this.#send(bytes, undefined);
      return;
    }
    const at = this.reserve(bytes.length);
    this.bytes.set(bytes, at);
    this.commit(bytes.length);
  }

  /** Sends a pool buffer's first `lengthBytes` behind what is built, and gives the buffer back once it is gone. */
  appendOwned(buffer: Buffer, lengthBytes: number): void {
    this.#send(buffer.subarray(0, lengthBytes), buffer);
  }

  /** Hands what is built to the stream. */
  flush(): void {
    const slab = this.#slab;
    if (slab === undefined) return;
    this.#slab = undefined;
    const start = this.#start;
    const end = this.#end;
    this.#start = 0;
    this.#end = 0;
    if (start === end) this.#pool.give(slab);
    else this.#write(slab.subarray(start, end), slab);
  }

  #send(bytes: Uint8Array, owned: Buffer | undefined): void {
    this.#stream.cork();
    this.flush();
    this.#write(bytes, owned);
    this.#stream.uncork();
  }

  #write(bytes: Uint8Array, owned: Buffer | undefined): void {
    this.#writing += bytes.length;
    this.#stream.write(bytes, () => {
      // Also called with an error when the stream is gone: nothing reads the buffer any more either way.
      this.#writing -= bytes.length;
      if (owned !== undefined) this.#pool.give(owned);
      this.#onSent();
    });
  }
}
