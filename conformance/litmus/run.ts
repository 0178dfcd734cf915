// Runs all litmus tests and counters of a number of harts on a machine, each hart on its own thread.
import { Machine } from '../../emulator/machine/machine.ts';
import { nodePlatform } from '../../services/machine/node_platform.ts';
import type { Engine } from '../differential/engine_machine.ts';
import { writeElf } from '../isa/elf.ts';
import { COUNTERS } from './counters.ts';
import { LITMUS_TESTS, type LitmusTest } from './litmus_tests.ts';
import {
  isForbidden,
  LONGEST_BATCH,
  litmusProgram,
  RAM_BASE,
  RAM_BYTES,
  readCounts,
  readHistogram,
} from './program.ts';

export interface LitmusResult {
  readonly test: LitmusTest;
  readonly histogram: ReadonlyMap<string, number>;
  /** The part of it that must be empty */
  readonly forbidden: ReadonlyMap<string, number>;
}

export interface LitmusRun {
  readonly rounds: number;
  readonly results: readonly LitmusResult[];
  /** By counter: what it stands at */
  readonly counts: ReadonlyMap<string, number>;
}

/** Gives RAM as it is when the guest has switched off. @throws Error after `timeoutMs` */
async function runMachine(kernel: Uint8Array, harts: number, engine: Engine, timeoutMs: number): Promise<Uint8Array> {
  const machine = Machine.create(
    { ramBytes: RAM_BYTES, harts, engine, bios: 'none', kernel, disks: [], display: false, network: false },
    nodePlatform(),
  );
  let timer: ReturnType<typeof setTimeout> | undefined;
  try {
    await new Promise<void>((resolve, reject) => {
      timer = setTimeout(() => reject(new Error(`Cannot finish the tests in ${timeoutMs} ms`)), timeoutMs);
      machine.events.subscribe((event) => {
        if (event.kind === 'shutdown') resolve();
        else if (event.kind === 'status' && event.status === 'internal-error') reject(new Error('The machine failed'));
      });
      machine.start();
    });
    return machine.ram(0, RAM_BYTES).slice();
  } finally {
    clearTimeout(timer);
    await machine.close();
  }
}

/** The numbers of harts that there are tests for */
export const HARTS: readonly number[] = [...new Set(LITMUS_TESTS.map((test) => test.harts.length))].toSorted();

/** @param only how the names of the tests begin */
export async function runLitmus(
  harts: number,
  rounds: number,
  engine: Engine,
  timeoutMs: number,
  only = '',
): Promise<LitmusRun> {
  const batch = Math.min(LONGEST_BATCH, Math.ceil(rounds / 8));
  const batches = Math.ceil(rounds / batch);
  const tests = LITMUS_TESTS.filter((test) => test.harts.length === harts && test.name.startsWith(only));
  const program = litmusProgram(tests, harts, { batches, batch });
  const kernel = writeElf(RAM_BASE, [{ address: RAM_BASE, bytes: program }]);
  const ram = await runMachine(kernel, harts, engine, timeoutMs);
  const counts = readCounts(ram);
  return {
    rounds: batches * batch,
    results: tests.map((test, index) => {
      const histogram = readHistogram(test, index, ram);
      const forbidden = new Map([...histogram].filter(([outcome]) => isForbidden(test, outcome)));
      return { test, histogram, forbidden };
    }),
    counts: new Map(COUNTERS.map((counter, index) => [counter, counts[index]!])),
  };
}
