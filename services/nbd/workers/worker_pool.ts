import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { getCompileCacheDir } from 'node:module';
import type { Server } from 'node:net';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { newCounters, type TransmissionCounters } from '../command_runner.ts';
import type { ImageSource } from '../images/mod.ts';
import type { MovedSession, SessionPlace } from '../server.ts';
import type { Negotiated } from '../server_handshake.ts';
import type { NbdServerLimits } from '../server_limits.ts';
import { checkFromWorker, type FromWorker, type ToWorker, toldOf, type WorkerStart } from './messages.ts';
import { FD_FOLDER } from './shared_source.ts';

const WORKER_ENTRY = fileURLToPath(new URL('./worker_entry.mjs', import.meta.url));
/**
 * No code from strings, no `__proto__`: a worker that is taken over has less to work with. What a request leaves behind
 * is garbage at once, so that little room for it is enough.
 */
const WORKER_FLAGS = ['--disable-proto=delete', '--disallow-code-generation-from-strings', '--max-semi-space-size=4'];
/** What its code is read from: package.json says what kind of modules they are */
const CODE = ['../../../services', '../../../protocols', '../../../package.json'].map((path) =>
  fileURLToPath(new URL(path, import.meta.url)),
);
/** Standard input, output, error, and the channel */
const FIRST_FD = 4;
/** A client waits no longer than this for a worker that starts, in `ms` */
const START_MS = 10_000;
/** Beyond the sessions' own time to end, in `ms` */
const GRACE_MS = 2_000;
const COUNT_MS = 1_000;
/** Workers that end by themselves within {@link CRASH_WINDOW_MS}: above, no new one is started for as long */
const MAX_CRASHES = 3;
const CRASH_WINDOW_MS = 60_000;
const MAX_TEXT = 4096;

export interface SessionWorkersOptions {
  /** Processes that serve, this one among them: at least 2 */
  readonly processes: number;
  /** What a process opens that inherits `fds` from `first` on */
  readonly source: (first: number) => ImageSource;
  readonly fds: readonly number[];
  readonly options: WorkerStart['options'];
  /** The image is served from there on, in `bytes` */
  readonly offset: number;
  readonly served: WorkerStart['served'];
  /** Of each process for itself */
  readonly limits: NbdServerLimits;
  /** Keeps the image locked while a worker runs */
  readonly lockHolder: Server | undefined;
  /** A flush has failed in a worker */
  readonly onFlushFailure: () => void;
  /** What a worker that ended by itself had to say */
  readonly onText: (text: string) => void;
}

interface WorkerSession {
  readonly id: number;
  counters: TransmissionCounters;
  inFlight: number;
  heldBytes: number;
  readonly end: (counters: TransmissionCounters, error: Error | undefined) => void;
}

/**
 * Processes that serve sessions of one export beside this one. This process accepts, does every handshake, and holds
 * all to their limits; a session moves when it has more than handshakes to do and another process has fewer of them.
 * A worker that ends takes its own sessions with it, and no others.
 */
export class SessionWorkers {
  readonly #options: SessionWorkersOptions;
  readonly #workers = new Set<WorkerHandle>();
  #nextId = 1;
  /** When workers ended by themselves, in `ms` */
  #crashes: number[] = [];
  #flushFailed = false;
  #closed = false;

  constructor(options: SessionWorkersOptions) {
    this.#options = options;
  }

  /** Processes that run now, without this one */
  get size(): number {
    return this.#workers.size;
  }

  /** Ids of the processes, for tests and messages */
  get pids(): number[] {
    return [...this.#workers].flatMap(({ pid }) => (pid === undefined ? [] : [pid]));
  }

  /** Where a session goes on: undefined for here, where `here` sessions are. */
  place(negotiated: Negotiated, address: string, here: number): SessionPlace | undefined {
    if (this.#closed || here === 0) return undefined;
    let least: WorkerHandle | undefined;
    for (const worker of this.#workers) if (worker.load < (least?.load ?? here)) least = worker;
    if ((least?.load ?? 1) > 0 && this.#mayStart()) least = this.#startWorker();
    return least === undefined ? undefined : this.#placeAt(least, negotiated, address);
  }

  /** A flush has failed in this process: no process can vouch for the file any more. */
  flushFailed(): void {
    if (this.#flushFailed) return;
    this.#flushFailed = true;
    for (const worker of this.#workers) worker.say({ kind: 'flush-failed' });
  }

  /** Asks every worker for its counters; what does not answer in a second keeps its last ones. */
  async refresh(): Promise<void> {
    await Promise.all([...this.#workers].map((worker) => worker.count()));
  }

  /** Call when all sessions are over: the processes end, and are gone when it resolves. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#workers].map((worker) => worker.close()));
  }

  #mayStart(): boolean {
    const since = performance.now() - CRASH_WINDOW_MS;
    this.#crashes = this.#crashes.filter((at) => at > since);
    return this.#workers.size < this.#options.processes - 1 && this.#crashes.length < MAX_CRASHES;
  }

  #startWorker(): WorkerHandle {
    const { source, options, offset, served, limits, fds, lockHolder, onText } = this.#options;
    const flushFailed = this.#flushFailed;
    const worker: WorkerHandle = new WorkerHandle(
      { kind: 'start', source: source(FIRST_FD), options, offset, served, limits, flushFailed },
      fds,
      lockHolder,
      {
        onFlushFailure: () => {
          this.flushFailed();
          this.#options.onFlushFailure();
        },
        onExit: (text) => {
          this.#workers.delete(worker);
          if (this.#closed) return;
          this.#crashes.push(performance.now());
          onText(text);
        },
      },
    );
    this.#workers.add(worker);
    return worker;
  }

  #placeAt(worker: WorkerHandle, negotiated: Negotiated, address: string): SessionPlace {
    worker.reserved++;
    const { description, structured, extended, contexts, rest } = negotiated;
    const id = this.#nextId++;
    return {
      ready: worker.ready,
      take: (handle) => {
        worker.reserved--;
        const told = toldOf(description);
        return worker.serve(
          { kind: 'session', id, address, description: told, structured, extended, contexts, rest },
          handle,
        );
      },
      decline: () => {
        worker.reserved--;
      },
    };
  }
}

/** How many threads wait for disks: the one word of libuv's that users have, and a number. */
function poolSize(): Record<string, string> {
  const { UV_THREADPOOL_SIZE: threads = '' } = process.env;
  return /^\d{1,4}$/.test(threads) ? { UV_THREADPOOL_SIZE: threads } : {};
}

/**
 * Node's permission model, for a worker that only reads: of the file system it reaches its own code, the descriptors that
 * it has inherited, and the folder of its compiled code; no addresses, processes, threads or native code. It takes away
 * fsync, whatever is allowed, so that who writes cannot have it, and neither can who asks for holes through `node:ffi`.
 */
function confinement({ options }: WorkerStart, inherited: number, cache: readonly string[]): string[] {
  if (!options.readOnly || options.unmap === true) return [];
  const images = Array.from({ length: inherited }, (_, index) => `${FD_FOLDER}/${FIRST_FD + index}`);
  return [
    '--permission',
    ...[...CODE, ...images, ...cache].map((path) => `--allow-fs-read=${path}`),
    ...cache.map((path) => `--allow-fs-write=${path}`),
  ];
}

interface WorkerEvents {
  readonly onFlushFailure: () => void;
  /** It has ended, for whatever reason; `text` says which */
  readonly onExit: (text: string) => void;
}

/** One worker process. */
class WorkerHandle {
  readonly #child: ChildProcess;
  readonly #events: WorkerEvents;
  readonly #sessions = new Map<number, WorkerSession>();
  readonly #queries = new Map<number, () => void>();
  readonly #drainMs: number;
  readonly #exit = Promise.withResolvers<void>();
  readonly #ready = Promise.withResolvers<boolean>();
  #nextQuery = 1;
  #stderr = '';
  #ended = false;
  /** Sessions that are on their way to it */
  reserved = 0;

  constructor(start: WorkerStart, inherited: readonly number[], lockHolder: Server | undefined, events: WorkerEvents) {
    this.#events = events;
    this.#drainMs = start.limits.drainMs;
    const own = getCompileCacheDir();
    // Beside this process's own folder, to which Node appends one for its version
    const cache = own === undefined ? [] : [join(dirname(own), 'nbd-worker')];
    const flags = [...WORKER_FLAGS, ...confinement(start, inherited.length, cache)];
    const options = {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc', ...inherited],
      serialization: 'advanced',
      // Nothing else of the user's environment: it could change what Node does or tell a secret.
      env: poolSize(),
      cwd: '/',
    } as SpawnOptions;
    this.#child = spawn(process.execPath, [...flags, WORKER_ENTRY, ...cache], options);
    this.#child.on('error', (error) => {
      if (this.#child.pid === undefined) this.#over(error.message);
    });
    this.#child.once('exit', (code, signal) => this.#over(signal ?? `status ${code}`));
    this.#child.on('message', (message) => this.#hear(checkFromWorker(message)));
    this.#child.stderr?.on('error', () => {});
    this.#child.stderr?.on('data', (chunk: Buffer) => {
      this.#stderr = (this.#stderr + chunk.toString('latin1')).slice(-MAX_TEXT);
    });
    setTimeout(() => this.#ready.resolve(false), START_MS).unref();
    if (lockHolder !== undefined) this.#child.send({ kind: 'lock' } satisfies ToWorker, lockHolder, () => {});
    this.say(start);
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Sessions that it has or will have */
  get load(): number {
    return this.reserved + this.#sessions.size;
  }

  /** Resolves to true when it can serve, to false when it cannot */
  get ready(): Promise<boolean> {
    return this.#ready.promise;
  }

  say(message: ToWorker): void {
    if (this.#child.connected) this.#child.send(message, () => {}); // its exit tells
  }

  serve(message: ToWorker & { kind: 'session' }, handle: object): MovedSession {
    const { id } = message;
    const { promise, resolve } = Promise.withResolvers<{ counters: TransmissionCounters; error: Error | undefined }>();
    const session: WorkerSession = {
      id,
      counters: newCounters(),
      inFlight: 0,
      heldBytes: 0,
      end: (counters, error) => {
        this.#sessions.delete(id);
        resolve({ counters, error });
      },
    };
    this.#sessions.set(id, session);
    const close = (): void => (handle as { close?: () => void }).close?.();
    if (this.#child.connected) {
      // The kernel has a copy of it under way when the message is written.
      this.#child.send(message, handle as never, close);
    } else {
      close();
      session.end(
        session.counters,
        new WireError('ERR_WIRE_STATE', 'Cannot go on with the session: its process has ended'),
      );
    }
    return {
      live: {
        get counters() {
          return session.counters;
        },
        get inFlight() {
          return session.inFlight;
        },
        get heldBytes() {
          return session.heldBytes;
        },
      },
      ended: promise,
      shutdown: () => {
        this.say({ kind: 'shutdown', id });
        const stuck = (): void => {
          if (this.#sessions.get(id) === session) this.#child.kill('SIGKILL');
        };
        setTimeout(stuck, this.#drainMs + GRACE_MS).unref();
      },
    };
  }

  /** Resolves when the sessions' counters are those of now, or after a second. */
  async count(): Promise<void> {
    if (!this.#child.connected || this.#sessions.size === 0) return;
    const query = this.#nextQuery++;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, COUNT_MS);
      this.#queries.set(query, () => {
        clearTimeout(timer);
        resolve();
      });
      this.say({ kind: 'count', query });
    });
    this.#queries.delete(query);
  }

  /** Ends it, and resolves when it has. */
  async close(): Promise<void> {
    if (this.#child.connected) this.#child.disconnect();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), GRACE_MS);
    await this.#exit.promise;
    clearTimeout(timer);
  }

  #hear(message: FromWorker | undefined): void {
    if (message === undefined) return;
    if (message.kind === 'ready') this.#ready.resolve(true);
    else if (message.kind === 'flush-failed') this.#events.onFlushFailure();
    else if (message.kind === 'ended') {
      const { id, counters, error } = message;
      this.#sessions.get(id)?.end(counters, error === undefined ? undefined : new WireError('ERR_WIRE_STATE', error));
    } else {
      for (const { id, counters, inFlight, heldBytes } of message.sessions) {
        const session = this.#sessions.get(id);
        if (session !== undefined) Object.assign(session, { counters, inFlight, heldBytes });
      }
      this.#queries.get(message.query)?.();
    }
  }

  #over(why: string): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#ready.resolve(false);
    const error = new WireError('ERR_WIRE_STATE', `Cannot go on with the session: its process has ended (${why})`);
    for (const session of [...this.#sessions.values()]) session.end(session.counters, error);
    this.#exit.resolve();
    const said = this.#stderr.trim();
    this.#events.onExit(`Lost a process that serves clients: ${why}${said === '' ? '' : `; ${said}`}`);
  }
}
