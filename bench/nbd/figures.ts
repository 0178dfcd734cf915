import type { Row } from '../machine/report.ts';
import { median, round } from '../machine/statistics.ts';
import type { Figure, Goal, ServerName, Workload } from './workloads.ts';

/** One measurement of one server. */
export interface Sample {
  /** Operations or MB a second */
  readonly rate: number;
  /** In `µs`; undefined where the client does not tell */
  readonly p50: number | undefined;
  /** What the client had of a core, in `%`; undefined where it does not tell */
  readonly clientPercent: number | undefined;
  /** Of the server, in `µs` an operation or `s` a GB */
  readonly cpu: number;
  /** Most that was resident, in `bytes` */
  readonly peakBytes: number;
}

/** Requests of 4 KiB are counted, larger ones are weighed. */
export function isCounted({ client }: Pick<Workload, 'client'>): boolean {
  return client.blockBytes <= 4096;
}

/** Medians; of processor times the least, as others on the host only ever add to them. */
export function figureOf(figure: Figure, samples: readonly Sample[]): number | undefined {
  if (samples.length === 0) return undefined;
  if (figure === 'rate') return median(samples.map(({ rate }) => rate));
  if (figure === 'CPU') return Math.min(...samples.map(({ cpu }) => cpu));
  const known = samples
    .map(({ p50, clientPercent }) => (figure === 'p50' ? p50 : clientPercent))
    .filter((value) => value !== undefined);
  return known.length === 0 ? undefined : median(known);
}

/** Above 1 we are better: ours ÷ theirs for rates, theirs ÷ ours for times. */
export function ratioFor(figure: Figure, ours: number | undefined, theirs: number | undefined): number | undefined {
  if (ours === undefined || theirs === undefined || !(ours > 0) || !(theirs > 0)) return undefined;
  return round(figure === 'rate' ? ours / theirs : theirs / ours, 2);
}

/** As `2.5 (3.5) qemu-nbd, 1.3 nbdkit`: what must be, in brackets what is aimed for beyond. */
export function describeGoals(goals: readonly Goal[]): string {
  return goals
    .map(({ must, aim, against }) => `${must ?? ''}${aim === undefined ? '' : `${must ? ' ' : ''}(${aim})`} ${against}`)
    .join(', ');
}

/** `met`, or who was not beaten as far as must be; undefined where nothing must be or a peer was not measured. */
export function verdictOf(goals: readonly Goal[], ratios: ReadonlyMap<ServerName, number>): string | undefined {
  const bound = goals.filter(({ must, against }) => must !== undefined && ratios.has(against));
  if (bound.length === 0) return undefined;
  const missed = bound.filter(({ must, against }) => ratios.get(against)! < must!);
  return missed.length === 0 ? 'met' : `missed: ${missed.map(({ against }) => against).join(', ')}`;
}

const DIGITS: Readonly<Record<string, number>> = {
  IOPS: 0,
  'MB/s': 0,
  'p50 µs': 1,
  'CPU µs/op': 1,
  'CPU s/GB': 2,
  'client %': 0,
};

/**
 * Up to four rows of one workload: rate, median latency where one request is under way, processor time, and how busy the
 * client was: a server cannot be faster than a client whose core has nothing left.
 */
export function rowsOf(workload: Workload, samples: ReadonlyMap<ServerName, readonly Sample[]>): Row[] {
  const counted = isCounted(workload);
  const kinds: [Figure, string][] = [['rate', counted ? 'IOPS' : 'MB/s']];
  if (workload.client.kind === 'fio' && workload.client.depth === 1) kinds.push(['p50', 'p50 µs']);
  kinds.push(['CPU', counted ? 'CPU µs/op' : 'CPU s/GB']);
  const isClientKnown = [...samples.values()].flat().some(({ clientPercent }) => clientPercent !== undefined);
  if (isClientKnown) kinds.push(['client', 'client %']);
  return kinds.map(([figure, unit]) => {
    const row: Record<string, string | number | undefined> = { workload: workload.name, unit };
    const ours = figureOf(figure, samples.get('ours') ?? []);
    const ratios = new Map<ServerName, number>();
    for (const [name, taken] of samples) {
      const value = figureOf(figure, taken);
      row[name] = value === undefined ? undefined : round(value, DIGITS[unit]!);
      const ratio = name === 'ours' || figure === 'client' ? undefined : ratioFor(figure, ours, value);
      if (ratio !== undefined) ratios.set(name, ratio);
    }
    for (const [name, ratio] of ratios) row[`÷ ${name}`] = ratio;
    const goals = workload.goals.filter((goal) => goal.figure === figure);
    return { ...row, must: describeGoals(goals) || undefined, verdict: verdictOf(goals, ratios) };
  });
}
