import type { Duplex } from 'node:stream';
import { FrameDecoder, WireError } from '../../protocols/bytes/mod.ts';

/** u32 length of the payload, u16 type; then the payload */
const HEADER_BYTES = 6;

export interface ChannelOptions {
  /** For errors and logs */
  readonly name: string;
  /** A larger payload is a protocol error, in `bytes` (default 1 MiB) */
  readonly maxPayloadBytes?: number;
}

/**
 * Frames over any byte stream between two roles: a socketpair between processes, or an in-process pair in
 * embedded mode. The other role may be taken over by its peer: lengths are capped before anything is buffered,
 * and a frame that is wrong ends the channel, not the process.
 */
export class Channel {
  readonly name: string;
  readonly stream: Duplex;
  readonly #maxPayload: number;
  readonly #decoder: FrameDecoder;
  #onFrame: ((type: number, payload: Uint8Array) => void) | undefined;
  #onClose: ((error: Error | undefined) => void)[] = [];
  #closed = false;
  #error: Error | undefined;

  constructor(stream: Duplex, options: ChannelOptions) {
    this.name = options.name;
    this.stream = stream;
    this.#maxPayload = options.maxPayloadBytes ?? 1 << 20;
    const maxFrame = this.#maxPayload + HEADER_BYTES;
    this.#decoder = new FrameDecoder({
      name: `channel ${options.name}`,
      maxFrameBytes: maxFrame,
      maxBufferedBytes: maxFrame + (1 << 20),
      frameSize: (head) =>
        head.length < HEADER_BYTES
          ? { need: HEADER_BYTES }
          : { bytes: HEADER_BYTES + new DataView(head.buffer, head.byteOffset).getUint32(0) },
    });
    stream.on('data', (chunk: Uint8Array) => this.#receive(chunk));
    stream.on('error', (error) => this.#close(error));
    stream.on('close', () => this.#close(undefined));
    stream.on('end', () => this.#close(undefined));
    stream.pause();
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Starts delivery; frames that came before wait until then. */
  onFrame(handler: (type: number, payload: Uint8Array) => void): void {
    this.#onFrame = handler;
    this.stream.resume();
  }

  onClose(handler: (error: Error | undefined) => void): void {
    if (this.#closed) handler(this.#error);
    else this.#onClose.push(handler);
  }

  /** False: the other side is slow; wait for {@link drained} before sending bulk. */
  send(type: number, ...payload: Uint8Array[]): boolean {
    if (this.#closed) return false;
    let length = 0;
    for (const part of payload) length += part.length;
    if (length > this.#maxPayload)
      throw new RangeError(`Cannot send ${length} bytes on channel ${this.name}: limit is ${this.#maxPayload}`);
    const header = Buffer.alloc(HEADER_BYTES);
    header.writeUInt32BE(length, 0);
    header.writeUInt16BE(type, 4);
    this.stream.cork();
    let more = this.stream.write(header);
    for (const part of payload) if (part.length > 0) more = this.stream.write(part);
    this.stream.uncork();
    return more;
  }

  async drained(): Promise<void> {
    if (!this.stream.writableNeedDrain || this.#closed) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        this.stream.off('drain', done);
        this.stream.off('close', done);
        resolve();
      };
      this.stream.once('drain', done);
      this.stream.once('close', done);
    });
  }

  close(): void {
    this.stream.end();
    this.stream.destroy();
    this.#close(undefined);
  }

  #receive(chunk: Uint8Array): void {
    try {
      this.#decoder.push(chunk);
      for (let frame = this.#decoder.next(); frame !== undefined; frame = this.#decoder.next()) {
        const type = (frame[4]! << 8) | frame[5]!;
        this.#onFrame?.(type, frame.subarray(HEADER_BYTES));
      }
    } catch (error) {
      this.stream.destroy();
      this.#close(
        error instanceof WireError ? error : new Error(`Channel ${this.name}: handler failed`, { cause: error }),
      );
    }
  }

  #close(error: Error | undefined): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#error = error;
    for (const handler of this.#onClose) handler(error);
    this.#onClose = [];
  }
}
