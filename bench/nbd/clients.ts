import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { IMAGE_BYTES, type Setup } from './servers.ts';
import type { Client, Transport } from './workloads.ts';

/** What a client has done. */
export interface Work {
  readonly operations: number;
  readonly bytes: number;
  readonly seconds: number;
  /** Median latency, in `µs`; fio only */
  readonly p50: number | undefined;
  /** What the client had of a core, in `%`; not of several at once */
  readonly clientPercent: number | undefined;
}

/** Runs the client once; for about `runMs` where it can be told. @throws Error where it fails */
export async function work(client: Client, transport: Transport, setup: Setup, runMs: number): Promise<Work> {
  switch (client.kind) {
    case 'fio':
      return fio(client, transport, setup, runMs);
    case 'copy':
      return copy(client, transport, setup);
    case 'qemu-img':
      return qemuImg(client, setup, runMs);
  }
}

async function fio(
  client: Client & { kind: 'fio' },
  transport: Transport,
  { socket, port }: Setup,
  runMs: number,
): Promise<Work> {
  const uri = transport === 'tcp' ? `nbd://127.0.0.1:${port}/` : `nbd+unix:///?socket=${socket}`;
  const { rw, blockBytes, depth, jobs } = client;
  const { stdout } = await output('fio', [
    ...['--name=t', '--ioengine=nbd', `--uri=${uri}`, '--thread', '--group_reporting', '--time_based'],
    ...[`--runtime=${runMs}ms`, `--size=${IMAGE_BYTES}`, '--norandommap', '--randrepeat=0'],
    ...[`--rw=${rw}`, `--bs=${blockBytes}`, `--iodepth=${depth}`, `--numjobs=${jobs}`, '--output-format=json'],
  ]);
  const done = parseFio(stdout, rw.includes('read') ? 'read' : 'write');
  // Of several jobs fio tells the mean
  return jobs === 1 ? done : { ...done, clientPercent: undefined };
}

/** One group of jobs out of `--output-format=json`, in front of which fio may have put warnings. */
export function parseFio(stdout: string, side: 'read' | 'write'): Work {
  const jobs = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs;
  const { total_ios, io_bytes, runtime, clat_ns } = jobs[0][side];
  const { usr_cpu, sys_cpu } = jobs[0];
  if (!(total_ios > 0) || !(runtime > 0)) throw new Error('Cannot read fio: it has done nothing');
  const median: unknown = clat_ns?.percentile?.['50.000000'];
  return {
    operations: total_ios,
    bytes: io_bytes,
    seconds: runtime / 1000,
    p50: typeof median === 'number' ? median / 1000 : undefined,
    clientPercent: typeof usr_cpu === 'number' && typeof sys_cpu === 'number' ? usr_cpu + sys_cpu : undefined,
  };
}

async function copy(client: Client & { kind: 'copy' }, transport: Transport, setup: Setup): Promise<Work> {
  const { to, blockBytes, connections } = client;
  const psk = encodeURIComponent(join(setup.keys, 'keys.psk'));
  const uri =
    transport === 'tls'
      ? `nbds+unix://alice@/?socket=${setup.socket}&tls-psk-file=${psk}`
      : `nbd+unix:///?socket=${setup.socket}`;
  const words = [`--request-size=${blockBytes}`, `--connections=${connections}`, '--requests=16', '--no-extents'];
  const ends = to === 'null' ? [uri, 'null:'] : [setup.source, uri];
  const start = performance.now();
  const { cpuSeconds } = await output('nbdcopy', [...words, `--threads=${Math.min(connections, 2)}`, ...ends]);
  const seconds = (performance.now() - start) / 1000;
  return {
    operations: IMAGE_BYTES / blockBytes,
    bytes: IMAGE_BYTES,
    seconds,
    p50: undefined,
    clientPercent: connections === 1 ? (cpuSeconds / seconds) * 100 : undefined,
  };
}

/** Steps of a prime number of blocks: every block of the image, in no order that a server reads ahead. */
const STEP_BLOCKS = 7919;

async function qemuImg(client: Client & { kind: 'qemu-img' }, { keys, socket }: Setup, runMs: number): Promise<Work> {
  const { rw, blockBytes, depth } = client;
  const operations = Math.max(500, Math.round((runMs * (depth === 1 ? 3_000 : 12_000)) / 1000));
  const { stdout, cpuSeconds } = await output('qemu-img', [
    ...['bench', '-c', String(operations), '-d', String(depth), '-s', String(blockBytes)],
    ...['-S', String(STEP_BLOCKS * blockBytes), ...(rw === 'write' ? ['-w'] : [])],
    ...['--object', `tls-creds-psk,id=t,dir=${keys},endpoint=client,username=alice`],
    ...['--image-opts', `driver=nbd,server.type=unix,server.path=${socket},tls-creds=t`],
  ]);
  const seconds = Number(/Run completed in ([\d.]+) seconds/.exec(stdout)?.[1]);
  if (!(seconds > 0)) throw new Error(`Cannot read qemu-img bench: ${stdout.slice(0, 200)}`);
  return {
    operations,
    bytes: operations * blockBytes,
    seconds,
    p50: undefined,
    clientPercent: (cpuSeconds / seconds) * 100,
  };
}

interface Output {
  readonly stdout: string;
  /** User and system time of the program */
  readonly cpuSeconds: number;
}

/** The shell tells what its children have used, which Node does not: the last line of `times`. */
const TIMED = '"$@"; status=$?; times >&2; exit $status';

function output(program: string, args: readonly string[]): Promise<Output> {
  return new Promise((resolve, reject) => {
    const words = ['-c', TIMED, 'sh', program, ...args];
    execFile('sh', words, { timeout: 60_000, maxBuffer: 16 << 20 }, (error, stdout, stderr) => {
      if (error === null) resolve({ stdout, cpuSeconds: cpuSecondsIn(stderr) });
      else reject(new Error(`Cannot run ${program}: ${stderr.trim().slice(0, 300) || error.message}`));
    });
  });
}

/** Of the children of a shell, by its `times`: `0m0.260000s 0m0.170000s` in the last line. */
export function cpuSecondsIn(stderr: string): number {
  const last = stderr.trimEnd().split('\n').at(-1) ?? '';
  const parts = [...last.matchAll(/(\d+)m([\d.]+)s/g)];
  if (parts.length !== 2) throw new Error(`Cannot read what a client has used: ${last.slice(0, 200)}`);
  return parts.reduce((sum, [, minutes, seconds]) => sum + Number(minutes) * 60 + Number(seconds), 0);
}
