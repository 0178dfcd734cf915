import {
  encodeHeaderArea,
  featureNamesFor,
  type HeaderFields,
  type Qcow2Header,
} from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';
import type { ImageFile } from './image_file.ts';

const SECTOR_BYTES = 512;

export type HeaderChanges = { readonly [K in keyof HeaderFields]?: HeaderFields[K] | undefined };

/**
 * Writes a header over the one of an image, so that a power cut leaves the old one or the new one: all that matters
 * lies in the first sector, and the backing file's name, where it does not, stands in a new place before the sector
 * names it. Only extensions of more than a sector, which no image of ours has, are written in one piece.
 *
 * @throws ImageError where it does not fit
 */
export async function writeHeader(file: ImageFile, old: Qcow2Header, changes: HeaderChanges): Promise<void> {
  const merged = { ...old, ...changes } as HeaderFields;
  const ourNames = featureNamesFor(merged.version, old.clusterBytes);
  const header = { ...merged, featureNames: merged.version === 2 ? undefined : (merged.featureNames ?? ourNames) };
  const name = new TextEncoder().encode(header.backingFile ?? '');
  const same = header.backingFile === old.backingFile;
  const clusterBytes = 2 ** header.clusterBits;
  const oldName = old.backingFile === undefined ? 0 : new TextEncoder().encode(old.backingFile).length;
  const oldEnd = Math.max(old.extensionsEnd, old.backingOffset + oldName);
  const place = (end: number): number => {
    if (same && old.backingOffset >= end) return old.backingOffset;
    if (end + name.length <= SECTOR_BYTES) return end;
    const fresh = Math.max(SECTOR_BYTES, Math.ceil(oldEnd / 8) * 8);
    return fresh + name.length <= clusterBytes ? fresh : end;
  };
  let area: Uint8Array;
  try {
    area = encodeHeaderArea(header, place);
  } catch (cause) {
    throw new ImageError('EINVAL', 'Cannot write the qcow2 header: it does not fit into a cluster', { cause });
  }
  const end = area.length;
  const at = name.length === 0 ? 0 : place(end);
  if (at + name.length > clusterBytes) {
    throw new ImageError('EINVAL', `Cannot write a backing file name of ${name.length} bytes: it does not fit`);
  }
  const sectors = new Uint8Array(Math.min(clusterBytes, Math.ceil(end / SECTOR_BYTES) * SECTOR_BYTES));
  await file.read(0, sectors);
  sectors.fill(0, end, Math.min(sectors.length, Math.max(end, oldEnd)));
  sectors.set(area);
  // What of the name lies in these sectors goes with them; the rest is there before.
  const inside = Math.min(name.length, Math.max(0, sectors.length - at));
  if (inside > 0) sectors.set(name.subarray(0, inside), at);
  if (inside < name.length && (!same || at !== old.backingOffset)) {
    await file.write(at + inside, name.subarray(inside));
    await file.sync();
  }
  await file.write(0, sectors);
  await file.sync();
}
