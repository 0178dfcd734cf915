import { STATE } from '../../../protocols/nbd/mod.ts';
import { DirtyBitmap } from '../images/dirty_bitmap.ts';
import type { DiskImage } from '../images/disk_image.ts';
import { isZero } from '../images/zeroes.ts';

/** What is copied at once, in `bytes` */
export const PIECE_BYTES = 1 << 20;
/** What has a bit in a job's own bitmap, in `bytes` */
export const JOB_GRAIN_BYTES = 65_536;

/** A job's own record of what is still to do; larger grains where the disk is so large that it would not fit. */
export function jobBitmap(sizeBytes: number): DirtyBitmap {
  let grain = JOB_GRAIN_BYTES;
  while (sizeBytes / grain > 1 << 26) grain *= 2;
  return new DirtyBitmap(sizeBytes, grain, { disabled: true });
}

/** Copies a range; zeroes are written as such where the target may keep none for them. */
export async function copyRange(from: DiskImage, to: DiskImage, offset: number, lengthBytes: number): Promise<void> {
  const end = offset + lengthBytes;
  for (let at = offset; at < end; ) {
    const length = Math.min(PIECE_BYTES, end - at);
    const piece = new Uint8Array(length);
    await from.read(at, piece);
    if (isZero(piece)) await to.writeZeroes(at, length, { mayUnmap: true, fast: false });
    else await to.write(at, piece);
    at += length;
  }
}

/** Marks what is not known to read as zeroes, in a target that does. */
export async function markContents(from: DiskImage, bitmap: DirtyBitmap): Promise<void> {
  for (let at = 0; at < from.sizeBytes; ) {
    const extents = await from.blockStatus(at, Math.min(from.sizeBytes - at, 1 << 30), 1024);
    for (const { lengthBytes, flags } of extents) {
      if ((flags & STATE.ZERO) === 0) bitmap.mark(at, lengthBytes);
      at += lengthBytes;
    }
    if (extents.length === 0) {
      bitmap.mark(at, from.sizeBytes - at);
      return;
    }
  }
}
