import { round } from './statistics.ts';

/** What a figure must be, and what we would like it to be. `ratio`: QEMU's time over ours, or our rate over QEMU's. */
export interface Target {
  readonly of: 'ratio' | 'ours';
  readonly bound: 'at least' | 'at most';
  readonly must: number;
  readonly aim?: number;
}

const ratio = (must: number, aim?: number): Target => ({
  of: 'ratio',
  bound: 'at least',
  must,
  ...(aim === undefined ? {} : { aim }),
});
const atMost = (must: number): Target => ({ of: 'ours', bound: 'at most', must });
const atLeast = (must: number): Target => ({ of: 'ours', bound: 'at least', must });

export const TARGETS = {
  mix: ratio(1.15, 1.6),
  calls: ratio(2.5),
  hash: ratio(1, 1.1),
  sort: ratio(2.5),
  records: ratio(1.9),
  interpreter: ratio(4),
  floating: ratio(3, 4.5),
  fused: ratio(4),
  boot: ratio(0.8, 1.2),
  /** Each of the commands inside Linux, and their geometric mean */
  command: ratio(0.8),
  forks: ratio(0.8, 1.2),
  commands: ratio(1.2),
  /** Throughput of two harts over one */
  parallel: atLeast(1.7),
  /** To a bare-metal program's first byte, in `ms` */
  startWall: atMost(500),
  startCpu: atMost(800),
  /** In `ns` for one access */
  hotRegister: atMost(2000),
  register: atMost(25_000),
  /** In `%` of a core */
  idle: atMost(1),
  /** In `MB/s` */
  serial: atLeast(2),
  /** In `MiB`, beside the guest's RAM */
  memory: atMost(256),
} as const satisfies Record<string, Target>;

/** As the column `must` shows it: "1.15 (1.6)", "≤ 2000". */
export function describeTarget(target: Target | undefined): string | undefined {
  if (target === undefined) return undefined;
  const sign = target.of === 'ratio' ? '' : target.bound === 'at most' ? '≤ ' : '≥ ';
  return `${sign}${target.must}${target.aim === undefined ? '' : ` (${target.aim})`}`;
}

/** 'met', 'missed', or nothing where there is no target or no figure to hold against it. */
export function judge(
  target: Target | undefined,
  figures: { readonly ours?: number | undefined; readonly ratio?: number | undefined },
): 'met' | 'missed' | undefined {
  if (target === undefined) return undefined;
  const figure = target.of === 'ratio' ? figures.ratio : figures.ours;
  if (figure === undefined) return undefined;
  return (target.bound === 'at least' ? figure >= target.must : figure <= target.must) ? 'met' : 'missed';
}

/** Theirs over ours for times, ours over theirs for rates; nothing where the quotient would say nothing. */
export function ratioOf(ours: number, theirs: number | undefined, kind: 'time' | 'rate' = 'time'): number | undefined {
  if (theirs === undefined || !(ours > 0) || !(theirs > 0)) return undefined;
  return round(kind === 'time' ? theirs / ours : ours / theirs, 2);
}
