// Our machine beside qemu-system-riscv64 on the same guest code: computing, Linux, latencies, memory.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { guestCompiler } from './guest_programs.ts';
import { measureCompute } from './machine/compute.ts';
import { measureDisk } from './machine/disk.ts';
import { measureHostile } from './machine/hostile.ts';
import { measureMmio, measureSerial, measureTimer } from './machine/latency.ts';
import { measureLinux } from './machine/linux.ts';
import { type BenchOptions, COMPUTE, DISK, parseMachineOptions, START } from './machine/options.ts';
import { printSection, type Section, writeJson } from './machine/report.ts';
import { ourSide, qemuSide, qemuVersion, type Side } from './machine/sides.ts';
import { measureStart } from './machine/start.ts';

type Measure = (options: BenchOptions, sides: readonly Side[], folder: string) => Promise<Section | Section[]>;

interface Part {
  /** Measured when one of them is asked for */
  readonly names: readonly string[];
  /** Needs the compiler for guest programs */
  readonly compiles: boolean;
  readonly measure: Measure;
}

const PARTS: readonly Part[] = [
  { names: COMPUTE, compiles: true, measure: measureCompute },
  { names: START, compiles: true, measure: measureStart },
  { names: ['mmio'], compiles: true, measure: measureMmio },
  { names: ['timer'], compiles: true, measure: measureTimer },
  { names: ['serial'], compiles: true, measure: measureSerial },
  { names: ['boot', 'commands', 'parallel', 'idle', 'resident'], compiles: false, measure: measureLinux },
  { names: DISK, compiles: false, measure: measureDisk },
  { names: ['hostile'], compiles: true, measure: measureHostile },
];

const skip = (text: string) => process.stderr.write(`SKIPPED: ${text}\n`);

/**
 * Measures and prints one section after the other; says on stderr what it skips and why.
 * @throws BenchUsageError for wrong `args`
 */
export async function run(args: readonly string[] = []): Promise<void> {
  const options = parseMachineOptions(args);
  const qemu = options.alone ? undefined : qemuVersion();
  if (qemu === undefined && !options.alone) skip('qemu-system-riscv64 (apt install qemu-system-misc): ours only');
  const compiler = guestCompiler();
  const sides = [ourSide(options.engine), ...(qemu === undefined ? [] : [qemuSide])];
  process.stdout.write(
    `ours: ${options.engine ?? 'the engine that the machine takes by itself'}; beside it: ${qemu ?? 'nothing'}\n`,
  );
  // With an exit of our own, so that what runs beside us is ended too
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
  const folder = mkdtempSync(join(tmpdir(), 'caisson-bench-'));
  const sections: Section[] = [];
  try {
    for (const part of PARTS) {
      const wanted = part.names.filter((name) => options.names.has(name));
      if (wanted.length === 0) continue;
      if (part.compiles && compiler === undefined) {
        skip(`${wanted.join(', ')}: riscv64-unknown-elf-gcc is not installed (apt install gcc-riscv64-unknown-elf)`);
        continue;
      }
      try {
        for (const section of [await part.measure(options, sides, folder)].flat()) {
          printSection(section);
          sections.push(section);
        }
      } catch (error) {
        // What else a long run was to find is not given up for it
        process.stdout.write(`\nFAILED: ${wanted.join(', ')}: ${(error as Error).message}\n`);
        process.exitCode = 1;
      }
      // Written after each part: what a long run has found so far is not lost with it
      if (options.json !== undefined) writeJson(options.json, { ...options, names: [...options.names] }, sections);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
}
