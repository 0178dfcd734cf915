import { constants } from 'node:os';
import process from 'node:process';
import type { ImageSource } from '../services/nbd/mod.ts';
import {
  type DiskFile,
  type DiskSource,
  type Registration,
  type RunningVm,
  registerVm,
  type SuperviseOptions,
  supervise,
  type VmExit,
  type VmOptions,
  type VmReport,
} from '../services/supervisor/mod.ts';
import { notice, Terminal } from './terminal.ts';

export interface RunUi {
  /** Take the name as it is, or fail; otherwise `NAME-2` … when it is taken */
  readonly exactName?: boolean;
  /** Lines for the user (default: standard error) */
  readonly say?: (text: string) => void;
  /** The guest runs; what this returns is waited for before the terminal is connected */
  readonly onStarted?: (vm: RunningVm, registration: Registration) => void | Promise<void>;
  /** Do not connect the serial port to the terminal even if the options say so: `onStarted` did */
  readonly detached?: boolean;
  readonly supervise?: SuperviseOptions;
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Runs a machine on this terminal until it ends: registers its name, prints where its screen and disks are, connects
 * the serial port, and gives the exit status (the guest's own, 0 for a clean end, 1 when a role failed).
 */
export async function runVm(options: VmOptions, ui: RunUi = {}): Promise<number> {
  let terminal: Terminal | undefined;
  const say = ui.say ?? ((text: string) => (terminal === undefined ? notice(text) : terminal.notice(text)));
  const registration = await registerVm(options.name, { renameIfTaken: ui.exactName !== true });
  let vm: RunningVm | undefined;
  let signalled: (typeof SIGNALS)[number] | undefined;
  const onSignal = (signal: NodeJS.Signals) => {
    if (signalled !== undefined) {
      // Asked twice: at once. But timeout(1) sends SIGTERM twice, and the disks have to be flushed.
      if (signal !== 'SIGTERM') process.exit(128 + constants.signals[signal]);
      return;
    }
    signalled = signal as (typeof SIGNALS)[number];
    void vm?.close();
  };
  for (const signal of SIGNALS) process.on(signal, onSignal);
  try {
    const disks = await Promise.all(options.disks.map(followNames));
    vm = await supervise(
      { ...options, disks, name: registration.name, qmp: [registration.qmpPath, ...options.qmp] },
      { ...ui.supervise, onReport: (report) => say(describeReport(report, options)) },
    );
    if (signalled !== undefined) await vm.close();
    const { uuid } = vm;
    await registration.describe({ uuid, ramBytes: options.ramBytes, harts: options.harts });
    await sayWhere(vm, registration, say);
    await ui.onStarted?.(vm, registration);
    if (options.serial === 'stdio' && ui.detached !== true) {
      const running = vm;
      terminal = new Terminal(vm.serial, { quit: () => void running.call('quit').catch(() => running.close()) });
    } else if (ui.detached !== true) vm.serial.resume();
    return exitStatus(await vm.exit, signalled, say);
  } finally {
    terminal?.close();
    terminal = undefined;
    await vm?.close();
    await registration.remove();
    for (const signal of SIGNALS) process.off(signal, onSignal);
  }
}

/** A disk with `backing-root=` gets what its image names, by the policy; from here on all is said. */
async function followNames({ backingRoot, ...disk }: DiskSource): Promise<DiskSource> {
  if (backingRoot === undefined) return disk;
  const { resolveChain } = await import('../services/nbd/mod.ts');
  return { ...disk, ...diskFile(await resolveChain(disk.file, disk.format, { root: backingRoot })) };
}

function diskFile({ path, format, backing, dataFile }: ImageSource): DiskFile {
  return {
    file: path!,
    format,
    ...(backing === undefined ? {} : { backing: diskFile(backing) }),
    ...(dataFile === undefined ? {} : { dataFile: dataFile.path! }),
  };
}

/** Where everything of this machine is, one line each. */
async function sayWhere(vm: RunningVm, registration: Registration, say: (text: string) => void): Promise<void> {
  const { options } = vm;
  if (options.vnc?.webPort !== undefined) {
    const { url } = (await vm.call('console')) as { url: string };
    say(`Console   ${url}`);
  }
  if (options.vnc?.port !== undefined) say(`VNC       ${options.vnc.host}:${options.vnc.port}`);
  if (options.disks.length > 0) {
    await vm.call('nbd-server-start', { path: registration.nbdPath });
    for (const { id } of options.disks) {
      const { uri } = (await vm.call('nbd-server-add', { device: id })) as { uri: string };
      say(`Disk      ${uri}`);
    }
  }
  say(`Monitor   caisson qmp ${registration.name}`);
  if (process.stdin.isTTY && options.serial === 'stdio') say('Keys      Ctrl-A x quits, Ctrl-A h helps');
}

function exitStatus(exit: VmExit, signalled: NodeJS.Signals | undefined, say: (text: string) => void): number {
  if (exit.reason === 'failure') {
    say(exit.text ?? 'A role has failed');
    return 1;
  }
  if (signalled !== undefined) return 128 + constants.signals[signalled];
  if (exit.reason === 'guest-panic') say(`The guest says that it failed: ${exit.exitCode}`);
  return exit.exitCode;
}

/** A log without -D comes as lines of the machine; what reads QEMU's reads it. */
export function describeReport(report: VmReport, { log }: Pick<VmOptions, 'log'>): string {
  if (report.kind === 'text' && report.role === 'machine' && log !== undefined && log.file === undefined)
    return report.text;
  return report.kind === 'text' && report.role !== 'supervisor' ? `[${report.role}] ${report.text}` : report.text;
}
