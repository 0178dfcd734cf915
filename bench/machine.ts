// Compute speed of the machine: the same ELF files here and under qemu-system-riscv64, in turn, medians.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { Machine } from '../emulator/machine/machine.ts';
import { nodePlatform } from '../services/machine/node_platform.ts';
import { compileGuest, guestCompiler } from './guest_programs.ts';

export interface MachineRow {
  readonly name: string;
  readonly ours: number;
  /** Undefined where the peer has no such figure, or is not installed */
  readonly theirs: number | undefined;
  readonly unit: string;
  /** theirs ÷ ours, since both are times: above 1 ours is faster */
  readonly ratio: number | undefined;
}

interface Sample {
  /** What the workload computed: must be the same on both sides */
  readonly result: string;
  /** By the guest's own 10 MHz clock, around the workload only */
  readonly wallMs: number;
  /** User and system time of the whole process, all threads: ours around the workload, QEMU's from start to end */
  readonly cpuMs: number;
  /** The same before the workload began; 0 where it cannot be told apart */
  readonly startCpuMs: number;
  readonly retired: number;
}

const WORKLOADS = [
  ['integer', 'integer mix'],
  ['calls', 'calls (fib)'],
  ['hash', 'hash'],
  ['sort', 'sort'],
  ['copy', 'memory copy'],
  ['chase', 'pointer chase'],
  ['floating', 'double FP'],
] as const;
const REPEATS = 5;
const RAM_MIB = 64;
/** In `ms`: a guest that takes longer hangs */
const LONGEST_MS = 120_000;
const QEMU = 'qemu-system-riscv64';

function readSample(output: string, cpuMs: number, startCpuMs: number): Sample {
  const match = /\.([0-9a-f]{16}) ([0-9a-f]{16}) ([0-9a-f]{16})/.exec(output);
  if (match === null) throw new Error(`Cannot read the guest's result: ${JSON.stringify(output.slice(0, 200))}`);
  const [, result, ticks, retired] = match;
  return { result: result!, wallMs: Number(`0x${ticks}`) / 10_000, cpuMs, startCpuMs, retired: Number(`0x${retired}`) };
}

async function runOurs(kernel: Uint8Array): Promise<Sample> {
  const cpuMs = (): number => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  };
  const created = cpuMs();
  const machine = Machine.create(
    { ramBytes: RAM_MIB << 20, harts: 1, bios: 'none', kernel, disks: [], display: false, network: false },
    nodePlatform(),
  );
  let output = '';
  let from = created;
  let to = created;
  machine.serial.output.subscribe((bytes) => {
    const first = output === '';
    output += Buffer.from(bytes).toString('latin1');
    // The guest prints a dot before the workload and a line after it
    if (first) from = cpuMs();
    if (output.endsWith('\n')) to = cpuMs();
  });
  try {
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`The guest did not end in ${LONGEST_MS} ms`)), LONGEST_MS);
      machine.events.subscribe((event) => {
        if (event.kind !== 'shutdown') return;
        clearTimeout(timer);
        resolve();
      });
      machine.start();
    });
    return readSample(output, to - from, from - created);
  } finally {
    await machine.close();
  }
}

/** By way of bash, whose `time` knows what a child has used */
function runQemu(path: string): Sample {
  const command =
    `TIMEFORMAT='cpu %U %S'; time ${QEMU} -M virt -m ${RAM_MIB}M -bios none -kernel "$0" ` +
    '-display none -monitor none -serial stdio < /dev/null';
  const run = spawnSync('bash', ['-c', command, path], { encoding: 'utf8', timeout: LONGEST_MS });
  const cpu = /cpu ([\d.]+) ([\d.]+)/.exec(run.stderr);
  if (run.status !== 0 || cpu === null) throw new Error(`Cannot run ${QEMU}: ${run.stderr}`);
  return readSample(run.stdout, (Number(cpu[1]) + Number(cpu[2])) * 1000, 0);
}

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1]!;
const round = (value: number, digits = 0): number => Math.round(value * 10 ** digits) / 10 ** digits;

/** Runs one program on both sides in turn; results must agree. */
async function measure(
  name: string,
  folder: string,
  withQemu: boolean,
): Promise<{ readonly ours: Sample[]; readonly theirs: Sample[] }> {
  const { path, bytes } = compileGuest(name, folder);
  const ours: Sample[] = [];
  const theirs: Sample[] = [];
  for (let i = 0; i < REPEATS; i++) {
    ours.push(await runOurs(bytes));
    if (withQemu) theirs.push(runQemu(path));
  }
  const results = new Set([...ours, ...theirs].map(({ result }) => result));
  if (results.size !== 1) throw new Error(`${name}: the machines disagree: ${[...results].join(', ')}`);
  return { ours, theirs };
}

/**
 * Wall time is the guest's own. CPU time is that of the whole process with all its threads (ours compiles while it
 * runs): for us while the workload runs, for QEMU from start to end, less what an empty program costs there.
 * Says on stderr what it skips and why.
 */
export async function run(): Promise<MachineRow[]> {
  const compiler = guestCompiler();
  if (compiler === undefined) {
    process.stderr.write('SKIPPED: riscv64-unknown-elf-gcc is not installed (apt install gcc-riscv64-unknown-elf)\n');
    return [];
  }
  const withQemu = spawnSync(QEMU, ['--version'], { timeout: 20_000 }).status === 0;
  if (!withQemu) process.stderr.write(`SKIPPED: ${QEMU} is not installed (apt install qemu-system-misc): ours only\n`);
  const folder = mkdtempSync(join(tmpdir(), 'caisson-bench-'));
  try {
    const idle = await measure('idle', folder, withQemu);
    const startOurs = median(idle.ours.map(({ startCpuMs }) => startCpuMs));
    const idleTheirs = withQemu ? median(idle.theirs.map(({ cpuMs }) => cpuMs)) : 0;
    const rows: MachineRow[] = [row('start to first byte, CPU', startOurs, withQemu ? idleTheirs : undefined, 'ms')];
    for (const [file, name] of WORKLOADS) {
      const { ours, theirs } = await measure(file, folder, withQemu);
      const of = (samples: readonly Sample[], value: (sample: Sample) => number): number | undefined =>
        samples.length === 0 ? undefined : median(samples.map(value));
      rows.push(
        row(
          `${name}, wall`,
          of(ours, (s) => s.wallMs)!,
          of(theirs, (s) => s.wallMs),
          'ms',
        ),
      );
      rows.push(
        row(
          `${name}, CPU`,
          of(ours, (s) => s.cpuMs)!,
          of(theirs, (s) => s.cpuMs - idleTheirs),
          'ms',
        ),
      );
      rows.push(row(`${name}, speed`, of(ours, (s) => s.retired / s.cpuMs / 1000)!, undefined, 'M instructions/CPU s'));
    }
    return rows;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function row(name: string, ours: number, theirs: number | undefined, unit: string): MachineRow {
  return {
    name,
    ours: round(ours, 1),
    theirs: theirs === undefined ? undefined : round(theirs, 1),
    unit,
    // Below a millisecond a quotient says nothing
    ratio: theirs === undefined || theirs < 1 || ours < 1 ? undefined : round(theirs / ours, 2),
  };
}
