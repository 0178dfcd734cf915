import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  type ControlKind,
  type ControlMessage,
  MAX_WAITING_MESSAGES,
  printable,
  SessionState,
} from '../../protocols/migration/mod.ts';
import { type EndSignal, toError } from './end_signal.ts';
import { MigrationError } from './migration_error.ts';
import { Wire } from './wire.ts';

const FOREVER_MS = 2 ** 31 - 1;

type Wanted<Kind extends ControlKind> = Extract<ControlMessage, { kind: Kind }>;

/**
 * The destination, as the source sees it. All that it sends is read at once and held against the session, so that
 * its Abort and its end are seen at any moment; they end the migration through `end`.
 */
export class SourcePeer {
  readonly #wire: Wire;
  readonly #end: EndSignal;
  readonly #session = new SessionState('source');
  readonly #inbox: ControlMessage[] = [];
  #wake: (() => void) | undefined;

  constructor(stream: Duplex, end: EndSignal) {
    this.#wire = new Wire(stream);
    this.#end = end;
    void this.#read();
  }

  /** In `bytes` */
  get sentBytes(): number {
    return this.#wire.sentBytes;
  }

  /** @throws MigrationError when nothing can be sent any more: then nothing was */
  send(message: ControlMessage): void {
    this.#session.sent(message.kind);
    this.#wire.send(message);
  }

  /** False: wait for {@link drained} before the next. */
  sendRecord(record: Uint8Array): boolean {
    this.#session.sent('record');
    return this.#wire.sendRecord(record);
  }

  drained(timeoutMs: number): Promise<void> {
    return this.#wire.drained(timeoutMs);
  }

  /** The next message, which must be of this kind. */
  async expect<Kind extends ControlKind>(kind: Kind, timeoutMs: number): Promise<Wanted<Kind>> {
    if (this.#inbox.length === 0) {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      this.#wake = resolve;
      const timer = setTimeout(() => {
        reject(
          new MigrationError('ERR_MIGRATION_TIMEOUT', `Cannot go on: no ${kind} of the destination in ${timeoutMs} ms`),
        );
      }, timeoutMs);
      try {
        await this.#end.guard(promise);
      } finally {
        clearTimeout(timer);
        this.#wake = undefined;
      }
    }
    const message = this.#inbox.shift()!;
    if (message.kind !== kind) {
      throw new WireError('ERR_WIRE_STATE', `Cannot accept ${message.kind} of the destination: expected ${kind}`);
    }
    return message as Wanted<Kind>;
  }

  async expectAck(pass: number, timeoutMs: number): Promise<void> {
    const ack = await this.expect('passAck', timeoutMs);
    if (ack.pass !== pass) {
      throw new WireError('ERR_WIRE_VALUE', `Cannot accept passAck of pass ${ack.pass}: expected ${pass}`);
    }
  }

  /** Tells the reason, where that can still be told, and closes. */
  abort(reason: string): void {
    if (this.#wire.writable && this.#session.phase !== 'aborted') {
      try {
        this.send({ kind: 'abort', reason: printable(reason) });
      } catch {
        // The connection ended meanwhile; that tells the destination the same
      }
    }
    this.close();
  }

  close(): void {
    this.#wire.close();
  }

  async #read(): Promise<void> {
    try {
      for (;;) {
        const frame = await this.#wire.next(FOREVER_MS);
        if (frame.kind === 'record') throw new WireError('ERR_WIRE_STATE', 'Cannot accept a record of the destination');
        this.#take(frame.message);
      }
    } catch (error) {
      this.#end.end(toError(error)); // after the migration's own end this says nothing to anybody
    }
  }

  #take(message: ControlMessage): void {
    this.#session.received(message.kind);
    if (message.kind === 'abort') {
      throw new MigrationError('ERR_MIGRATION_ABORTED', `The destination ended the migration: ${message.reason}`);
    }
    if (message.kind === 'refuse') {
      throw new MigrationError('ERR_MIGRATION_REFUSED', `The destination refuses: ${message.reasons.join('; ')}`);
    }
    if (this.#inbox.length >= MAX_WAITING_MESSAGES) {
      throw new WireError('ERR_WIRE_LIMIT', `Cannot queue messages: ${MAX_WAITING_MESSAGES} wait`);
    }
    this.#inbox.push(message);
    this.#wake?.();
  }
}
