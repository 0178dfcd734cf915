import { compileGuest } from '../guest_programs.ts';
import { BARE_RAM_MIB, bareSpec, parseFigures, parseResult } from './bare_metal.ts';
import { ramOffset } from './linux.ts';
import type { BenchOptions } from './options.ts';
import { readProcessMemory } from './process_memory.ts';
import type { Row, Section } from './report.ts';
import type { Side, SideName } from './sides.ts';
import { round } from './statistics.ts';
import { describeTarget, judge, TARGETS } from './targets.ts';

const MIB = 1 << 20;
const START_TIMEOUT_MS = 60_000;
/** For the report of the last functions, in `ms` */
const END_TIMEOUT_MS = 60_000;
/** Looks at the memory while it runs */
const LOOKS = 10;

interface Look {
  readonly second: number;
  readonly otherMib: number;
}

interface HostileRun {
  readonly looks: readonly Look[];
  readonly functions: number;
}

/** A guest that writes new code for ever: what becomes of our memory, and how many functions it gets done. */
export async function measureHostile(options: BenchOptions, sides: readonly Side[], folder: string): Promise<Section> {
  const elf = compileGuest({ name: 'hostile' }, folder);
  const runs = new Map<SideName, HostileRun>();
  // One after the other: side by side they would take the processor from each other
  for (const side of sides) runs.set(side.name, await hostileRun(side, elf, options));
  const ours = runs.get('ours')!;
  const theirs = runs.get('qemu');
  const most = Math.max(...ours.looks.map(({ otherMib }) => otherMib));
  const rows: Row[] = ours.looks.map((look, index) => ({
    'after s': look.second,
    'ours MiB': look.otherMib,
    'QEMU MiB': theirs?.looks[index]?.otherMib,
  }));
  rows.push({
    'after s': 'most',
    'ours MiB': most,
    'QEMU MiB': theirs === undefined ? undefined : Math.max(...theirs.looks.map(({ otherMib }) => otherMib)),
    must: describeTarget(TARGETS.memory),
    verdict: judge(TARGETS.memory, { ours: most }),
  });
  const rate = (run: HostileRun) => round(run.functions / options.seconds);
  return {
    title: `A guest that generates code for ever, ${options.harts} harts, ${options.seconds} s: memory beside its RAM`,
    rows,
    notes: [
      `functions of 32 instructions a second, each run 3000 rounds, by the first hart: ours ${rate(ours)}` +
        (theirs === undefined ? '' : `, QEMU ${rate(theirs)}`),
    ],
    samples: Object.fromEntries(runs),
  };
}

async function hostileRun(side: Side, elf: string, { seconds, harts }: BenchOptions): Promise<HostileRun> {
  await using guest = await side.start({ ...bareSpec(elf), harts });
  const { line, pid } = guest;
  await line.until('.', START_TIMEOUT_MS);
  const offset = ramOffset(side.name, harts, BARE_RAM_MIB);
  const looks: Look[] = [];
  line.write('g');
  const from = performance.now();
  for (let look = 1; look <= LOOKS; look++) {
    const due = from + (look * seconds * 1000) / LOOKS;
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - performance.now())));
    const { otherBytes } = readProcessMemory(pid, BARE_RAM_MIB * MIB, offset);
    looks.push({ second: round((performance.now() - from) / 1000, 1), otherMib: round(otherBytes / MIB) });
  }
  line.write('e');
  const figures = parseFigures(await line.until('=', END_TIMEOUT_MS));
  const { result } = parseResult(await line.until('\n', END_TIMEOUT_MS));
  const functions = Number(`0x${result}`);
  if (figures.length === 0 && functions >= 512) throw new Error(`${side.name}: the guest's reports are lost`);
  return { looks, functions };
}
