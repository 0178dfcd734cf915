import process from 'node:process';
import { compileGuest } from '../guest_programs.ts';
import { type BareRun, checkResults, type RepeatedRun, runBare, runBareRepeatedly } from './bare_metal.ts';
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
  quicksort: 'sort, inlined comparisons',
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
  readonly ours: readonly RepeatedRun[];
  readonly theirs: readonly RepeatedRun[];
}

/** Runs of one start: V8 goes on optimising until the third of them, on other threads; the last has all of it */
const TIMES = 5;

/**
 * The bare-metal programs, in M-mode and behind Sv39. CPU time: all threads of the process, less an empty program's.
 * What the first run of a workload costs is its cold figure, what the last costs its warm one.
 */
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
        const runs = await inTurn(sides, options.rounds, (side) => runBareRepeatedly(side, elf, TIMES));
        checkResults(
          name,
          [...runs.ours, ...runs.qemu].map(({ results }) => results.join(' ')),
        );
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
  const mean = (column: 'ratio' | 'cold ratio'): number =>
    round(geometricMean(rows.map((row) => row[column]).filter((value) => typeof value === 'number')), 2);
  const start = (runs: readonly BareRun[]) => round(median(runs.map(({ startCpuMs }) => startCpuMs)));
  return {
    title: `Compute: the same programs, ${options.percent} % of the workload, medians of ${options.rounds}`,
    rows,
    notes: [
      ...failures,
      ...(sides.length > 1 && rows.length > 1
        ? [`geometric mean of the CPU ratios: ${mean('ratio')}, cold ${mean('cold ratio')}`]
        : []),
      `start to the program's first byte: ${start(idle.ours)} ms of CPU${
        idle.qemu.length > 0 ? `, QEMU ${start(idle.qemu)} ms` : ''
      }; not counted above`,
      'ratio: QEMU’s CPU time ÷ ours, above 1 we are faster; must in brackets what we aim for beyond',
      'least ratio: of the least time of all rounds on each side, for a host whose neighbours take what they take',
      `cold: the first run of a workload after the start, compiling included; all else: the last of ${TIMES} runs`,
      'hart: our busiest thread alone; spread: half the distance of the extremes, of our CPU times',
    ],
    samples: { idle, measured },
  };
}

const emptyMs = (runs: readonly BareRun[]): number => (runs.length === 0 ? 0 : median(runs.map(({ cpu }) => cpu.ms)));

function computeRow(one: Measured, empty: { readonly ours: number; readonly theirs: number }): Row {
  const ours = { cold: one.ours.map(({ first }) => first), warm: one.ours.map(({ last }) => last) };
  const theirs = { cold: one.theirs.map(({ first }) => first), warm: one.theirs.map(({ last }) => last) };
  const of = (runs: readonly BareRun[], value: (run: BareRun) => number): number | undefined =>
    runs.length === 0 ? undefined : median(runs.map(value));
  const cpu = (when: 'cold' | 'warm', which = median) => {
    const mine = which(ours[when].map((run) => run.cpu.ms - empty.ours));
    const other = theirs[when].length === 0 ? undefined : which(theirs[when].map((run) => run.cpu.ms - empty.theirs));
    const ratio = mine < SHORTEST_MS || (other ?? 0) < SHORTEST_MS ? undefined : ratioOf(mine, other);
    return { ours: round(mine), theirs: other === undefined ? undefined : round(other), ratio };
  };
  const [warm, cold, least] = [cpu('warm'), cpu('cold'), cpu('warm', (values) => Math.min(...values))];
  const wall = of(ours.warm, (run) => run.wallMs)!;
  const theirWall = of(theirs.warm, (run) => run.wallMs);
  const target = one.name in TARGETS ? TARGETS[one.name as keyof typeof TARGETS] : undefined;
  return {
    program: `${TITLES[one.name]}${one.sv39 ? ', Sv39' : ''}`,
    'ours CPU ms': warm.ours,
    'QEMU CPU ms': warm.theirs,
    ratio: warm.ratio,
    must: describeTarget(target),
    verdict: judge(target, { ratio: warm.ratio }),
    'least ratio': least.ratio,
    'cold, ours': cold.ours,
    'cold, QEMU': cold.theirs,
    'cold ratio': cold.ratio,
    'wall, ours': round(wall),
    'wall, QEMU': theirWall === undefined ? undefined : round(theirWall),
    'wall ratio': ratioOf(wall, theirWall),
    'hart ms': round(of(ours.warm, (run) => run.cpu.busiestMs)!),
    'spread %': round(100 * spread(ours.warm.map((run) => run.cpu.ms))),
    'M instr./s': round(of(ours.warm, (run) => run.retired / 1000 / Math.max(run.cpu.busiestMs, 1))!),
  };
}
