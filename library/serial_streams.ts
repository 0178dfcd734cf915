import { type Duplex, Readable, Writable } from 'node:stream';

/** Kept of what comes before somebody reads, in `bytes` */
const KEPT_BYTES = 65536;

/**
 * The guest's serial port, as Web streams of bytes. A guest waits for a reader that is slow. Until `readable` was asked
 * for nobody is connected: the first 64 KiB are kept for who comes, the rest is lost, and the guest does not wait.
 */
export class SerialStreams {
  readonly writable: WritableStream<Uint8Array>;
  readonly #stream: Duplex;
  #readable: ReadableStream<Uint8Array> | undefined;
  readonly #kept: Uint8Array[] = [];
  #keptBytes = 0;

  constructor(stream: Duplex) {
    this.#stream = stream;
    this.writable = Writable.toWeb(stream) as WritableStream<Uint8Array>;
    stream.on('data', this.#keep);
  }

  get readable(): ReadableStream<Uint8Array> {
    if (this.#readable === undefined) {
      const stream = this.#stream;
      stream.off('data', this.#keep);
      const kept = this.#kept.splice(0);
      if (stream.readableEnded || stream.destroyed) this.#readable = ReadableStream.from(kept);
      else {
        stream.pause();
        for (const part of kept.reverse()) stream.unshift(part);
        this.#readable = Readable.toWeb(stream) as ReadableStream<Uint8Array>;
      }
    }
    return this.#readable;
  }

  readonly #keep = (chunk: Uint8Array): void => {
    const part = chunk.subarray(0, KEPT_BYTES - this.#keptBytes);
    if (part.length === 0) return;
    this.#kept.push(part);
    this.#keptBytes += part.length;
  };
}
