import { QCOW2_LIMITS } from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';
import { spanBytes } from './metadata.ts';
import type { Qcow2Image } from './qcow2_image.ts';
import { placeSnapshots } from './snapshot_operations.ts';

export interface ResizeOptions {
  /** What is behind the new end may be lost (default false: a smaller size is refused) */
  readonly shrink?: boolean;
}

/** Gives the disk another size, in whole sectors. What is new reads as zeroes, also over a longer backing file. */
export async function resizeQcow2(image: Qcow2Image, sizeBytes: number, options: ResizeOptions = {}): Promise<void> {
  const refuse = (why: string): never => {
    throw new ImageError('EINVAL', `Cannot resize the image to ${sizeBytes} bytes: ${why}`);
  };
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0 || sizeBytes % 512 !== 0) refuse('not a size in sectors');
  const oldBytes = image.sizeBytes;
  if (sizeBytes < oldBytes && options.shrink !== true) refuse(`it has ${oldBytes}, and data would be lost`);
  const l1Entries = Math.ceil(sizeBytes / spanBytes(image.header));
  if (l1Entries * 8 > QCOW2_LIMITS.l1Bytes)
    refuse(`the limit is ${(QCOW2_LIMITS.l1Bytes / 8) * spanBytes(image.header)}`);
  if (image.header.version === 2 && image.snapshots.length > 0) refuse('version 2, and it has snapshots');
  if (sizeBytes === oldBytes) return;
  if (sizeBytes < oldBytes) await image.dropFrom(sizeBytes);
  await image.rewrite(async (tables) => {
    const { header, metadata } = tables;
    const table =
      l1Entries > header.l1Entries
        ? await growL1(metadata.l1, l1Entries, (l1) => {
            if (header.l1Entries > 0) tables.add(header.l1Offset, header.l1Entries * 8, -1);
            return tables.place(l1);
          })
        : {};
    // Entries of old snapshots have no size of their own: they would follow the disk's.
    const snapshots = metadata.snapshots.length > 0 ? await placeSnapshots(tables, metadata.snapshots) : {};
    return { ...table, ...snapshots, sizeBytes };
  });
  const exposed = Math.min(
    sizeBytes,
    Math.max(
      image.backing?.sizeBytes ?? 0,
      Math.ceil(oldBytes / image.header.clusterBytes) * image.header.clusterBytes,
    ),
  );
  if (exposed > oldBytes) await image.writeZeroes(oldBytes, exposed - oldBytes, { mayUnmap: true, fast: false });
  await image.flush();
}

async function growL1(
  old: Uint8Array,
  l1Entries: number,
  place: (l1: Uint8Array) => Promise<number>,
): Promise<{ l1Offset: number; l1Entries: number }> {
  const l1 = new Uint8Array(l1Entries * 8);
  l1.set(old);
  return { l1Offset: await place(l1), l1Entries };
}
