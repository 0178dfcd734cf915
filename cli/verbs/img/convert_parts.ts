import process from 'node:process';
import {
  type CopyOptions,
  DirtyBitmap,
  type DiskImage,
  type ImageFormat,
  Qcow2Image,
} from '../../../services/nbd/images/mod.ts';
import type { Given } from './grammar.ts';

/** What a source has by itself, without what is under it; images that are on top of nothing have all of theirs. */
export function ownExtentsOf(source: DiskImage): NonNullable<CopyOptions['own']> {
  if (source instanceof Qcow2Image) return (offset, lengthBytes) => source.ownExtents(offset, lengthBytes);
  return async (_offset, lengthBytes) => [{ lengthBytes, flags: 1 }];
}

export interface NamedBitmap {
  readonly name: string;
  readonly bitmap: DirtyBitmap;
}

/** The bitmaps to copy, found out before anything is made. @throws UsageError, Error for one that was not written back */
export function bitmapsOf(given: Given, sources: readonly DiskImage[], target: ImageFormat): NamedBitmap[] {
  if (target !== 'qcow2') throw given.usage(`--bitmaps is for -O qcow2; images of format ${target} keep none`);
  const [source, ...more] = sources;
  if (more.length > 0) throw given.usage('--bitmaps is for one SOURCE');
  if (!(source instanceof Qcow2Image)) throw given.usage('--bitmaps is for a SOURCE that is qcow2');
  const found: NamedBitmap[] = [];
  // qemu-img meets the last one first.
  const all = given.asQemu ? [...source.bitmaps].reverse() : [...source.bitmaps];
  for (const [name, bitmap] of all) {
    if (!bitmap.persistent) continue;
    if (!bitmap.inconsistent) found.push({ name, bitmap });
    else if (given.has('skip-broken-bitmaps')) {
      const who = given.asQemu ? 'qemu-img: warning: Skipping' : 'caisson img: leaves out';
      process.stderr.write(`${who} inconsistent bitmap '${name}'\n`);
    } else {
      throw new Error(
        `Cannot copy bitmap '${name}': it was not written back; leave it out by --skip-broken-bitmaps, or remove it`,
      );
    }
  }
  return given.asQemu ? found.reverse() : found;
}

/** What is copied into the image is in none of them: they are added afterwards. */
export async function addBitmaps(image: DiskImage, bitmaps: readonly NamedBitmap[]): Promise<void> {
  if (!(image instanceof Qcow2Image) || bitmaps.length === 0) return;
  for (const { name, bitmap } of bitmaps) {
    const copy = new DirtyBitmap(image.sizeBytes, bitmap.granularityBytes, {
      persistent: true,
      disabled: !bitmap.recording,
    });
    copy.merge(bitmap);
    image.bitmaps.add(name, copy);
  }
  await image.touchBitmaps();
}
