import { parseArgs } from 'node:util';
import { BenchUsageError } from '../machine/options.ts';

export const GROUPS = ['random', 'sequential', 'tcp', 'tls', 'file', 'qcow2', 'limits'] as const;
export type Group = (typeof GROUPS)[number];

export interface NbdBenchOptions {
  readonly groups: ReadonlySet<Group>;
  /** Only rows whose name has this in it; undefined: all of the groups */
  readonly only: readonly string[] | undefined;
  readonly rounds: number;
  /** Of each measurement by fio, in `ms` */
  readonly runMs: number;
  readonly json: string | undefined;
  /** Only rows that say what must be reached */
  readonly must: boolean;
  /** The limits are no rows: with `only` they are measured where their group is named */
  readonly limits: boolean;
  /** Ours and nbdkit only: a quick look at what has changed */
  readonly brief: boolean;
}

export const NBD_USAGE = `npm run bench -- nbd [GROUP…] [OPTIONS]
  GROUP       ${GROUPS.join(', ')}; everything where none is given
  --only TEXT rows with this in their name; may be given again
  --must      rows that say what must be reached, and the limits
  --rounds N  turns of each server (default 5)
  --ms N      length of a measurement by fio (default 1000)
  --quick     one turn of 300 ms: shows that everything works, not how fast it is
  --brief     ours and nbdkit only
  --json FILE every single figure
`;

/** @throws BenchUsageError */
export function parseNbdOptions(args: readonly string[]): NbdBenchOptions {
  let parsed: ReturnType<typeof parse>;
  try {
    parsed = parse(args);
  } catch (error) {
    throw new BenchUsageError(`Cannot understand the options: ${(error as Error).message}`, NBD_USAGE);
  }
  const { values, positionals } = parsed;
  for (const name of positionals) {
    if (!GROUPS.includes(name as Group)) {
      throw new BenchUsageError(`Cannot measure ${name}: expected ${GROUPS.join(', ')}`, NBD_USAGE);
    }
  }
  return {
    groups: new Set(positionals.length > 0 ? (positionals as Group[]) : GROUPS),
    only: values.only,
    rounds: whole('rounds', values.rounds ?? (values.quick ? '1' : '5'), { least: 1, most: 100 }),
    runMs: whole('ms', values.ms ?? (values.quick ? '300' : '1000'), { least: 100, most: 60_000 }),
    json: values.json,
    must: values.must === true,
    limits: values.only === undefined || positionals.includes('limits'),
    brief: values.brief === true,
  };
}

function parse(args: readonly string[]) {
  return parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      only: { type: 'string', multiple: true },
      rounds: { type: 'string' },
      ms: { type: 'string' },
      must: { type: 'boolean' },
      quick: { type: 'boolean' },
      brief: { type: 'boolean' },
      json: { type: 'string' },
    },
  });
}

function whole(name: string, text: string, { least, most }: { least: number; most: number }): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < least || value > most) {
    throw new BenchUsageError(`Cannot take --${name} ${text}: expected ${least}..${most}`, NBD_USAGE);
  }
  return value;
}
