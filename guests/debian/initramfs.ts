import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type CpioEntry, encodeCpio } from './cpio.ts';
import type { LoadedModule } from './kernel_modules.ts';

/** What the guest's devices and disk need; their own needs are found from the modules themselves. */
export const WANTED_MODULES = [
  ...['virtio_mmio', 'virtio_blk', 'virtio_net', 'virtio_rng', 'virtio_balloon', 'virtio_input', 'evdev'],
  ...['virtio_gpu', 'ext4', 'crc32c_generic', 'gpio_keys'],
] as const;

/** The root file system that the kernel unpacks and starts `/init` from. */
export async function assembleInitramfs(
  busybox: Uint8Array,
  modules: readonly LoadedModule[],
): Promise<Uint8Array<ArrayBuffer>> {
  const text = (value: string) => new TextEncoder().encode(value);
  const source = async (name: string) => new Uint8Array(await readFile(join(import.meta.dirname, 'rootfs', name)));
  const directories = [
    'bin',
    'dev',
    'etc',
    'etc/acpi',
    'etc/acpi/PWRF',
    'lib',
    'lib/modules',
    'mnt',
    'proc',
    'root',
    'run',
    'sys',
    'tmp',
  ];
  const entries: CpioEntry[] = [
    ...directories.map((path) => ({ kind: 'directory', path, mode: 0o755 }) as const),
    // The kernel opens /dev/console for /init before anything could be mounted on /dev.
    { kind: 'character-device', path: 'dev/console', mode: 0o600, major: 5, minor: 1 },
    { kind: 'character-device', path: 'dev/null', mode: 0o666, major: 1, minor: 3 },
    { kind: 'character-device', path: 'dev/tty', mode: 0o666, major: 5, minor: 0 },
    { kind: 'character-device', path: 'dev/ttyS0', mode: 0o600, major: 4, minor: 64 },
    { kind: 'file', path: 'bin/busybox', mode: 0o755, bytes: busybox },
    { kind: 'symlink', path: 'bin/sh', target: 'busybox' },
    { kind: 'symlink', path: 'sbin', target: 'bin' },
    { kind: 'file', path: 'init', mode: 0o755, bytes: await source('init') },
    { kind: 'file', path: 'etc/profile', mode: 0o644, bytes: await source('profile') },
    { kind: 'file', path: 'etc/acpi/PWRF/00000080', mode: 0o755, bytes: text('#!/bin/sh\npoweroff\n') },
    { kind: 'file', path: 'etc/passwd', mode: 0o644, bytes: text('root:x:0:0:root:/root:/bin/sh\n') },
    { kind: 'file', path: 'etc/group', mode: 0o644, bytes: text('root:x:0:\n') },
    ...modules.map(
      ({ name, bytes }) => ({ kind: 'file', path: `lib/modules/${name}.ko`, mode: 0o644, bytes }) as const,
    ),
    {
      kind: 'file',
      path: 'lib/modules/order',
      mode: 0o644,
      bytes: text(moduleOrder(modules)),
    },
  ];
  return encodeCpio(entries);
}

/** A line for each level, lowest first; names with spaces between. */
function moduleOrder(modules: readonly LoadedModule[]): string {
  const lines: string[][] = [];
  for (const { name, level } of modules) {
    while (lines.length <= level) lines.push([]);
    lines[level]!.push(name);
  }
  return lines.map((names) => `${names.join(' ')}\n`).join('');
}
