import type { Duplex } from 'node:stream';
import {
  decodeRequest,
  encodeError,
  encodeEvent,
  encodeGreeting,
  encodeReturn,
  type JsonValue,
  QmpDecoder,
  QmpError,
  type QmpEventName,
  type QmpFrame,
  QmpRequestError,
  validateCommand,
} from '../../protocols/qmp/mod.ts';
import { QMP_VERSION, type QmpCommands } from './commands.ts';

/** Commands that wait; then we stop reading (qmp-spec §2.3: clients should not send more ahead) */
const MAX_QUEUED = 8;
/** Answers and events that the client does not take: above this it is disconnected, in `bytes` */
const MAX_UNREAD_BYTES = 4 << 20;
/** Answers are held back while this much waits, in `bytes` */
const SLOW_BYTES = 256 << 10;
const END_TIMEOUT_MS = 500;

/**
 * One client. Commands run one after the other and are answered in their order; events come in between.
 * The client is untrusted: what it sends is bounded, and it is not read while it does not read.
 */
export class QmpSession {
  readonly closed: Promise<void>;
  readonly #stream: Duplex;
  readonly #commands: QmpCommands;
  readonly #decoder = new QmpDecoder();
  readonly #queue: QmpFrame[] = [];
  #negotiated = false;
  #busy = false;
  #over = false;

  constructor(stream: Duplex, commands: QmpCommands) {
    this.#stream = stream;
    this.#commands = commands;
    this.closed = new Promise((resolve) => {
      stream.on('close', () => {
        this.#over = true;
        this.#queue.length = 0;
        resolve();
      });
    });
    stream.on('error', () => {}); // it closes, too
    stream.on('data', (chunk: Uint8Array) => this.#receive(chunk));
    stream.on('drain', () => void this.#work());
    // A client that has said all still gets its answers; then we end, too.
    stream.on('end', () => void this.#work());
    this.#write(encodeGreeting(QMP_VERSION));
  }

  event(event: QmpEventName, data: object, timeMs: number): void {
    // In negotiation a client gets no events (qmp-spec §3.1).
    if (!this.#negotiated) return;
    const empty = Object.keys(data).length === 0;
    this.#write(encodeEvent(event, empty ? undefined : data, timeMs));
  }

  async end(): Promise<void> {
    this.#stream.end();
    const timer = setTimeout(() => this.#stream.destroy(), END_TIMEOUT_MS);
    await this.closed;
    clearTimeout(timer);
  }

  #receive(chunk: Uint8Array): void {
    for (const frame of this.#decoder.push(chunk)) this.#queue.push(frame);
    if (this.#queue.length >= MAX_QUEUED) this.#stream.pause();
    void this.#work();
  }

  async #work(): Promise<void> {
    if (this.#busy) return;
    this.#busy = true;
    try {
      while (!this.#over && this.#stream.writableLength <= SLOW_BYTES) {
        const frame = this.#queue.shift();
        if (frame === undefined) break;
        this.#write(await this.#answer(frame));
        if (this.#queue.length < MAX_QUEUED && this.#stream.isPaused()) this.#stream.resume();
      }
    } finally {
      this.#busy = false;
    }
    if (this.#stream.readableEnded && this.#queue.length === 0 && !this.#over) this.#stream.end();
  }

  async #answer(frame: QmpFrame): Promise<string> {
    let id: JsonValue | undefined;
    try {
      if (frame.kind === 'error') throw new QmpError(frame.text);
      const request = decodeRequest(frame.bytes);
      id = request.id;
      this.#checkMode(request.execute);
      const call = validateCommand(request.execute, request.arguments);
      if (call.name === 'qmp_capabilities') {
        if ((call.arguments.enable?.length ?? 0) > 0) throw new QmpError('This monitor does not support oob');
        this.#negotiated = true;
        return encodeReturn({}, id);
      }
      return encodeReturn(await this.#commands.run(call), id);
    } catch (error) {
      if (error instanceof QmpRequestError) id = error.id;
      const known = error instanceof QmpError;
      return encodeError(known ? error : new QmpError(error instanceof Error ? error.message : String(error)), id);
    }
  }

  #checkMode(execute: string): void {
    if (!this.#negotiated && execute !== 'qmp_capabilities') {
      throw new QmpError("Expecting capabilities negotiation with 'qmp_capabilities'", 'CommandNotFound');
    }
    if (this.#negotiated && execute === 'qmp_capabilities') {
      throw new QmpError('Capabilities negotiation is already complete, command ignored', 'CommandNotFound');
    }
  }

  #write(text: string): void {
    if (this.#over || this.#stream.writableEnded) return;
    this.#stream.write(text);
    if (this.#stream.writableLength > MAX_UNREAD_BYTES) this.#stream.destroy();
  }
}
