import type { BlockSizes, ExportDescription, MetaContext } from '../../../protocols/nbd/mod.ts';
import { newCounters, type TransmissionCounters } from '../command_runner.ts';
import type { ImageSource, OpenImageOptions } from '../images/mod.ts';
import type { NbdServerLimits } from '../server_limits.ts';

// What the process that accepts connections and its workers say to each other, over Node's channel between a process
// and its children (structured clones; a message may carry a connection).

/** How a worker opens the image: the first message. */
export interface WorkerStart {
  readonly kind: 'start';
  readonly source: ImageSource;
  readonly options: Pick<OpenImageOptions, 'readOnly' | 'unmap' | 'sendfile'>;
  /** The image is served from there on, in `bytes` */
  readonly offset: number;
  readonly served: {
    readonly name: string;
    readonly writable: boolean;
    readonly bitmaps: readonly string[];
    readonly allocationDepth: boolean;
    readonly writeThrough: boolean;
  };
  readonly limits: NbdServerLimits;
  /** A flush has failed before: none can vouch for the file any more */
  readonly flushFailed: boolean;
}

/** A session whose handshake is over; the connection comes with it. */
export interface WorkerSession {
  readonly kind: 'session';
  readonly id: number;
  /** Sessions of one address share a budget */
  readonly address: string;
  readonly description: { readonly sizeBytes: bigint; readonly flags: number; readonly blockSizes: BlockSizes };
  readonly structured: boolean;
  readonly extended: boolean;
  readonly contexts: readonly MetaContext[];
  readonly rest: readonly Uint8Array[];
}

export type ToWorker =
  /** Comes with the socket that holds the image's lock: it is to stay open for as long as the worker runs */
  | { readonly kind: 'lock' }
  | WorkerStart
  | WorkerSession
  /** The session is to end, finishing what is in flight */
  | { readonly kind: 'shutdown'; readonly id: number }
  /** Answered by `counted` */
  | { readonly kind: 'count'; readonly query: number }
  | { readonly kind: 'flush-failed' };

/** Of a session that is there. */
export interface CountedSession {
  readonly id: number;
  readonly counters: TransmissionCounters;
  readonly inFlight: number;
  readonly heldBytes: number;
}

export type FromWorker =
  | { readonly kind: 'ready' }
  /** `error`: why, if the client or the stream is to blame */
  | { readonly kind: 'ended'; readonly id: number; readonly counters: TransmissionCounters; readonly error?: string }
  | { readonly kind: 'counted'; readonly query: number; readonly sessions: readonly CountedSession[] }
  | { readonly kind: 'flush-failed' };

/** What the worker needs to know of what a client was told. */
export function toldOf({ sizeBytes, flags, blockSizes }: ExportDescription): WorkerSession['description'] {
  return { sizeBytes, flags, blockSizes };
}

/** Longest text of an error that is believed, in characters */
const MAX_TEXT = 4096;
/** Sessions of a worker, at most */
const MAX_SESSIONS = 1000;

/**
 * A worker has read bytes of clients: what it says is looked at before it is used. Undefined: nothing that a worker
 * says.
 */
export function checkFromWorker(message: unknown): FromWorker | undefined {
  if (typeof message !== 'object' || message === null || !('kind' in message)) return undefined;
  const { kind, id, query, counters, error, sessions } = message as Record<string, unknown>;
  if (kind === 'ready' || kind === 'flush-failed') return { kind };
  if (kind === 'ended' && isCount(id)) {
    const text = typeof error === 'string' ? { error: error.slice(0, MAX_TEXT) } : {};
    return { kind, id, counters: checkCounters(counters), ...text };
  }
  if (kind === 'counted' && isCount(query) && Array.isArray(sessions)) {
    const all = sessions.slice(0, MAX_SESSIONS).map(checkSession);
    return { kind, query, sessions: all.filter((session) => session !== undefined) };
  }
  return undefined;
}

function checkSession(value: unknown): CountedSession | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const { id, counters, inFlight, heldBytes } = value as Record<string, unknown>;
  if (!isCount(id) || !isCount(inFlight) || !isCount(heldBytes)) return undefined;
  return { id, counters: checkCounters(counters), inFlight, heldBytes };
}

/** What is no count is 0. */
function checkCounters(value: unknown): TransmissionCounters {
  const counters = newCounters();
  if (typeof value !== 'object' || value === null) return counters;
  for (const key of Object.keys(counters) as (keyof TransmissionCounters)[]) {
    const count = (value as Record<string, unknown>)[key];
    if (isCount(count)) counters[key] = count;
  }
  return counters;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
