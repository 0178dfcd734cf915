import { CheckWalk } from './check_walk.ts';
import type { FileRange, ImageFile } from './image_file.ts';
import { readMetadata } from './metadata.ts';
import { MAX_CLUSTERS } from './table_rewrite.ts';

/**
 * Gives the file system what an image does not use any more: the end of its file, and holes inside where that can be.
 * Nobody else uses the file, and all that was cached is in it. Where refcounts and tables disagree nothing is given back:
 * what one of them calls free may be somebody's data. Nor where the file is too large for all of them to be looked at.
 */
export async function releaseFree(file: ImageFile): Promise<void> {
  if (file.release === undefined) return;
  const metadata = await readMetadata(file);
  const { clusterBytes } = metadata.header;
  if (file.sizeBytes > MAX_CLUSTERS * clusterBytes) return;
  const { result, references, counts, overflows } = await new CheckWalk(file, metadata).run();
  if (result.corruptions > 0 || result.checkErrors > 0 || overflows) return;
  const holes: FileRange[] = [];
  let end = 0;
  for (let cluster = 0; cluster * clusterBytes < file.sizeBytes; cluster++) {
    if ((references[cluster] ?? 0) === 0 && (counts[cluster] ?? 0) === 0) continue;
    const offset = cluster * clusterBytes;
    if (offset > end) holes.push({ offset: end, lengthBytes: offset - end });
    end = offset + clusterBytes;
  }
  await file.release(end, holes);
}
