import type { CompressedTarget } from '../copy_image.ts';
import { ImageError } from '../disk_image.ts';
import type { MappedImage } from '../mapped_image.ts';
import { FdImageFile } from '../qcow2/mod.ts';
import { openVmdkFile, type VmdkMap } from './open.ts';

/** A streamOptimized image that is being written: grain after grain, each once. */
export interface VmdkStream extends CompressedTarget {
  /** What was written so far */
  readonly image: MappedImage<VmdkMap>;
  /** Writes the tables; all is on stable storage then */
  finish(): Promise<void>;
}

/** Opens the empty streamOptimized image at `path` to be written. @throws ImageError where it is another kind */
export async function openVmdkStream(path: string): Promise<VmdkStream> {
  const image = await openVmdkFile(FdImageFile.open(path, false), path, { readOnly: true });
  const { sparse } = image.map;
  if (sparse === undefined || !sparse.compressed) {
    await image.close();
    throw new ImageError('EINVAL', 'Cannot write the VMDK image as a stream: it is not streamOptimized');
  }
  const { grainBytes } = sparse.header;
  return {
    image,
    blockBytes: grainBytes,
    write: (offset, data) => {
      const grain = new Uint8Array(grainBytes);
      grain.set(data);
      return sparse.appendCompressed(offset, grain);
    },
    finish: () => sparse.flushTables(),
  };
}
