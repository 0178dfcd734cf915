import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test from 'ava';
import { listenOnPath, lockName } from '../../../services/shared/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-unix-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
let count = 0;
const newPath = (): string => join(directory, `${count++}.sock`);

/** What a killed server leaves: a socket file that nobody serves. */
function leaveStale(path: string): void {
  const code = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
  spawnSync(process.execPath, ['-e', code]);
}

const answers = (path: string): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(path, () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });

test('listenOnPath() makes a socket that only its user can reach, also where a stale one is', async (t) => {
  for (const stale of [false, true]) {
    const path = newPath();
    if (stale) leaveStale(path);
    t.is(existsSync(path), stale);
    const server = createServer();
    await listenOnPath(server, path);
    t.is(statSync(path).mode & 0o777, 0o600);
    t.true(await answers(path));
    await new Promise((resolve) => server.close(resolve));
    t.false(existsSync(path));
  }
});

test('listenOnPath() leaves what is served, and what is no socket', async (t) => {
  const served = newPath();
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(served, resolve));
  await t.throwsAsync(listenOnPath(createServer(), served), { code: 'EADDRINUSE', message: /another program does/ });
  t.true(await answers(served));
  other.close();
  const file = newPath();
  writeFileSync(file, 'precious');
  await t.throwsAsync(listenOnPath(createServer(), file), { code: 'EADDRINUSE', message: /not a socket/ });
  t.is(readFileSync(file, 'utf8'), 'precious');
});

test('listenOnPath() says why a path cannot be: no folder, too long', async (t) => {
  await t.throwsAsync(listenOnPath(createServer(), join(directory, 'none', 'x')), {
    code: 'ENOENT',
    message: /^listen ENOENT: no such file or directory .*none/,
  });
  await t.throwsAsync(listenOnPath(createServer(), join(directory, 'x'.repeat(200))), { code: 'EINVAL' });
});

test('of several that want one path at once, one gets it, and its socket stays', async (t) => {
  for (let round = 0; round < 10; round++) {
    const path = newPath();
    if (round % 2 === 0) leaveStale(path);
    const servers = Array.from({ length: 5 }, () => createServer());
    const tries = await Promise.allSettled(servers.map((server) => listenOnPath(server, path)));
    t.is(tries.filter((result) => result.status === 'fulfilled').length, 1);
    t.true(await answers(path));
    for (const [index, result] of tries.entries()) {
      if (result.status === 'fulfilled') await new Promise((resolve) => servers[index]!.close(resolve));
    }
  }
});

test('lockName() gives a name to one at a time', async (t) => {
  if (process.platform !== 'linux') return t.pass();
  const name = `caisson-test-${process.pid}`;
  const first = await lockName(name);
  t.truthy(first);
  t.is(await lockName(name), undefined);
  await first!.release();
  const second = await lockName(name);
  t.truthy(second);
  await second!.release();
});
