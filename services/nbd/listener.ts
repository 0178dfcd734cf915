import { chmodSync, lstatSync, unlinkSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import process from 'node:process';
import { formatNbdUri, NBD_PORT } from '../../protocols/nbd/mod.ts';
import type { ExportDirectory } from './export_set.ts';
import { type NbdServerTls, type NbdSessionSummary, serveNbd } from './server.ts';
import { DEFAULT_NBD_LIMITS, type NbdServerLimits } from './server_limits.ts';

/** Where to listen, in QMP's words. */
export type NbdListenAddress =
  | { readonly type: 'unix'; readonly path: string }
  /** `host` 127.0.0.1 and `port` 10809 by default; port 0 takes a free one */
  | { readonly type: 'inet'; readonly host?: string; readonly port?: number };

export interface NbdListenerOptions {
  /** Absent: no TLS */
  readonly tls?: NbdServerTls;
  readonly limits?: Partial<NbdServerLimits>;
  /** Clients that are served at once; more of them wait for their greeting (default: no such limit) */
  readonly shared?: number;
  /** Once for each connection that ended */
  readonly onSession?: (summary: NbdSessionSummary) => void;
}

interface Session {
  handshaking: boolean;
  over: Promise<unknown> | undefined;
}

/** Accepts NBD clients on one address, within the limits of {@link NbdServerLimits}. */
export class NbdListener {
  readonly #server: Server;
  readonly #exports: ExportDirectory;
  readonly #limits: NbdServerLimits;
  readonly #onSession: ((summary: NbdSessionSummary) => void) | undefined;
  readonly #shared: number;
  readonly #tls: NbdServerTls | undefined;
  readonly #sessions = new Set<Session>();
  /** Accepted, not greeted yet */
  readonly #waiting = new Set<Socket>();
  readonly #perAddress = new Map<string, number>();
  readonly #abort = new AbortController();
  #address: NbdListenAddress;
  #refused = 0;

  private constructor(address: NbdListenAddress, exports: ExportDirectory, options: NbdListenerOptions) {
    this.#address = address;
    this.#exports = exports;
    this.#limits = { ...DEFAULT_NBD_LIMITS, ...options.limits };
    this.#shared = options.shared ?? Number.POSITIVE_INFINITY;
    this.#onSession = options.onSession;
    this.#tls = options.tls;
    this.#server = createServer({ noDelay: true, allowHalfOpen: true }, (socket) => this.#accept(socket));
    // An accept that fails (descriptors used up) must not end the process.
    this.#server.on('error', () => {});
  }

  /** @throws Error of listen(2): address in use, no permission */
  static async listen(
    address: NbdListenAddress,
    exports: ExportDirectory,
    options: NbdListenerOptions = {},
  ): Promise<NbdListener> {
    const listener = new NbdListener(address, exports, options);
    await listener.#listen();
    return listener;
  }

  /** What a client is told, for the default export */
  get uri(): string {
    return this.uriOf('');
  }

  uriOf(exportName: string): string {
    const address = this.#address;
    const tls = this.#tls?.mode === 'require';
    if (address.type === 'unix') return formatNbdUri({ address, exportName, tls });
    return formatNbdUri({ address: { type: 'inet', host: address.host!, port: address.port! }, exportName, tls });
  }

  /** Served and waiting */
  get connections(): number {
    return this.#sessions.size + this.#waiting.size;
  }

  /** Connections that were closed at once because of a limit */
  get refused(): number {
    return this.#refused;
  }

  /** Stops accepting, shuts the sessions down, and resolves when the last one is over. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#abort.abort();
    for (const socket of this.#waiting) socket.destroy();
    await Promise.all([...this.#sessions].map((session) => session.over));
    await closed;
  }

  async #listen(): Promise<void> {
    const address = this.#address;
    if (address.type === 'inet') {
      const host = address.host ?? '127.0.0.1';
      await this.#bind({ host, port: address.port ?? NBD_PORT });
      const bound = this.#server.address();
      if (bound === null || typeof bound === 'string') throw new Error('Cannot tell the port that was bound');
      this.#address = { type: 'inet', host, port: bound.port };
      return;
    }
    await removeStaleSocket(address.path);
    // Bound inside listen(): with this mask nobody else can connect between bind and chmod.
    const mask = setUmask(0o177);
    let bound: Promise<void>;
    try {
      bound = this.#bind({ path: address.path });
    } finally {
      if (mask !== undefined) setUmask(mask);
    }
    await bound;
    if (mask === undefined) chmodSync(address.path, 0o600);
  }

  #bind(options: { host: string; port: number } | { path: string }): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(options, () => {
        this.#server.off('error', reject);
        resolve();
      });
    });
  }

  #accept(socket: Socket): void {
    const peer = socket.remoteAddress ?? '';
    const fromPeer = this.#perAddress.get(peer) ?? 0;
    let handshakes = 0;
    for (const session of this.#sessions) if (session.handshaking) handshakes++;
    if (
      this.#abort.signal.aborted ||
      this.connections >= this.#limits.connections ||
      handshakes + this.#waiting.size >= this.#limits.handshakes ||
      (peer !== '' && fromPeer >= this.#limits.connectionsPerAddress)
    ) {
      this.#refused++;
      socket.on('error', () => {});
      socket.destroy();
      return;
    }
    this.#perAddress.set(peer, fromPeer + 1);
    socket.once('close', () => {
      this.#waiting.delete(socket);
      const left = (this.#perAddress.get(peer) ?? 1) - 1;
      if (left === 0) this.#perAddress.delete(peer);
      else this.#perAddress.set(peer, left);
    });
    if (this.#sessions.size < this.#shared) {
      this.#serve(socket);
      return;
    }
    this.#waiting.add(socket);
    socket.on('error', () => {});
  }

  #serve(socket: Socket): void {
    const session: Session = { handshaking: true, over: undefined };
    this.#sessions.add(session);
    session.over = serveNbd(socket, this.#exports, {
      limits: this.#limits,
      signal: this.#abort.signal,
      ...(this.#tls === undefined ? {} : { tls: this.#tls }),
      onTransmission: () => {
        session.handshaking = false;
      },
    }).then((summary) => {
      this.#sessions.delete(session);
      const next = this.#waiting.values().next().value;
      if (next !== undefined && !this.#abort.signal.aborted) {
        this.#waiting.delete(next);
        this.#serve(next);
      }
      this.#onSession?.(summary);
    });
  }
}

/** A socket file that nobody serves any more is in the way; anything else at the path stays. */
async function removeStaleSocket(path: string): Promise<void> {
  try {
    if (!lstatSync(path).isSocket()) return;
  } catch {
    return; // nothing there
  }
  const served = await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', (error: NodeJS.ErrnoException) => resolve(error.code !== 'ECONNREFUSED'));
  });
  if (!served) unlinkSync(path);
}

/** Undefined in a worker thread, where the mask of the process cannot be changed. */
function setUmask(mask: number): number | undefined {
  try {
    return process.umask(mask);
  } catch {
    return undefined;
  }
}
