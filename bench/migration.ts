// Throughput and gap of the migration service, between four processes: two fake machines with real RAM, and their
// migration roles. The guest's part is a fake; what is measured is everything between the two RAMs.
import process from 'node:process';
import { ProcessSide } from '../test/fixtures/migration_processes.ts';

export interface MigrationRow {
  readonly name: string;
  /** Pages at the source to pages at the destination, verified by digest */
  readonly mibPerSecond: number;
  readonly totalMs: number;
  /** From pausing the source's harts to the destination's Running */
  readonly gapMs: number;
  readonly passes: number;
  readonly wireMib: number;
  /** Of all four processes over the migration, for each GiB on the wire; undefined without /proc */
  readonly cpuSecondsPerGib: number | undefined;
}

interface Case {
  readonly name: string;
  readonly ramMib: number;
  readonly randomMib: number;
  readonly storesMiBPerSecond?: number;
  readonly workingSetMib?: number;
  readonly downtimeLimitMs: number;
}

const CASES: readonly Case[] = [
  { name: '512 MiB random, idle', ramMib: 512, randomMib: 512, downtimeLimitMs: 300 },
  { name: '1 GiB zero, idle', ramMib: 1024, randomMib: 0, downtimeLimitMs: 300 },
  {
    name: '512 MiB random, 200 MiB/s over 256 MiB, limit 50 ms',
    ramMib: 512,
    randomMib: 512,
    storesMiBPerSecond: 200,
    workingSetMib: 255,
    downtimeLimitMs: 50,
  },
];

async function measure(test: Case): Promise<MigrationRow> {
  const options = {
    ramBytes: test.ramMib << 20,
    storesMiBPerSecond: test.storesMiBPerSecond ?? 0,
    workingSetPages: (test.workingSetMib ?? 1) * 256,
  };
  const [source, destination] = await Promise.all([
    ProcessSide.start({ ...options, randomPages: test.randomMib * 256 }),
    ProcessSide.start({ ...options, status: 'inmigrate' }),
  ]);
  try {
    await Promise.all([source.report(), destination.report(), source.query(), destination.query()]); // started, filled
    const answer = (await destination.rpc.call('migrate-incoming', { uri: 'tcp:127.0.0.1:0' })) as { uri: string };
    const before = await Promise.all([source.cpuSeconds(), destination.cpuSeconds()]);
    const parameters = { 'downtime-limit': test.downtimeLimitMs, deadline: 60_000 };
    await source.rpc.call('migrate', { uri: answer.uri, parameters });
    const status = await source.ended();
    const after = await Promise.all([source.cpuSeconds(), destination.cpuSeconds()]);
    const query = await source.query();
    if (status !== 'completed') throw new Error(`${test.name}: ${status} ${String(query['error-desc'])}`);
    const ram = query.ram as Record<string, number>;
    const totalMs = Number(query['total-time']) - Number(query['setup-time']);
    const wireMib = ram.transferred! / 2 ** 20;
    const cpu = [...after, ...before].includes(undefined) ? undefined : after[0]! + after[1]! - before[0]! - before[1]!;
    return {
      name: test.name,
      mibPerSecond: Math.round(((ram.normal! + ram.duplicate!) / 256 / totalMs) * 1000),
      totalMs,
      gapMs: Number(query.downtime),
      passes: ram['dirty-sync-count']!,
      wireMib: Math.round(wireMib * 1000) / 1000,
      cpuSecondsPerGib: cpu === undefined || wireMib < 1 ? undefined : Math.round((cpu / wireMib) * 102_400) / 100,
    };
  } finally {
    await Promise.all([source.close(), destination.close()]);
  }
}

export async function run(): Promise<MigrationRow[]> {
  const rows: MigrationRow[] = [];
  for (const test of CASES) rows.push(await measure(test));
  return rows;
}

if (import.meta.main) {
  for (const row of await run()) process.stdout.write(`${JSON.stringify(row)}\n`);
}
