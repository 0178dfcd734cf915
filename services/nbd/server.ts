import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import type { TlsIdentity, TlsServer } from '../shared/mod.ts';
import { BORROWED_EVENT, isMovable, releaseHandle } from './borrowing_socket.ts';
import { BufferPool } from './buffer_pool.ts';
import { newCounters, type TransmissionCounters } from './command_runner.ts';
import type { ExportDirectory } from './export_set.ts';
import type { PeerBudget } from './peer_budget.ts';
import { type HandshakeEvents, type Negotiated, ServerHandshake } from './server_handshake.ts';
import { DEFAULT_NBD_LIMITS, type NbdServerLimits } from './server_limits.ts';
import { Transmission } from './transmission.ts';

/** TLS of a server. */
export interface NbdServerTls {
  readonly server: TlsServer;
  /** `require`: nothing without TLS (FORCEDTLS); `allow`: exports say whether they need it (SELECTIVETLS) */
  readonly mode: 'require' | 'allow';
}

export interface ServeNbdOptions {
  /** Absent: no TLS at all (NOTLS) */
  readonly tls?: NbdServerTls;
  /** Neither structured replies nor extended headers (default false) */
  readonly simpleOnly?: boolean;
  readonly limits?: Partial<NbdServerLimits>;
  /** Shared with other sessions of the same client (default: an own one of `limits.requestBytes`) */
  readonly budget?: PeerBudget;
  /** Aborted: shut the session down, finishing what is in flight within `limits.drainMs` */
  readonly signal?: AbortSignal;
  /** The handshake is over; `exportName` as the export is called here */
  readonly onTransmission?: (exportName: string, session: NbdLiveSession) => void;
  /** The handshake was done by somebody else, and this is what came out: go on from there */
  readonly negotiated?: Negotiated;
  /** Where a session on a plain socket goes on behind its handshake (default: here). Undefined: here */
  readonly place?: (negotiated: Negotiated) => SessionPlace | undefined;
}

/** Another process that may take a session. */
export interface SessionPlace {
  /** Resolves when it can. False: it cannot, and the session goes on here */
  readonly ready: Promise<boolean>;
  /** Takes the connection over, whatever becomes of it. */
  take(handle: object): MovedSession;
  /** The session stays here, or is gone. */
  decline(): void;
}

/** A session that goes on elsewhere. */
export interface MovedSession {
  readonly live: Omit<NbdLiveSession, 'exportName' | 'peer'>;
  /** How it went; never rejects */
  readonly ended: Promise<Pick<NbdSessionSummary, 'counters' | 'error'>>;
  /** As the `signal` of {@link ServeNbdOptions} */
  shutdown(): void;
}

/** A session in its transmission phase, for metrics. */
export interface NbdLiveSession {
  readonly exportName: string;
  readonly peer: TlsIdentity | undefined;
  readonly counters: TransmissionCounters;
  /** Requests that are worked on */
  readonly inFlight: number;
  /** Memory held for the client, in `bytes` */
  readonly heldBytes: number;
}

/** How a session went. */
export interface NbdSessionSummary {
  /** Undefined: the handshake did not get that far */
  readonly exportName: string | undefined;
  readonly counters: TransmissionCounters;
  /** Who the client has proven to be; undefined without TLS */
  readonly peer: TlsIdentity | undefined;
  /** Why it ended, if the client or the stream is to blame */
  readonly error: Error | undefined;
}

/** Sockets copy into the kernel, so their buffers can be reused as soon as the write is done. */
const socketPool = new BufferPool();

/**
 * Serves NBD to one client over any byte stream, until the client disconnects, errs, or `signal` aborts.
 * Never rejects: whatever a client does ends its own session only. Resolves when no more access to an image is
 * under way, so that images may be closed then.
 */
export function serveNbd(
  raw: Duplex,
  exports: ExportDirectory,
  options: ServeNbdOptions = {},
): Promise<NbdSessionSummary> {
  const limits = { ...DEFAULT_NBD_LIMITS, ...options.limits };
  // In-process pairs hand buffers over by reference, and say "written" before the other side has read them.
  const pool = raw instanceof Socket ? socketPool : new BufferPool(0);
  const { promise, resolve } = Promise.withResolvers<NbdSessionSummary>();
  /** `raw`, and from STARTTLS on the TLS stream over it */
  let stream = raw;
  let upgrading = false;
  let peer: TlsIdentity | undefined;
  let transmission: Transmission | undefined;
  let exportName: string | undefined;
  let failure: Error | undefined;
  let exportSignal: AbortSignal | undefined;
  let streamClosed = false;
  let settled = true;
  let closeTimer: NodeJS.Timeout | undefined;

  const conclude = (): void => {
    if (!streamClosed || !settled) return;
    resolve({
      exportName,
      counters: transmission?.counters ?? newCounters(),
      peer,
      error: failure,
    });
  };
  /** With an error: that is what the other end of an in-process pair sees. */
  const cutOff = (): void => {
    stream.destroy(failure ?? new WireError('ERR_WIRE_TIMEOUT', 'Cannot wait for the NBD client to read its replies'));
  };
  /** Ends the stream behind what was written; a client that does not read it gets a while. */
  const endStream = (error: WireError | undefined): void => {
    failure ??= error;
    if (streamClosed) return;
    if (upgrading) {
      // Plain text has no place any more.
      cutOff();
      return;
    }
    const end = (): void => void stream.end(() => stream.destroy());
    if (transmission === undefined) end();
    else transmission.whenSent(end);
    closeTimer ??= setTimeout(cutOff, limits.drainMs);
    // What the client still sends is thrown away, else its close would never be seen.
    stream.resume();
  };
  const shutdown = (): void => {
    handshake?.shutdown();
    transmission?.shutdown();
    closeTimer ??= setTimeout(cutOff, limits.drainMs);
  };

  const enter = ({ served }: Negotiated, onAbort: () => void): string => {
    exportSignal = served.signal;
    exportSignal?.addEventListener('abort', onAbort, { once: true });
    exportName = served.name;
    return exportName;
  };
  const begin = (negotiated: Negotiated): void => {
    const name = enter(negotiated, shutdown);
    settled = false;
    transmission = new Transmission(
      stream,
      negotiated,
      { limits, pool, ...(options.budget === undefined ? {} : { budget: options.budget }) },
      {
        finished: endStream,
        settled: () => {
          settled = true;
          conclude();
        },
      },
    );
    options.onTransmission?.(name, liveSession(transmission, name, peer));
    for (const chunk of negotiated.rest) transmission.receive(chunk);
    if (exportSignal?.aborted || options.signal?.aborted) shutdown();
  };
  const move = async (place: SessionPlace, negotiated: Negotiated): Promise<void> => {
    // What comes from now on is for whoever serves it.
    stream.pause();
    const ready = await place.ready;
    const leaving = streamClosed || stream.destroyed || options.signal?.aborted || negotiated.served.signal?.aborted;
    const handle = ready && !leaving ? releaseHandle(stream) : undefined;
    if (handle === undefined) {
      place.decline();
      if (streamClosed) return;
      begin(negotiated);
      stream.resume();
      return;
    }
    stream.off('close', onClose);
    const moved = place.take(handle);
    const name = enter(negotiated, moved.shutdown);
    options.signal?.removeEventListener('abort', shutdown);
    options.signal?.addEventListener('abort', moved.shutdown, { once: true });
    options.onTransmission?.(name, liveSession(moved.live, name, peer));
    const { counters, error } = await moved.ended;
    clearTimeout(closeTimer);
    exportSignal?.removeEventListener('abort', moved.shutdown);
    options.signal?.removeEventListener('abort', moved.shutdown);
    resolve({ exportName: name, counters, peer, error });
  };

  const events: HandshakeEvents = {
    startTls: (lastPlain) => void upgrade(lastPlain),
    done: (negotiated) => {
      clearTimeout(deadline);
      const place = isMovable(stream) ? options.place?.(negotiated) : undefined;
      if (place === undefined) begin(negotiated);
      else void move(place, negotiated);
    },
    closed: endStream,
  };
  /** Undefined: somebody else did it */
  const handshake =
    options.negotiated === undefined
      ? new ServerHandshake(raw, exports, events, {
          tls: options.tls?.mode ?? 'off',
          simpleOnly: options.simpleOnly === true,
        })
      : undefined;
  const deadline =
    limits.handshakeMs > 0 && handshake !== undefined
      ? setTimeout(() => {
          failure ??= new WireError('ERR_WIRE_TIMEOUT', `Cannot wait for the NBD handshake: ${limits.handshakeMs} ms`);
          cutOff();
        }, limits.handshakeMs)
      : undefined;

  const onData = (chunk: Uint8Array): void => {
    if (transmission !== undefined) transmission.receive(chunk);
    else handshake?.receive(chunk);
  };
  const onEnd = (): void => {
    if (transmission !== undefined) transmission.inputEnded();
    else endStream(undefined);
  };
  // A reset or broken pipe is the client's way of leaving (CVE-2017-10664: it must not be ours).
  const onError = (error: Error): void => {
    failure ??= error;
  };
  const onClose = (): void => {
    streamClosed = true;
    clearTimeout(deadline);
    clearTimeout(closeTimer);
    exportSignal?.removeEventListener('abort', shutdown);
    options.signal?.removeEventListener('abort', shutdown);
    handshake?.abandon();
    transmission?.abandon();
    conclude();
  };
  const onBorrowed = (chunk: Uint8Array): void => {
    if (transmission !== undefined) transmission.receive(chunk, true);
    else handshake?.receive(chunk.slice());
  };
  const attach = (): void => {
    stream.on('data', onData);
    stream.on(BORROWED_EVENT, onBorrowed);
    stream.on('end', onEnd);
    stream.on('error', onError);
    stream.once('close', onClose);
  };
  const upgrade = async (lastPlain: Uint8Array): Promise<void> => {
    upgrading = true;
    raw.off('data', onData);
    raw.off(BORROWED_EVENT, onBorrowed);
    raw.off('end', onEnd);
    raw.off('close', onClose); // the attempt below sees it, and knows why
    raw.pause();
    try {
      // TLS writes past raw's queue: what is in there has to be out before.
      await new Promise<void>((resolve) => raw.write(lastPlain, () => resolve()));
      const secure = await options.tls!.server.upgrade(raw);
      upgrading = false;
      raw.off('error', onError); // the TLS stream over it tells
      stream = secure.stream;
      peer = secure.peer;
      attach();
      handshake?.secured(stream, peer);
      if (stream.destroyed) onClose();
    } catch (error) {
      upgrading = false;
      failure ??= error instanceof Error ? error : new Error(String(error));
      stream.destroy();
      onClose();
    }
  };
  attach();
  options.signal?.addEventListener('abort', shutdown, { once: true });
  if (options.negotiated !== undefined) begin(options.negotiated);
  else if (options.signal?.aborted) shutdown();
  return promise;
}

/** What it tells is of the moment that it is asked. */
function liveSession(
  source: Omit<NbdLiveSession, 'exportName' | 'peer'>,
  exportName: string,
  peer: TlsIdentity | undefined,
): NbdLiveSession {
  return {
    exportName,
    peer,
    get counters() {
      return source.counters;
    },
    get inFlight() {
      return source.inFlight;
    },
    get heldBytes() {
      return source.heldBytes;
    },
  };
}
