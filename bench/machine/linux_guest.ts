import process from 'node:process';
import { DebianError, type DebianGuest, prepareDebian } from '../../guests/debian/mod.ts';
import type { EngineCounters } from './engine_counters.ts';
import { type CpuUsed, cpuBetween, readProcessCpu } from './process_cpu.ts';
import type { RunningGuest, Side } from './sides.ts';

/** RAM of the Linux guests, in `MiB` */
export const LINUX_RAM_MIB = 512;
const FIRST_LINE = 'caisson: first line';
/** The kernel's own messages come from a thread that may be far behind; what init writes comes at once */
const APPEND = `console=ttyS0 rdinit=/bin/sh -- -c "echo ${FIRST_LINE}; exec /init"`;
const BOOT_TIMEOUT_MS = 300_000;
const COMMAND_TIMEOUT_MS = 600_000;

/** Kernel and initramfs; undefined, and said on stderr, where this system cannot have them. */
export async function debianOrSkip(): Promise<DebianGuest | undefined> {
  try {
    return await prepareDebian();
  } catch (error) {
    if (!(error instanceof DebianError)) throw error;
    process.stderr.write(`SKIPPED: ${error.message}\n`);
    return undefined;
  }
}

/** From the start of the first process to a line of the guest, in `ms`. */
export interface BootTimes {
  /** The first line of the first process, before it has done anything */
  readonly initWallMs: number;
  readonly initCpuMs: number;
  /** Drivers are loaded; the shell follows */
  readonly readyWallMs: number;
  readonly readyCpuMs: number;
}

export interface CommandRun {
  /** What it printed: the same on both sides */
  readonly output: string;
  readonly wallMs: number;
  /** By the guest's own clock, in whole hundredths of a second */
  readonly guestMs: number;
  readonly cpu: CpuUsed;
}

/** What the guest says around a command: its clock before and after, the status, the output. */
export function parseAnswer(text: string): {
  readonly guestMs: number;
  readonly status: number;
  readonly output: string;
} {
  const match = /^(\d+\.\d\d) (\d+\.\d\d) (\d+) ([\s\S]*)$/.exec(text.replaceAll('\r', ''));
  if (match === null) throw new Error(`Cannot read the guest's answer: ${JSON.stringify(text.slice(0, 200))}`);
  const [, from, to, status, output] = match;
  return { guestMs: Math.round((Number(to) - Number(from)) * 1000), status: Number(status), output: output!.trim() };
}

/** Debian's kernel with our initramfs, at a shell that does what it is told without an echo. */
export class LinuxGuest implements AsyncDisposable {
  readonly boot: BootTimes;
  readonly #guest: RunningGuest;

  static async start(
    side: Side,
    debian: DebianGuest,
    { harts = 1, disk }: { readonly harts?: number; readonly disk?: string } = {},
  ): Promise<LinuxGuest> {
    const guest = await side.start({
      kernel: debian.kernelPath,
      initrd: debian.initrdPath,
      append: APPEND,
      bios: 'default',
      ramMib: LINUX_RAM_MIB,
      harts,
      ...(disk === undefined ? {} : { disk }),
    });
    try {
      return new LinuxGuest(guest, await waitForShell(guest));
    } catch (error) {
      await guest[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(guest: RunningGuest, boot: BootTimes) {
    this.#guest = guest;
    this.boot = boot;
  }

  get pid(): number {
    return this.#guest.pid;
  }

  get pids(): readonly number[] {
    return this.#guest.pids;
  }

  /** Of our engine; undefined on the other side */
  async counters(): Promise<EngineCounters | undefined> {
    return await this.#guest.counters?.();
  }

  /**
   * Runs one line of shell. Both clocks start when it is typed and end when its answer is there.
   * @throws Error where its status is not 0
   */
  async run(command: string): Promise<CommandRun> {
    const { line, pid } = this.#guest;
    const clock = (name: string) => `read -r ${name} x </proc/uptime`;
    const before = readProcessCpu(pid);
    const from = performance.now();
    line.write(`${clock('a')}; o=$({ ${command}; } 2>&1); s=$?; ${clock('b')}; echo "<$a $b $s $o>"\n`);
    await line.until('\n<', COMMAND_TIMEOUT_MS);
    const text = await line.until('>', COMMAND_TIMEOUT_MS);
    const wallMs = performance.now() - from;
    const cpu = cpuBetween(before, readProcessCpu(pid));
    const { guestMs, status, output } = parseAnswer(text);
    if (status !== 0) throw new Error(`Cannot run ${command} in the guest: status ${status}, ${output.slice(0, 300)}`);
    return { output, wallMs, guestMs, cpu };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#guest[Symbol.asyncDispose]();
  }
}

async function waitForShell({ line, pid, startedAt }: RunningGuest): Promise<BootTimes> {
  const look = () => ({ wallMs: performance.now() - startedAt, cpuMs: readProcessCpu(pid).ms });
  // At the start of a line: the kernel prints its command line too, which has the same words
  await line.until(`\n${FIRST_LINE}`, BOOT_TIMEOUT_MS);
  const init = look();
  await line.until('caisson: guest is ready', BOOT_TIMEOUT_MS);
  const ready = look();
  await line.until('# ', BOOT_TIMEOUT_MS);
  // In two parts, so that no echo of it looks like the answer
  line.write('stty -echo; echo "<set""up>"; while IFS= read -r line; do eval "$line"; done\n');
  await line.until('\n<setup>', BOOT_TIMEOUT_MS);
  return { initWallMs: init.wallMs, initCpuMs: init.cpuMs, readyWallMs: ready.wallMs, readyCpuMs: ready.cpuMs };
}
