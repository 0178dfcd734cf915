import { connect, createServer, type Server, type Socket } from 'node:net';
import { listenOnPath } from '../shared/mod.ts';
import { MigrationError } from './migration_error.ts';
import { formatMigrationUri, type MigrationAddress } from './uri.ts';

const CONNECT_TIMEOUT_MS = 10_000;

/** Connects to a destination. @throws MigrationError, or the signal's reason */
export function connectMigration(address: MigrationAddress, signal: AbortSignal): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  if (signal.aborted) {
    reject(signal.reason);
    return promise;
  }
  const where = formatMigrationUri(address);
  const socket =
    address.kind === 'unix'
      ? connect(address.path)
      : connect({ host: address.host, port: address.port, noDelay: true });
  const fail = (error: Error) => {
    socket.destroy();
    reject(error);
  };
  const onAbort = () => fail(signal.reason);
  const timer = setTimeout(() => {
    fail(
      new MigrationError(
        'ERR_MIGRATION_CONNECTION',
        `Cannot connect to ${where}: no answer in ${CONNECT_TIMEOUT_MS} ms`,
      ),
    );
  }, CONNECT_TIMEOUT_MS);
  signal.addEventListener('abort', onAbort, { once: true });
  const onError = (cause: Error) =>
    fail(new MigrationError('ERR_MIGRATION_CONNECTION', `Cannot connect to ${where}: ${cause.message}`, { cause }));
  socket.once('error', onError);
  socket.once('connect', () => resolve(socket));
  return promise.finally(() => {
    clearTimeout(timer);
    signal.removeEventListener('abort', onAbort);
    socket.off('error', onError);
    // Between here and the session's own handler an error must not be unhandled
    socket.on('error', () => {});
  });
}

export interface MigrationListener {
  /** With the real port where 0 was asked for */
  readonly address: MigrationAddress;
  close(): Promise<void>;
}

/**
 * Listens for a source. `take` says what to do with a connection; while it gives false (a session runs), others are
 * closed at once, so that nobody waits in a queue that nobody reads.
 */
export async function listenMigration(
  address: MigrationAddress,
  take: (socket: Socket) => boolean,
): Promise<MigrationListener> {
  const server = createServer({ pauseOnConnect: true, noDelay: true }, (socket) => {
    socket.on('error', () => {}); // the session has its own; a refused connection has none
    if (!take(socket)) socket.destroy();
  });
  await listen(server, address);
  const bound = server.address();
  return {
    address:
      address.kind === 'tcp' && typeof bound === 'object' && bound !== null
        ? { ...address, port: bound.port }
        : address,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
      }),
  };
}

async function listen(server: Server, address: MigrationAddress): Promise<void> {
  try {
    if (address.kind === 'unix') await listenOnPath(server, address.path);
    else await listenOnPort(server, address.host, address.port);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    const text = `Cannot listen on ${formatMigrationUri(address)}: ${why}`;
    throw new MigrationError('ERR_MIGRATION_CONNECTION', text, { cause });
  }
  server.on('error', () => {}); // accept() may fail for want of descriptors; the listener goes on
}

async function listenOnPort(server: Server, host: string, port: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('error', reject);
  server.listen({ port, ...(host === '' ? {} : { host }) }, resolve);
  await promise;
  server.off('error', reject);
}
