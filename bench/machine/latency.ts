// What devices cost: register accesses, timer ticks, serial output.
import process from 'node:process';
import { compileGuest } from '../guest_programs.ts';
import { type BareRun, bareSpec, runBare } from './bare_metal.ts';
import type { BenchOptions } from './options.ts';
import { cpuBetween, readProcessCpu } from './process_cpu.ts';
import type { Row, Section } from './report.ts';
import { inTurn, type Side, type SideName } from './sides.ts';
import { histogram, median, percentile, round } from './statistics.ts';
import { describeTarget, judge, ratioOf, TARGETS, type Target } from './targets.ts';

/** Registers of guest/mmio.c: those that a hart should be served without another thread, and the others. */
const REGISTERS: readonly (readonly [name: string, title: string, target: Target])[] = [
  ['uart-lsr', 'UART line status, read', TARGETS.hotRegister],
  ['plic-claim', 'PLIC claim, read', TARGETS.hotRegister],
  ['mtime', 'mtime, 8 bytes, read', TARGETS.hotRegister],
  ['time-csr', 'time CSR, read', TARGETS.hotRegister],
  ['uart-scratch-write', 'UART scratch, write', TARGETS.hotRegister],
  ['mtimecmp-write', 'mtimecmp, 8 bytes, write', TARGETS.hotRegister],
  ['virtio-mmio-interrupt', 'virtio-mmio InterruptStatus, read', TARGETS.hotRegister],
  ['virtio-isr', 'virtio-pci ISR, read', TARGETS.hotRegister],
  ['virtio-status', 'virtio-pci device status, read', TARGETS.register],
  ['virtio-select-write', 'virtio-pci queue select, write', TARGETS.register],
  ['pci-config', 'PCI configuration, read', TARGETS.register],
  ['pci-config-alone', 'the same, 300 µs apart, median', TARGETS.register],
];

export async function measureMmio(options: BenchOptions, sides: readonly Side[], folder: string): Promise<Section> {
  const elf = compileGuest({ name: 'mmio', percent: options.percent }, folder);
  const runs = await inTurn(sides, options.rounds, (side) => runBare(side, elf));
  const of = (side: SideName, name: string): number | undefined => {
    const values = runs[side].flatMap(({ figures }) => figures.filter((figure) => figure.name === name));
    return values.length === 0 ? undefined : round(median(values.map(({ value }) => value / 1000)));
  };
  const rows = REGISTERS.map(([name, title, target]): Row => {
    const ours = of('ours', name);
    const theirs = of('qemu', name);
    return {
      register: title,
      'ours ns': ours,
      'QEMU ns': theirs,
      ratio: ours === undefined ? undefined : ratioOf(ours, theirs),
      must: describeTarget(target),
      verdict: judge(target, { ours }),
    };
  });
  return { title: `Register accesses, best stretch, medians of ${options.rounds}`, rows, samples: runs };
}

/** Upper bounds of the histogram of lateness, in `µs` */
const LATENESS_US = [10, 50, 100, 500, 1000, 5000] as const;
const TICKS_PER_US = 10;

export async function measureTimer(options: BenchOptions, sides: readonly Side[], folder: string): Promise<Section> {
  const elf = compileGuest({ name: 'timer', percent: options.percent }, folder);
  const rows: Row[] = [];
  const samples: Record<string, unknown> = {};
  for (const [start, title] of [
    ['i', 'idle'],
    ['l', 'busy'],
  ] as const) {
    const runs = await inTurn(sides, 1, (side) => runBare(side, elf, start));
    for (const { name } of sides) {
      const run = runs[name][0]!;
      const late = run.figures.filter((figure) => figure.name === 'late').map(({ value }) => value / TICKS_PER_US);
      samples[`${title}, ${name}`] = late;
      rows.push(latenessRow(`${title}, ${name === 'ours' ? 'ours' : 'QEMU'}`, late, run));
    }
  }
  return {
    title: 'Timer ticks at 1 kHz: how late the handler reads the clock, in µs',
    rows,
    notes: ['missed: ticks that were overtaken by the next one'],
    samples,
  };
}

function latenessRow(name: string, lateUs: readonly number[], run: BareRun): Row {
  const counts = histogram(lateUs, LATENESS_US);
  return {
    hart: name,
    median: round(percentile(lateUs, 0.5), 1),
    '99 %': round(percentile(lateUs, 0.99), 1),
    most: round(Math.max(...lateUs), 1),
    ...Object.fromEntries(LATENESS_US.map((bound, index) => [`≤ ${bound}`, counts[index]])),
    more: counts.at(-1),
    missed: run.figures.find((figure) => figure.name === 'missed')?.value,
    'CPU ms': round(run.cpu.ms),
  };
}

/** What guest/console.c sends for a share of its workload, in `bytes`, and how long it rests before the last line */
const consoleBytes = (percent: number): number => Math.ceil(((8 << 20) * percent) / 100) & ~4095;
const CONSOLE_REST_MS = 1000;
const OUTPUT_TIMEOUT_MS = 300_000;

interface Output {
  readonly bytes: number;
  /** Written by the guest and never seen: a serial line loses what its reader does not take in time */
  readonly lostBytes: number;
  readonly wallMs: number;
  readonly cpuMs: number;
}

export async function measureSerial(options: BenchOptions, sides: readonly Side[], folder: string): Promise<Section> {
  const { percent, rounds } = options;
  const elf = compileGuest({ name: 'serial', percent }, folder);
  const consoleElf = compileGuest({ name: 'console', percent, alone: true }, folder);
  const ways: readonly (readonly [string, Target | undefined, (side: Side) => Promise<Output>])[] = [
    ['UART, 16 bytes a look', TARGETS.serial, (side) => serialOutput(side, elf, 'f')],
    ['UART, a look for every byte', undefined, (side) => serialOutput(side, elf, 'b')],
    ['virtio console, 4 KiB a buffer', TARGETS.serial, (side) => consoleOutput(side, consoleElf, percent)],
  ];
  const rows: Row[] = [];
  const samples: Record<string, unknown> = {};
  for (const [title, target, measure] of ways) {
    const runs = await inTurn(sides, rounds, measure).catch((error: Error) => error);
    if (runs instanceof Error) {
      // The other ways' figures are not given up for it
      rows.push({ output: title, verdict: `FAILED: ${runs.message.slice(0, 80)}` });
      process.exitCode = 1;
      continue;
    }
    samples[title] = runs;
    const rate = (side: SideName): number | undefined =>
      runs[side].length === 0
        ? undefined
        : round(median(runs[side].map(({ bytes, wallMs }) => bytes / 1000 / wallMs)), 1);
    const cpu = (side: SideName): number | undefined =>
      runs[side].length === 0 ? undefined : round(median(runs[side].map(({ cpuMs }) => cpuMs)));
    const ours = rate('ours')!;
    rows.push({
      output: title,
      'ours MB/s': ours,
      'QEMU MB/s': rate('qemu'),
      ratio: ratioOf(ours, rate('qemu'), 'rate'),
      must: describeTarget(target),
      verdict: judge(target, { ours }),
      'ours CPU ms': cpu('ours'),
      'QEMU CPU ms': cpu('qemu'),
      'ours lost, bytes': Math.max(...runs.ours.map(({ lostBytes }) => lostBytes)),
    });
  }
  return { title: `Serial output, ${percent} % of 8 MiB (1 MiB byte by byte), medians of ${rounds}`, rows, samples };
}

async function serialOutput(side: Side, elf: string, start: string): Promise<Output> {
  const run = await runBare(side, elf, start);
  const expected = Number(`0x${run.result}`);
  const bytes = run.textBytes;
  return { bytes, lostBytes: expected - bytes, wallMs: run.wallMs, cpuMs: run.cpu.ms };
}

async function consoleOutput(side: Side, elf: string, percent: number): Promise<Output> {
  await using guest = await side.start({ ...bareSpec(elf), virtioConsole: true });
  const { line, pid } = guest;
  await line.until('.', OUTPUT_TIMEOUT_MS);
  const before = readProcessCpu(pid);
  const from = performance.now();
  const text = await line.until('=', OUTPUT_TIMEOUT_MS);
  const wallMs = performance.now() - from - CONSOLE_REST_MS;
  // The guest ends by itself: its process may be gone
  const cpuMs = cpuAtEnd(pid, before);
  return { bytes: text.length, lostBytes: consoleBytes(percent) - text.length, wallMs, cpuMs };
}

function cpuAtEnd(pid: number, before: ReturnType<typeof readProcessCpu>): number {
  try {
    return cpuBetween(before, readProcessCpu(pid)).ms;
  } catch {
    return Number.NaN;
  }
}
