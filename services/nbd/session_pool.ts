import type { Duplex } from 'node:stream';
import { newCounters } from './command_runner.ts';
import type { ExportDirectory } from './export_set.ts';
import { type NbdMetrics, type NbdSessionStatus, PeerTotals, peerName } from './metrics.ts';
import { PeerBudget } from './peer_budget.ts';
import {
  type NbdLiveSession,
  type NbdServerTls,
  type NbdSessionSummary,
  type ServeNbdOptions,
  type SessionPlace,
  serveNbd,
} from './server.ts';
import type { Negotiated } from './server_handshake.ts';
import { DEFAULT_NBD_LIMITS, type NbdServerLimits } from './server_limits.ts';

export interface SessionPoolOptions {
  /** Absent: no TLS */
  readonly tls?: NbdServerTls;
  readonly simpleOnly?: ServeNbdOptions['simpleOnly'];
  readonly limits?: Partial<NbdServerLimits>;
  /** Clients that are served at once; more of them wait for their greeting (default: no such limit) */
  readonly shared?: number;
  /** Other processes that sessions may go on in, behind their handshake (default: none) */
  readonly workers?: SessionPlacer;
  /** Once for each connection that ended */
  readonly onSession?: (summary: NbdSessionSummary) => void;
}

/** Says where a session goes on; {@link SessionWorkers} in the program, and what tests put in its place. */
export interface SessionPlacer {
  /** Undefined: here, where `here` sessions are behind their handshake */
  place(negotiated: Negotiated, address: string, here: number): SessionPlace | undefined;
  /** Resolves when the counters of the sessions that were moved are up to date */
  refresh(): Promise<void>;
}

interface Session {
  readonly id: number;
  readonly stream: Duplex;
  readonly address: string;
  readonly startedMs: number;
  live: NbdLiveSession | undefined;
  /** On its way to another process, or there */
  moved: boolean;
  over: Promise<unknown> | undefined;
}

interface Waiting {
  readonly stream: Duplex;
  readonly address: string;
}

/** What one address has. */
interface Peer {
  connections: number;
  readonly budget: PeerBudget;
}

/** Serves accepted connections, whatever they came over, within the limits of {@link NbdServerLimits}. */
export class SessionPool {
  readonly #exports: ExportDirectory;
  readonly #limits: NbdServerLimits;
  readonly #options: SessionPoolOptions;
  readonly #shared: number;
  readonly #sessions = new Set<Session>();
  /** Accepted, not greeted yet */
  readonly #waiting = new Set<Waiting>();
  readonly #peers = new Map<string, Peer>();
  readonly #ended = new PeerTotals();
  readonly #abort = new AbortController();
  #nextId = 1;
  #accepted = 0;
  #refused = 0;

  constructor(exports: ExportDirectory, options: SessionPoolOptions = {}) {
    this.#exports = exports;
    this.#options = options;
    this.#limits = { ...DEFAULT_NBD_LIMITS, ...options.limits };
    this.#shared = options.shared ?? Number.POSITIVE_INFINITY;
  }

  /** Served and waiting */
  get connections(): number {
    return this.#sessions.size + this.#waiting.size;
  }

  /** Connections that were closed at once because of a limit */
  get refused(): number {
    return this.#refused;
  }

  /** As {@link metrics}, with what sessions in other processes have done until now. */
  async currentMetrics(): Promise<NbdMetrics> {
    await this.#options.workers?.refresh();
    return this.metrics();
  }

  metrics(): NbdMetrics {
    const totals = this.#ended.copy();
    const sessions: NbdSessionStatus[] = [];
    for (const { id, address, startedMs, live } of this.#sessions) {
      const peer = peerName(live?.peer, address);
      const counters = live?.counters ?? newCounters();
      totals.add(peer, counters, undefined);
      sessions.push({
        id,
        peer,
        phase: live === undefined ? 'handshake' : 'transmission',
        exportName: live?.exportName,
        ageMs: Math.round(performance.now() - startedMs),
        counters: { ...counters },
        inFlight: live?.inFlight ?? 0,
        heldBytes: live?.heldBytes ?? 0,
      });
    }
    return { accepted: this.#accepted, refused: this.#refused, sessions, peers: totals.toJSON() };
  }

  /**
   * True where one more connection from an address is within the limits. Otherwise it is counted as refused. Where all
   * handshakes are taken, the address with the most of them gives one up: it must not keep the others out.
   */
  admits(address: string): boolean {
    const admitted =
      !this.#abort.signal.aborted &&
      this.connections < this.#limits.connections &&
      (address === '' || (this.#peers.get(address)?.connections ?? 0) < this.#limits.connectionsPerAddress) &&
      this.#hasHandshake(address);
    if (!admitted) this.#refused++;
    return admitted;
  }

  #hasHandshake(address: string): boolean {
    const served = [...this.#sessions].filter(({ live, stream }) => live === undefined && !stream.destroyed);
    const all = [...served, ...[...this.#waiting].filter(({ stream }) => !stream.destroyed)];
    if (all.length < this.#limits.handshakes) return true;
    const counts = new Map<string, number>();
    for (const other of all) counts.set(other.address, (counts.get(other.address) ?? 0) + 1);
    const [most, count] = [...counts].reduce((a, b) => (b[1] > a[1] ? b : a));
    if (count <= (counts.get(address) ?? 0) + 1) return false;
    // Who came last of those that wait, else who has been silent for longest.
    const last = [...this.#waiting].findLast((other) => other.address === most && !other.stream.destroyed);
    (last ?? served.find((other) => other.address === most))?.stream.destroy();
    this.#refused++;
    return true;
  }

  /** Serves a connection, or lets it wait for its turn. `address`: '' for UNIX sockets */
  add(stream: Duplex, address: string): void {
    this.#accepted++;
    const peer = this.#peers.get(address) ?? { connections: 0, budget: new PeerBudget(this.#limits.peerBytes) };
    this.#peers.set(address, peer);
    peer.connections++;
    const waiting = { stream, address };
    stream.once('close', () => {
      if (this.#waiting.delete(waiting)) this.#forget(address);
    });
    if (this.#sessions.size < this.#shared) {
      this.#serve(waiting, peer.budget);
      return;
    }
    this.#waiting.add(waiting);
    stream.on('error', () => {});
  }

  /** One connection of the address is over. */
  #forget(address: string): void {
    const peer = this.#peers.get(address);
    if (peer !== undefined && --peer.connections === 0) this.#peers.delete(address);
  }

  /** Shuts the sessions down, and resolves when the last one is over. */
  async close(): Promise<void> {
    this.#abort.abort();
    for (const { stream } of this.#waiting) stream.destroy();
    await Promise.all([...this.#sessions].map((session) => session.over));
  }

  #serve({ stream, address }: Waiting, budget: PeerBudget): void {
    const session: Session = {
      id: this.#nextId++,
      stream,
      address,
      startedMs: performance.now(),
      live: undefined,
      moved: false,
      over: undefined,
    };
    this.#sessions.add(session);
    const { tls, simpleOnly = false, workers, onSession } = this.#options;
    session.over = serveNbd(stream, this.#exports, {
      limits: this.#limits,
      simpleOnly,
      budget,
      signal: this.#abort.signal,
      ...(tls === undefined ? {} : { tls }),
      onTransmission: (_name, live) => {
        session.live = live;
      },
      ...(workers === undefined ? {} : { place: (negotiated) => this.#place(session, workers, negotiated) }),
    }).then((summary) => {
      this.#sessions.delete(session);
      this.#forget(address);
      this.#ended.add(peerName(summary.peer, address), summary.counters, summary);
      const next = this.#waiting.values().next().value;
      if (next !== undefined && !this.#abort.signal.aborted) {
        this.#waiting.delete(next);
        this.#serve(next, this.#peers.get(next.address)!.budget);
      }
      onSession?.(summary);
    });
  }

  #place(session: Session, workers: SessionPlacer, negotiated: Negotiated): SessionPlace | undefined {
    const here = [...this.#sessions].filter(({ live, moved }) => live !== undefined && !moved).length;
    const place = workers.place(negotiated, session.address, here);
    session.moved = place !== undefined;
    if (place === undefined) return undefined;
    return {
      ...place,
      decline: () => {
        session.moved = false;
        place.decline();
      },
    };
  }
}
