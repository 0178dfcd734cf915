import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { type ServerOptions, WebSocket, WebSocketServer } from 'ws';
import { WireError } from '../../protocols/bytes/mod.ts';
import { websocketStream } from '../shared/websocket_stream.ts';
import { formatPrometheus, type NbdMetrics } from './metrics.ts';
import type { SessionPool } from './session_pool.ts';

// NBD over WebSocket: binary messages carry the byte stream of NBD as it is, and their borders mean nothing. So a
// browser, or a network that lets only HTTP through, reaches a disk; everything else, STARTTLS among it, is as over TCP.

/** What a client has to offer, and is answered with */
export const NBD_SUBPROTOCOL = 'nbd';
/** Where the counters are, in Prometheus' text form */
export const METRICS_PATH = '/metrics';

/** Clients split what is larger */
const MAX_MESSAGE_BYTES = 4 << 20;
const MAX_FRAGMENTS = 64;
const MAX_BUFFERED_CHUNKS = 1024;
const MAX_PENDING_PONGS = 4;
const MAX_HEADER_BYTES = 8 << 10;
/** Of one port, those that have said nothing yet among them: above the number of sessions that there may be */
const MAX_CONNECTIONS = 256;
const HTTP_TIMEOUT_MS = 5_000;
const CLOSE_TIMEOUT_MS = 2_000;

export interface NbdWebOptions {
  /** Serves what comes in as WebSockets; absent: there are none */
  readonly pool?: SessionPool;
  /** Answers `GET /metrics`; absent: it is not there */
  readonly metrics?: () => NbdMetrics | Promise<NbdMetrics>;
  /** Pages that may connect, as `https://host.example`; a browser's page that is not listed is refused */
  readonly origins?: readonly string[];
}

/** One HTTP port for NBD over WebSocket and for metrics. Plain HTTP: put a proxy with TLS in front, or use STARTTLS. */
export class NbdWebListener {
  readonly #server: Server;
  readonly #options: NbdWebOptions;
  readonly #origins: ReadonlySet<string>;

  private constructor(options: NbdWebOptions) {
    this.#options = options;
    this.#origins = new Set(options.origins);
    this.#server = createServer({
      maxHeaderSize: MAX_HEADER_BYTES,
      headersTimeout: HTTP_TIMEOUT_MS,
      requestTimeout: HTTP_TIMEOUT_MS,
      keepAliveTimeout: HTTP_TIMEOUT_MS,
      connectionsCheckingInterval: 1000,
    });
    this.#server.maxConnections = MAX_CONNECTIONS;
    this.#server.on('request', (request, response) => void this.#answer(request, response));
    this.#server.on('clientError', (_error, socket) => socket.destroy());
    this.#server.on('connect', (_request, socket) => socket.destroy());
    const limits: ServerOptions & { maxPendingAutoPongs: number; closeTimeout: number } = {
      noServer: true,
      clientTracking: false,
      perMessageDeflate: false, // disks are large, and a bomb would be larger
      maxPayload: MAX_MESSAGE_BYTES,
      maxFragments: MAX_FRAGMENTS,
      maxBufferedChunks: MAX_BUFFERED_CHUNKS,
      maxPendingAutoPongs: MAX_PENDING_PONGS,
      closeTimeout: CLOSE_TIMEOUT_MS,
      handleProtocols: (offered) => (offered.has(NBD_SUBPROTOCOL) ? NBD_SUBPROTOCOL : false),
    };
    const websockets = new WebSocketServer(limits);
    this.#server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      socket.on('error', () => socket.destroy());
      const address = request.socket.remoteAddress ?? '';
      const refusal = this.#refusal(request) ?? (options.pool!.admits(address) ? undefined : '503 Service Unavailable');
      if (refusal !== undefined) {
        socket.end(`HTTP/1.1 ${refusal}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
        setTimeout(() => socket.destroy(), 1000).unref();
        return;
      }
      websockets.handleUpgrade(request, socket, head, (websocket) => {
        options.pool!.add(websocketStream(websocket), address);
      });
    });
  }

  /** @throws Error of listen(2) */
  static async listen(address: { host: string; port: number }, options: NbdWebOptions): Promise<NbdWebListener> {
    const listener = new NbdWebListener(options);
    const server = listener.#server;
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(address.port, address.host, () => {
        server.off('error', reject);
        resolve();
      });
    });
    server.on('error', () => {});
    return listener;
  }

  /** `http://HOST:PORT`, or `ws://` for `scheme` ws */
  url(scheme: 'http' | 'ws' = 'http'): string {
    const { address, port, family } = this.#server.address() as AddressInfo;
    return `${scheme}://${family === 'IPv6' ? `[${address}]` : address}:${port}`;
  }

  /** Ends the WebSockets of this port, too. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }

  /** Status line of what refuses an upgrade. */
  #refusal(request: IncomingMessage): string | undefined {
    if (this.#options.pool === undefined || request.url !== '/') return '404 Not Found';
    const { origin } = request.headers;
    // Any page that the user happens to look at can open a WebSocket to this host: only listed ones may.
    if (origin !== undefined && !this.#origins.has(origin)) return '403 Forbidden';
    const offered = (request.headers['sec-websocket-protocol'] ?? '').split(',').map((name) => name.trim());
    return offered.includes(NBD_SUBPROTOCOL) ? undefined : '400 Bad Request';
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.setHeader('Content-Type', 'text/plain; version=0.0.4; charset=utf-8');
    response.setHeader('X-Content-Type-Options', 'nosniff');
    const { metrics } = this.#options;
    // A page must not read them across origins by DNS rebinding either: it would come with another Host.
    const isMetrics = metrics !== undefined && request.url === METRICS_PATH && isAddress(request.headers.host);
    if (request.method !== 'GET' || !isMetrics) {
      response.writeHead(request.method === 'GET' ? 404 : 405);
      response.end();
      return;
    }
    response.end(formatPrometheus(await metrics()));
  }
}

/** `localhost` or a bare address: no name that somebody else's DNS decides about. */
function isAddress(host: string | undefined): boolean {
  return host !== undefined && /^(?:localhost|[0-9.]{7,15}|\[[0-9a-fA-F:.]{2,45}\])(?::[0-9]{1,5})?$/.test(host);
}

/**
 * The client's end: a stream for NbdClient.connect() over `ws://` or `wss://`.
 * @throws WireError where the server refuses or speaks something else; the signal's reason
 */
export async function connectNbdWebSocket(url: string, options: { timeoutMs?: number } = {}): Promise<Duplex> {
  const socket = new WebSocket(url, [NBD_SUBPROTOCOL], {
    perMessageDeflate: false,
    maxPayload: 64 << 20,
    handshakeTimeout: options.timeoutMs ?? 10_000,
  });
  // From here on: a server that does not wait for the client speaks before anybody listens otherwise.
  const stream = websocketStream(socket);
  await new Promise<void>((resolve, reject) => {
    const fail = (cause?: Error): void => {
      reject(
        new WireError('ERR_WIRE_STATE', `Cannot open the WebSocket ${url}: ${cause?.message ?? 'closed'}`, { cause }),
      );
    };
    stream.once('error', fail);
    stream.once('close', fail);
    socket.once('open', () => {
      stream.off('error', fail);
      stream.off('close', fail);
      resolve();
    });
  });
  return stream;
}
