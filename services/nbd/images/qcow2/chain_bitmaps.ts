import type { Extent } from '../../../../protocols/nbd/mod.ts';
import type { DirtyBitmaps } from '../dirty_bitmap.ts';
import type { DiskImage } from '../disk_image.ts';

// As QEMU: an overlay offers the bitmaps of what is under it, too. Which of them clients may read is said by whoever
// exports the image.

/** Names of an image's bitmaps, and behind them of those that only the image under it has */
export function bitmapNames(own: DirtyBitmaps, backing: DiskImage | undefined): readonly string[] {
  return [...new Set([...own.names, ...(backing?.dirtyBitmaps?.() ?? [])])];
}

/** Extents of the nearest bitmap of this name; where its disk is shorter, the rest is clean. @throws ImageError */
export async function bitmapExtents(
  own: DirtyBitmaps,
  backing: DiskImage | undefined,
  asked: { readonly name: string; readonly offset: number; readonly lengthBytes: number; readonly maxExtents: number },
): Promise<Extent[]> {
  const { name, offset, lengthBytes, maxExtents } = asked;
  if (own.find(name) !== undefined || backing?.dirtyBitmap === undefined) {
    return own.get(name).extents(offset, lengthBytes, maxExtents);
  }
  const there = Math.min(lengthBytes, backing.sizeBytes - offset);
  return there > 0 ? backing.dirtyBitmap(name, offset, there, maxExtents) : [{ lengthBytes, flags: 0 }];
}
