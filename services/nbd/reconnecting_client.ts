import { setTimeout as sleep } from 'node:timers/promises';
import type { BlockSizes, Extent } from '../../protocols/nbd/mod.ts';
import { NbdClient } from './client.ts';
import type { NbdClientOptions } from './client_connection.ts';
import type { NbdDisk, NbdStatusOptions, NbdZeroOptions } from './nbd_disk.ts';
import { NbdError } from './nbd_error.ts';
import { WriteLog } from './write_log.ts';

const FIRST_PAUSE_MS = 100;
const MAX_PAUSE_MS = 5_000;
/** Connections that end before this are as good as none: the pauses before the next ones go on growing */
const STABLE_MS = 1_000;
const DEFAULT_REPLAY_BYTES = 32 << 20;

/** What happened to the connection, for logs. */
export type NbdConnectionEvent =
  | { readonly kind: 'lost'; readonly reason: string }
  | { readonly kind: 'failed'; readonly reason: string; readonly retryMs: number }
  | { readonly kind: 'back'; readonly replayed: number };

export interface NbdReconnectOptions extends NbdClientOptions {
  /** How long a request waits for a server that is gone, in `ms` (default 0: it fails at once; we connect anew anyhow) */
  readonly reconnectDelayMs?: number;
  /** How long opening tries again, in `ms` (default 0: one attempt) */
  readonly retryOpenMs?: number;
  /** Connections to use where the server allows several (default 1) */
  readonly connections?: number;
  /** Changes that were answered and not flushed are kept up to here, in `bytes` (default 32 MiB); then we flush */
  readonly replayBytes?: number;
  readonly onEvent?: (event: NbdConnectionEvent) => void;
}

/**
 * An export that outlives its connections. When one is lost, all are made anew, with pauses that double from 100 ms to
 * 5 s; changes that were answered and not flushed are sent again, in order, since a server that crashed may have lost
 * them; then the requests that were under way. Every request of a disk may be sent twice: it says what, not what more.
 *
 * What this cannot know: whether the old server is really dead. One that is only cut off may still carry out what it
 * had received, behind our back; servers should run as one process per image, which an image lock sees to.
 */
export class NbdReconnectingClient implements NbdDisk {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly blockSizes: BlockSizes;
  readonly canTrim: boolean;
  readonly canWriteZeroes: boolean;
  readonly canFastZero: boolean;
  readonly canCache: boolean;
  readonly contexts: readonly string[];
  readonly #canFlush: boolean;
  readonly #connect: () => Promise<NbdClient>;
  readonly #options: NbdReconnectOptions;
  readonly #log = new WriteLog();
  readonly #stop = new AbortController();
  #sessions: readonly NbdClient[] = [];
  /** Resolves when there are sessions again; undefined while there are */
  #back: PromiseWithResolvers<void> | undefined;
  /** Requests have waited long enough: they fail until the server is back */
  #givenUp = false;
  #giveUpTimer: NodeJS.Timeout | undefined;
  #closed = false;
  /** When there were sessions the last time, and the pause before the next attempt where they do not stay, in `ms` */
  #backAtMs = Number.NEGATIVE_INFINITY;
  #flapPauseMs = 0;
  /** Changes that a server had answered, and that its successor did not take: no flush can vouch for them */
  #lostChanges: NbdError | undefined;
  #drain: Promise<void> | undefined;

  private constructor(first: NbdClient, connect: () => Promise<NbdClient>, options: NbdReconnectOptions) {
    this.#connect = connect;
    this.#options = options;
    this.sizeBytes = first.sizeBytes;
    this.readOnly = first.readOnly;
    this.blockSizes = first.blockSizes;
    this.canTrim = first.canTrim;
    this.canWriteZeroes = first.canWriteZeroes;
    this.canFastZero = first.canFastZero;
    this.canCache = first.canCache;
    this.contexts = first.contexts;
    this.#canFlush = first.canFlush;
  }

  /**
   * Opens the export; `target` is a URI, or makes a new session each time.
   * @throws as NbdClient.connect(), when the server is not there in time
   */
  static async connect(
    target: string | (() => Promise<NbdClient>),
    options: NbdReconnectOptions = {},
  ): Promise<NbdReconnectingClient> {
    const connect = typeof target === 'string' ? () => NbdClient.connect(target, options) : target;
    const deadlineMs = performance.now() + (options.retryOpenMs ?? 0);
    for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(pauseMs * 2, MAX_PAUSE_MS)) {
      let first: NbdClient;
      try {
        first = await connect();
      } catch (error) {
        options.signal?.throwIfAborted();
        if (performance.now() + pauseMs > deadlineMs) throw error;
        options.onEvent?.({ kind: 'failed', reason: textOf(error), retryMs: pauseMs });
        await sleep(pauseMs);
        continue;
      }
      const client = new NbdReconnectingClient(first, connect, options);
      client.#use(await client.#widen(first));
      return client;
    }
  }

  /** Connections at the moment; 0 while the server is gone */
  get connections(): number {
    return this.#sessions.length;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#run((session) => session.read(offset, into));
  }

  async write(offset: number, data: Uint8Array, options: { readonly fua?: boolean } = {}): Promise<void> {
    await this.#room();
    await this.#run((session) => session.write(offset, data, options));
    // Behind changes that may come again, one on stable storage has to come again, too.
    if (this.#keeps(options.fua)) this.#log.write(offset, data);
  }

  async flush(): Promise<void> {
    const mark = this.#log.mark();
    if (this.#lostChanges !== undefined) throw this.#lostChanges;
    // One flush covers all connections: there are several only where the server says so (CAN_MULTI_CONN).
    await this.#run((session) => session.flush());
    if (this.#lostChanges !== undefined) throw this.#lostChanges;
    this.#log.forget(mark);
  }

  async trim(offset: number, lengthBytes: number): Promise<void> {
    await this.#room();
    await this.#run((session) => session.trim(offset, lengthBytes));
    if (this.#keeps(false)) this.#log.trim(offset, lengthBytes);
  }

  async writeZeroes(offset: number, lengthBytes: number, options: NbdZeroOptions = {}): Promise<void> {
    await this.#room();
    await this.#run((session) => session.writeZeroes(offset, lengthBytes, options));
    if (this.#keeps(options.fua)) {
      this.#log.writeZeroes(offset, lengthBytes, { mayUnmap: options.mayUnmap ?? true });
    }
  }

  cache(offset: number, lengthBytes: number): Promise<void> {
    return this.#run((session) => session.cache(offset, lengthBytes));
  }

  status(
    offset: number,
    lengthBytes: number,
    options: NbdStatusOptions = {},
  ): Promise<ReadonlyMap<string, readonly Extent[]>> {
    return this.#run((session) => session.status(offset, lengthBytes, options));
  }

  /** Waits for what is under way where there is a server, and says goodbye. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#stop.abort();
    clearTimeout(this.#giveUpTimer);
    this.#back?.reject(closedError());
    await Promise.all(this.#sessions.map((session) => session.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Runs a request on the session with the least to do, and again on another one when the connection breaks. */
  async #run<T>(work: (session: NbdClient) => Promise<T>): Promise<T> {
    /** When the first attempt failed: a request that ends every server it meets is not sent for ever */
    let failedAtMs: number | undefined;
    /** Not for the first repetition; then longer and longer, so that a server that it ends is not stormed */
    let pauseMs = 0;
    for (;;) {
      const session = await this.#session();
      try {
        return await work(session);
      } catch (error) {
        if (this.#closed || !isLoss(error, session)) throw error;
        this.#lose(session, textOf(error));
        failedAtMs ??= performance.now();
        if (performance.now() - failedAtMs >= (this.#options.reconnectDelayMs ?? 0)) throw error;
        if (pauseMs > 0) await sleep(pauseMs, undefined, { signal: this.#stop.signal }).catch(() => {});
        pauseMs = Math.min(Math.max(pauseMs * 2, FIRST_PAUSE_MS), MAX_PAUSE_MS);
      }
    }
  }

  async #session(): Promise<NbdClient> {
    while (this.#sessions.length === 0) {
      if (this.#closed) throw closedError();
      if (this.#givenUp) throw new NbdError('EIO', 'Cannot finish an NBD request: the server is gone');
      await this.#back!.promise;
    }
    return this.#sessions.reduce((best, other) => (other.pendingRequests < best.pendingRequests ? other : best));
  }

  /** With many changes kept, new ones wait until the server has flushed. */
  async #room(): Promise<void> {
    const limit = this.#options.replayBytes ?? DEFAULT_REPLAY_BYTES;
    if (this.#log.bytes <= limit) return;
    this.#drain ??= this.flush().finally(() => {
      this.#drain = undefined;
    });
    const draining = this.#drain;
    draining.catch(() => {}); // whoever flushes by himself is told the same
    if (this.#log.bytes > 2 * limit) await draining;
  }

  #keeps(fua: boolean | undefined): boolean {
    // A server without flush has no cache, as far as it tells.
    return this.#canFlush && (fua !== true || this.#log.length > 0);
  }

  /** Any connection that breaks ends all of them: what they had under way comes again in one order. */
  #lose(session: NbdClient, reason: string): void {
    if (this.#closed || !this.#sessions.includes(session)) return;
    const lost = this.#sessions;
    this.#sessions = [];
    this.#back = Promise.withResolvers();
    this.#back.promise.catch(() => {});
    for (const other of lost) {
      other.destroy(new NbdError('EIO', `Cannot finish an NBD request: ${reason}`, { disconnected: true }));
    }
    this.#options.onEvent?.({ kind: 'lost', reason });
    const back = this.#back;
    this.#giveUpTimer = setTimeout(() => {
      this.#givenUp = true;
      back.reject(new NbdError('EIO', `Cannot finish an NBD request: the server is gone: ${reason}`));
    }, this.#options.reconnectDelayMs ?? 0);
    void this.#reconnect();
  }

  async #reconnect(): Promise<void> {
    const stayed = performance.now() - this.#backAtMs >= STABLE_MS;
    if (stayed) this.#flapPauseMs = 0;
    else {
      this.#flapPauseMs = Math.min(Math.max(this.#flapPauseMs * 2, FIRST_PAUSE_MS), MAX_PAUSE_MS);
      await sleep(this.#flapPauseMs, undefined, { signal: this.#stop.signal }).catch(() => {});
    }
    for (let pauseMs = FIRST_PAUSE_MS; !this.#closed; pauseMs = Math.min(pauseMs * 2, MAX_PAUSE_MS)) {
      let first: NbdClient | undefined;
      try {
        first = await this.#connect();
        this.#checkSame(first);
        const replayed = await this.#replay(first);
        const sessions = await this.#widen(first);
        if (this.#closed) {
          for (const session of sessions) session.destroy();
          return;
        }
        clearTimeout(this.#giveUpTimer);
        this.#givenUp = false;
        this.#backAtMs = performance.now();
        this.#use(sessions);
        this.#options.onEvent?.({ kind: 'back', replayed });
        return;
      } catch (error) {
        first?.destroy();
        if (this.#closed) return;
        this.#options.onEvent?.({ kind: 'failed', reason: textOf(error), retryMs: pauseMs });
        await sleep(pauseMs, undefined, { signal: this.#stop.signal }).catch(() => {});
      }
    }
  }

  #use(sessions: readonly NbdClient[]): void {
    this.#sessions = sessions;
    this.#back?.resolve();
    this.#back = undefined;
    for (const session of sessions) void session.closed.then(() => this.#lose(session, 'server disconnected'));
  }

  /** More connections to a server that allows them. One that cannot be made is done without. */
  async #widen(first: NbdClient): Promise<readonly NbdClient[]> {
    const wanted = this.#options.connections ?? 1;
    if (wanted <= 1 || !first.canMultiConn) return [first];
    const more = await Promise.allSettled(Array.from({ length: wanted - 1 }, () => this.#connect()));
    const sessions = [first];
    for (const result of more) {
      if (result.status !== 'fulfilled') continue;
      try {
        this.#checkSame(result.value);
        sessions.push(result.value);
      } catch {
        result.value.destroy();
      }
    }
    return sessions;
  }

  /** Gives how many changes were sent again. */
  async #replay(session: NbdClient): Promise<number> {
    try {
      await this.#log.replay(session);
    } catch (error) {
      if (!(error instanceof NbdError) || isLoss(error, session)) throw error;
      this.#lostChanges ??= new NbdError('EIO', `Cannot flush: changes from before are lost: ${error.message}`);
    }
    return this.#log.length;
  }

  /** Another disk under the same name must not go on as this one. @throws NbdError */
  #checkSame(session: NbdClient): void {
    const lost = (['canTrim', 'canWriteZeroes', 'canFastZero', 'canCache'] as const).filter(
      (can) => this[can] && !session[can],
    );
    const isSame =
      session.sizeBytes === this.sizeBytes &&
      session.readOnly === this.readOnly &&
      session.canFlush === this.#canFlush &&
      session.blockSizes.minimum <= this.blockSizes.minimum &&
      this.contexts.every((name) => session.contexts.includes(name)) &&
      lost.length === 0;
    if (!isSame) {
      throw new NbdError(
        'EINVAL',
        `Cannot go on with the export: it has ${session.sizeBytes} bytes now, or can do less`,
      );
    }
  }
}

/** The connection is to blame, or the server is going: another attempt may do better. */
function isLoss(error: unknown, session: NbdClient): boolean {
  if (!(error instanceof NbdError)) return false;
  return error.disconnected || error.code === 'ESHUTDOWN' || !session.isOpen;
}

function closedError(): NbdError {
  return new NbdError('ESHUTDOWN', 'Cannot send an NBD request: the client is closed');
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
