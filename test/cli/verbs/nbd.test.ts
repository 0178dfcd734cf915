import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { nbdVerb } from '../../../cli/verbs/nbd.ts';
import { connectNbdWebSocket, createQcow2, NbdClient } from '../../../services/nbd/mod.ts';
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

/** Runs a program to its end, beside the other tests. */
function ran(program: string, args: readonly string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(program, args, { timeout: 60_000 }, (error, stdout, stderr) => {
      resolve({ status: error === null ? 0 : typeof error.code === 'number' ? error.code : -1, stdout, stderr });
    });
  });
}

interface Started {
  child: ChildProcess;
  uri: string;
  exit: Promise<unknown[]>;
}

/** Runs the verb until it has printed its URI. */
function started(t: ExecutionContext, ...args: string[]): Promise<Started> {
  return startedIn(t, process.cwd(), ...args);
}

async function startedIn(t: ExecutionContext, cwd: string, ...args: string[]): Promise<Started> {
  const child = spawn(process.execPath, argv(args), { cwd, stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  const exit = once(child, 'exit');
  const [line] = (await once(child.stdout!, 'data')) as [Buffer];
  return { child, uri: line.toString().trim(), exit };
}

test('serves an image until its last client has left', async (t) => {
  const socket = join(directory, 'a.sock');
  const { uri, exit } = await started(t, '-k', socket, '-f', 'raw', '-x', 'my disk', image('a.raw'));
  t.is(uri, `nbd+unix:///my%20disk?socket=${socket}`);
  const client = await NbdClient.connect(uri);
  t.false(client.canMultiConn);
  await client.write(0, new Uint8Array(512).fill(1), { fua: true });
  await client.close();
  t.deepEqual(await exit, [0, null]);
});

test('prints a URI that works from every folder, unless a socket cannot have so long a path', async (t) => {
  const disk = image('relative.raw');
  const deep = join(directory, 'd'.repeat(107));
  mkdirSync(deep);
  for (const [folder, expected] of [
    [directory, join(realpathSync(directory), 'relative.sock')],
    [deep, 'relative.sock'],
  ] as const) {
    const { child, uri, exit } = await startedIn(t, folder, '-k', 'relative.sock', '-f', 'raw', disk);
    t.is(uri, `nbd+unix:///?socket=${expected}`);
    t.true(existsSync(join(folder, 'relative.sock')));
    child.kill();
    t.deepEqual(await exit, [0, null]);
  }
});

test('serves a qcow2 image over the backing files that are named, and no other', async (t) => {
  const [base, middle, top] = [image('base.raw'), join(directory, 'middle.qcow2'), join(directory, 'top.qcow2')];
  writeFileSync(base, new Uint8Array(1 << 20).fill(0x5a));
  await createQcow2(middle, { sizeBytes: 1 << 20, backing: { file: 'nbd://nowhere/', format: 'raw' } });
  await createQcow2(top, { sizeBytes: 2 << 20, backing: { file: '/etc/hostname', format: 'raw' } });
  const socket = join(directory, 'q.sock');
  const alone = await ran(process.execPath, argv(['-k', socket, '-f', 'qcow2', top]));
  t.is(alone.status, 1);
  t.regex(alone.stderr, /it has a backing file, "\/etc\/hostname", and none was given/);
  const under = [`--backing=qcow2:${middle}`, `--backing=raw:${base}`];
  const { uri, exit } = await started(t, '-k', socket, '-f', 'qcow2', ...under, top);
  const client = await NbdClient.connect(uri);
  const into = new Uint8Array(4096);
  await client.read((1 << 20) - 2048, into);
  t.true(into.subarray(0, 2048).every((byte) => byte === 0x5a));
  t.true(into.subarray(2048).every((byte) => byte === 0));
  await client.write(0, into, { fua: true });
  await client.close();
  t.deepEqual(await exit, [0, null]);
});

test('a second SIGTERM, as timeout(1) sends it, does not keep an image from being closed', async (t) => {
  const path = join(directory, 'twice.qcow2');
  await createQcow2(path, { sizeBytes: 1 << 20 });
  const { child, uri, exit } = await started(t, '-t', '-k', join(directory, 'twice.sock'), '-f', 'qcow2', path);
  const client = await NbdClient.connect(uri);
  await client.write(0, new Uint8Array(65_536).fill(7));
  child.kill('SIGTERM');
  await client.closed;
  child.kill('SIGTERM');
  t.deepEqual(await exit, [0, null]);
});

test('stays with --persistent, serves read-only with -r, lists with -L, and ends on SIGTERM with 0', async (t) => {
  const socket = join(directory, 'b.sock');
  const { child, uri, exit } = await started(
    t,
    '-rt',
    `--socket=${socket}`,
    '-fraw',
    '-e2',
    '-D',
    'root',
    image('b.raw'),
  );
  for (let round = 0; round < 2; round++) {
    const client = await NbdClient.connect(uri);
    t.true(client.readOnly);
    t.true(client.canMultiConn);
    await client.close();
  }
  const listed = await ran(process.execPath, argv(['-L', '-k', socket]));
  t.is(
    listed.stdout,
    [
      'exports available: 1',
      " export: ''",
      '  description: root',
      '  size:  1048576',
      '  flags: 0x158f ( readonly flush fua df multi cache block-status-payload )',
      '  min block: 1',
      '  opt block: 4096',
      '  max block: 33554432',
      '  transaction size: 64-bit',
      '  available meta contexts: 1',
      '   base:allocation',
      '',
    ].join('\n'),
  );
  child.kill('SIGTERM');
  t.deepEqual(await exit, [0, null]);
});

test('requires TLS with --tls-creds, lets in whom --tls-authz names, and lists over TLS', async (t) => {
  const socket = join(directory, 'tls.sock');
  const keys = join(directory, 'keys.psk');
  const key = 'a1'.repeat(32);
  writeFileSync(keys, `alice:${key}\nbob:${key}\n`);
  const words = ['-tk', socket, '-f', 'raw', `--tls-creds=${keys}`, '--tls-authz=alice'];
  const { child, uri, exit } = await started(t, ...words, image('tls.raw'));
  t.is(uri, `nbds+unix:///?socket=${socket}`);
  const tls = (user: string) => ({ tls: { client: new TlsClient(readPskFile(keys), { user }) } });
  const client = await NbdClient.connect(uri, tls('alice'));
  t.deepEqual(client.peer, { kind: 'psk', user: 'alice' });
  await client.close();
  await t.throwsAsync(NbdClient.connect(uri, tls('bob')));
  await t.throwsAsync(NbdClient.connect(uri.replace('nbds', 'nbd')), { message: /ERR_TLS_REQD/ });
  const listing = ['-L', '-k', socket, '--tls-creds', keys, '--tls-user=alice'];
  const listed = await ran(process.execPath, argv(listing));
  t.regex(listed.stdout, /^exports available: 1\n export: ''\n {2}size: {2}1048576\n/, listed.stderr);
  const refused = await ran(process.execPath, argv(['-L', '-k', socket]));
  t.is(refused.status, 1);
  child.kill('SIGTERM');
  t.deepEqual(await exit, [0, null]);
});

for (const [what, args, message] of [
  ['a name to let in without TLS', ['--tls-authz=alice', '-fraw', 'x'], 'Cannot use --tls-authz without --tls-creds'],
  ['an unknown long option', ['--sokcet=x'], 'unknown option; did you mean --socket'],
  ['a device of the kernel', ['-c', '/dev/nbd0', '-f', 'raw', 'a'], 'nbd-client’s work'],
  ['a snapshot inside raw', ['-l', 's', '-f', 'raw', 'a'], 'it is for qcow2'],
  ['a snapshot by what is no name', ['-l', 'snapshot.nmae=s', '-f', 'qcow2', 'a'], 'unknown'],
  ['an origin without WebSockets', ['--websocket-origin=x', '-fraw', 'a'], 'without --websocket'],
  ['an address of metrics that is none', ['--metrics=a:b', '-fraw', 'a'], 'expected a port'],
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
  ['a way to discard that is none', ['-f', 'raw', '--discard=maybe', 'a'], 'expected ignore or unmap'],
  ['a backing file of no known format', ['-f', 'qcow2', '--backing=x:a', 'b'], 'format x is not known'],
  ['a port that is none', ['-p', '70000', '-f', 'raw', 'a'], 'expected a number from 0 to 65535'],
  ['a port and a socket', ['-p', '1', '-k', '/x', '-f', 'raw', 'a'], 'Cannot use --socket and --port together'],
  ['a number of clients that is none', ['-e', 'x', '-f', 'raw', 'a'], 'expected a number'],
] as const) {
  // In this process, and one after the other: what goes wrong here does so before anything is opened.
  test.serial(`refuses ${what} with exit status 2`, async (t) => {
    const { write } = process.stderr;
    let said = '';
    process.stderr.write = (text) => {
      said += String(text);
      return true;
    };
    try {
      t.is(await nbdVerb.run([...args]), 2);
    } finally {
      process.stderr.write = write;
    }
    t.true(said.includes(message), said);
  });
}

test('a missing image is a failure with exit status 1', async (t) => {
  const { status, stderr } = await ran(process.execPath, argv(['-f', 'raw', join(directory, 'none')]));
  t.is(status, 1);
  t.regex(stderr, /ENOENT/);
});

test('ends with 1 where its pid file cannot be written', async (t) => {
  const [socket, pidFile] = [join(directory, 'p.sock'), join(directory, 'no', 'p.pid')];
  const words = ['-k', socket, '-f', 'raw', `--pid-file=${pidFile}`, image('p.raw')];
  const { status, stderr } = await ran(process.execPath, argv(words));
  t.deepEqual([status, stderr], [1, `caisson nbd: Cannot open ${pidFile}: no such file or directory (ENOENT)\n`]);
});

test('--help prints every option', async (t) => {
  const { status, stdout } = await ran(process.execPath, argv(['--help']));
  t.is(status, 0);
  for (const option of ['--socket', '--port', '--bind', '--format', '--export-name', '--read-only', '--shared']) {
    t.true(stdout.includes(option));
  }
});

test('--offset serves a part, --snapshot forgets, --cache=writethrough is taken', async (t) => {
  const socket = join(directory, 'o.sock');
  const file = image('o.raw');
  writeFileSync(file, new Uint8Array(1 << 20).fill(0x11));
  const words = ['-k', socket, '-f', 'raw', '-s', '-o', '4096', '--cache=writethrough', '--aio=threads', file];
  const { uri, exit } = await started(t, ...words);
  const client = await NbdClient.connect(uri);
  t.is(client.sizeBytes, (1 << 20) - 4096);
  await client.write(0, new Uint8Array(512).fill(0x22));
  const into = new Uint8Array(1024);
  await client.read(0, into);
  t.is(into[511], 0x22);
  t.is(into[512], 0x11);
  await client.close();
  t.deepEqual(await exit, [0, null]);
  t.true(readFileSync(file).every((byte) => byte === 0x11));
});

test('--metrics and --websocket on one port: counters, and the disk over WebSocket', async (t) => {
  const socket = join(directory, 'w.sock');
  const child = spawn(
    process.execPath,
    argv(['-tk', socket, '-e0', '-fraw', '--metrics=0', '--websocket=0', image('w.raw')]),
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  t.teardown(() => child.kill('SIGKILL'));
  let said = '';
  for await (const chunk of child.stdout!) {
    said += String(chunk);
    if (said.split('\n').length > 3 || said.includes('/metrics\n')) break;
  }
  const [, web = '', metrics = ''] = said.trim().split('\n');
  t.regex(web, /^ws:\/\/127\.0\.0\.1:\d+\/$/);
  const target = metrics === '' ? `${web.replace('ws', 'http')}metrics` : metrics;
  const client = await NbdClient.connect(await connectNbdWebSocket(web));
  await client.write(0, new Uint8Array(777));
  t.regex(await (await fetch(target)).text(), /caisson_nbd_written_bytes_total\{peer="127\.0\.0\.1"\} 777/);
  await client.close();
});

const main = new URL('../../../cli/main.ts', import.meta.url).pathname;

test('--fork ends with 0 once clients can connect, and --pid-file names who goes on', async (t) => {
  const [socket, pidFile] = [join(directory, 'f.sock'), join(directory, 'f.pid')];
  const words = ['nbd', '--qemu-nbd', '--fork', '-k', socket, `--pid-file=${pidFile}`, '-f', 'raw', '-x', 'exp'];
  const { status, stdout, stderr } = await ran(process.execPath, [main, ...words, image('f.raw')]);
  t.is(status, 0, stderr);
  t.is(stdout, '', 'qemu-nbd prints nothing');
  const pid = Number(readFileSync(pidFile, 'utf8'));
  t.teardown(() => existsSync(pidFile) && process.kill(pid, 'SIGKILL'));
  const client = await NbdClient.connect(`nbd+unix:///exp?socket=${socket}`);
  await client.write(0, new Uint8Array(512));
  await client.close();
  for (let tries = 0; tries < 200 && existsSync(pidFile); tries++) await new Promise((go) => setTimeout(go, 50));
  t.false(existsSync(pidFile), 'it ended with its last client');
});

test('--fork tells what went wrong, with the status and the name of qemu-nbd', async (t) => {
  const words = ['nbd', '--qemu-nbd', '--fork', '-k', join(directory, 'x.sock'), '-f', 'raw', join(directory, 'none')];
  const { status, stderr } = await ran(process.execPath, [main, ...words]);
  t.is(status, 1);
  t.regex(stderr, /^qemu-nbd: Failed to blk_new_open '.*none': .*: No such file or directory\n$/);
});

test('a link of the name qemu-nbd answers as qemu-nbd', async (t) => {
  const program = new URL('../../../bin/qemu-nbd', import.meta.url).pathname;
  const { status, stdout } = await ran(program, ['--version']);
  t.is(status, 0);
  t.regex(stdout, /^qemu-nbd \d+\.\d+/);
  const wrong = await ran(program, ['-f', 'raw']);
  t.is(wrong.status, 1);
  t.regex(wrong.stderr, /^qemu-nbd: Cannot serve: no IMAGE/);
});

test('under systemd it serves the socket that it is handed', async (t) => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const { fd } = (server as unknown as { _handle: { fd: number } })._handle;
  const child = spawn(process.execPath, argv(['-f', 'raw', image('sd.raw')]), {
    stdio: ['ignore', 'pipe', 'inherit', fd],
    // We are its parent, as the launcher would be.
    env: { ...process.env, LISTEN_PID: String(process.pid), LISTEN_FDS: '1' },
  });
  t.teardown(() => child.kill('SIGKILL'));
  const exit = once(child, 'exit');
  const [line] = (await once(child.stdout!, 'data')) as [Buffer];
  t.is(line.toString().trim(), `nbd://127.0.0.1:${port}/`);
  await new Promise((resolve) => server.close(resolve));
  const client = await NbdClient.connect(`nbd://127.0.0.1:${port}`);
  t.is(client.sizeBytes, 1 << 20);
  await client.close();
  t.deepEqual(await exit, [0, null]);
});

test('--object and --tls-authz: lists in QEMU’s words', async (t) => {
  const socket = join(directory, 'list.sock');
  const keys = join(directory, 'list');
  mkdirSync(keys);
  writeFileSync(
    join(keys, 'keys.psk'),
    ['alice', 'alan', 'bob'].map((user) => `${user}:${'b2'.repeat(32)}\n`).join(''),
  );
  const list =
    'authz-list,id=a,policy=deny,rules.0.match=alan,rules.0.policy=deny,rules.1.match=al*,rules.1.format=glob,rules.1.policy=allow';
  const words = [
    '-tk',
    socket,
    '-fraw',
    '--object',
    `tls-creds-psk,id=c,dir=${keys},endpoint=server`,
    '--object',
    list,
  ];
  const { uri } = await started(t, ...words, '--tls-creds=c', '--tls-authz=a', image('list.raw'));
  const open = (user: string) =>
    NbdClient.connect(uri, { tls: { client: new TlsClient(readPskFile(join(keys, 'keys.psk')), { user }) } });
  await (await open('alice')).close();
  await t.throwsAsync(open('alan'));
  await t.throwsAsync(open('bob'));
});
