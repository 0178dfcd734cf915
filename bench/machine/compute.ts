import process from 'node:process';
import { compileGuest } from '../guest_programs.ts';
import { type BareRun, checkResults, runBare } from './bare_metal.ts';
import { type BenchOptions, COMPUTE } from './options.ts';
import type { Row, Section } from './report.ts';
import { inTurn, type Side } from './sides.ts';
import { geometricMean, median, round, spread } from './statistics.ts';
import { describeTarget, judge, ratioOf, TARGETS } from './targets.ts';

const TITLES: Readonly<Record<(typeof COMPUTE)[number], string>> = {
  mix: 'integer mix',
  calls: 'calls',
  hash: 'hash (SHA-256)',
  sort: 'sort',
  records: 'strings, records',
  interpreter: 'switch interpreter',
  floating: 'double FP',
  fused: 'double FP, FMA',
  copy: 'memory copy',
  chase: 'pointer chase',
};

/** Below it a quotient of CPU times says nothing, in `ms` */
const SHORTEST_MS = 20;

interface Measured {
  readonly name: (typeof COMPUTE)[number];
  readonly sv39: boolean;
  readonly ours: readonly BareRun[];
  readonly theirs: readonly BareRun[];
}

/** The bare-metal programs, in M-mode and behind Sv39. CPU time: all threads of the process, less an empty program's. */
export async function measureCompute(options: BenchOptions, sides: readonly Side[], folder: string): Promise<Section> {
  const idleElf = compileGuest({ name: 'idle' }, folder);
  const idle = await inTurn(sides, Math.min(options.rounds, 3), (side) => runBare(side, idleElf));
  const measured: Measured[] = [];
  const failures: string[] = [];
  for (const name of COMPUTE) {
    if (!options.names.has(name)) continue;
    for (const sv39 of [false, true]) {
      const elf = compileGuest({ name, sv39, percent: options.percent }, folder);
      try {
        const runs = await inTurn(sides, options.rounds, (side) => runBare(side, elf));
        checkResults(name, [...runs.ours, ...runs.qemu]);
        measured.push({ name, sv39, ours: runs.ours, theirs: runs.qemu });
      } catch (error) {
        // The others' figures are not given up for it
        failures.push(`FAILED: ${name}${sv39 ? ', Sv39' : ''}: ${(error as Error).message}`);
        process.exitCode = 1;
      }
    }
  }
  const empty = { ours: emptyMs(idle.ours), theirs: emptyMs(idle.qemu) };
  const rows = measured.map((one) => computeRow(one, empty));
  const ratios = rows.map((row) => row.ratio).filter((value): value is number => typeof value === 'number');
  const start = (runs: readonly BareRun[]) => round(median(runs.map(({ startCpuMs }) => startCpuMs)));
  return {
    title: `Compute: the same programs, ${options.percent} % of the workload, medians of ${options.rounds}`,
    rows,
    notes: [
      ...failures,
      ...(ratios.length > 1 ? [`geometric mean of the CPU ratios: ${round(geometricMean(ratios), 2)}`] : []),
      `start to the program's first byte: ${start(idle.ours)} ms of CPU${
        idle.qemu.length > 0 ? `, QEMU ${start(idle.qemu)} ms` : ''
      }; not counted above`,
      'ratio: QEMU’s CPU time ÷ ours, above 1 we are faster; must in brackets what we aim for beyond',
      'hart: our busiest thread alone; spread: half the distance of the extremes, of our CPU times',
    ],
    samples: { idle, measured },
  };
}

const emptyMs = (runs: readonly BareRun[]): number => (runs.length === 0 ? 0 : median(runs.map(({ cpu }) => cpu.ms)));

function computeRow(one: Measured, empty: { readonly ours: number; readonly theirs: number }): Row {
  const { ours, theirs } = one;
  const of = (runs: readonly BareRun[], value: (run: BareRun) => number): number | undefined =>
    runs.length === 0 ? undefined : median(runs.map(value));
  const cpu = of(ours, (run) => run.cpu.ms - empty.ours)!;
  const theirCpu = of(theirs, (run) => run.cpu.ms - empty.theirs);
  const wall = of(ours, (run) => run.wallMs)!;
  const theirWall = of(theirs, (run) => run.wallMs);
  const ratio = cpu < SHORTEST_MS || (theirCpu ?? 0) < SHORTEST_MS ? undefined : ratioOf(cpu, theirCpu);
  const target = one.name in TARGETS ? TARGETS[one.name as keyof typeof TARGETS] : undefined;
  return {
    program: `${TITLES[one.name]}${one.sv39 ? ', Sv39' : ''}`,
    'ours CPU ms': round(cpu),
    'QEMU CPU ms': theirCpu === undefined ? undefined : round(theirCpu),
    ratio,
    must: describeTarget(target),
    verdict: judge(target, { ratio }),
    'ours wall ms': round(wall),
    'QEMU wall ms': theirWall === undefined ? undefined : round(theirWall),
    'wall ratio': ratioOf(wall, theirWall),
    'hart ms': round(of(ours, (run) => run.cpu.busiestMs)!),
    'spread %': round(100 * spread(ours.map((run) => run.cpu.ms))),
    'M instr./s': round(of(ours, (run) => run.retired / 1000 / Math.max(run.cpu.busiestMs, 1))!),
  };
}
