import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { createQcow2, NbdClient } from '../../../services/nbd/mod.ts';
import { readPskFile, TlsClient } from '../../../services/shared/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-cli-nbd-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const verb = JSON.stringify(new URL('../../../cli/verbs/nbd.ts', import.meta.url).href);
const script = `import { nbdVerb } from ${verb}; process.exitCode = await nbdVerb.run(process.argv.slice(1));`;
const argv = (args: readonly string[]): string[] => ['--input-type=module', '-e', script, '--', ...args];

function image(name: string, bytes = 1 << 20): string {
  const path = join(directory, name);
  writeFileSync(path, '');
  truncateSync(path, bytes);
  return path;
}

/** Runs the verb until it has printed its URI. */
async function started(...args: string[]): Promise<{ child: ChildProcess; uri: string; exit: Promise<unknown[]> }> {
  const child = spawn(process.execPath, argv(args), { stdio: ['ignore', 'pipe', 'inherit'] });
  const exit = once(child, 'exit');
  const [line] = (await once(child.stdout!, 'data')) as [Buffer];
  return { child, uri: line.toString().trim(), exit };
}

test('serves an image until its last client has left', async (t) => {
  const socket = join(directory, 'a.sock');
  const { uri, exit } = await started('-k', socket, '-f', 'raw', '-x', 'my disk', image('a.raw'));
  t.is(uri, `nbd+unix:///my%20disk?socket=${socket}`);
  const client = await NbdClient.connect(uri);
  t.false(client.canMultiConn);
  await client.write(0, new Uint8Array(512).fill(1), { fua: true });
  await client.close();
  t.deepEqual(await exit, [0, null]);
});

test('serves a qcow2 image over the backing files that are named, and no other', async (t) => {
  const [base, middle, top] = [image('base.raw'), join(directory, 'middle.qcow2'), join(directory, 'top.qcow2')];
  writeFileSync(base, new Uint8Array(1 << 20).fill(0x5a));
  await createQcow2(middle, { sizeBytes: 1 << 20, backing: { file: 'nbd://nowhere/', format: 'raw' } });
  await createQcow2(top, { sizeBytes: 2 << 20, backing: { file: '/etc/hostname', format: 'raw' } });
  const socket = join(directory, 'q.sock');
  const alone = spawnSync(process.execPath, argv(['-k', socket, '-f', 'qcow2', top]), { encoding: 'utf8' });
  t.is(alone.status, 1);
  t.regex(alone.stderr, /it has a backing file, "\/etc\/hostname", and none was given/);
  const under = [`--backing=qcow2:${middle}`, `--backing=raw:${base}`];
  const { uri, exit } = await started('-k', socket, '-f', 'qcow2', ...under, top);
  const client = await NbdClient.connect(uri);
  const into = new Uint8Array(4096);
  await client.read((1 << 20) - 2048, into);
  t.true(into.subarray(0, 2048).every((byte) => byte === 0x5a));
  t.true(into.subarray(2048).every((byte) => byte === 0));
  await client.write(0, into, { fua: true });
  await client.close();
  t.deepEqual(await exit, [0, null]);
});

test('stays with --persistent, serves read-only with -r, lists with -L, and ends on SIGTERM with 0', async (t) => {
  const socket = join(directory, 'b.sock');
  const { child, uri, exit } = await started('-rt', `--socket=${socket}`, '-fraw', '-e2', '-D', 'root', image('b.raw'));
  for (let round = 0; round < 2; round++) {
    const client = await NbdClient.connect(uri);
    t.true(client.readOnly);
    t.true(client.canMultiConn);
    await client.close();
  }
  const listed = spawnSync(process.execPath, argv(['-L', '-k', socket]), { encoding: 'utf8' });
  t.is(listed.stdout, 'exports available: 1\n export: ""\n  description: "root"\n');
  child.kill('SIGTERM');
  t.deepEqual(await exit, [0, null]);
});

test('requires TLS with --tls-creds, lets in whom --tls-authz names, and lists over TLS', async (t) => {
  const socket = join(directory, 'tls.sock');
  const keys = join(directory, 'keys.psk');
  const key = 'a1'.repeat(32);
  writeFileSync(keys, `alice:${key}\nbob:${key}\n`);
  const words = ['-tk', socket, '-f', 'raw', `--tls-creds=${keys}`, '--tls-authz=alice'];
  const { child, uri, exit } = await started(...words, image('tls.raw'));
  t.is(uri, `nbds+unix:///?socket=${socket}`);
  const tls = (user: string) => ({ tls: { client: new TlsClient(readPskFile(keys), { user }) } });
  const client = await NbdClient.connect(uri, tls('alice'));
  t.deepEqual(client.peer, { kind: 'psk', user: 'alice' });
  await client.close();
  await t.throwsAsync(NbdClient.connect(uri, tls('bob')));
  await t.throwsAsync(NbdClient.connect(uri.replace('nbds', 'nbd')), { message: /ERR_TLS_REQD/ });
  const listing = ['-L', '-k', socket, '--tls-creds', keys, '--tls-user=alice'];
  const listed = spawnSync(process.execPath, argv(listing), { encoding: 'utf8' });
  t.is(listed.stdout, 'exports available: 1\n export: ""\n', listed.stderr);
  const refused = spawnSync(process.execPath, argv(['-L', '-k', socket]), { encoding: 'utf8' });
  t.is(refused.status, 1);
  child.kill('SIGTERM');
  t.deepEqual(await exit, [0, null]);
});

for (const [what, args, message] of [
  ['a name to let in without TLS', ['--tls-authz=alice', '-fraw', 'x'], 'Cannot use --tls-authz without --tls-creds'],
  ['an unknown long option', ['--sokcet=x'], 'unknown option; the nearest known one is --socket'],
  ['an unknown short option', ['-q'], 'Cannot use -q: unknown option'],
  ['an option without its value', ['-k'], 'Cannot use -k: its PATH is missing'],
  ['a value where none belongs', ['--read-only=yes'], 'takes no value'],
  ['an option twice', ['-x', 'a', '-x', 'b'], 'Cannot use -x twice'],
  ['no image', ['-f', 'raw'], 'no IMAGE is given'],
  ['two images', ['-f', 'raw', 'a', 'b'], 'one IMAGE at a time'],
  ['an image without its format', ['a.raw'], 'its format is not given; add -f raw'],
  ['a format that is not known', ['-f', 'vmkd', 'a'], 'format vmkd is not known'],
  [
    'a backing file without its format',
    ['-f', 'qcow2', '--backing=a.raw', 'b'],
    'expected a format, a colon and a path',
  ],
  ['leave to open extents where there are none', ['-f', 'raw', '--allow-extents', 'a'], 'it is for -f vmdk'],
  ['a way to discard that is none', ['-f', 'raw', '--discard=on', 'a'], 'expected ignore or unmap'],
  ['a backing file of no known format', ['-f', 'qcow2', '--backing=x:a', 'b'], 'format x is not known'],
  ['a port that is none', ['-p', '70000', '-f', 'raw', 'a'], 'expected a number from 0 to 65535'],
  ['a port and a socket', ['-p', '1', '-k', '/x', '-f', 'raw', 'a'], 'Cannot use --socket and --port together'],
  ['a number of clients that is none', ['-e', 'x', '-f', 'raw', 'a'], 'expected a number'],
] as const) {
  test(`refuses ${what} with exit status 2`, (t) => {
    const { status, stderr } = spawnSync(process.execPath, argv(args), { encoding: 'utf8' });
    t.is(status, 2);
    t.true(stderr.includes(message), stderr);
  });
}

test('a missing image is a failure with exit status 1', (t) => {
  const { status, stderr } = spawnSync(process.execPath, argv(['-f', 'raw', join(directory, 'none')]), {
    encoding: 'utf8',
  });
  t.is(status, 1);
  t.regex(stderr, /ENOENT/);
});

test('--help prints every option', (t) => {
  const { status, stdout } = spawnSync(process.execPath, argv(['--help']), { encoding: 'utf8' });
  t.is(status, 0);
  for (const option of ['--socket', '--port', '--bind', '--format', '--export-name', '--read-only', '--shared']) {
    t.true(stdout.includes(option));
  }
});
