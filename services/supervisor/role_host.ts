import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { getCompileCacheDir } from 'node:module';
import type { Socket } from 'node:net';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { type Duplex, duplexPair } from 'node:stream';
import { fileURLToPath } from 'node:url';
import type { RoleLinks } from '../shared/role.ts';
import { RpcPeer } from '../shared/rpc.ts';
import type { RoleStart } from './role_process.ts';
import { loadRole, type RoleModule, type RoleName } from './role_table.ts';
import { withExactTimers } from './timer_slack.ts';

/** How a role ended. `code` 0 is a clean end, undefined with `signal` when it was killed. */
export interface RoleExit {
  readonly role: RoleName;
  readonly code: number | undefined;
  readonly signal: string | undefined;
  readonly error?: Error;
}

/** A role that runs. */
export interface RoleHandle {
  readonly role: RoleName;
  readonly rpc: RpcPeer;
  /** Our ends of the links that were asked for as 'own' */
  readonly own: Readonly<Record<string, Duplex>>;
  readonly exited: Promise<RoleExit>;
  /** In process mode */
  readonly pid: number | undefined;
  /** Closes its control link and waits; a role that does not end is killed. */
  close(): Promise<void>;
}

export interface StartRole {
  readonly role: RoleName;
  readonly module: RoleModule;
  /** By name: a stream to hand over, or 'own' for one whose other end the supervisor keeps */
  readonly links: Readonly<Record<string, Duplex | 'own'>>;
  /** Open files that the role gets; it closes them */
  readonly fds: readonly number[];
  /** `mapFd` gives the role's number of one of `fds` */
  readonly options: (mapFd: (fd: number) => number) => unknown;
  readonly nodeFlags?: readonly string[];
  /** A line that the role wrote to its standard error */
  readonly onText: (text: string) => void;
}

const CLOSE_TIMEOUT_MS = 5000;
const KILL_TIMEOUT_MS = 2000;
const MAX_LINE_LENGTH = 2000;
/** standard input, output, error */
const FIRST_LINK_FD = 3;

/** No code from strings, no `__proto__`: a role that is taken over has less to work with. */
const ROLE_FLAGS = ['--disable-proto=delete', '--disallow-code-generation-from-strings'];
const ROLE_ENTRY = fileURLToPath(new URL('./role_entry.mjs', import.meta.url));

/** Starts a role in a process of its own. */
export async function startRoleProcess(start: StartRole): Promise<RoleHandle> {
  const { role } = start;
  const names = ['control', ...Object.keys(start.links)];
  const fdOf = new Map(start.fds.map((fd, index) => [fd, FIRST_LINK_FD + names.length + index]));
  const entry = [ROLE_ENTRY, role, ...codeCacheFolder(role)];
  const args = [...ROLE_FLAGS, ...(start.nodeFlags ?? []), ...entry];
  const options: SpawnOptions = {
    stdio: [
      'pipe',
      'ignore',
      'pipe',
      'pipe',
      ...Object.values(start.links).map((link) => (link === 'own' ? ('pipe' as const) : link)),
      ...start.fds,
    ],
    // Nothing of the user's environment: it could change what Node does or tell a secret.
    env: {},
    cwd: '/',
  };
  const startIt = (): ChildProcess => spawn(process.execPath, args, options);
  const child = role === 'machine' ? withExactTimers(startIt) : startIt();
  const exited = roleExit(role, child);
  child.on('error', () => {}); // `exited` tells
  const handed = Object.values(start.links).filter((link) => link !== 'own');
  try {
    await once(child, 'spawn');
  } finally {
    for (const link of handed) link.destroy();
  }
  const message: RoleStart = {
    role,
    module: start.module,
    links: Object.fromEntries(names.map((name, index) => [name, FIRST_LINK_FD + index])),
    options: start.options((fd) => fdOf.get(fd)!),
  };
  child.stdin!.on('error', () => {}); // it ended early; `exited` tells
  child.stdin!.end(JSON.stringify(message));
  forwardLines(child, start.onText);
  const own: Record<string, Duplex> = {};
  for (const [index, name] of names.entries()) {
    const stream = child.stdio[FIRST_LINK_FD + index] as Socket | null;
    if (index > 0 && start.links[name] === 'own') {
      stream!.on('error', () => {}); // it closes too
      own[name] = stream!;
    }
  }
  const rpc = new RpcPeer(child.stdio[FIRST_LINK_FD] as unknown as Duplex, { name: role });
  return {
    role,
    rpc,
    own,
    exited,
    pid: child.pid,
    close: async () => {
      rpc.close();
      if (await settles(exited, CLOSE_TIMEOUT_MS)) return;
      child.kill('SIGTERM');
      if (await settles(exited, KILL_TIMEOUT_MS)) return;
      child.kill('SIGKILL');
      await exited;
    },
  };
}

/** Runs a role in this process, over in-process links. */
export async function startRoleEmbedded(start: StartRole): Promise<RoleHandle> {
  const { role } = start;
  const [near, far] = duplexPair();
  const own: Record<string, Duplex> = {};
  const links: Record<string, Duplex> = {};
  for (const [name, link] of Object.entries(start.links)) {
    if (link === 'own') [own[name], links[name]] = duplexPair();
    else links[name] = link;
  }
  for (const stream of [near, far, ...Object.values(own), ...Object.values(links)]) stream.on('error', () => {});
  const main = await loadRole(start.module);
  const rpc = new RpcPeer(near, { name: role });
  const run = async () =>
    main(
      { ...links, control: far } as RoleLinks,
      start.options((fd) => fd),
    );
  const exited = run().then(
    (): RoleExit => ({ role, code: 0, signal: undefined }),
    (error: Error): RoleExit => ({ role, code: 1, signal: undefined, error }),
  );
  void exited.then((exit) => {
    // As in role_process.ts: an error with a code is about what the role was given
    const { error } = exit;
    if (error !== undefined) start.onText('code' in error ? error.message : (error.stack ?? String(error)));
    // What the kernel does for a process that ends
    for (const stream of [far, ...Object.values(links)]) stream.destroy();
    rpc.close();
  });
  return {
    role,
    rpc,
    own,
    exited,
    pid: undefined,
    close: async () => {
      rpc.close();
      await settles(exited, CLOSE_TIMEOUT_MS);
    },
  };
}

/**
 * Beside this process's own folder, if it has one (Node appends a folder for its version), each role has its own: what
 * a role that was taken over leaves there is read by that role alone.
 */
function codeCacheFolder(role: RoleName): string[] {
  const own = getCompileCacheDir();
  return own === undefined ? [] : [join(dirname(own), `role-${role}`)];
}

function roleExit(role: RoleName, child: ChildProcess): Promise<RoleExit> {
  return new Promise((resolve) => {
    child.once('error', (error) => resolve({ role, code: undefined, signal: undefined, error }));
    child.once('exit', (code, signal) => resolve({ role, code: code ?? undefined, signal: signal ?? undefined }));
  });
}

/** What a role says may come out of an image or from a peer: no escape sequence reaches the terminal. */
export function printable(text: string): string {
  return text.replace(/[^\t\x20-\x7e\u00a0-\uffff]/g, '?');
}

/** Roles are hostile once taken over: their text is cut, too. */
function forwardLines(child: ChildProcess, onText: (text: string) => void): void {
  const stream = child.stderr!.setEncoding('utf8');
  const tell = (line: string): void => onText(printable(line.slice(0, MAX_LINE_LENGTH)));
  let begun = '';
  stream.on('data', (text: string) => {
    const lines = (begun + text).split(/\r?\n/);
    begun = lines.pop()!.slice(0, MAX_LINE_LENGTH); // however long a line it never ends
    for (const line of lines) tell(line);
  });
  stream.on('end', () => {
    if (begun !== '') tell(begun);
  });
  stream.on('error', () => {}); // nothing more to tell
}

async function settles(promise: Promise<unknown>, timeoutMs: number): Promise<boolean> {
  const { promise: late, resolve } = Promise.withResolvers<false>();
  const timer = setTimeout(() => resolve(false), timeoutMs);
  const settled = await Promise.race([promise.then(() => true as const), late]);
  clearTimeout(timer);
  return settled;
}
