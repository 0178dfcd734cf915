// From the command to a bare-metal program's first byte: how long, and what all processes of the command use.
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { compileGuest } from '../guest_programs.ts';
import { BARE_RAM_MIB } from './bare_metal.ts';
import type { BenchOptions } from './options.ts';
import { readProcessCpu } from './process_cpu.ts';
import type { Row, Section } from './report.ts';
import { QEMU, type Side, type SideName } from './sides.ts';
import { median, round } from './statistics.ts';
import { describeTarget, judge, TARGETS } from './targets.ts';

const CAISSON = join(import.meta.dirname, '..', '..', 'bin', 'caisson');
const TIMEOUT_MS = 60_000;
const END_MS = 10_000;

interface Start {
  readonly wallMs: number;
  /** Of all processes of the command, by their titles, in `ms` */
  readonly cpuMs: Readonly<Record<string, number>>;
}

export async function measureStart(options: BenchOptions, sides: readonly Side[], folder: string): Promise<Section> {
  const elf = compileGuest({ name: 'idle' }, folder);
  const machine = ['-bios', 'none', '-m', `${BARE_RAM_MIB}M`, '-kernel', elf, '-nographic'];
  const commands: Readonly<Record<SideName, readonly string[]>> = {
    ours: [CAISSON, 'run', ...machine],
    qemu: [QEMU, '-M', 'virt', ...machine],
  };
  const empty = join(import.meta.dirname, 'empty.mjs');
  // The first start on a host fills the cache of compiled code
  for (const { name } of sides) await startOnce(commands[name]);
  const starts: Record<SideName | 'node', Start[]> = { ours: [], qemu: [], node: [] };
  for (let turn = 0; turn < options.rounds; turn++) {
    for (const { name } of sides) starts[name].push(await startOnce(commands[name]));
    starts.node.push(await startOnce([process.execPath, empty]));
  }
  const wall = (side: readonly Start[]) => round(median(side.map(({ wallMs }) => wallMs)));
  const cpu = (side: readonly Start[]) => round(median(side.map(totalCpu)));
  const row = (title: string, side: readonly Start[]): Row => ({
    command: title,
    'wall ms': wall(side),
    'CPU ms': cpu(side),
  });
  const rows: Row[] = [
    {
      ...row('caisson run', starts.ours),
      must: `${describeTarget(TARGETS.startWall)} wall, ${describeTarget(TARGETS.startCpu)} CPU`,
      verdict: `${judge(TARGETS.startWall, { ours: wall(starts.ours) })}, ${judge(TARGETS.startCpu, { ours: cpu(starts.ours) })}`,
    },
    ...(starts.qemu.length > 0 ? [row('QEMU', starts.qemu)] : []),
    row('a Node that does nothing', starts.node),
  ];
  const processes = [...new Set(starts.ours.flatMap(({ cpuMs }) => Object.keys(cpuMs)))];
  const of = (name: string) => round(median(starts.ours.map(({ cpuMs }) => cpuMs[name] ?? 0)));
  return {
    title: `Start: to the first byte of a bare-metal program, medians of ${options.rounds}`,
    rows,
    notes: [`CPU ms of ours: ${processes.map((name) => `${name} ${of(name)}`).join(', ')}`],
    samples: starts,
  };
}

const totalCpu = ({ cpuMs }: Start): number => Object.values(cpuMs).reduce((sum, ms) => sum + ms, 0);

async function startOnce([command, ...args]: readonly string[]): Promise<Start> {
  const from = performance.now();
  const child = spawn(command!, args, { stdio: ['pipe', 'pipe', 'ignore'] });
  const exited = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const kill = (): void => void child.kill('SIGKILL');
  process.once('exit', kill);
  try {
    await firstByte(child);
    const wallMs = performance.now() - from;
    return { wallMs, cpuMs: treeCpu(child.pid!) };
  } finally {
    child.kill('SIGTERM');
    const timer = setTimeout(kill, END_MS);
    await exited;
    clearTimeout(timer);
    process.off('exit', kill);
  }
}

function firstByte(child: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no byte in ${TIMEOUT_MS} ms`)), TIMEOUT_MS);
    const end = (settle: () => void) => () => {
      clearTimeout(timer);
      settle();
    };
    child.stdout!.once('data', end(resolve));
    child.once('error', (error) => end(() => reject(error))());
    child.once(
      'close',
      end(() => reject(new Error('it ended before the first byte'))),
    );
  });
}

/** A process and all that descend from it, by title; several of one title together. */
export function treeCpu(root: number): Record<string, number> {
  const parents = new Map<number, number>();
  for (const entry of readdirSync('/proc')) {
    const parent = /^\d+$/.test(entry) ? parentOf(Number(entry)) : undefined;
    if (parent !== undefined) parents.set(Number(entry), parent);
  }
  const tree = [root];
  for (const pid of tree) for (const [child, parent] of parents) if (parent === pid) tree.push(child);
  const used: Record<string, number> = {};
  for (const pid of tree) {
    const title = pid === root ? 'command' : titleOf(pid);
    if (title !== undefined) used[title] = (used[title] ?? 0) + readProcessCpu(pid).ms;
  }
  return used;
}

/** Undefined where the process has ended meanwhile */
function parentOf(pid: number): number | undefined {
  const text = readProc(pid, 'stat');
  return text === undefined ? undefined : Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[1]);
}

/** A role's name, or the program's */
function titleOf(pid: number): string | undefined {
  const text = readProc(pid, 'cmdline');
  if (text === undefined) return undefined;
  const role = /^caisson-(\w+)/.exec(text) ?? /role_entry\.mjs\0(\w+)/.exec(text);
  return role?.[1] ?? 'supervisor';
}

function readProc(pid: number, file: string): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'latin1');
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
}
