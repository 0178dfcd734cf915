import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import { BufferPool } from './buffer_pool.ts';
import type { ExportDirectory } from './export_set.ts';
import { ServerHandshake } from './server_handshake.ts';
import { DEFAULT_NBD_LIMITS, type NbdServerLimits } from './server_limits.ts';
import { Transmission, type TransmissionCounters } from './transmission.ts';

export interface ServeNbdOptions {
  readonly limits?: Partial<NbdServerLimits>;
  /** Aborted: shut the session down, finishing what is in flight within `limits.drainMs` */
  readonly signal?: AbortSignal;
  /** The handshake is over; `exportName` as the export is called here */
  readonly onTransmission?: (exportName: string) => void;
}

/** How a session went. */
export interface NbdSessionSummary {
  /** Undefined: the handshake did not get that far */
  readonly exportName: string | undefined;
  readonly counters: TransmissionCounters;
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
  stream: Duplex,
  exports: ExportDirectory,
  options: ServeNbdOptions = {},
): Promise<NbdSessionSummary> {
  const limits = { ...DEFAULT_NBD_LIMITS, ...options.limits };
  // In-process pairs hand buffers over by reference, and say "written" before the other side has read them.
  const pool = stream instanceof Socket ? socketPool : new BufferPool(0);
  const { promise, resolve } = Promise.withResolvers<NbdSessionSummary>();
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
      counters: transmission?.counters ?? { requests: 0, refused: 0, readBytes: 0, writtenBytes: 0 },
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

  const handshake = new ServerHandshake(stream, exports, {
    done: (negotiated) => {
      clearTimeout(deadline);
      exportName = negotiated.served.name;
      exportSignal = negotiated.served.signal;
      exportSignal?.addEventListener('abort', shutdown, { once: true });
      settled = false;
      transmission = new Transmission(
        stream,
        negotiated,
        { limits, pool },
        {
          finished: endStream,
          settled: () => {
            settled = true;
            conclude();
          },
        },
      );
      options.onTransmission?.(exportName);
      for (const chunk of negotiated.rest) transmission.receive(chunk);
      if (exportSignal?.aborted || options.signal?.aborted) shutdown();
    },
    closed: endStream,
  });
  const deadline =
    limits.handshakeMs > 0
      ? setTimeout(() => {
          failure ??= new WireError('ERR_WIRE_TIMEOUT', `Cannot wait for the NBD handshake: ${limits.handshakeMs} ms`);
          cutOff();
        }, limits.handshakeMs)
      : undefined;

  stream.on('data', (chunk: Uint8Array) => {
    if (transmission !== undefined) transmission.receive(chunk);
    else handshake.receive(chunk);
  });
  stream.on('end', () => {
    if (transmission !== undefined) transmission.inputEnded();
    else endStream(undefined);
  });
  // A reset or broken pipe is the client's way of leaving (CVE-2017-10664: it must not be ours).
  stream.on('error', (error) => {
    failure ??= error;
  });
  stream.once('close', () => {
    streamClosed = true;
    clearTimeout(deadline);
    clearTimeout(closeTimer);
    exportSignal?.removeEventListener('abort', shutdown);
    options.signal?.removeEventListener('abort', shutdown);
    handshake.abandon();
    transmission?.abandon();
    conclude();
  });
  options.signal?.addEventListener('abort', shutdown, { once: true });
  if (options.signal?.aborted) shutdown();
  return promise;
}
