import { readFileSync, readlinkSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { resolve } from 'node:path';
import { formatNbdUri, NBD_PORT } from '../../protocols/nbd/mod.ts';
import { MAX_SOCKET_PATH_BYTES } from '../shared/socket_path.ts';
import { listenOnPath } from '../shared/unix_listener.ts';
import { borrowingSocket } from './borrowing_socket.ts';
import type { ExportDirectory } from './export_set.ts';
import type { NbdMetrics } from './metrics.ts';
import { SessionPool, type SessionPoolOptions } from './session_pool.ts';

/** Where to listen, in QMP's words. */
export type NbdListenAddress =
  | { readonly type: 'unix'; readonly path: string }
  /** `host` 127.0.0.1 and `port` 10809 by default; port 0 takes a free one */
  | { readonly type: 'inet'; readonly host?: string; readonly port?: number }
  /** A socket that listens already, inherited from whoever started this process */
  | { readonly type: 'fd'; readonly fd: number };

export interface NbdListenerOptions extends SessionPoolOptions {
  /** Serve out of this pool, with its limits and TLS, beside other listeners (default: an own one) */
  readonly pool?: SessionPool;
}

/** Accepts NBD clients on one address, within the limits of {@link NbdServerLimits}. */
export class NbdListener {
  readonly #server: Server;
  readonly #pool: SessionPool;
  readonly #tlsRequired: boolean;
  /** TLS takes the socket's handle itself */
  readonly #borrows: boolean;
  #address: Exclude<NbdListenAddress, { type: 'fd' }>;

  private constructor(exports: ExportDirectory, options: NbdListenerOptions) {
    this.#address = { type: 'unix', path: '' };
    this.#pool = options.pool ?? new SessionPool(exports, options);
    this.#tlsRequired = options.tls?.mode === 'require';
    this.#borrows = options.tls === undefined;
    const accepted = { noDelay: true, allowHalfOpen: true, pauseOnConnect: this.#borrows };
    this.#server = createServer(accepted, (socket) => this.#accept(socket));
    // An accept that fails (descriptors used up) must not end the process.
    this.#server.on('error', () => {});
  }

  /** @throws Error of listen(2): address in use, no permission */
  static async listen(
    address: NbdListenAddress,
    exports: ExportDirectory,
    options: NbdListenerOptions = {},
  ): Promise<NbdListener> {
    const listener = new NbdListener(exports, options);
    await listener.#listen(address);
    return listener;
  }

  /** What a client is told, for the default export */
  get uri(): string {
    return this.uriOf('');
  }

  uriOf(exportName: string): string {
    const address = this.#address;
    const tls = this.#tlsRequired;
    if (address.type === 'unix') return formatNbdUri({ address, exportName, tls });
    return formatNbdUri({ address: { type: 'inet', host: address.host!, port: address.port! }, exportName, tls });
  }

  /** Served and waiting */
  get connections(): number {
    return this.#pool.connections;
  }

  /** Connections that were closed at once because of a limit */
  get refused(): number {
    return this.#pool.refused;
  }

  metrics(): NbdMetrics {
    return this.#pool.metrics();
  }

  /** Stops accepting, shuts the sessions down, and resolves when the last one is over. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    await this.#pool.close();
    await closed;
  }

  async #listen(address: NbdListenAddress): Promise<void> {
    if (address.type === 'unix') {
      this.#address = { type: 'unix', path: fromAnywhere(address.path) };
      await listenOnPath(this.#server, address.path);
      return;
    }
    if (address.type === 'fd') await this.#bind({ fd: address.fd });
    else await this.#bind({ host: address.host ?? '127.0.0.1', port: address.port ?? NBD_PORT });
    const bound = this.#server.address();
    if (typeof bound === 'string' || bound === null) {
      this.#address = { type: 'unix', path: bound ?? (address.type === 'fd' ? pathOfSocket(address.fd) : '') };
    } else {
      const host = address.type === 'inet' ? (address.host ?? '127.0.0.1') : bound.address;
      this.#address = { type: 'inet', host, port: bound.port };
    }
  }

  #bind(options: { host: string; port: number } | { fd: number }): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(options, () => {
        this.#server.off('error', reject);
        resolve();
      });
    });
  }

  #accept(socket: Socket): void {
    const address = socket.remoteAddress ?? '';
    if (this.#pool.admits(address)) {
      this.#pool.add(this.#borrows ? borrowingSocket(socket) : socket, address);
      return;
    }
    socket.on('error', () => {});
    socket.destroy();
  }
}

/** A path that works from every folder; as it is given where that would be longer than a socket's path may be. */
function fromAnywhere(path: string): string {
  const absolute = resolve(path);
  return Buffer.byteLength(absolute) > MAX_SOCKET_PATH_BYTES ? path : absolute;
}

/** Path of an inherited UNIX socket, which Node does not tell; '' where the system does not either. */
function pathOfSocket(fd: number): string {
  try {
    const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1];
    const lines = readFileSync('/proc/net/unix', 'latin1').split('\n');
    // "Num RefCount Protocol Flags Type St Inode Path"
    const fields = lines.map((line) => line.trim().split(/\s+/)).find((words) => words[6] === inode);
    return fields?.slice(7).join(' ') ?? '';
  } catch {
    return '';
  }
}
