import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import type { TlsIdentity, TlsServer } from '../shared/mod.ts';
import { BORROWED_EVENT } from './borrowing_socket.ts';
import { BufferPool } from './buffer_pool.ts';
import { newCounters, type TransmissionCounters } from './command_runner.ts';
import type { ExportDirectory } from './export_set.ts';
import type { PeerBudget } from './peer_budget.ts';
import { type HandshakeEvents, ServerHandshake } from './server_handshake.ts';
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
  readonly limits?: Partial<NbdServerLimits>;
  /** Shared with other sessions of the same client (default: an own one of `limits.requestBytes`) */
  readonly budget?: PeerBudget;
  /** Aborted: shut the session down, finishing what is in flight within `limits.drainMs` */
  readonly signal?: AbortSignal;
  /** The handshake is over; `exportName` as the export is called here */
  readonly onTransmission?: (exportName: string, session: NbdLiveSession) => void;
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
    stream.end(() => stream.destroy());
    closeTimer ??= setTimeout(cutOff, limits.drainMs);
    // What the client still sends is thrown away, else its close would never be seen.
    stream.resume();
  };
  const shutdown = (): void => {
    handshake.shutdown();
    transmission?.shutdown();
    closeTimer ??= setTimeout(cutOff, limits.drainMs);
  };

  const events: HandshakeEvents = {
    startTls: (lastPlain) => void upgrade(lastPlain),
    done: (negotiated) => {
      clearTimeout(deadline);
      exportName = negotiated.served.name;
      exportSignal = negotiated.served.signal;
      exportSignal?.addEventListener('abort', shutdown, { once: true });
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
      options.onTransmission?.(exportName, liveSession(transmission, exportName, peer));
      for (const chunk of negotiated.rest) transmission.receive(chunk);
      if (exportSignal?.aborted || options.signal?.aborted) shutdown();
    },
    closed: endStream,
  };
  const handshake = new ServerHandshake(raw, exports, events, options.tls?.mode ?? 'off');
  const deadline =
    limits.handshakeMs > 0
      ? setTimeout(() => {
          failure ??= new WireError('ERR_WIRE_TIMEOUT', `Cannot wait for the NBD handshake: ${limits.handshakeMs} ms`);
          cutOff();
        }, limits.handshakeMs)
      : undefined;

  const onData = (chunk: Uint8Array): void => {
    if (transmission !== undefined) transmission.receive(chunk);
    else handshake.receive(chunk);
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
    handshake.abandon();
    transmission?.abandon();
    conclude();
  };
  const onBorrowed = (chunk: Uint8Array): void => {
    if (transmission !== undefined) transmission.receive(chunk, true);
    else handshake.receive(chunk.slice());
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
      handshake.secured(stream, peer);
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
  if (options.signal?.aborted) shutdown();
  return promise;
}

function liveSession(transmission: Transmission, exportName: string, peer: TlsIdentity | undefined): NbdLiveSession {
  return {
    exportName,
    peer,
    counters: transmission.counters,
    get inFlight() {
      return transmission.inFlight;
    },
    get heldBytes() {
      return transmission.heldBytes;
    },
  };
}
