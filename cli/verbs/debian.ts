import { resolve } from 'node:path';
import process from 'node:process';
import { DebianError, type DebianGuest, prepareDebian } from '../../guests/debian/mod.ts';
import { DEFAULT_VM_OPTIONS, type VmOptions } from '../../services/supervisor/mod.ts';
import { type DemoDisk, makeTemporaryDisk, openDemoDisk } from '../debian/demo_disk.ts';
import { type DebianCommand, parseDebianArguments } from '../debian/options.ts';
import { ProgressLine } from '../debian/progress.ts';
import { readRunOutput, runToEnd } from '../debian/smoke.ts';
import { plainErrorText } from '../format.ts';
import { runVm } from '../run_vm.ts';
import { UsageError, type Verb } from '../usage_error.ts';

const help = `caisson debian [OPTIONS]
Boots Debian's own riscv64 kernel to a shell on this terminal, with its screen on a page for your browser and its disk
on NBD. The first run fetches about 130 MB of Debian packages with this system's apt, checked against Debian's
signatures, and keeps 50 MB of them under ~/.cache/caisson. Root is not needed.

  -m SIZE        memory of the machine (default 1G)
  -smp N         harts, 1 to 8 (default 2)
  --no-disk      without the disk that is kept under ~/.local/state/caisson
  -nographic     without a screen and its page: the terminal is all
  -profile FILE  at the end, a flame graph of what the guest executed
  --suite NAME   only this suite of Debian (default: forky, sid, trixie, the first that serves)
  --refresh      fetch again although the cache holds a guest
  --smoke        boot, run uname -a in the guest, power off; exit status 0 when all of that worked
  -h, --help     print this help
`;

const say = (text: string) => process.stderr.write(`caisson: ${text}\n`);

/** `caisson debian`: exit status 0 done, 1 it failed, 2 the command line is wrong; else the guest's own. */
export const debianVerb: Verb = {
  name: 'debian',
  summary: "boot Debian's kernel to a shell, with console page and disk",
  help,
  async run(args: string[]): Promise<number> {
    try {
      const command = parseDebianArguments(args);
      if (command.help) {
        process.stdout.write(help);
        return 0;
      }
      const guest = await fetchGuest(command);
      if (guest === undefined) return await runFirmware(command);
      return command.smoke ? await smokeDebian(command, guest) : await runDebian(command, guest);
    } catch (error) {
      say(plainErrorText(error));
      return error instanceof UsageError ? 2 : 1;
    }
  },
};

/** Undefined where Debian cannot be had here; the user was told why. */
async function fetchGuest(command: DebianCommand): Promise<DebianGuest | undefined> {
  const progress = new ProgressLine(process.stderr);
  try {
    const guest = await prepareDebian({
      refresh: command.refresh,
      onProgress: progress.show,
      ...(command.suite === undefined ? {} : { suites: [command.suite] }),
    });
    progress.end();
    say(`Debian ${guest.suite}, Linux ${guest.version}${guest.cached ? ', from the cache' : ''}`);
    return guest;
  } catch (error) {
    progress.end();
    if (!(error instanceof DebianError)) throw error;
    say(`${error.message}. The embedded firmware starts instead; your own kernel: caisson run -kernel Image -initrd …`);
    return undefined;
  }
}

function machineOptions(command: DebianCommand, guest: DebianGuest, disk: DemoDisk | undefined): VmOptions {
  return {
    ...DEFAULT_VM_OPTIONS,
    name: 'debian',
    ramBytes: command.ramBytes,
    harts: command.harts,
    kernel: { file: guest.kernelPath },
    initrd: { file: guest.initrdPath },
    // The last console= is /dev/console: this terminal. The screen has the kernel's messages too.
    append: command.display ? 'console=tty0 console=ttyS0' : 'console=ttyS0',
    display: command.display,
    disks: disk === undefined ? [] : [demoDisk(disk)],
    ...(command.display ? { vnc: { host: '127.0.0.1', webPort: 0 } } : {}),
    ...(command.profile === undefined ? {} : { profile: resolve(command.profile) }),
  };
}

function demoDisk({ file }: DemoDisk): VmOptions['disks'][number] {
  return { id: 'disk0', file, format: 'raw', readOnly: false, snapshot: false, bus: 'virtio-pci' };
}

async function runDebian(command: DebianCommand, guest: DebianGuest): Promise<number> {
  using disk = command.disk ? await diskOrNone(openDemoDisk) : undefined;
  if (disk?.notice !== undefined) say(disk.notice);
  return await runVm(machineOptions(command, guest, disk));
}

async function diskOrNone(make: () => Promise<DemoDisk>): Promise<DemoDisk | undefined> {
  try {
    return await make();
  } catch (error) {
    if (!(error instanceof DebianError)) throw error;
    say(`${error.message}; the machine runs without a disk`);
    return undefined;
  }
}

async function smokeDebian(command: DebianCommand, guest: DebianGuest): Promise<number> {
  using disk = command.disk ? await diskOrNone(makeTemporaryDisk) : undefined;
  const { vnc: _page, ...options } = machineOptions(command, guest, disk);
  // With a disk, what it runs on must hold what was written to it.
  const check = disk === undefined ? '' : 'echo caisson > /mnt/smoke && sync && grep -q caisson /mnt/smoke && ';
  const append = `console=ttyS0 caisson.run="${check}uname -a"`;
  const { exit, output, timedOut } = await runToEnd(
    { ...options, append },
    {
      onOutput: (chunk) => process.stderr.write(chunk),
      onReport: ({ text }) => say(text),
    },
  );
  const run = readRunOutput(output);
  if (timedOut) say('Cannot boot Debian: the guest did not power off in time');
  else if (run === undefined) say(`Cannot boot Debian: ${exit?.text ?? 'the guest ended before its command did'}`);
  else if (run.status !== 0 || exit?.exitCode !== 0)
    say(`Cannot run the command in the guest: status ${run.status}, machine ${exit?.exitCode}`);
  if (run === undefined || run.text === '') return 1;
  process.stdout.write(`${run.text}\n`);
  return !timedOut && run.status === 0 && exit?.exitCode === 0 ? 0 : 1;
}

async function runFirmware(command: DebianCommand): Promise<number> {
  const vm: VmOptions = {
    ...DEFAULT_VM_OPTIONS,
    name: 'firmware',
    bios: 'none',
    kernel: { builtin: 'firmware' },
    display: command.display,
    ...(command.display ? { vnc: { host: '127.0.0.1', webPort: 0 } } : {}),
  };
  if (!command.smoke) return await runVm(vm);
  const { vnc: _page, ...options } = vm;
  const { exit, output, timedOut } = await runToEnd(options, {
    onOutput: (chunk) => process.stderr.write(chunk),
    onReport: ({ text }) => say(text),
    type: [
      { after: 'ready', text: 'count 20000\r' },
      { after: 'count: ', text: 'checksum\r' },
      { after: 'checksum: ', text: 'poweroff\r' },
    ],
    timeoutMs: 60_000,
  });
  const line = /^checksum: OK .*$/m.exec(output.replaceAll('\r', ''))?.[0];
  if (line === undefined || timedOut || exit?.exitCode !== 0) {
    say(`Cannot run the embedded firmware: ${exit?.text ?? (timedOut ? 'it did not power off in time' : 'it failed')}`);
    return 1;
  }
  process.stdout.write(`${line}\n`);
  return 0;
}
