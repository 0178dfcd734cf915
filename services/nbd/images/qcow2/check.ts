import {
  AUTOCLEAR,
  HEADER_FIELD,
  hasFeature,
  INCOMPATIBLE,
  type Qcow2Header,
} from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';
import { CheckWalk, MAX_PROBLEMS, type Qcow2CheckResult, type Qcow2Repair } from './check_walk.ts';
import { FdImageFile, type ImageFile } from './image_file.ts';
import { readMetadata } from './metadata.ts';
import { settleCopied } from './snapshot_operations.ts';
import { TableRewrite } from './table_rewrite.ts';

/**
 * Checks the image at `path` and, if asked, mends it: refcounts become what is referred to, COPIED flags what the
 * refcounts are, entries that lead nowhere read as zeroes, and the dirty and corrupt bits go. No other file is opened.
 *
 * @throws WireError or ImageError where its header is wrong; errno errors of open(2)
 */
export async function checkQcow2(path: string, repair: Qcow2Repair = 'none'): Promise<Qcow2CheckResult> {
  const file = FdImageFile.open(path, repair === 'none');
  try {
    const lock = repair === 'none' ? undefined : await file.lock();
    try {
      return await checkFile(file, repair);
    } finally {
      await lock?.release();
    }
  } finally {
    await file.close();
  }
}

/** As {@link checkQcow2}, for a file that is open and that nobody else uses. */
export async function checkFile(file: ImageFile, repair: Qcow2Repair = 'none'): Promise<Qcow2CheckResult> {
  const check = new CheckWalk(file, await readMetadata(file), repair);
  const before = await check.run();
  const { corrupt, dirty } = INCOMPATIBLE;
  const marks = (1n << BigInt(corrupt)) | (1n << BigInt(dirty));
  const marked = (before.header.incompatibleFeatures & marks) !== 0n;
  const { result } = before;
  if (repair !== 'none') await clearUnknown(file, before.header);
  // What could not be looked at may be in use: nothing of it may become free. What is not to be counted cannot be mended.
  if (repair === 'none' || result.checkErrors > 0 || before.overflows) return result;
  if (result.leaks === 0 && result.corruptions === 0 && !(marked && repair === 'all')) return result;
  if (repair === 'leaks') {
    if (result.leaks === 0) return result;
    const tables = await TableRewrite.load(file);
    for (let cluster = 0; cluster < tables.counts.length; cluster++) {
      const wanted = before.references[cluster] ?? 0;
      if (tables.counts[cluster]! > wanted) tables.set(cluster, wanted);
    }
    await tables.commit(await settleCopied(tables));
  } else await check.repairAll(marks);
  file.refresh();
  const after = await new CheckWalk(file, await readMetadata(file)).run();
  return {
    ...after.result,
    leaksFixed: Math.max(0, result.leaks - after.result.leaks),
    corruptionsFixed: Math.max(0, result.corruptions - after.result.corruptions),
    problems: [...result.problems, ...after.result.problems].slice(0, MAX_PROBLEMS),
  };
}

/** "Autoclear": software that opens the image for writing and does not know a bit clears it. */
async function clearUnknown(file: ImageFile, { version, autoclearFeatures }: Qcow2Header): Promise<void> {
  const known = (1n << BigInt(AUTOCLEAR.bitmaps)) | (1n << BigInt(AUTOCLEAR.rawExternalData));
  const kept = autoclearFeatures & known;
  if (version === 2 || kept === autoclearFeatures) return;
  const field = new DataView(new ArrayBuffer(8));
  field.setBigUint64(0, kept);
  await file.write(HEADER_FIELD.autoclearFeatures, new Uint8Array(field.buffer));
  await file.sync();
}

/** An image with the dirty bit gets its refcounts back: what opening it for writing does first. @throws ImageError */
export async function mendWhereDirty(file: ImageFile): Promise<void> {
  const { header } = await readMetadata(file);
  if (!hasFeature(header, INCOMPATIBLE.dirty) || hasFeature(header, INCOMPATIBLE.corrupt)) return;
  const { corruptions, checkErrors, problems } = await checkFile(file, 'all');
  if (corruptions > 0 || checkErrors > 0) {
    throw new ImageError('EINVAL', `Cannot open the qcow2 image: its refcounts cannot be mended; ${problems.at(-1)}`);
  }
}
