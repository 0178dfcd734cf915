import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import test, { type ExecutionContext } from 'ava';
import type { DebianGuest } from '../../guests/debian/mod.ts';
import { hasPrograms, mustRun, run } from '../nbd/peers.ts';
import { debianOrSkip, ext4Disk, Guest, scratchFolder } from './guest.ts';

// Debian's kernel on each firmware, bus, number of harts and size of memory, up to a clean end of its disk.

const OPENSBI = '/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin';
const TEXT = 'written by the guest';

interface Boot {
  readonly args: readonly string[];
  readonly bus?: 'virtio-blk-pci' | 'virtio-blk-device';
  /** In the guest's shell, after the disk was written and synced; no `"` */
  readonly command?: string;
}

/** Boots, writes a file, ends; what the guest said is given, the disk was found clean and with the file. */
async function bootOnce(
  t: ExecutionContext,
  debian: DebianGuest,
  folder: string,
  { args, bus = 'virtio-blk-pci', command = 'true' }: Boot,
): Promise<{ said: string; image: string }> {
  const image = await ext4Disk(folder);
  const script = `grep -q /mnt.ext4 /proc/mounts && echo ${TEXT} > /mnt/file && sync && ${command}`;
  const guest = Guest.start(t, {
    folder,
    name: 'boot',
    debian,
    append: `console=ttyS0 loglevel=3 caisson.run="${script}"`,
    args: [
      ...['-nographic', '-drive', `file=${image},format=raw,if=none,id=disk`, '-device', `${bus},drive=disk`],
      ...args,
    ],
  });
  const late = setTimeout(() => guest.command.kill('SIGKILL'), 240_000);
  const { status, stdout, stderr } = await guest.command.exit.finally(() => clearTimeout(late));
  t.is(status, 0, `${stderr}\n${stdout.slice(-3000)}`);
  t.regex(stdout, /^caisson: exit status 0\r?$/m);
  t.notRegex(stdout, /Oops|BUG:|WARNING:|EXT4-fs error|I\/O error/);
  if (await hasE2fsprogs(t)) {
    t.regex(await mustRun(t, 'e2fsck', ['-fn', image]), /Pass 5/);
    t.is(await mustRun(t, 'debugfs', ['-R', 'cat /file', image]), `${TEXT}\n`);
  }
  return { said: stdout.replaceAll('\r', ''), image };
}

async function hasE2fsprogs(t: ExecutionContext): Promise<boolean> {
  const { status } = await run('e2fsck', ['-V']);
  if (status !== 0) t.log('SKIPPED: e2fsck is missing (apt: e2fsprogs); the disk is not checked');
  return status === 0;
}

const bootTest = (title: string, body: (t: ExecutionContext, debian: DebianGuest, folder: string) => Promise<void>) =>
  test.serial(title, async (t) => {
    t.timeout(15 * 60_000);
    if (!hasPrograms(t, 'mke2fs', 'debugfs')) return;
    const debian = await debianOrSkip(t);
    if (debian !== undefined) await body(t, debian, scratchFolder(t));
  });

const FIRMWARES = [
  ['the built-in SBI', []],
  ['OpenSBI', ['-bios', OPENSBI]],
] as const;

for (const [firmware, bios] of FIRMWARES) {
  for (const bus of ['virtio-blk-pci', 'virtio-blk-device'] as const) {
    for (const harts of [1, 2]) {
      bootTest(`Debian on ${firmware}, -smp ${harts}, ${bus}: boots, keeps a file, ends`, async (t, debian, folder) => {
        if (bios.length > 0 && !existsSync(OPENSBI)) {
          t.log('SKIPPED: OpenSBI is missing (apt: opensbi)');
          t.pass();
          return;
        }
        const { said } = await bootOnce(t, debian, folder, {
          args: ['-smp', String(harts), ...bios],
          bus,
          command:
            'echo online=$(cat /sys/devices/system/cpu/online) && ls -d /sys/block/vda/device/driver/virtio* && readlink -f /sys/block/vda',
        });
        t.true(said.includes(harts === 1 ? 'online=0\n' : 'online=0-1\n'), said);
        t.regex(said, bus === 'virtio-blk-pci' ? /\/pci0000:00\/.*\/vda\n/ : /\.virtio_mmio\/virtio\d+\/block\/vda\n/);
        // OpenSBI speaks before it starts Linux; ours is silent.
        t.is(/OpenSBI v\d/.test(said), bios.length > 0);
      });
    }
  }
}

bootTest('Debian runs on eight harts, each with work of its own', async (t, debian, folder) => {
  const { said } = await bootOnce(t, debian, folder, {
    args: ['-smp', '8'],
    command: "for n in 0 1 2 3 4 5 6 7; do taskset -c $n sh -c 'echo hart $(cut -d\\  -f39 /proc/self/stat)'; done",
  });
  const harts = [...said.matchAll(/^hart (\d)$/gm)].map((match) => Number(match[1]));
  t.deepEqual(harts, [0, 1, 2, 3, 4, 5, 6, 7]);
});

bootTest('Debian on four harts compresses four files at once, and each comes back whole', async (t, debian, folder) => {
  const { said } = await bootOnce(t, debian, folder, {
    args: ['-smp', '4'],
    command: [
      'for n in 1 2 3 4; do dd if=/dev/urandom of=/tmp/r$n bs=64k count=4 2>/dev/null; cat /bin/busybox >> /tmp/r$n; done',
      'for n in 1 2 3 4; do (gzip -c /tmp/r$n | gunzip -c | cmp - /tmp/r$n && echo whole $n) & done; wait',
      'grep -c ^processor /proc/cpuinfo',
    ].join('; '),
  });
  t.deepEqual([...said.matchAll(/^whole (\d)$/gm)].map((match) => match[1]).sort(), ['1', '2', '3', '4']);
  t.regex(said, /^4$/m);
});

for (const [size, leastMib, mostMib] of [
  ['256M', 180, 256],
  ['3G', 2800, 3072],
] as const) {
  bootTest(`Debian sees the memory of -m ${size} and can use it`, async (t, debian, folder) => {
    const { said } = await bootOnce(t, debian, folder, {
      args: ['-m', size],
      command:
        'grep MemTotal /proc/meminfo && dd if=/dev/urandom of=/tmp/r bs=1M count=32 2>/dev/null && cp /tmp/r /tmp/s && cmp /tmp/r /tmp/s',
    });
    const mib = Number(/MemTotal: +(\d+) kB/.exec(said)?.[1]) / 1024;
    t.true(mib > leastMib && mib < mostMib, `${mib} MiB`);
  });
}

bootTest(
  'the device tree that the guest got boots it again as -dtb, also with a new node',
  async (t, debian, folder) => {
    const first = await bootOnce(t, debian, folder, { args: ['-smp', '2'], command: 'cp /sys/firmware/fdt /mnt/fdt' });
    const tree = join(folder, 'fdt.dtb');
    await mustRun(t, 'debugfs', ['-R', `dump /fdt ${tree}`, first.image]);
    t.is(readFileSync(tree).readUInt32BE(0), 0xd00dfeed);
    if (!hasPrograms(t, 'fdtput')) return;
    await mustRun(t, 'fdtput', ['-t', 's', tree, '/', 'model', 'a tree of the user']);
    const second = await bootOnce(t, debian, scratchFolder(t), {
      args: ['-smp', '2', '-dtb', tree],
      command: 'tr -d \\\\0 < /proc/device-tree/model && echo && nproc',
    });
    t.regex(second.said, /^a tree of the user$/m);
    t.regex(second.said, /^2$/m);
  },
);

for (const [name, compress] of [
  ['gzip', (bytes: Buffer) => gzipSync(bytes, { level: 1 })],
  ['zstd', (bytes: Buffer) => zstdCompressSync(bytes)],
] as const) {
  bootTest(`a kernel image in ${name} boots`, async (t, debian, folder) => {
    const kernel = join(folder, `vmlinuz.${name}`);
    const plain = readFileSync(debian.kernelPath);
    const packed = compress(plain);
    t.true(packed.length < plain.length / 2);
    writeFileSync(kernel, packed);
    const { said } = await bootOnce(t, debian, folder, { args: ['-kernel', kernel], command: 'uname -r' });
    t.true(said.includes(`${debian.version}\n`));
  });
}
