import { type ChildProcess, execFile, execFileSync, type SpawnOptions, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { codeCache, nodeFlags } from '../../scripts/launch.mjs';
import type { ServerName, Transport, Workload } from './workloads.ts';

export const IMAGE_BYTES = 256 << 20;
/** Of `/proc/PID/stat`, on every Linux of today */
const TICKS_PER_SECOND = 100;
/** What does not end by itself is killed, in `ms` */
const STOP_MS = 2000;
const CLI = join(import.meta.dirname, '..', '..', 'cli', 'main.ts');
/** As much as glibc takes: no block comes from mmap(), and nothing is given back */
const KEPT_MEMORY = { MALLOC_MMAP_THRESHOLD_: '33554432', MALLOC_TRIM_THRESHOLD_: '4294967296', MALLOC_ARENA_MAX: '1' };
/**
 * Preloaded where the loop's worst stall is asked for: SIGUSR2 prints it, in `ms`, and what the worst one is without the
 * time that the thread waited for a core (second field of schedstat, in `ns`), and starts anew. A turn every millisecond
 * is meant to come.
 */
const WATCH_LOOP = `data:text/javascript,${encodeURIComponent(`
import { openSync, readSync } from 'node:fs';
const fd = openSync('/proc/self/schedstat', 'r');
const text = Buffer.alloc(100);
const waited = () => Number(text.latin1Slice(0, readSync(fd, text, 0, 100, 0)).split(' ')[1]) / 1e6;
let [at, queued, worst, own] = [performance.now(), waited(), 0, 0];
setInterval(() => {
  const [now, wait] = [performance.now(), waited()];
  const late = Math.max(now - at - 1, 0);
  worst = Math.max(worst, late);
  own = Math.max(own, late - (wait - queued));
  [at, queued] = [now, wait];
}, 1).unref();
process.on('SIGUSR2', () => { process.stderr.write('stall ' + worst + ' ' + own + '\\n'); worst = own = 0; });
`)}`;

/** How long an event loop stood, in `ms`. */
export interface Stall {
  readonly ms: number;
  /** … the longest without waiting for a core that others had */
  readonly ownMs: number;
}

/** Images, keys and addresses of one run, all in folders that end with it. */
export interface Setup {
  readonly folders: readonly string[];
  /** By storage and format */
  readonly images: Readonly<Record<'memory raw' | 'memory qcow2' | 'file raw', string>>;
  /** What is copied in */
  readonly source: string;
  readonly keys: string;
  readonly socket: string;
  readonly port: number;
}

export async function prepare(): Promise<Setup> {
  const memory = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'caisson-bench-'));
  const disk = mkdtempSync(join(tmpdir(), 'caisson-bench-'));
  const images = {
    'memory raw': join(memory, 'disk.raw'),
    'memory qcow2': join(memory, 'disk.qcow2'),
    'file raw': join(disk, 'disk.raw'),
  };
  const [source, keys] = [join(memory, 'source.raw'), join(memory, 'keys')];
  const contents = randomBytes(IMAGE_BYTES);
  for (const path of [images['memory raw'], images['file raw'], source]) writeFileSync(path, contents, { flush: true });
  execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', source, images['memory qcow2']]);
  mkdirSync(keys);
  writeFileSync(join(keys, 'keys.psk'), `alice:${randomBytes(32).toString('hex')}\n`, { mode: 0o600 });
  const probe = createServer();
  await new Promise<void>((resolve) => probe.listen(0, '127.0.0.1', resolve));
  const { port } = probe.address() as AddressInfo;
  await new Promise((resolve) => probe.close(resolve));
  return { folders: [memory, disk], images, source, keys, socket: join(memory, 'nbd.sock'), port };
}

/** Starts ours once in each way: what Node compiles and keeps then is no part of a measurement. */
export async function compile(setup: Setup): Promise<void> {
  for (const [transport, format] of [
    ['unix', 'raw'],
    ['unix', 'qcow2'],
    ['tls', 'raw'],
  ] as const) {
    await (await BenchServer.start('ours', { transport, storage: 'memory', format }, setup)).stop();
  }
}

export function dispose({ folders }: Setup): void {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
}

type Served = Pick<Workload, 'transport' | 'storage' | 'format'> & Partial<Pick<Workload, 'simple'>>;

export function imageOf(name: ServerName, { storage, format }: Served, setup: Setup): string {
  if (storage !== 'memory') return setup.images['file raw'];
  return setup.images[name === 'ours, raw' || format === 'raw' ? 'memory raw' : 'memory qcow2'];
}

/** Ended with this process, however it ends */
const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** A server in a process of its own, started for one measurement. */
export class BenchServer {
  readonly #child: ChildProcess;
  readonly #exit: Promise<unknown>;
  readonly #socket: string;
  #stderr = '';

  private constructor(child: ChildProcess, socket: string) {
    this.#child = child;
    this.#exit = once(child, 'exit');
    this.#socket = socket;
    running.add(child);
    child.stderr?.on('data', (chunk) => {
      this.#stderr += chunk;
    });
  }

  /** Resolves when it listens. `watch`: ours tells its event loop's stalls */
  static async start(name: ServerName, served: Served, setup: Setup, watch = false): Promise<BenchServer> {
    const { program, args, env } = commandOf(name, served, setup, watch);
    const options: SpawnOptions = { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, ...env } };
    const server = new BenchServer(spawn(program, args, options), setup.socket);
    try {
      await server.#listens(served.transport, setup);
    } catch (error) {
      await server.stop();
      throw error;
    }
    return server;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** User and system time so far, of threads and children that have ended too, in `s` */
  cpuSeconds(): number {
    let ticks = 0;
    for (const id of [this.pid, ...childrenOf(this.pid)]) ticks += ticksOf(id);
    return ticks / TICKS_PER_SECOND;
  }

  /** Resident now, and at most so far, in `bytes`, of all processes together */
  memory(): { residentBytes: number; peakBytes: number } {
    const all = [this.pid, ...childrenOf(this.pid)].map(memoryOf);
    return {
      residentBytes: all.reduce((sum, { residentBytes }) => sum + residentBytes, 0),
      peakBytes: all.reduce((sum, { peakBytes }) => sum + peakBytes, 0),
    };
  }

  /** The longest that the event loop stood since the last look. Ours only, started with `watch` */
  async worstStall(): Promise<Stall> {
    const before = this.#stderr.length;
    this.#child.kill('SIGUSR2');
    for (let attempt = 0; attempt < 200; attempt++) {
      const found = /stall ([\d.]+) ([\d.]+)\n/.exec(this.#stderr.slice(before));
      if (found !== null) return { ms: Number(found[1]), ownMs: Number(found[2]) };
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    throw new Error('Cannot learn how long the event loop stood: the server does not answer');
  }

  async stop(): Promise<void> {
    this.#child.kill('SIGTERM');
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), STOP_MS);
    await this.#exit;
    clearTimeout(timer);
    running.delete(this.#child);
    rmSync(this.#socket, { force: true });
  }

  /** /proc says so without a connection, which some servers would serve. */
  async #listens(transport: Transport, { socket, port }: Setup): Promise<void> {
    const tcp = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')} 00000000:0000 0A`;
    for (let attempt = 0; attempt < 1000; attempt++) {
      const [file, entry] = transport === 'tcp' ? ['/proc/net/tcp', tcp] : ['/proc/net/unix', ` ${socket}\n`];
      if (readFileSync(file, 'latin1').includes(entry)) return;
      if (this.#child.exitCode !== null) throw new Error(`Cannot measure: the server has ended: ${this.#stderr}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error('Cannot measure: the server does not listen after 20 s');
  }
}

interface Command {
  readonly program: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

function commandOf(name: ServerName, served: Served, setup: Setup, watch: boolean): Command {
  const { socket, port, keys } = setup;
  const image = imageOf(name, served, setup);
  const pskFile = join(keys, 'keys.psk');
  const isTls = served.transport === 'tls';
  const inet = served.transport === 'tcp';
  if (name.startsWith('nbdkit')) {
    const simple = name === 'nbdkit' ? [] : ['--no-sr'];
    const where = inet ? ['-i', '127.0.0.1', '-p', String(port)] : ['-U', socket];
    return {
      program: 'nbdkit',
      args: ['-f', ...where, ...(isTls ? ['--tls=require', `--tls-psk=${pskFile}`] : []), ...simple, 'file', image],
    };
  }
  const where = inet ? ['-b', '127.0.0.1', '-p', String(port)] : ['-k', socket];
  const format = name === 'ours, raw' ? 'raw' : served.format;
  // Ours with its own limits: clients that wait for their turn would not be the peers that are measured.
  const common = [...where, '-f', format, '-e', name.startsWith('ours') ? '0' : '8', '-t'];
  if (name.startsWith('ours')) {
    const tls = isTls ? [`--tls-creds=${pskFile}`] : [];
    const simple = served.simple === true ? ['--no-sr'] : [];
    const preload = watch ? ['--import', WATCH_LOOP] : [];
    // As the launcher does it
    const flags = [...nodeFlags('nbd'), ...preload];
    return {
      program: process.execPath,
      args: [...flags, CLI, 'nbd', ...common, ...tls, ...simple, image],
      env: codeCache(),
    };
  }
  const tls = isTls ? ['--object', `tls-creds-psk,id=t,dir=${keys},endpoint=server`, '--tls-creds', 't'] : [];
  const aio = name === 'qemu io_uring' ? ['--aio=io_uring'] : [];
  return {
    program: 'qemu-nbd',
    args: [...common, ...aio, ...tls, image],
    ...(name === 'qemu kept' ? { env: KEPT_MEMORY } : {}),
  };
}

function ticksOf(pid: number): number {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, 'latin1')
      .replace(/^.*\) /, '')
      .split(' ');
    return Number(fields[11]) + Number(fields[12]);
  } catch {
    return 0; // it has ended
  }
}

function memoryOf(pid: number): { residentBytes: number; peakBytes: number } {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    const kib = (field: string): number =>
      Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1] ?? 0) * 1024;
    return { residentBytes: kib('VmRSS'), peakBytes: kib('VmHWM') };
  } catch {
    return { residentBytes: 0, peakBytes: 0 }; // it has ended
  }
}

function childrenOf(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((task) => {
    try {
      return readFileSync(`/proc/${pid}/task/${task}/children`, 'latin1').split(' ').filter(Boolean).map(Number);
    } catch {
      return [];
    }
  });
}

export function has(program: string): Promise<boolean> {
  return new Promise((resolve) => execFile(program, ['--version'], (error) => resolve(error === null)));
}
