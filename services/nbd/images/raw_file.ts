import { constants, readFileSync, type Stats } from 'node:fs';
import { ImageError } from './disk_image.ts';

/** How large the disk in a file or block device is, in `bytes`. @throws ImageError for anything else */
export function sizeOf(stats: Stats): number {
  if (stats.isFile()) return stats.size;
  if (stats.isBlockDevice()) {
    const major = (stats.rdev >> 8) & 0xfff;
    const minor = (stats.rdev & 0xff) | ((stats.rdev >> 12) & 0xfff00);
    const sectors = Number(readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'latin1').trim());
    if (Number.isSafeInteger(sectors * 512)) return sectors * 512;
  }
  throw new ImageError('EINVAL', 'Cannot use the image: neither a regular file nor a block device');
}

/** An inherited descriptor must allow what the options promise; found at open, not at the guest's first write. */
export function checkWritable(fd: number): void {
  let info: string;
  try {
    info = readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1');
  } catch {
    return; // no /proc here: the first write will tell
  }
  const flags = Number.parseInt(/^flags:\s*0?([0-7]+)/m.exec(info)?.[1] ?? '2', 8);
  if ((flags & 3) === constants.O_RDONLY) {
    throw new ImageError('EPERM', 'Cannot open the image for writing: its descriptor is read-only');
  }
}
