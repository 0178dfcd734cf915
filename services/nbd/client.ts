import process from 'node:process';
import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  type AgreedExport,
  BASE_ALLOCATION,
  CMD,
  CMD_FLAG,
  type Completion,
  commandName,
  type ExportSummary,
  type Extent,
  encodeRequest,
  isReadOnly,
  MAX_PAYLOAD_BYTES,
  type NbdErrorName,
  type NbdUri,
  ReplyAssembler,
  TRANSMISSION_FLAG,
} from '../../protocols/nbd/mod.ts';
import type { TlsIdentity } from '../shared/mod.ts';
import { type ClientHandshake, type NbdClientOptions, openSession } from './client_connection.ts';

const DEFAULT_REQUESTS = 64;
/** Data of requests under way, in `bytes` */
const MAX_REQUEST_BYTES = 64 << 20;

/** A request that the server refused or that could not be finished. */
export class NbdError extends Error {
  override readonly name = 'NbdError';
  readonly code: NbdErrorName;
  constructor(code: NbdErrorName, text: string, options?: ErrorOptions) {
    super(text, options);
    this.code = code;
  }
}

interface Pending {
  readonly what: string;
  resolve(completion: Completion): void;
  reject(error: Error): void;
}

interface RequestInput {
  readonly type: number;
  readonly flags?: number;
  readonly offset: number;
  readonly length: number;
  readonly into?: Uint8Array;
  readonly data?: Uint8Array;
}

/**
 * One session with an NBD server. Requests are pipelined; replies may come in any order. Never sends a command or
 * flag that the server did not advertise. The server is untrusted: see ReplyAssembler and the client negotiation.
 */
export class NbdClient {
  /** What the handshake ended with */
  readonly export: AgreedExport;
  /** In `bytes` */
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Who the server has proven to be; undefined without TLS */
  readonly peer: TlsIdentity | undefined;
  readonly #stream: Duplex;
  readonly #assembler: ReplyAssembler;
  readonly #pending = new Map<number, Pending>();
  readonly #maxRequests: number;
  readonly #contextId: number | undefined;
  #waiting: (() => void)[] = [];
  #bytes = 0;
  #nextCookie = 1;
  #failure: Error | undefined;
  #closed = Promise.withResolvers<void>();

  private constructor(handshake: ClientHandshake, agreed: AgreedExport, options: NbdClientOptions) {
    this.#stream = handshake.stream;
    this.peer = handshake.peer;
    this.export = agreed;
    this.sizeBytes = Number(agreed.sizeBytes);
    this.readOnly = isReadOnly(agreed.flags);
    this.#maxRequests = options.requests ?? DEFAULT_REQUESTS;
    this.#contextId = agreed.contexts.find((context) => context.name === BASE_ALLOCATION)?.id;
    this.#assembler = new ReplyAssembler({
      structured: agreed.structured,
      contextIds: agreed.contexts.map((context) => context.id),
    });
  }

  /**
   * Connects to a URI, or speaks over a stream that is connected already, and opens one export.
   * @throws WireError when the server is wrong or refuses; the errors of connect(2); the signal's reason
   */
  static async connect(target: Duplex | NbdUri | string, options: NbdClientOptions = {}): Promise<NbdClient> {
    const handshake = await openSession(target, options, false);
    const { effect } = handshake;
    if (effect.kind !== 'transmit') throw new Error('Cannot open an export: the handshake listed them');
    if (effect.export.sizeBytes > BigInt(Number.MAX_SAFE_INTEGER)) {
      handshake.stream.destroy();
      throw new WireError('ERR_WIRE_LIMIT', `Cannot use the export: ${effect.export.sizeBytes} bytes, limit is 2^53`);
    }
    const client = new NbdClient(handshake, effect.export, options);
    client.#start(handshake.rest);
    return client;
  }

  /** The exports that a server is willing to name. */
  static async list(
    target: Duplex | NbdUri | string,
    options: NbdClientOptions = {},
  ): Promise<readonly ExportSummary[]> {
    const { effect, stream } = await openSession(target, options, true);
    stream.end(() => stream.destroy());
    if (effect.kind !== 'listed') throw new Error('Cannot list exports: the handshake opened one');
    return effect.exports;
  }

  /** Resolves when the connection is gone, whoever ended it. */
  get closed(): Promise<void> {
    return this.#closed.promise;
  }

  get canFlush(): boolean {
    return this.#has(TRANSMISSION_FLAG.SEND_FLUSH);
  }
  get canFua(): boolean {
    return this.#has(TRANSMISSION_FLAG.SEND_FUA);
  }
  get canTrim(): boolean {
    return this.#has(TRANSMISSION_FLAG.SEND_TRIM);
  }
  get canWriteZeroes(): boolean {
    return this.#has(TRANSMISSION_FLAG.SEND_WRITE_ZEROES);
  }
  get canFastZero(): boolean {
    return this.#has(TRANSMISSION_FLAG.SEND_FAST_ZERO);
  }
  get canCache(): boolean {
    return this.#has(TRANSMISSION_FLAG.SEND_CACHE);
  }
  get canBlockStatus(): boolean {
    return this.#contextId !== undefined;
  }
  get canMultiConn(): boolean {
    return this.#has(TRANSMISSION_FLAG.CAN_MULTI_CONN);
  }

  /** Fills `into` from `offset`. @throws NbdError */
  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#checkRange('read', offset, into.length);
    await this.#pieces(offset, into.length, this.#maxDataBytes, (at, length) =>
      this.#request({
        type: CMD.READ,
        offset: at,
        length,
        into: into.subarray(at - offset, at - offset + length),
      }),
    );
  }

  /** `data` must not change until the promise settles. @throws NbdError */
  async write(offset: number, data: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    this.#checkRange('write', offset, data.length);
    const flags = options.fua && this.canFua ? CMD_FLAG.FUA : 0;
    await this.#pieces(offset, data.length, this.#maxDataBytes, (at, length) =>
      this.#request({
        type: CMD.WRITE,
        flags,
        offset: at,
        length,
        data: data.subarray(at - offset, at - offset + length),
      }),
    );
    if (options.fua && !this.canFua) await this.flush();
  }

  /** Everything written and answered before is on stable storage. Nothing to do where the server needs no flush. */
  async flush(): Promise<void> {
    if (this.canFlush) await this.#request({ type: CMD.FLUSH, offset: 0, length: 0 });
  }

  /** A hint that the range is not needed any more. @throws NbdError with ENOTSUP where not advertised */
  async trim(offset: number, lengthBytes: number): Promise<void> {
    this.#need(this.canTrim, 'trim');
    this.#checkRange('trim', offset, lengthBytes);
    await this.#pieces(offset, lengthBytes, this.#maxRangeBytes, (at, length) =>
      this.#request({ type: CMD.TRIM, offset: at, length }),
    );
  }

  /** @throws NbdError with ENOTSUP where not advertised, or where `fast` was asked for and is not possible */
  async writeZeroes(
    offset: number,
    lengthBytes: number,
    options: { mayUnmap?: boolean; fua?: boolean; fast?: boolean } = {},
  ): Promise<void> {
    this.#need(this.canWriteZeroes && (!options.fast || this.canFastZero), 'write zeroes');
    this.#checkRange('write zeroes', offset, lengthBytes);
    const flags =
      (options.mayUnmap === false ? CMD_FLAG.NO_HOLE : 0) |
      (options.fast ? CMD_FLAG.FAST_ZERO : 0) |
      (options.fua && this.canFua ? CMD_FLAG.FUA : 0);
    await this.#pieces(offset, lengthBytes, this.#maxRangeBytes, (at, length) =>
      this.#request({ type: CMD.WRITE_ZEROES, flags, offset: at, length }),
    );
    if (options.fua && !this.canFua) await this.flush();
  }

  /** Asks the server to have the range ready. @throws NbdError with ENOTSUP where not advertised */
  async cache(offset: number, lengthBytes: number): Promise<void> {
    this.#need(this.canCache, 'cache');
    this.#checkRange('cache', offset, lengthBytes);
    await this.#pieces(offset, lengthBytes, this.#maxRangeBytes, (at, length) =>
      this.#request({ type: CMD.CACHE, offset: at, length }),
    );
  }

  /**
   * Extents of base:allocation from `offset` on; the server may describe less than was asked, never nothing.
   * @throws NbdError with ENOTSUP where the context was not selected
   */
  async blockStatus(offset: number, lengthBytes: number): Promise<readonly Extent[]> {
    this.#need(this.canBlockStatus, 'ask for block status');
    this.#checkRange('ask for block status', offset, lengthBytes);
    if (lengthBytes === 0) return [];
    const length = Math.min(lengthBytes, this.#maxRangeBytes);
    const completion = await this.#request({ type: CMD.BLOCK_STATUS, offset, length });
    const extents: Extent[] = [];
    let left = length;
    for (const extent of completion.extents.get(this.#contextId!) ?? []) {
      // Only the last extent may reach past the request, and nobody here asked about what lies there.
      const inside = Math.min(extent.lengthBytes, left);
      if (inside > 0) extents.push({ lengthBytes: inside, flags: extent.flags });
      left -= inside;
    }
    return extents;
  }

  /** Waits for what is under way, says NBD_CMD_DISC, and ends the connection. */
  async close(): Promise<void> {
    while (this.#failure === undefined && this.#pending.size > 0)
      await new Promise<void>((go) => this.#waiting.push(go));
    if (this.#failure === undefined) {
      this.#failure = new NbdError('ESHUTDOWN', 'Cannot send an NBD request: the client is closed');
      this.#stream.end(encodeRequest({ flags: 0, type: CMD.DISC, cookie: 0n, offset: 0n, length: 0 }), () =>
        this.#stream.destroy(),
      );
    }
    await this.closed;
  }

  /** Ends the connection at once; what is under way fails. */
  destroy(reason?: Error): void {
    this.#fail(reason ?? new NbdError('ESHUTDOWN', 'Cannot finish an NBD request: the client was closed'));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #start(rest: Uint8Array): void {
    const stream = this.#stream;
    stream.on('data', (chunk: Uint8Array) => this.#receive(chunk));
    stream.on('error', (error) => this.#fail(error));
    stream.on('end', () => this.#fail(new NbdError('ESHUTDOWN', 'Cannot finish an NBD request: server disconnected')));
    stream.once('close', () => {
      this.#fail(new NbdError('ESHUTDOWN', 'Cannot finish an NBD request: connection closed'));
      this.#closed.resolve();
    });
    if (stream.closed || stream.errored) {
      this.#fail(stream.errored ?? new NbdError('ESHUTDOWN', 'Cannot use the NBD server: connection closed'));
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

  async #request(input: RequestInput): Promise<Completion> {
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
    const { type, flags = 0, offset, length } = input;
    this.#assembler.expect({ cookie, type, offset, length, ...(input.into === undefined ? {} : { into: input.into }) });
    this.#stream.cork();
    this.#stream.write(encodeRequest({ flags, type, cookie: BigInt(cookie), offset: BigInt(offset), length }));
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

  /** Splits a range by what the server takes at once, runs the pieces side by side, and waits for all of them. */
  async #pieces(
    offset: number,
    lengthBytes: number,
    maxBytes: number,
    run: (at: number, length: number) => Promise<unknown>,
  ): Promise<void> {
    if (lengthBytes === 0) return;
    if (lengthBytes <= maxBytes) {
      await run(offset, lengthBytes);
      return;
    }
    const runs: Promise<unknown>[] = [];
    for (let done = 0; done < lengthBytes; done += maxBytes) {
      runs.push(run(offset + done, Math.min(maxBytes, lengthBytes - done)));
    }
    // All are waited for, so that no piece touches the caller's memory after the first has failed.
    const results = await Promise.allSettled(runs);
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  }

  get #maxDataBytes(): number {
    return Math.min(MAX_PAYLOAD_BYTES, this.export.blockSizes.maximum);
  }

  /** Lengths without data are 32 bits; whole blocks of them. */
  get #maxRangeBytes(): number {
    return 0x8000_0000;
  }

  #has(flag: number): boolean {
    return (this.export.flags & flag) !== 0;
  }

  #need(has: boolean, what: string): void {
    if (!has) throw new NbdError('ENOTSUP', `Cannot ${what}: server does not offer it`);
  }

  #checkRange(what: string, offset: number, lengthBytes: number): void {
    const isInside =
      Number.isSafeInteger(offset) && offset >= 0 && lengthBytes >= 0 && offset + lengthBytes <= this.sizeBytes;
    if (!isInside) {
      throw new NbdError('EINVAL', `Cannot ${what} ${lengthBytes} bytes at ${offset}: export has ${this.sizeBytes}`);
    }
    const { minimum } = this.export.blockSizes;
    if (offset % minimum !== 0 || (lengthBytes % minimum !== 0 && offset + lengthBytes !== this.sizeBytes)) {
      throw new NbdError('EINVAL', `Cannot ${what} ${lengthBytes} bytes at ${offset}: blocks have ${minimum}`);
    }
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

function asNbdError(error: Error): NbdError {
  if (error instanceof NbdError) return error;
  return new NbdError('EIO', `Cannot finish an NBD request: ${error.message}`, { cause: error });
}
