// The dialogue with the programs of bench/guest: a dot, the host's byte, figures, a result, as often as the host likes.
import { type CpuUsed, cpuBetween, readProcessCpu } from './process_cpu.ts';
import type { GuestSpec, RunningGuest, Side } from './sides.ts';

/** RAM of the bare-metal programs, in `MiB`; guest/paging.c maps as much */
export const BARE_RAM_MIB = 64;
const START_TIMEOUT_MS = 60_000;
/** A guest that takes longer hangs, in `ms` */
const LONGEST_MS = 300_000;
const TICKS_PER_MS = 10_000;
/** The program powers off */
const END_BYTE = 'q';

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
  /** What the process used before this run, in `ms` */
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
  const run = await runWorkload(guest, startByte);
  guest.line.write(END_BYTE);
  return run;
}

/** The first run, in which the emulator still compiles, and the last of `times`, in which it need not any more. */
export interface RepeatedRun {
  readonly first: BareRun;
  readonly last: BareRun;
  /** Of all runs, in order: a workload may go on from where the one before it ended */
  readonly results: readonly string[];
}

/** Starts the program, has it run its workload `times` times, one after the other, and ends it. */
export async function runBareRepeatedly(side: Side, elf: string, times: number): Promise<RepeatedRun> {
  await using guest = await side.start(bareSpec(elf));
  const runs: BareRun[] = [];
  while (runs.length < times) runs.push(await runWorkload(guest, 'g'));
  guest.line.write(END_BYTE);
  return { first: runs[0]!, last: runs.at(-1)!, results: runs.map(({ result }) => result) };
}

async function runWorkload(guest: RunningGuest, startByte: string): Promise<BareRun> {
  const { line, pid } = guest;
  await line.until('.', START_TIMEOUT_MS);
  const before = readProcessCpu(pid);
  const from = performance.now();
  line.write(startByte);
  const output = await line.until('=', LONGEST_MS);
  const wallMs = performance.now() - from;
  const after = readProcessCpu(pid);
  const result = parseResult(await line.until('\n', START_TIMEOUT_MS));
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
export function checkResults(name: string, computed: readonly string[]): void {
  const results = new Set(computed);
  if (results.size > 1) throw new Error(`${name}: the machines disagree: ${[...results].join(', ')}`);
}
