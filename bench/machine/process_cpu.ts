import { readdirSync, readFileSync } from 'node:fs';

/** What one thread has used, in `ms`. */
export interface ThreadCpu {
  readonly id: number;
  readonly ms: number;
}

export interface ProcessCpu {
  /** User and system time of all threads that live, in `ms` */
  readonly ms: number;
  readonly threads: readonly ThreadCpu[];
}

/** Of a thread's times in `/proc/…/stat` */
const CLOCK_TICKS_PER_SECOND = 100;

/** `/proc/PID/task/TID/sched`, of kernels that have it: time on a processor, in `ms` with nanoseconds. */
export function parseSched(text: string): number | undefined {
  const ms = /^se\.sum_exec_runtime\s+:\s+(\d+\.\d+)$/m.exec(text)?.[1];
  return ms === undefined ? undefined : Number(ms);
}

/** `/proc/PID/task/TID/stat` (proc(5)): user and system time, in `ms`, whole hundredths of a second. */
export function parseStat(text: string): number {
  // The second field is the name in parentheses, and may have both in it
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const [user, system] = [Number(fields[11]), Number(fields[12])];
  if (!(user >= 0) || !(system >= 0)) throw new Error(`Cannot read stat: ${JSON.stringify(text.slice(0, 100))}`);
  return ((user + system) * 1000) / CLOCK_TICKS_PER_SECOND;
}

function readThread(folder: string): number {
  try {
    const ms = parseSched(readFileSync(`${folder}/sched`, 'latin1'));
    if (ms !== undefined) return ms;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  return parseStat(readFileSync(`${folder}/stat`, 'latin1'));
}

/**
 * All threads of a process now. The kernel adds up what a thread that is running right now uses at its next tick, so
 * a figure may be some milliseconds late. Threads that ended are not counted; neither side's do while it is measured.
 */
export function readProcessCpu(pid: number): ProcessCpu {
  const threads: ThreadCpu[] = [];
  for (const entry of readdirSync(`/proc/${pid}/task`)) {
    try {
      threads.push({ id: Number(entry), ms: readThread(`/proc/${pid}/task/${entry}`) });
    } catch (error) {
      // It ended between the list and the look
      if (!['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    }
  }
  return { ms: threads.reduce((sum, { ms }) => sum + ms, 0), threads };
}

export interface CpuUsed {
  /** All threads, in `ms` */
  readonly ms: number;
  /** The busiest thread: with one hart, the one that runs the guest */
  readonly busiestMs: number;
}

/** What was used between two looks; a thread that is new at the second counts from 0. */
export function cpuBetween(before: ProcessCpu, after: ProcessCpu): CpuUsed {
  const old = new Map(before.threads.map(({ id, ms }) => [id, ms]));
  const used = after.threads.map(({ id, ms }) => ms - (old.get(id) ?? 0));
  return { ms: used.reduce((sum, ms) => sum + ms, 0), busiestMs: Math.max(0, ...used) };
}
