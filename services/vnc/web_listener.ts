import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { type ServerOptions, WebSocketServer } from 'ws';
import { websocketStream } from '../shared/websocket_stream.ts';
import { Access, type Verdict } from './access.ts';
import type { Asset } from './assets.ts';
import { type BindAddress, type BoundAddress, bind } from './bind.ts';
import type { Console } from './console.ts';

/** Where the page's client connects */
export const WEBSOCKET_PATH = '/websocket';

const MAX_HEADER_BYTES = 8 << 10;
const MAX_CONNECTIONS = 128;
const HEADERS_TIMEOUT_MS = 5000;
const REQUEST_TIMEOUT_MS = 10_000;
/** noVNC sends at most 10 KiB at once; other clients a whole ClientCutText at the worst, in pieces */
const MAX_MESSAGE_BYTES = 256 << 10;
const MAX_FRAGMENTS = 64;
const MAX_BUFFERED_CHUNKS = 256;
const MAX_PENDING_PONGS = 4;
const WEBSOCKET_CLOSE_TIMEOUT_MS = 2000;

export interface WebListenerOptions {
  readonly address: BindAddress;
  readonly allowedHosts: readonly string[];
  readonly oneTime: boolean;
  readonly viewOnly: boolean;
}

export interface WebListener {
  readonly bound: BoundAddress;
  /** To be opened in a browser; carries the token: show it to the user, keep it out of logs */
  readonly url: string | undefined;
  readonly token: string;
  close(): Promise<void>;
}

/** One port for the page, the noVNC client and its WebSocket. See access.ts for who is let in. */
export async function listenWeb(
  console: Console,
  assets: ReadonlyMap<string, Asset>,
  options: WebListenerOptions,
): Promise<WebListener> {
  const access = new Access(options);
  const server = createServer({
    maxHeaderSize: MAX_HEADER_BYTES,
    headersTimeout: HEADERS_TIMEOUT_MS,
    requestTimeout: REQUEST_TIMEOUT_MS,
    keepAliveTimeout: HEADERS_TIMEOUT_MS,
    connectionsCheckingInterval: 1000,
    keepAlive: true, // TCP's: a viewer whose host is gone is noticed
    keepAliveInitialDelay: 30_000,
  });
  server.maxConnections = MAX_CONNECTIONS;
  server.maxHeadersCount = 64;
  server.on('request', (request, response) => serve(request, response, access, assets));
  server.on('clientError', (_error, socket) => socket.destroy());
  server.on('connect', (_request, socket) => socket.destroy());
  const limits: ServerOptions & { maxPendingAutoPongs: number; closeTimeout: number } = {
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false, // a bomb in 1 KB, and RFB is compressed already
    maxPayload: MAX_MESSAGE_BYTES,
    maxFragments: MAX_FRAGMENTS,
    maxBufferedChunks: MAX_BUFFERED_CHUNKS,
    maxPendingAutoPongs: MAX_PENDING_PONGS,
    closeTimeout: WEBSOCKET_CLOSE_TIMEOUT_MS,
    // noVNC offers no subprotocol; others offer the old 'binary'
    handleProtocols: (offered) => (offered.has('binary') ? 'binary' : false),
  };
  const websockets = new WebSocketServer(limits);
  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    const url = parseTarget(request);
    const verdict = checkUpgrade(request, url, access);
    if (!verdict.allowed) {
      socket.end('HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
      setTimeout(() => socket.destroy(), 1000).unref();
      return;
    }
    websockets.handleUpgrade(request, socket, head, (websocket) => {
      console.accept(websocketStream(websocket), {
        address: request.socket.remoteAddress ?? 'unix',
        port: request.socket.remotePort,
        transport: 'websocket',
        viewOnly: options.viewOnly,
        password: undefined, // the token was asked for already
      });
    });
  });
  const bound = await bind(server, options.address);
  if (bound.port !== undefined) access.setPort(bound.port);
  return {
    bound,
    url: bound.port === undefined ? undefined : `http://${urlHost(bound.host)}:${bound.port}/?token=${access.token}`,
    token: access.token,
    close: () => closeServer(server),
  };
}

function checkUpgrade(request: IncomingMessage, url: URL | undefined, access: Access): Verdict {
  const host = access.checkHost(request);
  if (!host.allowed) return host;
  if (url?.pathname !== WEBSOCKET_PATH) return { allowed: false, reason: 'not the WebSocket path' };
  return access.checkUpgrade(request, url.searchParams);
}

interface Reply {
  readonly status: number;
  readonly type: string;
  readonly body: Uint8Array | string;
  readonly cacheControl?: string;
}

function serve(
  request: IncomingMessage,
  response: ServerResponse,
  access: Access,
  assets: ReadonlyMap<string, Asset>,
): void {
  secure(response, request.headers.host ?? '');
  const { status, type, body, cacheControl = 'no-store' } = route(request, response, access, assets);
  response.setHeader('Content-Type', type);
  response.setHeader('Content-Length', Buffer.byteLength(body));
  response.setHeader('Cache-Control', cacheControl);
  response.writeHead(status);
  response.end(request.method === 'HEAD' ? undefined : body);
}

function route(
  request: IncomingMessage,
  response: ServerResponse,
  access: Access,
  assets: ReadonlyMap<string, Asset>,
): Reply {
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('Allow', 'GET, HEAD');
    return textReply(405, 'Only GET and HEAD');
  }
  if (!access.checkHost(request).allowed) return textReply(403, 'This host name is not allowed');
  const url = parseTarget(request);
  if (url === undefined) return textReply(400, 'Bad request');
  if (url.pathname === '/') {
    const verdict = access.checkPage(request, url.searchParams);
    if (!verdict.allowed) {
      return textReply(403, 'Open the console with the whole URL that was printed when it started.');
    }
    if (verdict.setCookie !== undefined) response.setHeader('Set-Cookie', verdict.setCookie);
  }
  // Page, script and style say nothing about the guest; the WebSocket does, and asks for the session
  const asset =
    url.pathname === '/index.html' ? undefined : assets.get(url.pathname === '/' ? '/index.html' : url.pathname);
  if (asset === undefined) return textReply(404, 'Not found');
  const cacheControl = url.pathname.startsWith('/novnc/') ? 'max-age=3600' : 'no-store';
  return { status: 200, type: asset.type, body: asset.bytes, cacheControl };
}

function textReply(status: number, text: string): Reply {
  return { status, type: 'text/plain; charset=utf-8', body: `${text}\n` };
}

/** Nothing but our own files, no inline code, no frames. */
function secure(response: ServerResponse, host: string): void {
  // Some browsers do not count ws: as 'self'; the name was or will be checked, and only such a name is copied
  const sockets = /^[[\]a-z0-9.:-]{1,260}$/i.test(host) ? ` ws://${host} wss://${host}` : '';
  response.setHeader(
    'Content-Security-Policy',
    `default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'${sockets}; ` +
      "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  );
  response.setHeader('X-Content-Type-Options', 'nosniff');
  response.setHeader('Referrer-Policy', 'no-referrer');
  response.setHeader('Cross-Origin-Opener-Policy', 'same-origin');
  response.setHeader('Cross-Origin-Resource-Policy', 'same-origin');
}

function parseTarget(request: IncomingMessage): URL | undefined {
  const target = request.url ?? '';
  // Only the origin form; the URL class would also take //host and resolve dots, so dots are looked for first
  if (
    !target.startsWith('/') ||
    target.startsWith('//') ||
    /(^|\/)(\.|%2e){1,2}(\/|$)/i.test(target.split('?', 1)[0]!)
  ) {
    return undefined;
  }
  return URL.canParse(target, 'http://console') ? new URL(target, 'http://console') : undefined;
}

function urlHost(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}

function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}
