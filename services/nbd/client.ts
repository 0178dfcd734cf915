import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  type AgreedExport,
  BASE_ALLOCATION,
  type BlockSizes,
  CMD,
  CMD_FLAG,
  type ExportSummary,
  type Extent,
  isReadOnly,
  MAX_PAYLOAD_BYTES,
  type NbdUri,
  TRANSMISSION_FLAG,
} from '../../protocols/nbd/mod.ts';
import type { TlsIdentity } from '../shared/mod.ts';
import { type ClientHandshake, type NbdClientOptions, openSession } from './client_connection.ts';
import { ClientSession } from './client_session.ts';
import { type NbdDisk, type NbdStatusOptions, type NbdZeroOptions, runPieces } from './nbd_disk.ts';
import { NbdError } from './nbd_error.ts';

const DEFAULT_REQUESTS = 64;

/**
 * One session with an NBD server. Requests are pipelined; replies may come in any order. Never sends a command or
 * flag that the server did not advertise. The server is untrusted: see ReplyAssembler and the client negotiation.
 */
export class NbdClient implements NbdDisk {
  /** What the handshake ended with */
  readonly export: AgreedExport;
  readonly readOnly: boolean;
  /** Who the server has proven to be; undefined without TLS */
  readonly peer: TlsIdentity | undefined;
  readonly #session: ClientSession;
  #sizeBytes: number;

  private constructor(handshake: ClientHandshake, agreed: AgreedExport, options: NbdClientOptions) {
    this.peer = handshake.peer;
    this.export = agreed;
    this.#sizeBytes = Number(agreed.sizeBytes);
    this.readOnly = isReadOnly(agreed.flags);
    this.#session = new ClientSession(handshake.stream, agreed, {
      maxRequests: options.requests ?? DEFAULT_REQUESTS,
      rest: handshake.rest,
      closeMs: options.closeTimeoutMs,
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
    return new NbdClient(handshake, effect.export, options);
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
    return this.#session.closed;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }
  get blockSizes(): BlockSizes {
    return this.export.blockSizes;
  }
  get contexts(): readonly string[] {
    return this.export.contexts.map((context) => context.name);
  }
  /** The connection is there, and may be used */
  get isOpen(): boolean {
    return this.#session.isOpen;
  }
  /** Requests that wait for their reply */
  get pendingRequests(): number {
    return this.#session.pendingRequests;
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
    return this.contexts.includes(BASE_ALLOCATION);
  }
  get canResize(): boolean {
    return this.#has(TRANSMISSION_FLAG.SEND_RESIZE);
  }
  get canMultiConn(): boolean {
    return this.#has(TRANSMISSION_FLAG.CAN_MULTI_CONN);
  }

  /** Fills `into` from `offset`. @throws NbdError */
  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#checkRange('read', offset, into.length);
    await runPieces(offset, into.length, this.#maxDataBytes, (at, length) =>
      this.#session.request({
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
    await runPieces(offset, data.length, this.#maxDataBytes, (at, length) =>
      this.#session.request({
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
    if (this.canFlush) await this.#session.request({ type: CMD.FLUSH, offset: 0, length: 0 });
  }

  /** A hint that the range is not needed any more. @throws NbdError with ENOTSUP where not advertised */
  async trim(offset: number, lengthBytes: number): Promise<void> {
    this.#need(this.canTrim, 'trim');
    this.#checkRange('trim', offset, lengthBytes);
    await runPieces(offset, lengthBytes, this.#maxRangeBytes, (at, length) =>
      this.#session.request({ type: CMD.TRIM, offset: at, length }),
    );
  }

  /** @throws NbdError with ENOTSUP where not advertised, or where `fast` was asked for and is not possible */
  async writeZeroes(offset: number, lengthBytes: number, options: NbdZeroOptions = {}): Promise<void> {
    this.#need(this.canWriteZeroes && (!options.fast || this.canFastZero), 'write zeroes');
    this.#checkRange('write zeroes', offset, lengthBytes);
    const flags =
      (options.mayUnmap === false ? CMD_FLAG.NO_HOLE : 0) |
      (options.fast ? CMD_FLAG.FAST_ZERO : 0) |
      (options.fua && this.canFua ? CMD_FLAG.FUA : 0);
    await runPieces(offset, lengthBytes, this.#maxRangeBytes, (at, length) =>
      this.#session.request({ type: CMD.WRITE_ZEROES, flags, offset: at, length }),
    );
    if (options.fua && !this.canFua) await this.flush();
  }

  /** Asks the server to have the range ready. @throws NbdError with ENOTSUP where not advertised */
  async cache(offset: number, lengthBytes: number): Promise<void> {
    this.#need(this.canCache, 'cache');
    this.#checkRange('cache', offset, lengthBytes);
    await runPieces(offset, lengthBytes, this.#maxRangeBytes, (at, length) =>
      this.#session.request({ type: CMD.CACHE, offset: at, length }),
    );
  }

  /** As {@link NbdDisk.status}. @throws NbdError with ENOTSUP where a context was not selected */
  async status(
    offset: number,
    lengthBytes: number,
    options: NbdStatusOptions = {},
  ): Promise<ReadonlyMap<string, readonly Extent[]>> {
    const asked = options.contexts ?? this.contexts;
    const chosen = asked.map((name) => this.export.contexts.find((context) => context.name === name));
    this.#need(asked.length > 0 && !chosen.includes(undefined), `ask for status of ${asked.join(', ') || 'nothing'}`);
    this.#checkRange('ask for status', offset, lengthBytes);
    if (lengthBytes === 0) return new Map(asked.map((name) => [name, []]));
    const length = Math.min(lengthBytes, this.#maxRangeBytes);
    const ids = chosen.map((context) => context!.id);
    const filtered = ids.length < this.export.contexts.length && this.#has(TRANSMISSION_FLAG.BLOCK_STATUS_PAYLOAD);
    const completion = await this.#session.request({
      type: CMD.BLOCK_STATUS,
      flags: options.oneExtent ? CMD_FLAG.REQ_ONE : 0,
      offset,
      length,
      ...(filtered ? { filter: ids } : {}),
    });
    return new Map(
      chosen.map((context) => [context!.name, insideOf(completion.extents.get(context!.id) ?? [], length)]),
    );
  }

  /** Extents of base:allocation; as {@link status}. */
  async blockStatus(offset: number, lengthBytes: number): Promise<readonly Extent[]> {
    const found = await this.status(offset, lengthBytes, { contexts: [BASE_ALLOCATION] });
    return found.get(BASE_ALLOCATION)!;
  }

  /** Changes the export's size. @throws NbdError with ENOTSUP where not advertised */
  async resize(sizeBytes: number): Promise<void> {
    this.#need(this.canResize, 'resize');
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
      throw new NbdError('EINVAL', `Cannot resize to ${sizeBytes} bytes: not a size`);
    }
    await this.#session.request({ type: CMD.RESIZE, offset: sizeBytes, length: 0 });
    this.#sizeBytes = sizeBytes;
  }

  /** Waits for what is under way, up to `closeTimeoutMs`, says NBD_CMD_DISC, and ends the connection. */
  close(): Promise<void> {
    return this.#session.close();
  }

  /** Ends the connection at once; what is under way fails. */
  destroy(reason?: Error): void {
    this.#session.destroy(reason);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  get #maxDataBytes(): number {
    return Math.min(MAX_PAYLOAD_BYTES, this.export.blockSizes.maximum);
  }

  /** Lengths without data are 32 bits without extended headers; whole blocks of them. */
  get #maxRangeBytes(): number {
    return this.export.extended ? 2 ** 52 : 2 ** 31;
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
}

/** Only the last extent may reach past the request, and nobody here asked about what lies there. */
function insideOf(extents: readonly Extent[], lengthBytes: number): Extent[] {
  const inside: Extent[] = [];
  let left = lengthBytes;
  for (const extent of extents) {
    const piece = Math.min(extent.lengthBytes, left);
    if (piece > 0) inside.push({ lengthBytes: piece, flags: extent.flags });
    left -= piece;
  }
  return inside;
}
