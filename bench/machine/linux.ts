// Debian's kernel and busybox on both sides: boot, commands, two harts, an idle guest, memory.

import { planMemory } from '../../emulator/memory/layout.ts';
import type { DebianGuest } from '../../guests/debian/mod.ts';
import { type CountedSpan, countersSection } from './engine_counters.ts';
import { LINUX_COMMANDS, type LinuxCommand, parallelScript, prepareScript } from './linux_commands.ts';
import { type BootTimes, type CommandRun, debianOrSkip, LINUX_RAM_MIB, LinuxGuest } from './linux_guest.ts';
import type { BenchOptions } from './options.ts';
import { cpuBetween, readProcessCpu } from './process_cpu.ts';
import { type ProcessMemory, readProcessMemory } from './process_memory.ts';
import type { Row, Section } from './report.ts';
import { inTurn, type Side, type SideName } from './sides.ts';
import { geometricMean, median, round } from './statistics.ts';
import { describeTarget, judge, ratioOf, TARGETS, type Target } from './targets.ts';

/** Beyond it the guest's clock and ours tell different stories: one hundredth at each end, and a share */
const CLOCK_GRAIN_MS = 30;
const CLOCK_SHARE = 0.05;
/**
 * When an idle guest is looked at. One that has just booted has things to finish, wakes up twice as often, and its code for
 * that is still being compiled: what it takes then is shown, and judged is what it takes from then on.
 */
const IDLE_SPANS: readonly { readonly when: string; readonly afterMs: number; readonly target: Target | undefined }[] =
  [
    { when: '3 s after the boot', afterMs: 3000, target: undefined },
    { when: '30 s after the boot', afterMs: 30_000, target: TARGETS.idle },
  ];
const MIB = 1 << 20;

/** All of Linux that is asked for, on one pair of guests where that will do; one section each. */
export async function measureLinux(options: BenchOptions, sides: readonly Side[]): Promise<Section[]> {
  const debian = await debianOrSkip();
  if (debian === undefined) return [];
  const wants = (name: string): boolean => options.names.has(name);
  const sections: Section[] = [];
  const boots: Record<SideName, BootTimes[]> = { ours: [], qemu: [] };
  if (wants('boot')) {
    const all = await inTurn(sides, options.rounds, (side) => bootOnce(side, debian));
    boots.ours.push(...all.ours);
    boots.qemu.push(...all.qemu);
    sections.push(bootSection(options, boots));
  }
  if (wants('idle') || wants('commands') || wants('resident')) {
    sections.push(...(await withPair(options, sides, debian)));
  }
  if (wants('parallel')) sections.push(await measureParallel(options, sides, debian));
  return sections;
}

async function bootOnce(side: Side, debian: DebianGuest): Promise<BootTimes> {
  await using guest = await LinuxGuest.start(side, debian);
  return guest.boot;
}

function bootSection(options: BenchOptions, boots: Readonly<Record<SideName, readonly BootTimes[]>>): Section {
  const figures: readonly (readonly [string, keyof BootTimes, Target | undefined])[] = [
    ['to /init, CPU', 'initCpuMs', TARGETS.boot],
    ['to /init, wall', 'initWallMs', TARGETS.boot],
    ['to the shell, CPU', 'readyCpuMs', undefined],
    ['to the shell, wall', 'readyWallMs', undefined],
  ];
  return {
    title: `Debian's boot, medians of ${options.rounds}`,
    rows: figures.map(([name, key, target]) =>
      timeRow(
        { boot: name },
        boots.ours.map((one) => one[key]),
        boots.qemu.map((one) => one[key]),
        target,
      ),
    ),
    notes: ['from the start of the process, QEMU’s with OpenSBI; the kernel speaks on the serial port'],
    samples: boots,
  };
}

function timeRow(name: Row, ours: readonly number[], theirs: readonly number[], target: Target | undefined): Row {
  const our = median(ours);
  const their = theirs.length === 0 ? undefined : median(theirs);
  const ratio = ratioOf(our, their);
  return {
    ...name,
    'ours ms': round(our),
    'QEMU ms': their === undefined ? undefined : round(their),
    ratio,
    must: describeTarget(target),
    verdict: judge(target, { ratio }),
  };
}

type Pair = readonly { readonly side: Side; readonly guest: LinuxGuest }[];

/** One guest on each side: idle, memory after boot, commands in turn, memory after them. */
async function withPair(options: BenchOptions, sides: readonly Side[], debian: DebianGuest): Promise<Section[]> {
  await using stack = new AsyncDisposableStack();
  const pair: { side: Side; guest: LinuxGuest }[] = [];
  for (const side of sides) pair.push({ side, guest: stack.use(await LinuxGuest.start(side, debian)) });
  const ours = pair.find(({ side }) => side.name === 'ours')?.guest;
  const booted = await ours?.counters();
  const counted: CountedSpan[] = booted === undefined ? [] : [{ what: 'boot', after: booted }];
  const sections: Section[] = [];
  const memory: { readonly when: string; readonly side: SideName; readonly memory: ProcessMemory }[] = [];
  const lookAtMemory = (when: string): void => {
    for (const { side, guest } of pair) memory.push({ when, side: side.name, memory: linuxMemory(side, guest) });
  };
  if (options.names.has('resident')) lookAtMemory('after the boot');
  if (options.names.has('idle')) sections.push(await measureIdle(options, pair));
  if (options.names.has('commands') || options.names.has('resident')) {
    const before = await ours?.counters();
    const commands = await measureCommands(options, pair);
    const after = await ours?.counters();
    if (before !== undefined && after !== undefined) counted.push({ what: 'commands', before, after });
    if (options.names.has('commands')) sections.push(commands);
  }
  if (options.names.has('resident')) {
    lookAtMemory('after the commands');
    sections.push(memorySection(memory));
  }
  if (counted.length > 0) sections.push(countersSection(counted));
  return sections;
}

async function measureIdle(options: BenchOptions, pair: Pair): Promise<Section> {
  const bootedAt = performance.now();
  const rows: Row[] = [];
  const samples: unknown[] = [];
  for (const { when, afterMs, target } of IDLE_SPANS) {
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, bootedAt + afterMs - performance.now())));
    const before = pair.map(({ guest }) => readProcessCpu(guest.pid));
    const from = performance.now();
    await new Promise((resolve) => setTimeout(resolve, options.seconds * 1000));
    const wallMs = performance.now() - from;
    const shares = pair.map(({ side, guest }, index) => ({
      side: side.name,
      percent: (100 * cpuBetween(before[index]!, readProcessCpu(guest.pid)).ms) / wallMs,
    }));
    const of = (name: SideName) => shares.find(({ side }) => side === name)?.percent;
    const ours = round(of('ours')!, 2);
    const theirs = of('qemu');
    rows.push({
      guest: `at its shell, 1 hart, share of a core, ${when}`,
      'ours %': ours,
      'QEMU %': theirs === undefined ? undefined : round(theirs, 2),
      must: describeTarget(target),
      verdict: judge(target, { ours }),
    });
    samples.push({ afterMs, shares });
  }
  return { title: `Idle Linux over ${options.seconds} s`, rows, samples };
}

interface CommandRuns {
  readonly command: LinuxCommand;
  readonly runs: Record<SideName, CommandRun[]>;
}

async function measureCommands(options: BenchOptions, pair: Pair): Promise<Section> {
  for (const { guest } of pair) await guest.run(prepareScript(options.percent));
  const all: CommandRuns[] = [];
  for (const command of LINUX_COMMANDS) {
    const runs: CommandRuns['runs'] = { ours: [], qemu: [] };
    for (let turn = 0; turn < options.rounds; turn++) {
      for (const { side, guest } of pair) runs[side.name].push(await guest.run(command.script(options.percent)));
    }
    const outputs = new Set([...runs.ours, ...runs.qemu].map(({ output }) => output));
    if (outputs.size > 1) throw new Error(`${command.name}: the guests disagree: ${[...outputs].join(' | ')}`);
    all.push({ command, runs });
  }
  const rows = all.map(
    ({ command, runs }): Row => ({
      ...timeRow(
        { command: command.name },
        runs.ours.map(({ cpu }) => cpu.ms),
        runs.qemu.map(({ cpu }) => cpu.ms),
        command.target,
      ),
      'ours wall': round(median(runs.ours.map(({ wallMs }) => wallMs))),
      'QEMU wall': runs.qemu.length === 0 ? undefined : round(median(runs.qemu.map(({ wallMs }) => wallMs))),
      clocks: [...runs.ours, ...runs.qemu].every(clocksAgree) ? 'agree' : 'differ',
    }),
  );
  const ratios = rows.flatMap(({ ratio }) => (typeof ratio === 'number' ? [ratio] : []));
  if (ratios.length > 1) {
    const ratio = round(geometricMean(ratios), 2);
    const [must, verdict] = [describeTarget(TARGETS.commands), judge(TARGETS.commands, { ratio })];
    rows.push({ command: 'geometric mean', ratio, must, verdict });
  }
  return {
    title: `Inside Linux, CPU ms of the process, ${options.percent} % of the workload, medians of ${options.rounds}`,
    rows,
    notes: ['clocks: whether the guest’s own agrees with the host’s on how long each run took'],
    samples: all,
  };
}

/** The guest may see less than the host, which also waits for the line; not more. */
export function clocksAgree({ wallMs, guestMs }: Pick<CommandRun, 'wallMs' | 'guestMs'>): boolean {
  return Math.abs(wallMs - guestMs) <= CLOCK_GRAIN_MS + CLOCK_SHARE * wallMs;
}

async function measureParallel(options: BenchOptions, sides: readonly Side[], debian: DebianGuest): Promise<Section> {
  await using stack = new AsyncDisposableStack();
  const pair: { side: Side; guest: LinuxGuest }[] = [];
  for (const side of sides) pair.push({ side, guest: stack.use(await LinuxGuest.start(side, debian, { harts: 2 })) });
  for (const { guest } of pair) await guest.run(prepareScript(options.percent));
  const samples: Record<SideName, { one: CommandRun[]; two: CommandRun[] }> = {
    ours: { one: [], two: [] },
    qemu: { one: [], two: [] },
  };
  for (let turn = 0; turn < options.rounds; turn++) {
    for (const { side, guest } of pair) {
      samples[side.name].one.push(await guest.run(parallelScript(1)));
      samples[side.name].two.push(await guest.run(parallelScript(2)));
    }
  }
  const wall = (runs: readonly CommandRun[]): number => median(runs.map(({ wallMs }) => wallMs));
  const rows = sides.map(({ name }): Row => {
    const one = wall(samples[name].one);
    const two = wall(samples[name].two);
    const gain = round((2 * one) / two, 2);
    return {
      machine: name === 'ours' ? 'ours' : 'QEMU',
      'one job ms': round(one),
      'two jobs ms': round(two),
      'throughput of 2 harts': gain,
      ...(name === 'ours'
        ? { must: describeTarget(TARGETS.parallel), verdict: judge(TARGETS.parallel, { ours: gain }) }
        : {}),
    };
  });
  return { title: `sha256sum on -smp 2, wall, medians of ${options.rounds}`, rows, samples };
}

/** Where our guest RAM begins in the mapping that holds it; QEMU's is a mapping of its own. */
export function ramOffset(side: SideName, harts: number, ramMib: number): number {
  return side === 'ours' ? planMemory(harts, ramMib * MIB).ram : 0;
}

function linuxMemory(side: Side, guest: LinuxGuest): ProcessMemory {
  return readProcessMemory(guest.pid, LINUX_RAM_MIB * MIB, ramOffset(side.name, 1, LINUX_RAM_MIB));
}

function memorySection(
  looks: readonly { readonly when: string; readonly side: SideName; readonly memory: ProcessMemory }[],
): Section {
  const of = (when: string, name: SideName) => looks.find((look) => look.when === when && look.side === name)?.memory;
  const mib = (bytes: number | undefined) => (bytes === undefined ? undefined : round(bytes / MIB));
  const rows = [...new Set(looks.map(({ when }) => when))].map((when): Row => {
    const ours = mib(of(when, 'ours')?.otherBytes)!;
    return {
      Linux: when,
      'ours MiB': ours,
      'QEMU MiB': mib(of(when, 'qemu')?.otherBytes),
      must: describeTarget(TARGETS.memory),
      verdict: judge(TARGETS.memory, { ours }),
      'RAM touched, ours': mib(of(when, 'ours')?.ramBytes),
      'RAM touched, QEMU': mib(of(when, 'qemu')?.ramBytes),
    };
  });
  return {
    title: 'Resident memory of the machine’s process beside the guest’s RAM',
    rows,
    notes: ['ours is all of it: Node and V8, the devices, and what was made of the guest’s code'],
    samples: looks,
  };
}
