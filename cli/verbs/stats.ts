import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { HART_COUNTERS } from '../../emulator/hart/counters.ts';
import type { JsonObject } from '../../protocols/qmp/mod.ts';
import type { QmpClient } from '../../services/shared/mod.ts';
import { UsageError, type Verb } from '../usage_error.ts';
import { connectVm, expectOperands, splitFlags } from './client.ts';

/** Name → value, per hart */
type Sample = { readonly atMs: number; readonly harts: readonly ReadonlyMap<string, number>[] };

export const statsVerb: Verb = {
  name: 'stats',
  summary: 'show what a machine’s harts do: instructions, traps, misses …',
  help: `caisson stats VM [--once] [--json] [--interval SECONDS]
Shows the counters of each hart and how much they rise a second, again and again until Ctrl-C.

  --once               print the totals once (so it does where the output is no terminal)
  --json               print one JSON object per hart and line, once; times in µs, sizes in bytes
  --interval SECONDS   how often to look (default 1)
`,
  async run(args) {
    const { operands, flags } = splitFlags('stats', args, {
      '--once': 'flag',
      '--json': 'flag',
      '--interval': 'value',
    });
    const [name] = expectOperands('stats', operands, ['VM']);
    const seconds = Number(flags.get('--interval') ?? 1);
    if (!(seconds >= 0.1 && seconds <= 3600)) {
      throw new UsageError(`Cannot use --interval ${flags.get('--interval')}: expected 0.1..3600 seconds`);
    }
    const { client } = await connectVm(name!);
    try {
      if (flags.has('--json')) return printJson(await sample(client));
      const once = flags.has('--once') || !process.stdout.isTTY;
      return await show(client, once ? undefined : seconds * 1000);
    } finally {
      await client.close();
    }
  },
};

async function sample(client: QmpClient): Promise<Sample> {
  const answer = (await client.request('query-stats', { target: 'vcpu' })) as JsonObject[];
  const harts = answer.map(({ stats }) => {
    const list = stats as unknown as { name: string; value: number }[];
    return new Map(list.map(({ name, value }) => [name, value]));
  });
  return { atMs: performance.now(), harts };
}

function printJson({ harts }: Sample): number {
  for (const [hart, values] of harts.entries()) {
    process.stdout.write(`${JSON.stringify({ hart, ...Object.fromEntries(values) })}\n`);
  }
  return 0;
}

async function show(client: QmpClient, intervalMs: number | undefined): Promise<number> {
  let before = await sample(client);
  process.stdout.write(renderStats(before));
  let closed = false;
  void client.closed.then(() => {
    closed = true;
  });
  while (intervalMs !== undefined) {
    await sleep(intervalMs);
    if (closed) return 0; // the machine has ended
    const now = await sample(client);
    // Home, then each line over the old one: no flicker
    process.stdout.write(`\x1b[H\x1b[J${renderStats(now, before)}`);
    before = now;
  }
  return 0;
}

const SECONDS: Readonly<Record<number, string>> = { 0: 's', [-3]: 'ms', [-6]: 'µs', [-9]: 'ns' };

/** What is no plain number has a unit, as query-stats-schemas says. */
const UNITS: ReadonlyMap<string, string> = new Map(
  HART_COUNTERS.flatMap(({ name, unit, exponent = 0 }) =>
    unit === undefined ? [] : [[name, unit === 'bytes' ? 'bytes' : (SECONDS[exponent] ?? unit)]],
  ),
);

/** One row per counter, one column per hart: totals, or with an earlier sample the rise per second beside them. */
export function renderStats(now: Sample, before?: Sample): string {
  const names = [...(now.harts[0]?.keys() ?? [])];
  const seconds = before === undefined ? 0 : (now.atMs - before.atMs) / 1000;
  const label = (name: string): string => (UNITS.has(name) ? `${name} (${UNITS.get(name)})` : name);
  const width = Math.max(...names.map((name) => label(name).length), 4) + 2;
  const cell = (text: string): string => text.padStart(12);
  const rows = names.map((name) => {
    const cells = now.harts.map((values, hart) => {
      const value = values.get(name) ?? 0;
      if (before === undefined) return cell(formatCount(value));
      const rise = (value - (before.harts[hart]?.get(name) ?? 0)) / seconds;
      return `${cell(formatCount(value))}${cell(`${formatCount(rise)}/s`)}`;
    });
    return `${label(name).padEnd(width)}${cells.join('')}`;
  });
  const heads = now.harts.map((_, hart) => `hart ${hart}`.padStart(before === undefined ? 12 : 24)).join('');
  return `${' '.repeat(width)}${heads}\n${rows.join('\n')}\n`;
}

/** `1234`, `56.7k`, `8.90M`, `1.23G`: at most four digits */
function formatCount(value: number): string {
  const units = ['', 'k', 'M', 'G', 'T', 'P'];
  let scaled = Math.max(0, value);
  let unit = 0;
  while (scaled >= 9999.5 || (unit > 0 && scaled >= 999.5)) {
    scaled /= 1000;
    unit++;
  }
  if (unit === 0) return String(Math.round(scaled));
  return `${scaled.toFixed(scaled >= 99.5 ? 0 : scaled >= 9.95 ? 1 : 2)}${units[unit]}`;
}
