// Our NBD server against qemu-nbd (threads and io_uring) and nbdkit: same images, same clients (fio, nbdcopy,
// qemu-img bench), servers in turn, started anew and warmed up for every measurement.
import process from 'node:process';
import { printSection, type Row, type Section, writeJson } from './machine/report.ts';
import { round } from './machine/statistics.ts';
import { dropCache, fillCache } from './nbd/cache.ts';
import { work } from './nbd/clients.ts';
import { isCounted, rowsOf, type Sample } from './nbd/figures.ts';
import { measureHostilePeers, measureStall } from './nbd/limits.ts';
import { GROUPS, type NbdBenchOptions, parseNbdOptions } from './nbd/options.ts';
import { BenchServer, compile, dispose, has, imageOf, prepare, type Setup } from './nbd/servers.ts';
import { type ServerName, WORKLOADS, type Workload } from './nbd/workloads.ts';

const WARM_UP_MS = 2000;
/** So that a row with one request at a time is as warm as the others */
const WARM_UP_DEPTH = 16;
/** Of our process with one connection, whatever it does, in `MB` */
const MEMORY_MUST = 100;

const skip = (text: string) => process.stderr.write(`SKIPPED: ${text}\n`);

/**
 * Measures and prints one group of rows after the other; says on stderr what it skips and why.
 * @throws BenchUsageError for wrong `args`
 */
export async function run(args: readonly string[] = []): Promise<void> {
  const options = parseNbdOptions(args);
  const missing: string[] = [];
  for (const program of ['fio', 'nbdcopy', 'qemu-nbd', 'qemu-img', 'nbdkit']) {
    if (!(await has(program))) missing.push(program);
  }
  for (const program of missing) skip(`${program} is not installed`);
  if (missing.some((program) => program !== 'nbdkit')) return;
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
  const setup = await prepare();
  process.once('exit', () => dispose(setup));
  await compile(setup);
  const sections: Section[] = [];
  const peaks = new Map<string, number>();
  const keep = (): void => {
    if (options.json !== undefined) writeJson(options.json, { ...options, groups: [...options.groups] }, sections);
  };
  for (const group of GROUPS) {
    if (!options.groups.has(group)) continue;
    const chosen = WORKLOADS.filter((workload) => workload.group === group && isWanted(workload, options));
    const samples: Record<string, unknown> = {};
    const rows: Row[] = [];
    sections.push({ title: group, rows, samples });
    for (const workload of chosen) {
      const taken = await measureWorkload(workload, options, setup, !missing.includes('nbdkit'));
      samples[workload.name] = Object.fromEntries(taken);
      rows.push(...rowsOf(workload, taken));
      const peak = Math.max(...taken.get('ours')!.map(({ peakBytes }) => peakBytes));
      if (!workload.name.includes('4×')) peaks.set(workload.name, peak);
      // After each row: what a long run has found so far is not lost with it
      keep();
    }
    if (group === 'limits' && options.limits) {
      rows.push(
        ...(await measureHostilePeers(setup)),
        ...(await measureStall(setup, options.runMs)),
        ...memoryRow(peaks),
      );
    }
    if (rows.length === 0) continue;
    printSection({ title: group, rows });
    keep();
  }
}

/** A whole name means that row, a part of one all rows that have it. */
function isWanted({ name, goals }: Workload, { only, must }: NbdBenchOptions): boolean {
  if (must && goals.every((goal) => goal.must === undefined)) return false;
  const isName = (part: string): boolean => WORKLOADS.some((workload) => workload.name === part);
  return only === undefined || only.some((part) => (isName(part) ? name === part : name.includes(part)));
}

async function measureWorkload(
  workload: Workload,
  options: NbdBenchOptions,
  setup: Setup,
  hasNbdkit: boolean,
): Promise<Map<ServerName, Sample[]>> {
  const servers = workload.servers.filter((name) => {
    if (options.brief) return name.startsWith('ours') || name === 'nbdkit';
    return !name.startsWith('nbdkit') || hasNbdkit;
  });
  const samples = new Map<ServerName, Sample[]>(servers.map((name) => [name, []]));
  for (let round = 0; round < options.rounds; round++) {
    for (const name of servers) samples.get(name)!.push(await measure(name, workload, options, setup));
  }
  return samples;
}

async function measure(
  name: ServerName,
  workload: Workload,
  { runMs }: NbdBenchOptions,
  setup: Setup,
): Promise<Sample> {
  const { client, transport } = workload;
  const server = await BenchServer.start(name, workload, setup);
  try {
    // Not measured: what is compiled and taken from the system at first. A server lives longer than a measurement.
    const warm = client.kind === 'copy' ? client : { ...client, depth: WARM_UP_DEPTH };
    await work(warm, transport, setup, WARM_UP_MS);
    if (workload.storage === 'cold') dropCache(imageOf(name, workload, setup));
    if (workload.storage === 'file') fillCache(imageOf(name, workload, setup));
    const before = server.cpuSeconds();
    const done = await work(client, transport, setup, runMs);
    const cpu = server.cpuSeconds() - before;
    const counted = isCounted(workload);
    return {
      rate: counted ? done.operations / done.seconds : done.bytes / 1e6 / done.seconds,
      p50: done.p50,
      clientPercent: done.clientPercent,
      cpu: counted ? (cpu / done.operations) * 1e6 : cpu / (done.bytes / 1e9),
      peakBytes: server.memory().peakBytes,
    };
  } finally {
    await server.stop();
  }
}

/** The largest process of all rows with one connection that were measured in this run. */
function memoryRow(peaks: ReadonlyMap<string, number>): Row[] {
  const [name, bytes] = [...peaks].sort((a, b) => b[1] - a[1])[0] ?? [];
  if (bytes === undefined) return [];
  const mb = round(bytes / 1e6);
  const verdict = mb <= MEMORY_MUST ? 'met' : 'missed';
  return [{ workload: `resident at most (${name})`, unit: 'MB', ours: mb, must: `≤ ${MEMORY_MUST}`, verdict }];
}

if (import.meta.main) await run(process.argv.slice(2));
