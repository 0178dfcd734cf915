import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import { createQcow2, NbdClient, RawImage } from '../../../services/nbd/mod.ts';
import { readPskFile, TlsClient } from '../../../services/shared/mod.ts';

// `caisson nbd --processes`, as a command of its own.

const directory = mkdtempSync(join(tmpdir(), 'caisson-cli-nbd-processes-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const MAIN = join(import.meta.dirname, '..', '..', '..', 'cli', 'main.ts');

function image(name: string): string {
  const path = join(directory, name);
  writeFileSync(path, new Uint8Array(1 << 20));
  return path;
}

interface Started {
  readonly child: ChildProcess;
  readonly uri: string;
  readonly exit: Promise<unknown[]>;
}

/** Runs the verb until it has printed its URI. */
async function started(t: ExecutionContext, ...args: string[]): Promise<Started> {
  const child = spawn(process.execPath, [MAIN, 'nbd', ...args], { stdio: ['ignore', 'pipe', 'ignore'] });
  t.teardown(() => child.kill('SIGKILL'));
  const exit = once(child, 'exit');
  const [line] = (await once(child.stdout!, 'data')) as [Buffer];
  return { child, uri: line.toString().trim(), exit };
}

/** Runs the verb to its end: its status and what it says of what is wrong. */
function ended(...args: string[]): Promise<{ status: number; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [MAIN, 'nbd', ...args], { timeout: 60_000 }, (error, _stdout, stderr) => {
      resolve({ status: error === null ? 0 : Number(error.code), stderr });
    });
  });
}

/** Children of a process, from /proc */
function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').split(' ').filter(Boolean).map(Number);
}

/** `pid` is there, and no zombie */
function runs(pid: number): boolean {
  return existsSync(`/proc/${pid}/stat`) && !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));
}

test('--processes: a second client has a process of its own; the last one to leave ends all of them', async (t) => {
  const socket = join(directory, 'processes.sock');
  const words = ['-k', socket, '-f', 'raw', '-e4', '--processes=2', '-v', '-o', '512'];
  const { child, uri, exit } = await started(t, ...words, image('processes.raw'));
  const here = await NbdClient.connect(uri);
  const there = await NbdClient.connect(uri);
  const bytes = new Uint8Array(4096).fill(7);
  await there.write(4096, bytes, { fua: true });
  await here.read(4096, bytes.fill(0));
  t.true(bytes.every((byte) => byte === 7));
  t.is(readFileSync(join(directory, 'processes.raw'))[512 + 4096], 7, 'from --offset on, in both');
  const [worker, ...more] = childrenOf(child.pid!);
  t.deepEqual(more, []);
  t.true(runs(worker!));
  await here.close();
  t.true(runs(child.pid!), 'the other one is still there');
  await there.close();
  t.deepEqual(await exit, [0, null]);
  t.false(runs(worker!));
});

test('--processes: SIGTERM ends all processes with 0, and no process outlives one that was killed', async (t) => {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const socket = join(directory, `processes-${signal}.sock`);
    const words = ['-tk', socket, '-f', 'raw', '-e0', '--processes=3', image(`${signal}.raw`)];
    const { child, uri, exit } = await started(t, ...words);
    const clients = [];
    for (let count = 0; count < 3; count++) clients.push(await NbdClient.connect(uri));
    for (const client of clients) await client.read(0, new Uint8Array(512));
    const workers = childrenOf(child.pid!);
    t.is(workers.length, 2);
    child.kill(signal);
    t.deepEqual(await exit, signal === 'SIGTERM' ? [0, null] : [null, 'SIGKILL']);
    for (let tries = 0; tries < 500 && workers.some(runs); tries++)
      await new Promise((resolve) => setTimeout(resolve, 10));
    t.deepEqual(workers.filter(runs), [], signal);
    await Promise.allSettled(clients.map((client) => client.close()));
  }
});

test('Q18: a process of --processes holds the lock of the image for as long as it runs, whatever becomes of the others', async (t) => {
  const socket = join(directory, 'held.sock');
  const path = image('held.raw');
  const { child, uri, exit } = await started(t, '-tk', socket, '-f', 'raw', '-e4', '--processes=2', path);
  const clients = [await NbdClient.connect(uri), await NbdClient.connect(uri)];
  await clients[1]!.write(0, new Uint8Array(512).fill(1));
  const [worker] = childrenOf(child.pid!);
  // So that it does not see the other one end
  process.kill(worker!, 'SIGSTOP');
  t.teardown(() => runs(worker!) && process.kill(worker!, 'SIGKILL'));
  child.kill('SIGKILL');
  await exit;
  await t.throwsAsync(RawImage.open(path, { readOnly: false }), { code: 'EPERM' });
  process.kill(worker!, 'SIGCONT');
  for (let tries = 0; tries < 500 && runs(worker!); tries++) await new Promise((resolve) => setTimeout(resolve, 10));
  await (await RawImage.open(path, { readOnly: false })).close();
  await Promise.allSettled(clients.map((client) => client.close()));
});

test('--processes is refused where one process has to own the image, and not taken by default there', async (t) => {
  const path = join(directory, 'owned.qcow2');
  await createQcow2(path, { sizeBytes: 1 << 20 });
  const socket = join(directory, 'owned.sock');
  const refused = async (pattern: RegExp, ...args: string[]): Promise<void> => {
    const { status, stderr } = await ended('-k', socket, '--processes=2', ...args);
    t.is(status, 2);
    t.regex(stderr, pattern);
  };
  await refused(/a qcow2 image that is written to has one owner/, '-e2', '-f', 'qcow2', path);
  await refused(/not with --resizable/, '-e2', '-f', 'raw', '--resizable', image('owned.raw'));
  await refused(/for one client at a time: add -e/, '-f', 'raw', image('owned.raw'));
  const { child, uri } = await started(t, '-tk', socket, '-e4', '-f', 'qcow2', path);
  const clients = [await NbdClient.connect(uri), await NbdClient.connect(uri)];
  await clients[1]!.write(0, new Uint8Array(512).fill(1));
  t.deepEqual(childrenOf(child.pid!), []);
  for (const client of clients) await client.close();
});

test('--processes: sessions inside TLS stay in the first process, with whom it lets in', async (t) => {
  const keys = join(directory, 'keys.psk');
  writeFileSync(keys, `alice:${'a1'.repeat(32)}\nbob:${'b2'.repeat(32)}\n`);
  for (const mode of ['require', 'allow']) {
    const socket = join(directory, `tls-${mode}.sock`);
    const words = ['-tk', socket, '-f', 'raw', '-e4', '--processes=2', `--tls-creds=${keys}`, `--tls-mode=${mode}`];
    const { child, uri } = await started(t, ...words, '--tls-authz=alice', image(`tls-${mode}.raw`));
    const secure = uri.replace(/^nbd\+/, 'nbds+');
    const tls = (user: string) => ({ tls: { client: new TlsClient(readPskFile(keys), { user }) } });
    const clients = [await NbdClient.connect(secure, tls('alice')), await NbdClient.connect(secure, tls('alice'))];
    if (mode === 'allow') clients.push(await NbdClient.connect(secure.replace('nbds', 'nbd')));
    for (const client of clients) await client.read(0, new Uint8Array(512));
    t.deepEqual(childrenOf(child.pid!), []);
    await t.throwsAsync(NbdClient.connect(secure, tls('bob')));
    for (const client of clients) await client.close();
  }
});
