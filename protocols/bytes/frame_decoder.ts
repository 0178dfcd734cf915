import { WireError } from './wire_error.ts';

/** What a framing rule says of the bytes at the front of the stream. */
export type FrameSize =
  /** The frame's whole size is known, in `bytes`, header included */
  | { readonly bytes: number }
  /** At least this many bytes must be there before the size can be told */
  | { readonly need: number };

export interface FrameDecoderOptions {
  /** Name of the stream for errors */
  readonly name: string;
  /** Tells a frame's size from its first bytes; throws WireError where they are wrong */
  readonly frameSize: (head: Uint8Array) => FrameSize;
  /** No frame may be larger than this, in `bytes` */
  readonly maxFrameBytes: number;
  /** No more than this may wait unread, in `bytes` (default: two frames) */
  readonly maxBufferedBytes?: number;
  /** No more chunks than this may wait unread: many tiny chunks cost more than their bytes (default 4096) */
  readonly maxBufferedChunks?: number;
}

/**
 * Cuts a byte stream into frames: `push()` chunks as they come, `next()` until it gives `undefined`.
 * Any split of the stream gives the same frames. Nothing is copied until a frame is whole, nothing is
 * allocated from a length that the peer declared before its bytes have arrived.
 */
export class FrameDecoder {
  readonly #options: FrameDecoderOptions;
  readonly #maxBuffered: number;
  readonly #maxChunks: number;
  #chunks: Uint8Array[] = [];
  /** Read position in the first chunk */
  #head = 0;
  #buffered = 0;
  /** Bytes that must be there before it is worth looking again */
  #need = 1;
  #frameBytes = -1;

  constructor(options: FrameDecoderOptions) {
    this.#options = options;
    this.#maxBuffered = options.maxBufferedBytes ?? options.maxFrameBytes * 2;
    this.#maxChunks = options.maxBufferedChunks ?? 4096;
  }

  /** Waiting and not yet part of a returned frame, in `bytes` */
  get buffered(): number {
    return this.#buffered;
  }

  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    if (this.#buffered + chunk.length > this.#maxBuffered) {
      throw this.#limit(`${this.#buffered + chunk.length} bytes wait, limit is ${this.#maxBuffered}`);
    }
    if (this.#chunks.length >= this.#maxChunks) this.#compact();
    this.#chunks.push(chunk);
    this.#buffered += chunk.length;
  }

  /** The next whole frame, or undefined until more bytes come. */
  next(): Uint8Array | undefined {
    while (this.#buffered >= this.#need) {
      if (this.#frameBytes < 0) {
        const size = this.#options.frameSize(this.#peek(this.#need));
        if ('need' in size) {
          if (size.need <= this.#need) throw new RangeError('frameSize() asks for bytes that it was given');
          this.#checkSize(size.need);
          this.#need = size.need;
          continue;
        }
        this.#checkSize(size.bytes);
        this.#frameBytes = size.bytes;
        this.#need = size.bytes;
        continue;
      }
      const frame = this.#take(this.#frameBytes);
      this.#frameBytes = -1;
      this.#need = 1;
      return frame;
    }
    return undefined;
  }

  /** Gives back what is buffered, as one piece: for a protocol that changes its framing mid-stream. */
  drain(): Uint8Array {
    const rest = this.#take(this.#buffered);
    this.#frameBytes = -1;
    this.#need = 1;
    return rest;
  }

  #checkSize(bytes: number): void {
    if (!Number.isSafeInteger(bytes) || bytes < 1 || bytes > this.#options.maxFrameBytes) {
      throw this.#limit(`a frame of ${bytes} bytes, limit is ${this.#options.maxFrameBytes}`);
    }
  }

  #limit(found: string): WireError {
    return new WireError('ERR_WIRE_LIMIT', `Cannot buffer ${this.#options.name}: ${found}`, {
      message: this.#options.name,
    });
  }

  #peek(count: number): Uint8Array {
    const first = this.#chunks[0]!;
    if (first.length - this.#head >= count) return first.subarray(this.#head, this.#head + count);
    this.#compact();
    return this.#chunks[0]!.subarray(0, count);
  }

  #take(count: number): Uint8Array {
    if (count === 0) return new Uint8Array(0);
    const first = this.#chunks[0]!;
    const available = first.length - this.#head;
    this.#buffered -= count;
    if (available > count) {
      const piece = first.subarray(this.#head, this.#head + count);
      this.#head += count;
      return piece;
    }
    const out = new Uint8Array(count);
    let filled = 0;
    let used = 0;
    while (filled < count) {
      const chunk = this.#chunks[used]!;
      const piece = Math.min(chunk.length - this.#head, count - filled);
      out.set(chunk.subarray(this.#head, this.#head + piece), filled);
      filled += piece;
      this.#head += piece;
      if (this.#head === chunk.length) {
        used++;
        this.#head = 0;
      }
    }
    this.#chunks.splice(0, used);
    return out;
  }

  /** Joins what waits into one chunk, so that many small ones cannot pile up. */
  #compact(): void {
    if (this.#chunks.length === 0) return;
    const joined = new Uint8Array(this.#buffered);
    let at = 0;
    for (const [index, chunk] of this.#chunks.entries()) {
      const piece = index === 0 ? chunk.subarray(this.#head) : chunk;
      joined.set(piece, at);
      at += piece.length;
    }
    this.#chunks = [joined];
    this.#head = 0;
  }
}
