import { parseArgs } from 'node:util';

/** What executes the guest's instructions on our side. */
export type Engine = 'interpreter' | 'translator';

const ENGINES: readonly Engine[] = ['interpreter', 'translator'];

export const COMPUTE = [
  ...['mix', 'calls', 'hash', 'sort', 'quicksort', 'records', 'interpreter', 'floating', 'fused', 'copy', 'chase'],
] as const;
export const LINUX = ['boot', 'commands', 'parallel'] as const;
export const LATENCY = ['mmio', 'idle', 'timer', 'serial'] as const;
export const START = ['start'] as const;
export const DISK = ['disk'] as const;
export const MEMORY = ['resident', 'hostile'] as const;

/** Groups of names that can be given in place of them */
const GROUPS: Readonly<Record<string, readonly string[]>> = {
  compute: COMPUTE,
  linux: LINUX,
  latency: LATENCY,
  memory: MEMORY,
  start: START,
  disk: DISK,
};

export interface BenchOptions {
  /** What to measure */
  readonly names: ReadonlySet<string>;
  readonly rounds: number;
  /** Undefined: what the machine takes by itself */
  readonly engine: Engine | undefined;
  /** Of each workload, in `%` */
  readonly percent: number;
  /** How long the idle guest and the hostile one are looked at, in `s` */
  readonly seconds: number;
  /** Of the hostile guest */
  readonly harts: number;
  readonly json: string | undefined;
  /** Without the other side */
  readonly alone: boolean;
}

export class BenchUsageError extends Error {
  override readonly name = 'BenchUsageError';
  readonly code = 'ERR_BENCH_USAGE';
  readonly usage: string;

  /** `usage`: what to show below the text */
  constructor(text: string, usage: string = MACHINE_USAGE) {
    super(text);
    this.usage = usage;
  }
}

export const MACHINE_USAGE = `npm run bench -- machine [NAME…] [OPTIONS]
  NAME        compute (${COMPUTE.join(', ')}),
              linux (${LINUX.join(', ')}), start, disk, latency (${LATENCY.join(', ')}),
              memory (${MEMORY.join(', ')});
              everything where none is given
  --rounds N  turns of each side (default 5)
  --engine E  interpreter or translator (default: what the machine takes by itself)
  --percent N share of each workload: 100 takes QEMU about a second (default 100)
  --seconds N length of the idle and the hostile guest's observation (default 10)
  --harts N   of the hostile guest, at most 8 (default 1)
  --alone     our side only
  --json FILE every single figure
`;

/** @throws BenchUsageError */
export function parseMachineOptions(args: readonly string[]): BenchOptions {
  let parsed: ReturnType<typeof parse>;
  try {
    parsed = parse(args);
  } catch (error) {
    throw new BenchUsageError(`Cannot understand the options: ${(error as Error).message}`);
  }
  const { values, positionals } = parsed;
  const { engine } = values;
  if (engine !== undefined && !ENGINES.includes(engine as Engine)) {
    throw new BenchUsageError(`Cannot measure the engine ${engine}: expected ${ENGINES.join(' or ')}`);
  }
  return {
    names: selectNames(positionals),
    rounds: whole('rounds', values.rounds ?? '5', 1000),
    engine: engine as Engine | undefined,
    percent: whole('percent', values.percent ?? '100', 1000),
    seconds: whole('seconds', values.seconds ?? '10', 3600),
    harts: whole('harts', values.harts ?? '1', 8),
    json: values.json,
    alone: values.alone === true,
  };
}

function parse(args: readonly string[]) {
  return parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      rounds: { type: 'string' },
      engine: { type: 'string' },
      percent: { type: 'string' },
      seconds: { type: 'string' },
      harts: { type: 'string' },
      json: { type: 'string' },
      alone: { type: 'boolean' },
    },
  });
}

function selectNames(positionals: readonly string[]): ReadonlySet<string> {
  const all = Object.values(GROUPS).flat();
  const names = new Set<string>();
  for (const name of positionals) {
    const members = all.includes(name) ? [name] : GROUPS[name];
    if (members === undefined) {
      throw new BenchUsageError(`Cannot measure ${name}: expected ${[...Object.keys(GROUPS), ...all].join(', ')}`);
    }
    for (const member of members) names.add(member);
  }
  return names.size > 0 ? names : new Set(all);
}

function whole(name: string, text: string, most: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < 1 || value > most) {
    throw new BenchUsageError(`Cannot take --${name} ${text}: expected 1..${most}`);
  }
  return value;
}
