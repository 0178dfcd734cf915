import { chmod, lstat, mkdtemp, rename, rm, unlink } from 'node:fs/promises';
import { connect, createServer, type Server } from 'node:net';
import { dirname, join } from 'node:path';
import { isQmpEvent, type QmpEventName } from '../../protocols/qmp/mod.ts';
import type { RoleMain } from '../shared/role.ts';
import { RpcPeer } from '../shared/rpc.ts';
import { QmpCommands } from './commands.ts';
import { QmpSession } from './session.ts';

export interface MonitorRoleOptions {
  readonly name: string;
  readonly uuid: string;
  /** UNIX sockets to serve */
  readonly paths: readonly string[];
}

/** Clients at a time; more are told and closed */
const MAX_CLIENTS = 16;

/**
 * The QMP server. Link: `control` (Rpc). It parses what operators' programs send, and has neither guest bytes nor
 * files: every command is a fixed call to the supervisor. Method `listen` → `{paths}`; takes the event
 * `event {event, data}` and passes it on to all clients.
 */
export const monitorRole: RoleMain<MonitorRoleOptions> = async (links, options) => {
  const control = new RpcPeer(links.control, { name: 'supervisor' });
  const commands = new QmpCommands(control, { name: options.name, uuid: options.uuid });
  const sessions = new Set<QmpSession>();
  const servers: Server[] = [];
  control.on('event', (message) => {
    const { event, data } = (message ?? {}) as { event?: unknown; data?: unknown };
    if (typeof event !== 'string' || !isQmpEvent(event) || typeof data !== 'object' || data === null) return;
    const timeMs = Date.now();
    for (const session of sessions) session.event(event as QmpEventName, data, timeMs);
  });
  control.handle('listen', async () => {
    for (const path of options.paths) {
      const server = await listenPrivately(path);
      servers.push(server);
      server.on('connection', (socket) => {
        if (sessions.size >= MAX_CLIENTS) {
          socket.destroy();
          return;
        }
        const session = new QmpSession(socket, commands);
        sessions.add(session);
        void session.closed.then(() => sessions.delete(session));
      });
    }
    return { paths: options.paths };
  });
  await new Promise<void>((resolve) => control.onClose(() => resolve()));
  for (const server of servers) server.close();
  await Promise.all(options.paths.slice(0, servers.length).map((path) => rm(path, { force: true })));
  await Promise.all([...sessions].map((session) => session.end()));
};

/**
 * Only the owner may connect: the monitor is as powerful as the account that runs it. The socket is made inside a
 * directory that nobody else can enter and moved to its place when its mode is right.
 */
async function listenPrivately(path: string): Promise<Server> {
  await removeStaleSocket(path);
  const server = createServer({ allowHalfOpen: true });
  const directory = await mkdtemp(join(dirname(path), '.q'));
  try {
    const hidden = join(directory, 's');
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(hidden, resolve);
    });
    await chmod(hidden, 0o600);
    await rename(hidden, path);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
  return server;
}

/** A socket that nobody listens on is left over; anything else at the path is the user's and stays. */
async function removeStaleSocket(path: string): Promise<void> {
  const facts = await lstat(path).catch(() => undefined);
  if (facts === undefined) return;
  if (!facts.isSocket()) throw new Error(`Cannot listen on ${path}: there is something that is not a socket`);
  const inUse = await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (inUse) throw new Error(`Cannot listen on ${path}: another program does`);
  await unlink(path);
}
