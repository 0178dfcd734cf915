import {
  BASE_ALLOCATION,
  type Extent,
  fitExtents,
  MAX_SENT_EXTENTS,
  QEMU_ALLOCATION_DEPTH,
  QEMU_DIRTY_BITMAP,
} from '../../protocols/nbd/mod.ts';
import { type DiskImage, ImageError } from './images/disk_image.ts';

/** Which part of the disk is asked about. */
export interface StatusRange {
  readonly offset: number;
  readonly length: number;
  readonly oneExtent: boolean;
}

/** Extents of one meta context, fit for a reply: merged, inside the range, whole blocks, not too many. */
export async function contextStatus(image: DiskImage, context: string, range: StatusRange): Promise<Extent[]> {
  const maxExtents = range.oneExtent ? 1 : MAX_SENT_EXTENTS;
  const extents = await query(image, context, range, maxExtents);
  return fitExtents(extents, { lengthBytes: range.length, maxExtents, minimumBlockBytes: image.blockBytes });
}

function query(image: DiskImage, context: string, range: StatusRange, maxExtents: number): Promise<Extent[]> {
  const { offset, length } = range;
  if (context === BASE_ALLOCATION) return image.blockStatus(offset, length, maxExtents);
  if (context === QEMU_ALLOCATION_DEPTH && image.allocationDepth !== undefined) {
    return image.allocationDepth(offset, length, maxExtents);
  }
  if (context.startsWith(QEMU_DIRTY_BITMAP) && image.dirtyBitmap !== undefined) {
    return image.dirtyBitmap(context.slice(QEMU_DIRTY_BITMAP.length), offset, length, maxExtents);
  }
  throw new ImageError('EINVAL', `Cannot tell status of ${context}: the image has no such thing`);
}
