import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  type ControlMessage,
  frameControl,
  type MigrationFrame,
  MigrationFrames,
} from '../../protocols/migration/mod.ts';
import { MigrationError } from './migration_error.ts';

/** Queued for the peer before we wait for it, in `bytes`: what is queued at switchover is downtime */
const QUEUE_BYTES = 1 << 20;

interface Waiter {
  resolve(frame: MigrationFrame): void;
  reject(error: Error): void;
}

/** The frames of a migration over any byte stream: TCP, UNIX, and TLS around either. */
export class Wire {
  readonly #stream: Duplex;
  readonly #frames = new MigrationFrames();
  #waiter: Waiter | undefined;
  #ended: Error | undefined;
  #sentBytes = 0;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.on('data', (chunk: Uint8Array) => this.#receive(chunk));
    stream.on('end', () => this.#end(lost('it closed the connection')));
    stream.on('close', () => this.#end(lost('the connection is closed')));
    stream.on('error', (cause) => this.#end(lost(cause.message, cause)));
    stream.pause();
  }

  /** In `bytes` */
  get sentBytes(): number {
    return this.#sentBytes;
  }

  get writable(): boolean {
    return this.#stream.writable;
  }

  send(message: ControlMessage): void {
    this.#write(frameControl(message));
  }

  /** False: wait for {@link drained} before the next. */
  sendRecord(record: Uint8Array): boolean {
    this.#write(record);
    return this.#stream.writableLength < QUEUE_BYTES;
  }

  /** @throws MigrationError when the peer does not read for `timeoutMs` */
  async drained(timeoutMs: number): Promise<void> {
    if (!this.#stream.writableNeedDrain || this.#stream.destroyed) return;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const timer = setTimeout(() => {
      reject(new MigrationError('ERR_MIGRATION_TIMEOUT', `Cannot send: the peer has not read for ${timeoutMs} ms`));
    }, timeoutMs);
    this.#stream.once('drain', resolve);
    this.#stream.once('close', resolve);
    try {
      await promise;
    } finally {
      clearTimeout(timer);
      this.#stream.off('drain', resolve);
      this.#stream.off('close', resolve);
    }
  }

  /**
   * The next whole frame. The time is for the frame, so single bytes now and then do not stretch it.
   * @throws WireError for bytes that are wrong or late, MigrationError when the connection is gone
   */
  async next(timeoutMs: number): Promise<MigrationFrame> {
    if (this.#waiter !== undefined) throw new Error('Cannot wait for two frames');
    const ready = this.#frames.next();
    if (ready !== undefined) return ready;
    if (this.#ended !== undefined) throw this.#ended;
    const { promise, resolve, reject } = Promise.withResolvers<MigrationFrame>();
    this.#waiter = { resolve, reject };
    const timer = setTimeout(() => {
      reject(new WireError('ERR_WIRE_TIMEOUT', `Cannot wait for the migration peer: no message in ${timeoutMs} ms`));
    }, timeoutMs);
    this.#stream.resume();
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#waiter = undefined;
    }
  }

  /** Sends what is queued and closes; the rest of what the peer sends is not read. */
  close(): void {
    this.#stream.end();
    this.#stream.resume();
    this.#end(lost('we closed the connection'));
    const timer = setTimeout(() => this.#stream.destroy(), 1000);
    timer.unref();
    this.#stream.once('close', () => clearTimeout(timer));
  }

  destroy(): void {
    this.#stream.destroy();
  }

  #write(bytes: Uint8Array): void {
    // The peer may have ended its half only, so the end of reading is not the end of writing.
    if (!this.#stream.writable) throw this.#ended ?? lost('the connection is closed');
    this.#sentBytes += bytes.length;
    this.#stream.write(bytes);
  }

  #receive(chunk: Uint8Array): void {
    if (this.#ended !== undefined) return;
    try {
      this.#frames.push(chunk);
      const frame = this.#waiter === undefined ? undefined : this.#frames.next();
      if (frame !== undefined) {
        const waiter = this.#waiter!;
        this.#waiter = undefined;
        waiter.resolve(frame);
      }
    } catch (error) {
      this.#end(error as Error);
    }
    // Read on only when somebody waits: the peer is slowed down by the transport then.
    if (this.#waiter === undefined) this.#stream.pause();
  }

  #end(error: Error): void {
    this.#ended ??= error;
    this.#waiter?.reject(this.#ended);
  }
}

function lost(why: string, cause?: unknown): MigrationError {
  return new MigrationError('ERR_MIGRATION_CONNECTION', `Cannot reach the migration peer: ${why}`, { cause });
}
