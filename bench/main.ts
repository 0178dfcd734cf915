// `npm run bench [PART…]`: measures our services against their peers and prints one table a part.
import { existsSync } from 'node:fs';
import { cpus, loadavg, release } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';

const PARTS = ['machine', 'nbd', 'migration'] as const;

type Cell = string | number | undefined;
type Row = Readonly<Record<string, Cell>>;

function printTable(rows: readonly Row[]): void {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cells = [columns, ...rows.map((row) => columns.map((column) => String(row[column] ?? '-')))];
  const widths = columns.map((_, index) => Math.max(...cells.map((line) => line[index]!.length)));
  for (const line of cells) {
    const padded = line.map((cell, index) =>
      index === 0 ? cell.padEnd(widths[index]!) : cell.padStart(widths[index]!),
    );
    process.stdout.write(`${padded.join('  ').trimEnd()}\n`);
  }
}

const wanted = process.argv.slice(2);
const unknown = wanted.find((name) => !PARTS.includes(name as (typeof PARTS)[number]));
if (unknown !== undefined) {
  process.stderr.write(`Cannot measure ${unknown}: expected ${PARTS.join(', ')}\n`);
  process.exit(2);
}
const model = cpus()[0]?.model ?? 'unknown CPU';
process.stdout.write(
  `${new Date().toISOString().slice(0, 10)}, ${cpus().length} × ${model}, kernel ${release()}, Node ${process.version}, ` +
    `load ${loadavg()[0]!.toFixed(1)} at the start\n`,
);
for (const part of PARTS) {
  if (wanted.length > 0 && !wanted.includes(part)) continue;
  const file = join(import.meta.dirname, `${part}.ts`);
  process.stdout.write(`\n${part}\n`);
  if (!existsSync(file)) {
    process.stdout.write(`SKIPPED: there is no bench/${part}.ts\n`);
    continue;
  }
  const { run } = (await import(file)) as { run: () => Promise<readonly Row[]> };
  const rows = await run();
  if (rows.length > 0) printTable(rows);
}
