// A guest whose disk lives on another NBD server, which is killed while the guest writes, and started again.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { Command, scratchFolder } from '../machine/guest.ts';
import { hasPrograms, listening } from './peers.ts';

const MAIN = fileURLToPath(new URL('../../cli/main.ts', import.meta.url));
const DISK_BYTES = 8 << 20;

interface Setup {
  readonly folder: string;
  readonly image: string;
  readonly socket: string;
}

/** A server process that can be killed and started again on the same socket. */
class Restartable {
  readonly #start: () => ChildProcess;
  readonly #socket: string;
  #child: ChildProcess | undefined;

  constructor(t: ExecutionContext, socket: string, start: () => ChildProcess) {
    this.#start = start;
    this.#socket = socket;
    t.teardown(() => this.kill());
  }

  async start(): Promise<void> {
    this.#child = this.#start();
    await listening(this.#socket);
  }

  async kill(): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined) return;
    const exit = once(child, 'exit');
    child.kill('SIGKILL');
    await exit;
  }
}

function setup(t: ExecutionContext): Setup {
  const folder = scratchFolder(t);
  const image = join(folder, 'disk.raw');
  writeFileSync(image, '');
  truncateSync(image, DISK_BYTES);
  return { folder, image, socket: join(folder, 'nbd.sock') };
}

/** Our firmware with a load of writes; every write is verified at the end. */
async function survives(t: ExecutionContext, server: Restartable, folder: string, args: string[]): Promise<void> {
  await server.start();
  const common = ['run', '-name', 'remote', '-m', '64M', '-nographic', '-bios', 'none', '-kernel', 'builtin:firmware'];
  const machine = new Command(folder, [...common, ...args]);
  t.teardown(() => machine.kill('SIGKILL'));
  const answers = async (line: string, pattern: RegExp): Promise<RegExpExecArray> => {
    machine.write(`${line}\r`);
    return machine.until(line, () => pattern.exec(machine.stdout), 60_000);
  };
  await machine.until('ready', () => /ready\r\n> /.exec(machine.stdout), 60_000);
  await answers('disk info', /disk: sectors=16384 .*bus=pci/);
  await answers('disk load 200', /disk load: 200/);
  for (let round = 1; round <= 3; round++) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    await server.kill();
    await machine.until(
      'gone',
      () => new RegExp(`(?:NBD server is gone[\\s\\S]*){${round}}`).exec(machine.stderr),
      60_000,
    );
    await new Promise((resolve) => setTimeout(resolve, 300));
    await server.start();
    await machine.until(
      'back',
      () => new RegExp(`(?:NBD server is back[\\s\\S]*){${round}}`).exec(machine.stderr),
      60_000,
    );
  }
  await answers('disk load 0', /disk load: 0/);
  await answers('disk flush', /disk flush: OK/);
  const verdict = await answers('disk verify', /disk verify: (\w+) sectors=(\d+) bad=(\d+) writes=(\d+) errors=(\d+)/);
  t.is(verdict[1], 'OK', verdict[0]);
  t.true(Number(verdict[4]) > 100, verdict[0]);
  machine.write('poweroff\r');
  await machine.exit;
}

test('C7: a guest goes on when qemu-nbd behind its disk is killed and started again', async (t) => {
  if (!hasPrograms(t, 'qemu-nbd')) return;
  t.timeout(180_000);
  const { folder, image, socket } = setup(t);
  const server = new Restartable(t, socket, () =>
    spawn('qemu-nbd', ['-k', socket, '-f', 'raw', '-t', '-e', '8', '-x', 'disk', image], { stdio: 'ignore' }),
  );
  await survives(t, server, folder, [
    '-drive',
    `file=nbd+unix:///disk?socket=${socket},format=raw,reconnect-delay=60,connections=2`,
  ]);
  t.true(readFileSync(image).some((byte) => byte !== 0));
});

test('C7: a guest goes on when our server behind its disk is killed, over TLS with -blockdev', async (t) => {
  t.timeout(180_000);
  const { folder, image, socket } = setup(t);
  const keys = join(folder, 'keys');
  mkdirSync(keys);
  writeFileSync(join(keys, 'keys.psk'), `guest:${randomBytes(32).toString('hex')}\n`);
  const server = new Restartable(t, socket, () =>
    spawn(
      process.execPath,
      [MAIN, 'nbd', '-k', socket, '-f', 'raw', '-t', '-e', '8', '-x', 'disk', '--tls-creds', keys, image],
      { stdio: 'ignore' },
    ),
  );
  const blockdev = {
    driver: 'nbd',
    'node-name': 'd',
    server: { type: 'unix', path: socket },
    export: 'disk',
    'tls-creds': 'keys',
    'reconnect-delay': 60,
  };
  await survives(t, server, folder, [
    ...['-object', `tls-creds-psk,id=keys,dir=${keys},endpoint=client`],
    ...['-blockdev', JSON.stringify(blockdev), '-device', 'virtio-blk-pci,drive=d'],
  ]);
});

test('a machine does not start when the NBD server of its disk is not there, and says so', async (t) => {
  const { folder, socket } = setup(t);
  const drive = `file=nbd+unix:///disk?socket=${socket},format=raw`;
  const machine = new Command(folder, [
    'run',
    '-nographic',
    '-bios',
    'none',
    '-kernel',
    'builtin:firmware',
    '-drive',
    drive,
  ]);
  const { status, stderr } = await machine.exit;
  t.not(status, 0);
  t.regex(stderr, /Cannot connect to .*ENOENT/);
});
