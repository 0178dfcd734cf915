// QEMU's own block tests (qemu-iotests) with our server in the place of qemu-nbd. They are GPL and not part of this
// project: Debian's source package is fetched by apt at test time, and unpacked into a folder that goes afterwards.
import { spawn } from 'node:child_process';
import { chmodSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import { findProgram, hasPrograms, scratch } from './peers.ts';

const { path, remove } = scratch();
test.after.always(remove);

/** The shell tests of raw over NBD that need no guest */
const PASSING = [
  ...['001', '002', '003', '004', '008', '009', '010', '011', '021', '032', '033'],
  ...['077', '083', '104', '123', '197', '215', '259'],
];
/** Needs a file system for files of 8 EiB, and is not run elsewhere */
const MAY_BE_SKIPPED = ['005'];
/** 241 wants a server that probes the format, and that rounds a size of 1000 bytes up to 1024: ours does neither */
const DIFFERENT = ['241'];

const MAIN = new URL('../../cli/main.ts', import.meta.url).pathname;

/** The folder of the tests; undefined, and a line, where the source is not to be had. */
async function fetchIotests(t: ExecutionContext): Promise<string | undefined> {
  const parts = path('parts');
  const lists = path('lists');
  mkdirSync(parts);
  mkdirSync(join(lists, 'partial'), { recursive: true });
  const folder = '/etc/apt/sources.list.d';
  try {
    for (const name of readdirSync(folder).filter((file) => file.endsWith('.sources'))) {
      const text = readFileSync(join(folder, name), 'utf8').replace(/^Types:.*$/gm, 'Types: deb-src');
      writeFileSync(join(parts, name), text);
    }
  } catch {
    t.log('SKIPPED: no apt sources here');
    return undefined;
  }
  const apt = [
    'Dir::Etc::sourcelist=/dev/null',
    `Dir::Etc::sourceparts=${parts}`,
    `Dir::State::lists=${lists}`,
    'APT::Sandbox::User=root',
  ].flatMap((option) => ['-o', option]);
  const script = `cd '${path('')}' && apt-get -q ${apt.join(' ')} update && apt-get -q ${apt.join(' ')} source --download-only qemu && mkdir source && tar xf qemu_*.orig.tar.* -C source --strip-components=1 --wildcards '*/tests/qemu-iotests' '*/scripts/qapi' '*/python'`;
  const { status, stderr } = await command('sh', ['-c', script], {}, 300_000);
  const iotests = path('source/tests/qemu-iotests');
  if (status === 0) return iotests;
  t.log(`SKIPPED: the source of qemu is not to be had: ${stderr.trim().split('\n').at(-1)}`);
  return undefined;
}

function command(
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
  timeoutMs: number,
  cwd?: string,
): Promise<{ status: number | null; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = spawn(program, args, {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: timeoutMs,
      ...(cwd === undefined ? {} : { cwd }),
    });
    const said = { stdout: '', stderr: '' };
    child.stdout.on('data', (chunk: Buffer) => {
      said.stdout += chunk.toString();
    });
    child.stderr.on('data', (chunk: Buffer) => {
      said.stderr += chunk.toString();
    });
    child.once('error', (error) => resolve({ status: null, ...said, stderr: error.message }));
    child.once('close', (status) => resolve({ status, ...said }));
  });
}

test('qemu-iotests, raw over NBD, with our server as qemu-nbd', async (t) => {
  t.timeout(900_000);
  if (!hasPrograms(t, 'qemu-io', 'qemu-img', 'qemu-nbd', 'qemu-storage-daemon', 'qemu-system-riscv64', 'tar')) return;
  const folder = await fetchIotests(t);
  if (folder === undefined) {
    t.pass();
    return;
  }
  const shim = path('qemu-nbd');
  writeFileSync(shim, `#!/bin/sh\nexec '${process.execPath}' '${MAIN}' nbd --qemu-nbd "$@"\n`);
  chmodSync(shim, 0o755);
  // The harness waits a second for its server; a slow host needs longer.
  const common = join(folder, 'common.rc');
  const waiting = 'for i in $(seq 200); do [ -f "$QEMU_TEST_DIR/qemu-nbd.pid" ] && break; sleep 0.1; done';
  writeFileSync(
    common,
    readFileSync(common, 'utf8').replace(/^( *)sleep 1 # .*qemu-nbd needs.*$/m, () => waiting),
  );
  for (const name of ['work', 'sock']) mkdirSync(path(name));
  const env = {
    QEMU_PROG: findProgram('qemu-system-riscv64')!,
    QEMU_IMG_PROG: findProgram('qemu-img')!,
    QEMU_IO_PROG: findProgram('qemu-io')!,
    QSD_PROG: findProgram('qemu-storage-daemon')!,
    QEMU_NBD_PROG: shim,
    TEST_DIR: path('work'),
    SOCK_DIR: path('sock'),
    PYTHON: '/usr/bin/python3',
    PATH: `/usr/bin:/bin:${process.env.PATH ?? ''}`,
  };
  const names = [...PASSING, ...MAY_BE_SKIPPED, ...DIFFERENT];
  const { stdout, stderr } = await command('./check', ['-nbd', '-raw', ...names], env, 600_000, folder);
  const results = new Map(
    [...stdout.matchAll(/(\d{3}) +(pass|fail|not run) /g)].map((match) => [match[1]!, match[2]!]),
  );
  t.log([...results].map(([name, result]) => `${name} ${result}`).join(', '));
  t.deepEqual(
    PASSING.filter((name) => results.get(name) !== 'pass'),
    [],
    `${stdout.slice(-4000)}${stderr.slice(-1000)}`,
  );
  for (const name of MAY_BE_SKIPPED) t.not(results.get(name), 'fail');
});
