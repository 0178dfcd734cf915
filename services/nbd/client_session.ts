import process from 'node:process';
import type { Duplex } from 'node:stream';
import {
  type AgreedExport,
  CMD,
  CMD_FLAG,
  type Completion,
  commandName,
  encodeBlockStatusFilter,
  encodeExtendedRequest,
  encodeRequest,
  ReplyAssembler,
} from '../../protocols/nbd/mod.ts';
import { BORROWED_EVENT, receiveInto } from './borrowing_socket.ts';
import { asNbdError, NbdError } from './nbd_error.ts';

/** Data of requests under way, in `bytes` */
const MAX_REQUEST_BYTES = 64 << 20;
const DEFAULT_CLOSE_MS = 30_000;

interface Pending {
  readonly what: string;
  resolve(completion: Completion): void;
  reject(error: Error): void;
}

export interface RequestInput {
  readonly type: number;
  readonly flags?: number;
  readonly offset: number;
  readonly length: number;
  readonly into?: Uint8Array;
  readonly data?: Uint8Array;
  /** BLOCK_STATUS: ids of the contexts to answer for, sent as a payload */
  readonly filter?: readonly number[];
}

/**
 * The transmission phase, the client's side: pipelines requests within a budget, and gives each its reply. Knows
 * nothing of what an export allows; that is NbdClient's.
 */
export class ClientSession {
  readonly #stream: Duplex;
  readonly #assembler: ReplyAssembler;
  readonly #extended: boolean;
  readonly #maxRequests: number;
  readonly #closeMs: number;
  readonly #pending = new Map<number, Pending>();
  #waiting: (() => void)[] = [];
  #bytes = 0;
  #nextCookie = 1;
  #failure: Error | undefined;
  #closed = Promise.withResolvers<void>();
  /** Runs while somebody waits for the end: anew with each answer */
  #closeTimer: NodeJS.Timeout | undefined;

  /** Takes the stream over; `rest` is what came behind the handshake. `closeMs` as {@link NbdClientOptions} has it. */
  constructor(
    stream: Duplex,
    agreed: AgreedExport,
    options: { maxRequests: number; rest: Uint8Array; closeMs?: number | undefined },
  ) {
    this.#stream = stream;
    this.#extended = agreed.extended;
    this.#maxRequests = options.maxRequests;
    this.#closeMs = options.closeMs ?? DEFAULT_CLOSE_MS;
    this.#assembler = new ReplyAssembler({
      structured: agreed.structured,
      extended: agreed.extended,
      contextIds: agreed.contexts.map((context) => context.id),
    });
    this.#start(options.rest);
  }

  /** Resolves when the connection is gone, whoever ended it. */
  get closed(): Promise<void> {
    return this.#closed.promise;
  }

  get isOpen(): boolean {
    return this.#failure === undefined;
  }

  /** Requests that wait for their reply */
  get pendingRequests(): number {
    return this.#pending.size;
  }

  /**
   * Waits for what is under way, says NBD_CMD_DISC, and ends the connection: in any case when the server has answered
   * nothing for `closeMs`, or does not take what it is told. What was under way fails then, with EIO.
   */
  async close(): Promise<void> {
    if (this.#closeTimer === undefined) {
      this.#closeTimer = setTimeout(() => {
        const text = `Cannot finish an NBD request: no answer in ${this.#closeMs} ms, and it is to be closed`;
        this.#fail(new NbdError('EIO', text, { disconnected: true }));
      }, this.#closeMs);
      void this.closed.then(() => clearTimeout(this.#closeTimer));
    }
    while (this.#failure === undefined && this.#pending.size > 0)
      await new Promise<void>((go) => this.#waiting.push(go));
    if (this.#failure === undefined) {
      this.#failure = new NbdError('ESHUTDOWN', 'Cannot send an NBD request: the client is closed');
      this.#stream.end(this.#encode(0, { type: CMD.DISC, offset: 0, length: 0 }), () => this.#stream.destroy());
    }
    await this.closed;
  }

  /** Ends the connection at once; what is under way fails. */
  destroy(reason?: Error): void {
    this.#fail(reason ?? new NbdError('ESHUTDOWN', 'Cannot finish an NBD request: the client was closed'));
  }

  #start(rest: Uint8Array): void {
    const stream = this.#stream;
    stream.on('data', (chunk: Uint8Array) => this.#receive(chunk));
    stream.on(BORROWED_EVENT, (chunk: Uint8Array) => this.#receive(chunk));
    receiveInto(stream, () => (this.#failure === undefined ? this.#assembler.room() : undefined));
    stream.on('error', (error) => this.#fail(error));
    stream.on('end', () => this.#fail(gone('Cannot finish an NBD request: server disconnected')));
    stream.once('close', () => {
      this.#fail(gone('Cannot finish an NBD request: connection closed'));
      this.#closed.resolve();
    });
    if (stream.closed || stream.errored) {
      this.#fail(stream.errored ?? gone('Cannot use the NBD server: connection closed'));
      this.#closed.resolve();
    }
    if (rest.length > 0) this.#receive(rest);
    stream.resume();
  }

  #receive(chunk: Uint8Array): void {
    let completions: Completion[];
    try {
      completions = this.#assembler.push(chunk);
    } catch (error) {
      this.#fail(error instanceof Error ? error : new Error(String(error)));
      return;
    }
    if (completions.length > 0) this.#closeTimer?.refresh();
    for (const completion of completions) {
      const pending = this.#pending.get(completion.cookie);
      this.#pending.delete(completion.cookie);
      if (completion.error === undefined) pending?.resolve(completion);
      else {
        const { name, text } = completion.error;
        const said = text === '' ? '' : `: ${text.replace(/[^\x20-\x7e]/g, '?').slice(0, 200)}`;
        pending?.reject(new NbdError(name, `Cannot ${pending.what}: server says ${name}${said}`));
      }
    }
  }

  /** Sends one request when there is room for it. @throws NbdError */
  async request(input: RequestInput): Promise<Completion> {
    const data = input.type === CMD.READ || input.type === CMD.WRITE ? input.length : 0;
    while (
      this.#failure === undefined &&
      this.#pending.size > 0 &&
      (this.#pending.size >= this.#maxRequests || this.#bytes + data > MAX_REQUEST_BYTES)
    ) {
      await new Promise<void>((go) => this.#waiting.push(go));
    }
    if (this.#failure !== undefined) throw asNbdError(this.#failure);
    const cookie = this.#nextCookie++;
    const { promise, resolve, reject } = Promise.withResolvers<Completion>();
    this.#pending.set(cookie, { what: commandName(input.type), resolve, reject });
    this.#bytes += data;
    const { type, offset, length, into, filter } = input;
    this.#assembler.expect({
      cookie,
      type,
      offset,
      length,
      ...(into === undefined ? {} : { into }),
      ...(filter === undefined ? {} : { contextIds: new Set(filter) }),
    });
    this.#stream.cork();
    this.#stream.write(this.#encode(cookie, input));
    if (input.data !== undefined && input.data.length > 0) this.#stream.write(input.data);
    // One write for all requests of this turn
    process.nextTick(() => this.#stream.uncork());
    try {
      return await promise;
    } finally {
      this.#bytes -= data;
      const waiting = this.#waiting;
      this.#waiting = [];
      for (const go of waiting) go();
    }
  }

  /** The header, in the length that was agreed, and the ids of a filter behind it. */
  #encode(cookie: number, input: RequestInput): Uint8Array {
    const { type, flags = 0, offset, length, filter } = input;
    const header = { flags, type, cookie: BigInt(cookie), offset: BigInt(offset) };
    if (!this.#extended) return encodeRequest({ ...header, length });
    if (filter === undefined) {
      const payload = type === CMD.WRITE ? CMD_FLAG.PAYLOAD_LEN : 0;
      return encodeExtendedRequest({ ...header, flags: flags | payload, length: BigInt(length) });
    }
    const payload = encodeBlockStatusFilter({ lengthBytes: length, contextIds: filter });
    const withPayload = { ...header, flags: flags | CMD_FLAG.PAYLOAD_LEN, length: BigInt(payload.length) };
    return Buffer.concat([encodeExtendedRequest(withPayload), payload]);
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    // With an error: that is what the other end of an in-process pair sees.
    if (!this.#stream.destroyed) this.#stream.destroy(this.#failure);
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const request of pending) request.reject(asNbdError(this.#failure));
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const go of waiting) go();
  }
}

function gone(text: string): NbdError {
  return new NbdError('ESHUTDOWN', text, { disconnected: true });
}
