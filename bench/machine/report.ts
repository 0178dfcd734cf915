import { writeFileSync } from 'node:fs';
import { cpus, loadavg, release } from 'node:os';
import process from 'node:process';

type Cell = string | number | undefined;
export type Row = Readonly<Record<string, Cell>>;

export interface Section {
  readonly title: string;
  readonly rows: readonly Row[];
  /** Said below the table: what was compared, what a reader must know */
  readonly notes?: readonly string[];
  /** Every single measurement, for the JSON file */
  readonly samples?: unknown;
}

/** Columns in the order of their first appearance; texts to the left, numbers to the right. */
export function formatTable(rows: readonly Row[]): string {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cells = [columns, ...rows.map((row) => columns.map((column) => String(row[column] ?? '')))];
  const widths = columns.map((_, index) => Math.max(...cells.map((line) => line[index]!.length)));
  return cells
    .map((line) =>
      line
        .map((cell, index) => (index === 0 ? cell.padEnd(widths[index]!) : cell.padStart(widths[index]!)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

export function printSection(section: Section): void {
  const notes = (section.notes ?? []).map((note) => `  ${note}\n`).join('');
  process.stdout.write(
    `\n${section.title}\n${section.rows.length > 0 ? `${formatTable(section.rows)}\n` : ''}${notes}`,
  );
}

/** What the numbers belong to. */
export function describeHost(): Readonly<Record<string, string | number>> {
  return {
    date: new Date().toISOString(),
    processors: cpus().length,
    model: cpus()[0]?.model ?? 'unknown',
    kernel: release(),
    node: process.version,
    load: Math.round(loadavg()[0]! * 10) / 10,
  };
}

export function writeJson(path: string, options: unknown, sections: readonly Section[]): void {
  writeFileSync(path, `${JSON.stringify({ host: describeHost(), options, sections }, undefined, 2)}\n`);
}
