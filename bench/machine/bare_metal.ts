// The dialogue with the programs of bench/guest: a dot, the host's byte, figures, a result, a last byte.
import { type CpuUsed, cpuBetween, readProcessCpu } from './process_cpu.ts';
import type { GuestSpec, RunningGuest, Side } from './sides.ts';

/** RAM of the bare-metal programs, in `MiB`; guest/paging.c maps as much */
export const BARE_RAM_MIB = 64;
const START_TIMEOUT_MS = 60_000;
/** A guest that takes longer hangs, in `ms` */
const LONGEST_MS = 300_000;
const TICKS_PER_MS = 10_000;

export interface GuestResult {
  /** What the workload computed: the same on both sides */
  readonly result: string;
  /** By the guest's own clock, around the workload only */
  readonly guestMs: number;
  readonly retired: number;
}

/** The line after the `=`: result, ticks, instructions, sixteen hexadecimal digits each. */
export function parseResult(line: string): GuestResult {
  const match = /^([0-9a-f]{16}) ([0-9a-f]{16}) ([0-9a-f]{16})\r?$/.exec(line);
  if (match === null) throw new Error(`Cannot read the guest's result: ${JSON.stringify(line.slice(0, 200))}`);
  const [, result, ticks, retired] = match;
  return { result: result!, guestMs: Number(`0x${ticks}`) / TICKS_PER_MS, retired: Number(`0x${retired}`) };
}

/** Lines `@name value`, in order; a name may come more than once. */
export function parseFigures(text: string): { readonly name: string; readonly value: number }[] {
  return [...text.matchAll(/^@(\S+) ([0-9a-f]{16})\r?$/gm)].map(([, name, value]) => ({
    name: name!,
    value: Number(`0x${value}`),
  }));
}

export interface BareRun extends GuestResult {
  readonly figures: readonly { readonly name: string; readonly value: number }[];
  /** By the host's clock: from the byte that starts the workload to its result */
  readonly wallMs: number;
  /** Of the process meanwhile */
  readonly cpu: CpuUsed;
  /** What the process used before the guest's first byte, in `ms` */
  readonly startCpuMs: number;
  /** What the guest said meanwhile, in `bytes` */
  readonly textBytes: number;
}

export function bareSpec(elf: string): GuestSpec {
  return { kernel: elf, bios: 'none', ramMib: BARE_RAM_MIB, harts: 1 };
}

/** Starts the program, has it run its workload once, and ends it. */
export async function runBare(side: Side, elf: string, startByte = 'g'): Promise<BareRun> {
  await using guest = await side.start(bareSpec(elf));
  return await runWorkload(guest, startByte);
}

export async function runWorkload(guest: RunningGuest, startByte: string): Promise<BareRun> {
  const { line, pid } = guest;
  await line.until('.', START_TIMEOUT_MS);
  const before = readProcessCpu(pid);
  const from = performance.now();
  line.write(startByte);
  const output = await line.until('=', LONGEST_MS);
  const wallMs = performance.now() - from;
  const after = readProcessCpu(pid);
  const result = parseResult(await line.until('\n', START_TIMEOUT_MS));
  line.write('q');
  return {
    ...result,
    figures: parseFigures(output),
    wallMs,
    cpu: cpuBetween(before, after),
    startCpuMs: before.ms,
    textBytes: output.length,
  };
}

/** @throws Error where the runs did not all compute the same */
export function checkResults(name: string, runs: readonly GuestResult[]): void {
  const results = new Set(runs.map(({ result }) => result));
  if (results.size > 1) throw new Error(`${name}: the machines disagree: ${[...results].join(', ')}`);
}
