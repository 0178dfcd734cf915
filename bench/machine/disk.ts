// A guest's disk: Debian's dd past its page cache on a raw image, which the host has in its own.
import { randomBytes } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { debianOrSkip, LinuxGuest } from './linux_guest.ts';
import type { BenchOptions } from './options.ts';
import { readProcessCpu } from './process_cpu.ts';
import type { Row, Section } from './report.ts';
import type { Side, SideName } from './sides.ts';
import { median, round } from './statistics.ts';
import { ratioOf } from './targets.ts';

const DISK_BYTES = 128 << 20;

interface Access {
  readonly name: string;
  readonly blockBytes: number;
  readonly count: number;
  readonly writes: boolean;
}

const ACCESSES: readonly Access[] = [
  { name: 'read 4 KiB, one at a time', blockBytes: 4096, count: 4000, writes: false },
  { name: 'write 4 KiB, one at a time', blockBytes: 4096, count: 4000, writes: true },
  { name: 'read 1 MiB, one at a time', blockBytes: 1 << 20, count: 120, writes: false },
  { name: 'write 1 MiB, one at a time', blockBytes: 1 << 20, count: 120, writes: true },
];

/** `O_DIRECT`: each block is a request to the disk. */
function script({ blockBytes, writes }: Access, count: number): string {
  const ends = writes ? 'if=/dev/zero of=/dev/vda oflag=direct conv=notrunc' : 'if=/dev/vda of=/dev/null iflag=direct';
  return `dd ${ends} bs=${blockBytes} count=${count} 2>/dev/null && echo done`;
}

interface DiskRun {
  readonly wallMs: number;
  /** Of all processes that work for the guest */
  readonly cpuMs: number;
}

/** Each access `rounds` times on each side, in turn; one guest for each side. No goals: they are shown. */
export async function measureDisk(
  options: BenchOptions,
  sides: readonly Side[],
  folder: string,
): Promise<Section | Section[]> {
  const debian = await debianOrSkip();
  if (debian === undefined) return [];
  await using stack = new AsyncDisposableStack();
  const guests: { readonly name: SideName; readonly guest: LinuxGuest }[] = [];
  for (const side of sides) {
    const disk = join(folder, `${side.name}.raw`);
    writeFileSync(disk, randomBytes(DISK_BYTES));
    stack.defer(() => rmSync(disk));
    guests.push({ name: side.name, guest: stack.use(await LinuxGuest.start(side, debian, { disk })) });
  }
  const rows: Row[] = [];
  const samples: Record<string, unknown> = {};
  for (const access of ACCESSES) {
    const count = Math.max(1, Math.ceil((access.count * options.percent) / 100));
    const runs: Record<SideName, DiskRun[]> = { ours: [], qemu: [] };
    // The first is not counted: it is compiled
    for (let turn = 0; turn <= options.rounds; turn++) {
      for (const { name, guest } of guests) {
        const run = await timed(guest, script(access, count));
        if (turn > 0) runs[name].push(run);
      }
    }
    samples[access.name] = runs;
    rows.push(diskRow(access, count, runs));
  }
  return {
    title: `A guest's disk: raw image on virtio-blk-pci, cached by the host, medians of ${options.rounds}`,
    rows,
    notes: ['CPU: of the machine’s process and, on our side, of that which holds the disk'],
    samples,
  };
}

async function timed(guest: LinuxGuest, command: string): Promise<DiskRun> {
  const cpuMs = (): number => guest.pids.reduce((sum, pid) => sum + readProcessCpu(pid).ms, 0);
  const before = cpuMs();
  const { wallMs } = await guest.run(command);
  return { wallMs, cpuMs: cpuMs() - before };
}

function diskRow(
  { name, blockBytes }: Access,
  count: number,
  runs: Readonly<Record<SideName, readonly DiskRun[]>>,
): Row {
  const each = (of: SideName, value: (run: DiskRun) => number): number | undefined =>
    runs[of].length === 0 ? undefined : (median(runs[of].map(value)) / count) * 1000;
  const [ours, theirs] = [each('ours', ({ wallMs }) => wallMs)!, each('qemu', ({ wallMs }) => wallMs)];
  const theirCpu = each('qemu', ({ cpuMs }) => cpuMs);
  return {
    access: name,
    'ours µs': round(ours),
    'QEMU µs': theirs === undefined ? undefined : round(theirs),
    ratio: ratioOf(ours, theirs),
    'ours MB/s': round(blockBytes / ours),
    'ours CPU µs': round(each('ours', ({ cpuMs }) => cpuMs)!),
    'QEMU CPU µs': theirCpu === undefined ? undefined : round(theirCpu),
  };
}
