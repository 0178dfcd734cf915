import { createServer, type Server } from 'node:net';
import { isQmpEvent, type QmpEventName } from '../../protocols/qmp/mod.ts';
import type { RoleMain } from '../shared/role.ts';
import { RpcPeer } from '../shared/rpc.ts';
import { listenOnPath } from '../shared/unix_listener.ts';
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
      // The monitor is as powerful as the account that runs it: only that account may connect.
      const server = createServer({ allowHalfOpen: true });
      await listenOnPath(server, path);
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
  for (const server of servers) server.close(); // and their sockets are removed
  await Promise.all([...sessions].map((session) => session.end()));
};
