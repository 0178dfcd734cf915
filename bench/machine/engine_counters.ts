// What our engine did meanwhile: where instructions ran, what was compiled, what missed, what left translated code.
import type { Row, Section } from './report.ts';

/** By the names of `query-stats`, all harts together */
export type EngineCounters = ReadonlyMap<string, number>;

/** Of `query-stats`: one list of counters for each hart. */
export function sumOfHarts(answer: unknown): EngineCounters {
  const sums = new Map<string, number>();
  for (const { stats } of answer as {
    readonly stats: readonly { readonly name: string; readonly value: number }[];
  }[]) {
    for (const { name, value } of stats) sums.set(name, (sums.get(name) ?? 0) + value);
  }
  return sums;
}

export interface CountedSpan {
  readonly what: string;
  /** Absent: from the start of the machine */
  readonly before?: EngineCounters;
  readonly after: EngineCounters;
}

/** One column a span. */
export function countersSection(spans: readonly CountedSpan[]): Section {
  const rise = ({ before, after }: CountedSpan, name: string): number => after.get(name)! - (before?.get(name) ?? 0);
  const names = [...spans[0]!.after.keys()];
  const row = (counter: string, value: (span: CountedSpan) => number): Row => ({
    counter,
    ...Object.fromEntries(spans.map((span) => [span.what, value(span)])),
  });
  return {
    title: 'What our engine counted',
    rows: [
      row('of the instructions in translated code, %', (span) => {
        const share = rise(span, 'instructions-in-translated-code') / rise(span, 'instructions');
        return Math.round(share * 1000) / 10;
      }),
      ...names.map((name) => row(name, (span) => rise(span, name))),
    ],
    notes: ['as caisson stats shows them; times in µs'],
    samples: spans.map(({ what, before, after }) => ({
      what,
      before: before === undefined ? undefined : Object.fromEntries(before),
      after: Object.fromEntries(after),
    })),
  };
}
