import { connect as netConnect, type Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { FrameDecoder, WireError } from '../../protocols/bytes/mod.ts';
import {
  BASE_ALLOCATION,
  type ClientNegotiation,
  type ClientNegotiationEffect,
  type ClientNegotiationEvent,
  decodeExportNameReply,
  decodeOptionReply,
  EXPORT_NAME_PADDING_BYTES,
  encodeOption,
  GREETING_BYTES,
  MAX_OPTION_REPLY_BYTES,
  type NbdUri,
  OPT,
  OPTION_REPLY_HEADER_BYTES,
  optionReplyFrameSize,
  parseNbdUri,
  startClientNegotiation,
  stepClientNegotiation,
} from '../../protocols/nbd/mod.ts';
import { TlsClient, type TlsIdentity } from '../shared/tls.ts';
import { readPskFile, readX509Folder, TlsError } from '../shared/tls_credentials.ts';
import { BORROWED_EVENT, borrowingSocket } from './borrowing_socket.ts';

const PIECE_BYTES = 64 * 1024;
const DEFAULT_OPEN_TIMEOUT_MS = 10_000;

/** TLS of a client. */
export interface NbdClientTls {
  readonly client: TlsClient;
  /** `require` (default): never in clear text. `allow`: in clear text where the server has no TLS; nbds:// requires it */
  readonly mode?: 'require' | 'allow';
  /** Name that the server's certificate must carry (default: the URI's host; localhost for other streams) */
  readonly serverName?: string;
}

export interface NbdClientOptions {
  /** Absent: no TLS, but what the parameters of an nbds:// URI say */
  readonly tls?: NbdClientTls;
  /** Read the files that tls-psk-file and tls-certificates of a URI name (default false: a URI may come from anywhere) */
  readonly uriFiles?: boolean;
  /** Overrides the URI's (default '') */
  readonly exportName?: string;
  /** Connection and handshake, in `ms` (default 10 000) */
  readonly openTimeoutMs?: number;
  /** Closing waits no longer than this for the next answer of a server, in `ms` (default 30 000) */
  readonly closeTimeoutMs?: number;
  /** Requests under way at once (default 64) */
  readonly requests?: number;
  /** Ask for structured replies and block status (default true) */
  readonly structured?: boolean;
  /** Ask for extended headers: lengths of 64 bits (default true; never without structured) */
  readonly extended?: boolean;
  /** Meta contexts to select (default base:allocation); what the server does not have is left out */
  readonly contexts?: readonly string[];
  readonly signal?: AbortSignal;
}

/** Where the handshake has ended. */
export interface ClientHandshake {
  /** The stream to go on with: TLS over the first one where that was agreed */
  readonly stream: Duplex;
  readonly peer: TlsIdentity | undefined;
  readonly effect: Exclude<ClientNegotiationEffect, { kind: 'starttls' }>;
  /** Bytes that came behind the handshake */
  readonly rest: Uint8Array;
}

interface Opened {
  readonly stream: Duplex;
  readonly exportName: string;
  readonly tls: Required<NbdClientTls> | undefined;
}

/**
 * Connects, and goes through the handshake until an export is open, or all are listed.
 * @throws WireError, TlsError, the errors of connect(2), the signal's reason; the stream is destroyed then
 */
export async function openSession(
  target: Duplex | NbdUri | string,
  options: NbdClientOptions,
  list: boolean,
): Promise<ClientHandshake> {
  const opened = await open(target, options);
  return new Handshake(opened, options, list).result;
}

async function open(target: Duplex | NbdUri | string, options: NbdClientOptions): Promise<Opened> {
  options.signal?.throwIfAborted();
  // Not by a field: sockets have an `address` too
  if (target instanceof Duplex) {
    return { stream: target, exportName: options.exportName ?? '', tls: tlsOf(options.tls, 'localhost') };
  }
  const uri = typeof target === 'string' ? parseNbdUri(target) : target;
  if (uri.address.type === 'vsock') throw new WireError('ERR_WIRE_VALUE', 'Cannot connect over vsock: Node has none');
  // Before anything is sent: with wrong credentials there is nothing to connect for.
  const tls = uriTls(uri, options);
  const stream = await connectSocket(uri.address, options);
  return { stream, exportName: options.exportName ?? uri.exportName, tls };
}

function tlsOf(tls: NbdClientTls | undefined, serverName: string): Required<NbdClientTls> | undefined {
  if (tls === undefined) return undefined;
  return { client: tls.client, mode: tls.mode ?? 'require', serverName: tls.serverName ?? serverName };
}

/** TLS as libnbd reads it from a URI: nbds:// requires it, with tls-psk-file and the user, or tls-certificates. */
function uriTls(uri: NbdUri, options: NbdClientOptions): Required<NbdClientTls> | undefined {
  // A UNIX socket has no name; its server's certificate has to name something all the same (CVE-2024-7383).
  const host = uri.address.type === 'inet' ? uri.address.host : 'localhost';
  const serverName = uri.parameters.get('tls-hostname') ?? host;
  if (!uri.tls) return tlsOf(options.tls, serverName);
  if (options.tls !== undefined) return { ...tlsOf(options.tls, serverName)!, mode: 'require' };
  const keys = uri.parameters.get('tls-psk-file');
  const folder = uri.parameters.get('tls-certificates');
  if (keys === undefined && folder === undefined) {
    throw new TlsError('ERR_TLS_CREDENTIALS', 'Cannot connect with TLS: neither certificates nor keys are given');
  }
  if (options.uriFiles !== true) {
    throw new TlsError('ERR_TLS_CREDENTIALS', 'Cannot connect with TLS: files that a URI names are not allowed here');
  }
  const user = uri.user === undefined || uri.user === '' ? {} : { user: uri.user };
  const credentials = keys === undefined ? readX509Folder(folder!, 'client') : readPskFile(keys);
  return { client: new TlsClient(credentials, user), mode: 'require', serverName };
}

function connectSocket(
  address: Exclude<NbdUri['address'], { type: 'vsock' }>,
  options: NbdClientOptions,
): Promise<Socket> {
  const where = address.type === 'unix' ? { path: address.path } : { host: address.host, port: address.port };
  return new Promise<Socket>((resolve, reject) => {
    const connecting = netConnect({ ...where, noDelay: true });
    // Nothing is read until its handle goes on in another socket.
    connecting.pause();
    const timer = setTimeout(() => {
      connecting.destroy(new WireError('ERR_WIRE_TIMEOUT', 'Cannot connect to the NBD server: no answer in time'));
    }, options.openTimeoutMs ?? DEFAULT_OPEN_TIMEOUT_MS);
    const onAbort = (): void => {
      connecting.destroy(options.signal!.reason as Error);
    };
    options.signal?.addEventListener('abort', onAbort, { once: true });
    const settle = (): void => {
      clearTimeout(timer);
      options.signal?.removeEventListener('abort', onAbort);
    };
    connecting.once('error', (error) => {
      settle();
      reject(error);
    });
    connecting.once('connect', () => {
      settle();
      connecting.removeAllListeners('error');
      resolve(borrowingSocket(connecting));
    });
  });
}

/** Drives the client's state machine over a stream, through TLS where that is agreed. */
class Handshake {
  readonly result: Promise<ClientHandshake>;
  readonly #opened: Opened;
  readonly #options: NbdClientOptions;
  readonly #decoder: FrameDecoder;
  readonly #timer: NodeJS.Timeout;
  readonly #abort = new AbortController();
  #stream: Duplex;
  #peer: TlsIdentity | undefined;
  #state: ClientNegotiation;
  #over = false;
  #resolve!: (handshake: ClientHandshake) => void;
  #reject!: (error: Error) => void;

  constructor(opened: Opened, options: NbdClientOptions, list: boolean) {
    this.#opened = opened;
    this.#options = options;
    this.#stream = opened.stream;
    this.#state = startClientNegotiation({
      exportName: opened.exportName,
      structured: options.structured ?? true,
      extended: options.extended ?? true,
      contexts: options.contexts ?? [BASE_ALLOCATION],
      list,
      tls: opened.tls?.mode ?? 'off',
    });
    const maxFrameBytes = OPTION_REPLY_HEADER_BYTES + MAX_OPTION_REPLY_BYTES;
    this.#decoder = new FrameDecoder({
      name: 'NBD handshake',
      maxFrameBytes,
      maxBufferedBytes: maxFrameBytes + PIECE_BYTES,
      frameSize: (head) => {
        if (this.#state.phase === 'greeting') return { bytes: GREETING_BYTES };
        if (this.#state.phase === 'export-name') {
          return { bytes: 10 + (this.#state.noZeroes ? 0 : EXPORT_NAME_PADDING_BYTES) };
        }
        return optionReplyFrameSize(head);
      },
    });
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#timer = setTimeout(
      () =>
        this.#fail(
          new WireError('ERR_WIRE_TIMEOUT', `Cannot finish the NBD handshake: stuck in state ${this.#state.phase}`),
        ),
      options.openTimeoutMs ?? DEFAULT_OPEN_TIMEOUT_MS,
    );
    options.signal?.addEventListener('abort', this.#onAbort, { once: true });
    this.#attach();
  }

  readonly #onAbort = (): void => this.#fail(this.#options.signal!.reason as Error);
  readonly #onError = (error: Error): void => this.#fail(error);
  readonly #onEnd = (): void => {
    this.#fail(
      new WireError(
        'ERR_WIRE_TRUNCATED',
        `Cannot finish the NBD handshake: server closed in state ${this.#state.phase}`,
      ),
    );
  };

  #attach(): void {
    const stream = this.#stream;
    stream.on('data', this.#onData);
    stream.on(BORROWED_EVENT, this.#onBorrowed);
    stream.on('end', this.#onEnd);
    stream.on('close', this.#onEnd);
    stream.on('error', this.#onError);
    if (stream.destroyed) this.#onEnd();
  }

  #detach(): void {
    const stream = this.#stream;
    stream.off('data', this.#onData);
    stream.off(BORROWED_EVENT, this.#onBorrowed);
    stream.off('end', this.#onEnd);
    stream.off('close', this.#onEnd);
    // From here to the session's own handler an error is seen in stream.errored.
    stream.on('error', () => {});
    stream.off('error', this.#onError);
  }

  #finish(): boolean {
    if (this.#over) return false;
    this.#over = true;
    clearTimeout(this.#timer);
    this.#options.signal?.removeEventListener('abort', this.#onAbort);
    this.#detach();
    return true;
  }

  #fail(error: Error): void {
    if (!this.#finish()) return;
    const { phase } = this.#state;
    this.#abort.abort(error);
    // A polite goodbye where the server still listens; it may be gone. Never plain text into a TLS handshake.
    if (phase !== 'greeting' && phase !== 'tls' && !this.#stream.destroyed) this.#stream.end(encodeOption(OPT.ABORT));
    this.#stream.destroy();
    this.#reject(error);
  }

  readonly #onBorrowed = (chunk: Uint8Array): void => this.#onData(chunk.slice());
  readonly #onData = (chunk: Uint8Array): void => {
    try {
      let at = 0;
      while (!this.#over) {
        const frame = this.#decoder.next();
        if (frame === undefined) {
          if (at >= chunk.length) return;
          this.#decoder.push(chunk.subarray(at, at + PIECE_BYTES));
          at += PIECE_BYTES;
          continue;
        }
        const effect = this.#step(this.#asEvent(frame));
        if (effect === undefined) continue;
        const rest = Buffer.concat([this.#decoder.drain(), chunk.subarray(Math.min(at, chunk.length))]);
        if (effect.kind === 'starttls') {
          void this.#startTls(rest.length + this.#stream.readableLength);
          return;
        }
        this.#stream.pause();
        if (this.#finish()) this.#resolve({ stream: this.#stream, peer: this.#peer, effect, rest });
        return;
      }
    } catch (error) {
      this.#fail(error instanceof Error ? error : new Error(String(error)));
    }
  };

  #asEvent(frame: Uint8Array): ClientNegotiationEvent {
    if (this.#state.phase === 'greeting') return { kind: 'greeting', bytes: frame };
    if (this.#state.phase === 'export-name') {
      return { kind: 'export-name-reply', reply: decodeExportNameReply(frame, this.#state.noZeroes) };
    }
    return { kind: 'reply', reply: decodeOptionReply(frame) };
  }

  #step(event: ClientNegotiationEvent): ClientNegotiationEffect | undefined {
    const step = stepClientNegotiation(this.#state, event);
    this.#state = step.state;
    for (const bytes of step.out) this.#stream.write(bytes);
    return step.effect;
  }

  async #startTls(plainBytes: number): Promise<void> {
    const { tls } = this.#opened;
    try {
      // A TLS server says nothing before the client does: this is somebody who wants to be believed behind TLS.
      if (plainBytes > 0) {
        throw new WireError('ERR_WIRE_STATE', `Cannot start TLS: ${plainBytes} bytes of plain text behind the answer`);
      }
      this.#detach();
      this.#stream.pause();
      const { serverName } = tls!;
      const secure = await tls!.client.upgrade(this.#stream, { serverName, signal: this.#abort.signal });
      if (this.#over) {
        secure.stream.destroy();
        return;
      }
      this.#stream = secure.stream;
      this.#peer = secure.peer;
      const step = stepClientNegotiation(this.#state, { kind: 'secured' });
      this.#state = step.state;
      this.#attach();
      for (const bytes of step.out) this.#stream.write(bytes);
    } catch (error) {
      this.#fail(error instanceof Error ? error : new Error(String(error)));
    }
  }
}
