import { createServer } from 'node:net';
import { type BindAddress, type BoundAddress, bind } from './bind.ts';
import type { Console } from './console.ts';

const MAX_CONNECTIONS = 128;
/** A viewer whose host is gone is noticed by TCP, starting after this, in `ms` */
const KEEP_ALIVE_MS = 30_000;

export interface RfbListenerOptions {
  readonly address: BindAddress;
  readonly viewOnly: boolean;
  /** For VNC authentication; undefined: type None, for loopback and UNIX sockets only */
  readonly password: (() => string | undefined) | undefined;
}

export interface RfbListener {
  readonly bound: BoundAddress;
  close(): Promise<void>;
}

/** Plain RFB for native viewers, over TCP or a UNIX socket. */
export async function listenRfb(console: Console, options: RfbListenerOptions): Promise<RfbListener> {
  const server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_MS });
  server.maxConnections = MAX_CONNECTIONS;
  const unix = options.address.kind === 'unix';
  server.on('connection', (socket) => {
    console.accept(socket, {
      address: socket.remoteAddress ?? 'unix',
      port: socket.remotePort,
      transport: unix || socket.remoteAddress === undefined ? 'unix' : 'tcp',
      viewOnly: options.viewOnly,
      password: options.password,
    });
  });
  const bound = await bind(server, options.address);
  return { bound, close: () => new Promise((resolve) => server.close(() => resolve())) };
}
