// Our NBD server against qemu-nbd, one after the other, same image, same client: prints ratios, takes under a minute.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';

const IMAGE_BYTES = 128 << 20;
const ROUNDS = 2;
const serverScript = `
import { ExportSet, NbdListener, RawImage } from ${JSON.stringify(new URL('../services/nbd/mod.ts', import.meta.url).href)};
const [file, path] = process.argv.slice(1);
const exports = new ExportSet();
exports.add({ name: '', image: await RawImage.open(file, { readOnly: false }), writable: true });
await NbdListener.listen({ type: 'unix', path }, exports);
`;

export interface BenchResult {
  readonly name: string;
  readonly ours: number;
  readonly theirs: number;
  readonly unit: string;
  /** Above 1: ours is better */
  readonly ratio: number;
}

interface Workload {
  readonly name: string;
  readonly unit: 'IOPS' | 'MB/s';
  readonly args: readonly string[];
}

const workloads: readonly Workload[] = [
  { name: 'read 4K QD1', unit: 'IOPS', args: ['--rw=randread', '--bs=4k', '--iodepth=1'] },
  { name: 'read 4K QD16', unit: 'IOPS', args: ['--rw=randread', '--bs=4k', '--iodepth=16'] },
  { name: 'read 4K QD64', unit: 'IOPS', args: ['--rw=randread', '--bs=4k', '--iodepth=64'] },
  { name: 'write 4K QD64', unit: 'IOPS', args: ['--rw=randwrite', '--bs=4k', '--iodepth=64'] },
  { name: 'read 128K QD16', unit: 'MB/s', args: ['--rw=read', '--bs=128k', '--iodepth=16'] },
  { name: 'read 1M QD16', unit: 'MB/s', args: ['--rw=read', '--bs=1m', '--iodepth=16'] },
  { name: 'write 128K QD16', unit: 'MB/s', args: ['--rw=write', '--bs=128k', '--iodepth=16'] },
];

/** Best of two rounds of a second each, the servers taking turns; empty where fio or qemu-nbd is missing. */
export async function run(): Promise<BenchResult[]> {
  if (!(await has('fio', '--version')) || !(await has('qemu-nbd', '--version'))) return [];
  const directory = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'caisson-bench-'));
  try {
    const image = join(directory, 'disk.raw');
    writeFileSync(image, randomBytes(IMAGE_BYTES));
    const servers: Record<'ours' | 'theirs', (socket: string) => ChildProcess> = {
      ours: (socket) => spawn(process.execPath, ['--input-type=module', '-e', serverScript, '--', image, socket]),
      theirs: (socket) => spawn('qemu-nbd', ['-k', socket, '-f', 'raw', '-e', '8', '-t', image]),
    };
    const results: BenchResult[] = [];
    for (const workload of workloads) {
      const best = { ours: 0, theirs: 0 };
      for (let round = 0; round < ROUNDS; round++) {
        for (const side of ['ours', 'theirs'] as const) {
          const socket = join(directory, `${side}.sock`);
          const server = servers[side](socket);
          const exit = once(server, 'exit');
          try {
            await appears(socket);
            best[side] = Math.max(best[side], await measure(socket, workload));
          } finally {
            server.kill();
            await exit;
            rmSync(socket, { force: true });
          }
        }
      }
      results.push({ name: workload.name, ...best, unit: workload.unit, ratio: best.ours / best.theirs });
    }
    return results;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function measure(socket: string, workload: Workload): Promise<number> {
  const args = ['--name=t', '--ioengine=nbd', `--uri=nbd+unix:///?socket=${socket}`, ...workload.args];
  const common = ['--thread', '--time_based', '--runtime=1', `--size=${IMAGE_BYTES}`, '--norandommap'];
  return new Promise((resolve, reject) => {
    execFile('fio', [...args, ...common, '--output-format=json'], { timeout: 20_000 }, (error, stdout) => {
      if (error !== null) {
        reject(error);
        return;
      }
      const [job] = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs;
      const side = workload.args[0]!.includes('read') ? job.read : job.write;
      resolve(workload.unit === 'IOPS' ? side.iops : side.bw_bytes / 1e6);
    });
  });
}

async function appears(path: string): Promise<void> {
  for (let attempt = 0; attempt < 200 && !existsSync(path); attempt++) {
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

function has(program: string, argument: string): Promise<boolean> {
  return new Promise((resolve) => execFile(program, [argument], (error) => resolve(error === null)));
}

if (import.meta.main) {
  for (const { name, ours, theirs, unit, ratio } of await run()) {
    console.log(
      `${name.padEnd(16)} ${ours.toFixed(0).padStart(8)} ${theirs.toFixed(0).padStart(8)} ${unit} ${ratio.toFixed(2)}x`,
    );
  }
}
