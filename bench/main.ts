// `npm run bench -- [PART…]` or `npm run bench -- PART OPTIONS…`: measures us against our peers.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { MACHINE_USAGE } from './machine/options.ts';
import { describeHost, formatTable, type Row } from './machine/report.ts';
import { NBD_USAGE } from './nbd/options.ts';

const PARTS = ['machine', 'nbd', 'migration'] as const;
type Part = (typeof PARTS)[number];

const isPart = (word: string | undefined): word is Part => PARTS.includes(word as Part);

function fail(text: string): never {
  process.stderr.write(`${text}\n`);
  process.exit(2);
}

/** Leading words are parts; what follows the only one is its own business. */
function splitArguments(args: readonly string[]): { readonly parts: readonly Part[]; readonly rest: string[] } {
  let count = 0;
  while (isPart(args[count])) count++;
  const rest = args.slice(count);
  if (rest.length > 0 && (count !== 1 || args[0] === 'migration')) {
    const usages = `${MACHINE_USAGE}${NBD_USAGE}`;
    fail(`Cannot measure ${rest[0]}: expected ${PARTS.join(', ')}, or one of these with options\n${usages}`);
  }
  return { parts: count === 0 ? PARTS : (args.slice(0, count) as Part[]), rest };
}

const { parts, rest } = splitArguments(process.argv.slice(2));
const host = describeHost();
process.stdout.write(
  `${String(host.date).slice(0, 10)}, ${host.processors} × ${host.model}, kernel ${host.kernel}, Node ${host.node}, ` +
    `load ${host.load} at the start\n`,
);
for (const part of parts) {
  const file = join(import.meta.dirname, `${part}.ts`);
  process.stdout.write(`\n${part}\n`);
  if (!existsSync(file)) {
    process.stdout.write(`SKIPPED: there is no bench/${part}.ts\n`);
    continue;
  }
  const { run } = (await import(file)) as { run: (args: readonly string[]) => Promise<readonly Row[] | undefined> };
  try {
    const rows = await run(rest);
    if (rows !== undefined && rows.length > 0) process.stdout.write(`${formatTable(rows)}\n`);
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ERR_BENCH_USAGE') throw error;
    fail(`${(error as Error).message}\n${(error as { usage?: string }).usage ?? ''}`);
  }
}
