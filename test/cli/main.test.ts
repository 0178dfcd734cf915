import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';

const MAIN = fileURLToPath(new URL('../../cli/main.ts', import.meta.url));

interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

async function caisson(t: ExecutionContext, ...args: string[]): Promise<Ran> {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-cli-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const child = spawn(process.execPath, [MAIN, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, XDG_RUNTIME_DIR: folder },
  });
  const [out, err, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')]);
  return { code, out, err };
}

test('caisson --help teaches the verbs, VERB --help one of them', async (t) => {
  const all = await caisson(t, '--help');
  t.is(all.code, 0);
  for (const verb of ['run', 'debian', 'demo', 'nbd', 'migrate', 'console', 'list', 'stop', 'qmp']) {
    t.regex(all.out, new RegExp(`^ {2}${verb} +\\S`, 'm'));
  }
  const one = await caisson(t, 'run', '--help');
  t.is(one.code, 0);
  for (const option of ['-kernel FILE', '-drive file=FILE', '-incoming tcp:', '-S '])
    t.true(one.out.includes(option), option);
});

test('caisson --version prints the version', async (t) => {
  t.regex((await caisson(t, '--version')).out, /^caisson \d+\.\d+\.\d+\n$/);
});

test('an unknown verb is named with the nearest one, status 2', async (t) => {
  const { code, err, out } = await caisson(t, 'lsit');
  t.is(code, 2);
  t.regex(err, /Cannot lsit: unknown verb; did you mean list/);
  t.is(out, '');
});

test('QEMU’s options without run get a hint, status 2', async (t) => {
  const { code, err } = await caisson(t, '-kernel', 'x');
  t.is(code, 2);
  t.regex(err, /the options of a machine come after run/);
});

for (const [what, args, code, said] of [
  ['an unknown option', ['run', '-kernal', 'x'], 2, /did you mean -kernel/],
  ['a machine without a kernel', ['run', '-nographic'], 2, /without a kernel: add -kernel FILE/],
  ['help on a verb that is not there', ['help', 'lsit'], 2, /Cannot lsit: unknown verb; did you mean list/],
  ['an image that is not there', ['nbd', '-f', 'raw', '/nonexistent'], 1, /Cannot open \/nonexistent: no such file/],
  ['a machine that cannot be made', ['run', '-bios', 'none'], 2, /expected -kernel/],
  [
    'a kernel that is not there',
    ['run', '-nographic', '-kernel', '/nonexistent'],
    1,
    /Cannot open \/nonexistent as -kernel: no such file or directory \(ENOENT\)/,
  ],
  ['a machine that does not run', ['stop', 'nobody'], 1, /Cannot find a machine named nobody: none runs/],
  ['a name that is a path', ['run', '-kernel', 'x', '-name', '../x'], 2, /Cannot use -name \.\.\/x: expected/],
  [
    'a disk of a server that is not there',
    [
      'run',
      '-bios',
      'none',
      '-kernel',
      'builtin:firmware',
      '-nographic',
      '-drive',
      'file=nbd+unix:///?socket=/none,format=raw',
    ],
    1,
    /^caisson: Cannot open disk virtio0: Cannot connect to \/none: there is no such socket \(ENOENT\)\n$/,
  ],
  ['too few words', ['migrate', 'vm'], 2, /URI is missing/],
  ['a migration to nowhere', ['migrate', 'vm', 'host:1'], 2, /Cannot migrate to host:1: expected tcp:HOST:PORT/],
  ['too many words', ['console', 'a', 'b'], 2, /b is too much/],
  ['an option of another verb', ['stop', 'vm', '--keep'], 2, /Cannot use --keep with stop/],
  ['arguments that are no JSON', ['qmp', 'vm', 'stop', '{x'], 2, /Cannot read the arguments/],
] as const) {
  test(`caisson refuses ${what}, status ${code}`, async (t) => {
    const ran = await caisson(t, ...args);
    t.regex(ran.err, said);
    t.is(ran.code, code);
    t.notRegex(ran.err, /\n {4}at /, 'a stack trace is not for users');
  });
}

test('a disk of another format is told in one line, without what follows from it, status 1', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-cli-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const disk = join(folder, 'disk.raw');
  await writeFile(disk, Buffer.alloc(1 << 20));
  const given = ['-bios', 'none', '-kernel', 'builtin:firmware', '-nographic', '-drive'];
  const { code, err } = await caisson(t, 'run', ...given, `file=${disk},format=qcow2`);
  t.is(code, 1);
  t.regex(err, /^caisson: Cannot open disk virtio0: [^\n]*; so it is no qcow2 image\n$/);
});

test('SIGTERM again and again, as from timeout(1), does not keep a machine from ending in order', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-cli-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const words = ['run', '-bios', 'none', '-kernel', 'builtin:firmware', '-nographic', '-name', 'ends'];
  const env = { ...process.env, XDG_RUNTIME_DIR: folder };
  const child = spawn(process.execPath, [MAIN, ...words], { stdio: ['pipe', 'pipe', 'ignore'], env });
  let out = '';
  for await (const chunk of child.stdout) {
    out += String(chunk);
    if (out.includes('ready')) break;
  }
  t.true(existsSync(join(folder, 'caisson', 'ends')));
  const exit = once(child, 'exit');
  while (child.exitCode === null && child.signalCode === null) {
    child.kill('SIGTERM');
    await sleep(5);
  }
  await exit;
  t.false(existsSync(join(folder, 'caisson', 'ends')), 'its folder goes');
});

test('caisson run -help is the help, as QEMU’s', async (t) => {
  const { code, out } = await caisson(t, 'run', '-help');
  t.is(code, 0);
  t.regex(out, /-kernel FILE/);
});

test('caisson list prints a table, also of nothing', async (t) => {
  const { code, out } = await caisson(t, 'list');
  t.is(code, 0);
  t.regex(out, /^NAME +STATUS +PID +HARTS +MEMORY +AGE\n$/);
});
