// The two sides of each comparison: our machine as `caisson run` starts it, and qemu-system-riscv64.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import process from 'node:process';
import { DEFAULT_VM_OPTIONS, type RunningVm, supervise } from '../../services/supervisor/mod.ts';
import { type EngineCounters, sumOfHarts } from './engine_counters.ts';
import type { Engine } from './options.ts';
import { SerialLine } from './serial_line.ts';

export type SideName = 'ours' | 'qemu';

export interface GuestSpec {
  /** File: an ELF program with bios 'none', a Linux image otherwise */
  readonly kernel: string;
  readonly initrd?: string;
  readonly append?: string;
  readonly bios: 'none' | 'default';
  readonly ramMib: number;
  readonly harts: number;
  /** The line is a virtio console, not the serial port */
  readonly virtioConsole?: boolean;
  /** File: a raw image on virtio-blk-pci */
  readonly disk?: string;
}

/** A guest that runs. */
export interface RunningGuest extends AsyncDisposable {
  readonly side: SideName;
  /** Of the process that holds the guest and its devices */
  readonly pid: number;
  /** That one and, where another holds the disks, that */
  readonly pids: readonly number[];
  /** `performance.now()` just before anything was started */
  readonly startedAt: number;
  readonly line: SerialLine;
  /** Of our engine; absent on the other side */
  counters?(): Promise<EngineCounters>;
}

/** One of the two; `start` resolves when the guest runs. */
export interface Side {
  readonly name: SideName;
  start(guest: GuestSpec): Promise<RunningGuest>;
}

export const QEMU = 'qemu-system-riscv64';
const QUIT_MS = 5000;

/** First line of its version; undefined where it is not installed. */
export function qemuVersion(): string | undefined {
  const run = spawnSync(QEMU, ['--version'], { encoding: 'utf8', timeout: 20_000 });
  return run.status === 0 ? run.stdout.split('\n', 1)[0] : undefined;
}

/** Our machine, with the engine that it takes by itself or the one that is named */
export function ourSide(engine?: Engine): Side {
  return {
    name: 'ours',
    start: async (guest) => {
      const startedAt = performance.now();
      const problems: string[] = [];
      const vm = await supervise(
        {
          ...DEFAULT_VM_OPTIONS,
          name: 'bench',
          ramBytes: guest.ramMib << 20,
          harts: guest.harts,
          bios: guest.bios === 'none' ? 'none' : 'builtin',
          kernel: { file: guest.kernel },
          ...(guest.initrd === undefined ? {} : { initrd: { file: guest.initrd } }),
          ...(guest.append === undefined ? {} : { append: guest.append }),
          display: false,
          virtioConsole: guest.virtioConsole === true,
          ...(guest.disk === undefined
            ? {}
            : {
                disks: [
                  { id: 'disk', file: guest.disk, format: 'raw', readOnly: false, snapshot: false, bus: 'virtio-pci' },
                ],
              }),
          ...(engine === undefined ? {} : { engine }),
        },
        { onReport: ({ text }) => problems.push(text) },
      );
      return new OurGuest(vm, startedAt);
    },
  };
}

class OurGuest implements RunningGuest {
  readonly side = 'ours';
  readonly pid: number;
  readonly pids: readonly number[];
  readonly startedAt: number;
  readonly line: SerialLine;
  readonly #vm: RunningVm;

  constructor(vm: RunningVm, startedAt: number) {
    this.#vm = vm;
    this.pid = vm.pids.machine!;
    this.pids = [vm.pids.machine!, ...(vm.pids.disk === undefined ? [] : [vm.pids.disk])];
    this.startedAt = startedAt;
    this.line = new SerialLine(vm.serial, vm.serial);
  }

  async counters(): Promise<EngineCounters> {
    return sumOfHarts(await this.#vm.call('query-stats'));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#vm.close();
  }
}

export const qemuSide: Side = {
  name: 'qemu',
  start: async (guest) => {
    const startedAt = performance.now();
    const console = guest.virtioConsole === true;
    const child = spawn(
      QEMU,
      [
        ...['-M', 'virt', '-m', `${guest.ramMib}M`, '-smp', String(guest.harts), '-kernel', guest.kernel],
        ...(guest.bios === 'none' ? ['-bios', 'none'] : []),
        ...(guest.initrd === undefined ? [] : ['-initrd', guest.initrd]),
        ...(guest.append === undefined ? [] : ['-append', guest.append]),
        ...['-display', 'none', '-monitor', 'none', '-nic', 'none'],
        ...(guest.disk === undefined
          ? []
          : ['-drive', `file=${guest.disk},format=raw,if=none,id=disk`, '-device', 'virtio-blk-pci,drive=disk']),
        // As our machine has them, in the same slots
        ...['-device', 'virtio-rng-pci,disable-legacy=on'],
        ...(console ? ['-chardev', 'stdio,id=line,signal=off', '-serial', 'none'] : ['-serial', 'stdio']),
        ...(console ? ['-device', 'virtio-serial-pci,disable-legacy=on', '-device', 'virtconsole,chardev=line'] : []),
        ...['-device', 'virtio-balloon-pci,disable-legacy=on'],
      ],
      { stdio: ['pipe', 'pipe', 'pipe'] },
    );
    return await QemuGuest.of(child, startedAt);
  },
};

class QemuGuest implements RunningGuest {
  readonly side = 'qemu';
  readonly pid: number;
  readonly pids: readonly number[];
  readonly startedAt: number;
  readonly line: SerialLine;
  readonly #child: ChildProcess;
  readonly #exit: Promise<void>;

  static async of(child: ChildProcess, startedAt: number): Promise<QemuGuest> {
    await new Promise((resolve, reject) => {
      child.once('spawn', () => resolve(undefined));
      child.once('error', reject);
    });
    return new QemuGuest(child, startedAt);
  }

  private constructor(child: ChildProcess, startedAt: number) {
    this.#child = child;
    this.pid = child.pid!;
    this.pids = [this.pid];
    this.startedAt = startedAt;
    this.line = new SerialLine(child.stdout!, child.stdin!);
    child.stderr!.resume();
    // It would run on without us
    const kill = (): void => void child.kill('SIGKILL');
    process.once('exit', kill);
    child.once('close', () => process.off('exit', kill));
    this.#exit = new Promise((resolve) => child.once('close', () => resolve()));
  }

  /** A guest that powers off by itself ends it; otherwise it is ended. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode === null) this.#child.kill('SIGTERM');
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), QUIT_MS);
    await this.#exit;
    clearTimeout(timer);
  }
}

/** Both sides in turn, `rounds` times: ours, QEMU, ours, QEMU … */
export async function inTurn<T>(
  sides: readonly Side[],
  rounds: number,
  measure: (side: Side, round: number) => Promise<T>,
): Promise<Record<SideName, T[]>> {
  const results: Record<SideName, T[]> = { ours: [], qemu: [] };
  for (let round = 0; round < rounds; round++) {
    for (const side of sides) results[side.name].push(await measure(side, round));
  }
  return results;
}
