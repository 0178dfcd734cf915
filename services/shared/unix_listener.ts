import { chmodSync } from 'node:fs';
import { lstat, realpath, unlink } from 'node:fs/promises';
import { connect, type Server } from 'node:net';
import { basename, dirname, join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { Digest } from '../../protocols/bytes/mod.ts';
import { lockName, type NameLock } from './name_lock.ts';

/** How long others may take for the same path: one look and one bind */
const TURNS = 200;
const TURN_MS = 15;

/**
 * Listens on a UNIX socket that only this user can reach. A socket that nobody serves any more is replaced; one that
 * is served, and anything else at the path, stays. Of several that want the same path one gets it.
 *
 * @throws Error of listen(2): EADDRINUSE, no such folder, no permission
 */
export async function listenOnPath(server: Server, path: string): Promise<void> {
  // Between the look at a stale socket and the bind another one must not do the same: it would remove ours.
  const turn = await takeTurn(path);
  try {
    await removeStaleSocket(path);
    await bindPrivately(server, path);
  } catch (error) {
    throw await asItIs(error as NodeJS.ErrnoException, path);
  } finally {
    await turn?.release();
  }
}

/** Undefined: somebody keeps the name for whatever reason; that must not keep anybody from listening. */
async function takeTurn(path: string): Promise<NameLock | undefined> {
  const folder = await realpath(dirname(path)).catch(() => dirname(path));
  // Two paths of one digest take turns, too, which harms nobody; node:crypto takes longer to load than the rest of this
  const hash = new Digest().text(join(folder, basename(path))).value.toString(16);
  for (let tries = 0; tries < TURNS; tries++) {
    const turn = await lockName(`caisson-path-${process.getuid?.() ?? 0}-${hash}`);
    if (turn !== undefined) return turn;
    await sleep(TURN_MS);
  }
  return undefined;
}

async function removeStaleSocket(path: string): Promise<void> {
  const facts = await lstat(path).catch(() => undefined);
  if (facts === undefined) return;
  if (!facts.isSocket()) throw inUse(path, 'there is something that is not a socket');
  const served = await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    // Only a refusal says that nobody is there: a full queue, or one that is not ours to reach, says the contrary.
    probe.once('error', (error: NodeJS.ErrnoException) => resolve(error.code !== 'ECONNREFUSED'));
  });
  if (served) throw inUse(path, 'another program does');
  await unlink(path);
}

/** Bound inside listen(): with this mask nobody else can connect between bind and chmod. */
async function bindPrivately(server: Server, path: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('error', reject);
  const mask = setUmask(0o177);
  try {
    server.listen(path, () => {
      server.off('error', reject);
      resolve();
    });
  } finally {
    if (mask !== undefined) setUmask(mask);
  }
  await promise;
  if (mask === undefined) chmodSync(path, 0o600);
}

/** Undefined in a worker thread, where the mask of the process cannot be changed. */
function setUmask(mask: number): number | undefined {
  try {
    return process.umask(mask);
  } catch {
    return undefined;
  }
}

/** libuv answers EACCES where the folder is not there. */
async function asItIs(error: NodeJS.ErrnoException, path: string): Promise<Error> {
  if (error.code !== 'EACCES') return error;
  const why = await lstat(dirname(path)).catch(({ code }: NodeJS.ErrnoException) => code);
  if (why !== 'ENOENT') return error;
  const text = `listen ENOENT: no such file or directory ${path}`;
  return Object.assign(new Error(text, { cause: error }), { code: why, syscall: 'listen', address: path });
}

function inUse(path: string, why: string): Error {
  return Object.assign(new Error(`Cannot listen on ${path}: ${why}`), { code: 'EADDRINUSE' });
}
