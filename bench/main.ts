// `npm run bench -- [PART…]` or `npm run bench -- PART OPTIONS…`: measures us against our peers.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { didYouMean } from '../cli/suggest.ts';
import { asksForHelp, failUsage, ScriptUsageError } from '../scripts/script_arguments.ts';
import { MACHINE_USAGE, parseMachineOptions } from './machine/options.ts';
import { describeHost, formatTable, type Row } from './machine/report.ts';
import { NBD_USAGE, parseNbdOptions } from './nbd/options.ts';

const PARTS = ['machine', 'nbd', 'migration'] as const;
type Part = (typeof PARTS)[number];

const HELP = `npm run bench -- [PART…]
npm run bench -- machine [NAME…] [OPTIONS]
npm run bench -- nbd [OPTIONS]

Measures us beside our peers on this host, in turns, and prints tables. It takes minutes, and the host should do nothing else.

  PART        ${PARTS.join(', ')} (default: all)

${MACHINE_USAGE.replace(/^npm.*\n/, 'For machine alone:\n')}
${NBD_USAGE.replace(/^npm.*\n/, 'For nbd alone:\n')}
  npm run bench -- nbd
  npm run bench -- machine hash linux --rounds 3
`;

const isPart = (word: string | undefined): word is Part => PARTS.includes(word as Part);

/** Leading words are parts; what follows the only one is its own business. */
function splitArguments(args: readonly string[]): { readonly parts: readonly Part[]; readonly rest: string[] } {
  let count = 0;
  while (isPart(args[count])) count++;
  const rest = args.slice(count);
  if (rest.length > 0 && (count !== 1 || args[0] === 'migration')) {
    const near = didYouMean(rest[0]!, PARTS);
    throw new ScriptUsageError(`Cannot measure ${rest[0]}: expected ${PARTS.join(', ')}, or options of one${near}`);
  }
  return { parts: count === 0 ? PARTS : (args.slice(0, count) as Part[]), rest };
}

const given = process.argv.slice(2);
if (asksForHelp(given)) {
  process.stdout.write(HELP);
  process.exit(0);
}
let split: ReturnType<typeof splitArguments>;
try {
  split = splitArguments(given);
  if (split.rest.length > 0) (split.parts[0] === 'nbd' ? parseNbdOptions : parseMachineOptions)(split.rest);
} catch (error) {
  const { code } = error as { code?: unknown };
  if (code === 'ERR_SCRIPT_USAGE' || code === 'ERR_BENCH_USAGE') failUsage(error as Error);
  throw error;
}
const { parts, rest } = split;
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
  const rows = await run(rest);
  if (rows !== undefined && rows.length > 0) process.stdout.write(`${formatTable(rows)}\n`);
}
