// Our NBD server against qemu-nbd (threads and io_uring) and nbdkit: same image in memory, same clients (fio, nbdcopy),
// servers in turn, started anew for every run. Medians, and the processor time of the server's process alone.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';

const IMAGE_BYTES = 256 << 20;
const DEFAULT_ROUNDS = 5;
const DEFAULT_SECONDS = 1;
/** Of /proc/PID/stat, on every Linux of today */
const TICKS_PER_SECOND = 100;

type Transport = 'unix' | 'tcp' | 'tls';
type ServerName = 'ours' | 'qemu-nbd' | 'qemu io_uring' | 'nbdkit';

interface Workload {
  readonly name: string;
  readonly transport: Transport;
  /** fio's words, or nbdcopy's direction and size of its requests */
  readonly fio?: readonly string[];
  readonly copy?: { readonly to: 'null' | 'server'; readonly requestBytes: number; readonly connections: number };
}

const random = (rw: string, depth: number, jobs = 1): readonly string[] => [
  `--rw=${rw}`,
  '--bs=4k',
  `--iodepth=${depth}`,
  `--numjobs=${jobs}`,
];
const sequential = (rw: string, size: string): readonly string[] => [`--rw=${rw}`, `--bs=${size}`, '--iodepth=16'];

const WORKLOADS: readonly Workload[] = [
  { name: 'read 4K QD1', transport: 'unix', fio: random('randread', 1) },
  { name: 'read 4K QD16', transport: 'unix', fio: random('randread', 16) },
  { name: 'read 4K QD64', transport: 'unix', fio: random('randread', 64) },
  { name: 'read 4K 4×QD16', transport: 'unix', fio: random('randread', 16, 4) },
  { name: 'write 4K QD1', transport: 'unix', fio: random('randwrite', 1) },
  { name: 'write 4K QD64', transport: 'unix', fio: random('randwrite', 64) },
  { name: 'read 128K', transport: 'unix', fio: sequential('read', '128k') },
  { name: 'read 1M', transport: 'unix', fio: sequential('read', '1m') },
  { name: 'write 128K', transport: 'unix', fio: sequential('write', '128k') },
  { name: 'write 1M', transport: 'unix', fio: sequential('write', '1m') },
  { name: 'read 4K QD16, TCP', transport: 'tcp', fio: random('randread', 16) },
  { name: 'read 1M, TCP', transport: 'tcp', fio: sequential('read', '1m') },
  { name: 'write 1M, TCP', transport: 'tcp', fio: sequential('write', '1m') },
  { name: 'copy out 1M', transport: 'unix', copy: { to: 'null', requestBytes: 1 << 20, connections: 1 } },
  { name: 'copy out 1M, 4 conn.', transport: 'unix', copy: { to: 'null', requestBytes: 1 << 20, connections: 4 } },
  { name: 'copy out 1M, TLS', transport: 'tls', copy: { to: 'null', requestBytes: 1 << 20, connections: 1 } },
  { name: 'copy in 1M, TLS', transport: 'tls', copy: { to: 'server', requestBytes: 1 << 20, connections: 1 } },
];

interface Setup {
  readonly image: string;
  readonly source: string;
  readonly keys: string;
  readonly socket: string;
  readonly port: number;
}

const serverScript = `
import { ExportSet, NbdListener, RawImage } from ${JSON.stringify(new URL('../services/nbd/mod.ts', import.meta.url).href)};
import { readPskFile, TlsServer } from ${JSON.stringify(new URL('../services/shared/mod.ts', import.meta.url).href)};
const [file, path, port, keys] = process.argv.slice(1);
const exports = new ExportSet();
exports.add({ name: '', image: await RawImage.open(file, { readOnly: false }), writable: true });
const address = path === '' ? { type: 'inet', port: Number(port) } : { type: 'unix', path };
const tls = keys === '' ? {} : { tls: { server: new TlsServer(readPskFile(keys)), mode: 'require' } };
await NbdListener.listen(address, exports, tls);
`;

function startServer(name: ServerName, transport: Transport, setup: Setup): ChildProcess {
  const { image, socket, port, keys } = setup;
  const isTcp = transport === 'tcp';
  const isTls = transport === 'tls';
  const pskFile = join(keys, 'keys.psk');
  if (name === 'ours') {
    const words = [image, isTcp ? '' : socket, String(port), isTls ? pskFile : ''];
    return spawn(process.execPath, ['--input-type=module', '-e', serverScript, '--', ...words], { stdio: 'ignore' });
  }
  if (name === 'nbdkit') {
    const where = isTcp ? ['-i', '127.0.0.1', '-p', String(port)] : ['-U', socket];
    const tls = isTls ? ['--tls=require', `--tls-psk=${pskFile}`] : [];
    return spawn('nbdkit', ['-f', ...where, ...tls, 'file', image], { stdio: 'ignore' });
  }
  const where = isTcp ? ['-b', '127.0.0.1', '-p', String(port)] : ['-k', socket];
  const tls = isTls ? ['--object', `tls-creds-psk,id=t,dir=${keys},endpoint=server`, '--tls-creds', 't'] : [];
  const aio = name === 'qemu io_uring' ? ['--aio=io_uring'] : [];
  return spawn('qemu-nbd', [...where, '-f', 'raw', '-e', '8', '-t', ...aio, ...tls, image], { stdio: 'ignore' });
}

interface Sample {
  /** IOPS, or MB/s */
  readonly speed: number;
  /** µs an operation of 4 KiB, or s a GB */
  readonly cpu: number;
}

type Row = Readonly<Record<string, string | number | undefined>>;

/** A row for each workload; empty where fio or qemu-nbd is missing. */
export async function run(
  options: { rounds?: number; seconds?: number; only?: readonly string[]; onRow?: (row: Row) => void } = {},
): Promise<readonly Row[]> {
  for (const program of ['fio', 'qemu-nbd', 'nbdcopy', 'nbdkit']) {
    if (!(await has(program))) {
      process.stdout.write(`SKIPPED: ${program} is not installed\n`);
      if (program !== 'nbdkit') return [];
    }
  }
  const servers: ServerName[] = [
    'ours',
    'qemu-nbd',
    'qemu io_uring',
    ...((await has('nbdkit')) ? ['nbdkit' as const] : []),
  ];
  const directory = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'caisson-bench-'));
  try {
    const setup = await prepare(directory);
    const rows: Row[] = [];
    for (const workload of WORKLOADS) {
      if (options.only !== undefined && !options.only.some((part) => workload.name.includes(part))) continue;
      const samples = new Map<ServerName, Sample[]>(servers.map((name) => [name, []]));
      for (let round = 0; round < (options.rounds ?? DEFAULT_ROUNDS); round++) {
        for (const name of servers) {
          const sample = await measure(name, workload, setup, options.seconds ?? DEFAULT_SECONDS);
          if (sample !== undefined) samples.get(name)!.push(sample);
        }
      }
      const row = rowOf(workload, samples);
      rows.push(row);
      options.onRow?.(row);
    }
    return rows;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function prepare(directory: string): Promise<Setup> {
  const [image, source, keys] = [join(directory, 'disk.raw'), join(directory, 'source.raw'), join(directory, 'keys')];
  const contents = randomBytes(IMAGE_BYTES);
  writeFileSync(image, contents);
  writeFileSync(source, contents);
  mkdirSync(keys);
  writeFileSync(join(keys, 'keys.psk'), `alice:${randomBytes(32).toString('hex')}\n`);
  const probe = createServer();
  await new Promise<void>((resolve) => probe.listen(0, '127.0.0.1', resolve));
  const { port } = probe.address() as AddressInfo;
  await new Promise((resolve) => probe.close(resolve));
  return { image, source, keys, socket: join(directory, 'nbd.sock'), port };
}

function rowOf(workload: Workload, samples: ReadonlyMap<ServerName, readonly Sample[]>): Row {
  const unit = isRandom(workload) ? 'IOPS' : 'MB/s';
  const row: Record<string, string | number | undefined> = { workload: workload.name, unit };
  const speeds = new Map<ServerName, number>();
  for (const [name, taken] of samples) {
    const speed = median(taken.map((sample) => sample.speed));
    // Others on the host only ever add to the processor time.
    const cpu = Math.min(...taken.map((sample) => sample.cpu));
    if (speed !== undefined) speeds.set(name, speed);
    row[name] = speed === undefined ? undefined : Math.round(speed);
    row[`${name} CPU`] = Number.isFinite(cpu) ? cpu.toFixed(isRandom(workload) ? 1 : 2) : undefined;
  }
  for (const [name, speed] of speeds) {
    if (name !== 'ours') row[`÷ ${name}`] = (speeds.get('ours')! / speed).toFixed(2);
  }
  return row;
}

async function measure(
  name: ServerName,
  workload: Workload,
  setup: Setup,
  seconds: number,
): Promise<Sample | undefined> {
  const server = startServer(name, workload.transport, setup);
  const exit = once(server, 'exit');
  try {
    await ready(workload.transport, setup);
    const before = cpuSeconds(server.pid!);
    const done = workload.fio === undefined ? await copy(workload, setup) : await fio(workload, setup, seconds);
    const cpu = cpuSeconds(server.pid!) - before;
    if (done === undefined) return undefined;
    return isRandom(workload)
      ? { speed: done.operations / done.seconds, cpu: (cpu / done.operations) * 1e6 }
      : { speed: done.bytes / 1e6 / done.seconds, cpu: cpu / (done.bytes / 1e9) };
  } finally {
    server.kill('SIGKILL');
    await exit;
    rmSync(setup.socket, { force: true });
  }
}

interface Done {
  readonly operations: number;
  readonly bytes: number;
  readonly seconds: number;
}

async function fio(workload: Workload, setup: Setup, seconds: number): Promise<Done | undefined> {
  const uri = workload.transport === 'tcp' ? `nbd://127.0.0.1:${setup.port}/` : `nbd+unix:///?socket=${setup.socket}`;
  const common = ['--name=t', '--ioengine=nbd', `--uri=${uri}`, '--thread', '--group_reporting', '--time_based'];
  const bounds = [`--runtime=${seconds}`, `--size=${IMAGE_BYTES}`, '--norandommap', '--randrepeat=0'];
  const stdout = await output('fio', [...common, ...bounds, ...workload.fio!, '--output-format=json']);
  if (stdout === undefined) return undefined;
  const [job] = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs;
  const side = workload.fio![0]!.includes('read') ? job.read : job.write;
  return { operations: side.total_ios, bytes: side.io_bytes, seconds: side.runtime / 1000 };
}

async function copy(workload: Workload, setup: Setup): Promise<Done | undefined> {
  const { to, requestBytes, connections } = workload.copy!;
  const psk = encodeURIComponent(join(setup.keys, 'keys.psk'));
  const uri =
    workload.transport === 'tls'
      ? `nbds+unix://alice@/?socket=${setup.socket}&tls-psk-file=${psk}`
      : `nbd+unix:///?socket=${setup.socket}`;
  const words = [`--request-size=${requestBytes}`, `--connections=${connections}`, '--requests=16', '--no-extents'];
  const start = performance.now();
  const ends = to === 'null' ? [uri, 'null:'] : [setup.source, uri];
  if ((await output('nbdcopy', [...words, `--threads=${Math.min(connections, 2)}`, ...ends])) === undefined)
    return undefined;
  return { operations: IMAGE_BYTES / requestBytes, bytes: IMAGE_BYTES, seconds: (performance.now() - start) / 1000 };
}

/** User and system time of a process and its threads so far */
function cpuSeconds(pid: number): number {
  let ticks = 0;
  for (const id of [String(pid), ...childrenOf(pid)]) {
    try {
      const fields = readFileSync(`/proc/${id}/stat`, 'latin1')
        .replace(/^.*\) /, '')
        .split(' ');
      ticks += Number(fields[11]) + Number(fields[12]);
    } catch {
      // It has ended.
    }
  }
  return ticks / TICKS_PER_SECOND;
}

function childrenOf(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((task) => {
    try {
      return readFileSync(`/proc/${pid}/task/${task}/children`, 'latin1').split(' ').filter(Boolean);
    } catch {
      return [];
    }
  });
}

function isRandom(workload: Workload): boolean {
  return workload.fio?.includes('--bs=4k') === true;
}

function median(values: readonly number[]): number | undefined {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

/** Listens: /proc says so without a connection, which some servers would serve */
async function ready(transport: Transport, { socket, port }: Setup): Promise<void> {
  const tcp = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')} 00000000:0000 0A`;
  for (let attempt = 0; attempt < 400; attempt++) {
    const listens =
      transport === 'tcp'
        ? readFileSync('/proc/net/tcp', 'latin1').includes(tcp)
        : readFileSync('/proc/net/unix', 'latin1').includes(` ${socket}\n`);
    if (listens) return;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error('Cannot measure: the server does not listen after 10 s');
}

function output(program: string, args: readonly string[]): Promise<string | undefined> {
  return new Promise((resolve) => {
    execFile(program, args, { timeout: 60_000, maxBuffer: 16 << 20 }, (error, stdout) => {
      resolve(error === null ? stdout : undefined);
    });
  });
}

function has(program: string): Promise<boolean> {
  return new Promise((resolve) => execFile(program, ['--version'], (error) => resolve(error === null)));
}

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { rounds: { type: 'string', default: '3' }, seconds: { type: 'string', default: '1' } },
  });
  const only = positionals.length === 0 ? {} : { only: positionals };
  await run({
    rounds: Number(values.rounds),
    seconds: Number(values.seconds),
    onRow: (row) =>
      process.stdout.write(
        `${Object.entries(row)
          .map((cell) => cell.join(' '))
          .join(', ')}\n`,
      ),
    ...only,
  });
}
