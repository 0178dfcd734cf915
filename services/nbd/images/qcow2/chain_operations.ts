import { type DiskImage, ImageError } from '../disk_image.ts';
import { isZero } from '../zeroes.ts';
import { writeHeader } from './header_update.ts';
import type { ImageFile } from './image_file.ts';
import { readMetadata } from './metadata.ts';
import type { Qcow2Image } from './qcow2_image.ts';

const PIECE_BYTES = 1 << 20;
const MAX_EXTENTS = 1 << 16;

/** Called with how much is done of how much, in `bytes` */
export type Progress = (doneBytes: number, allBytes: number) => void;

export interface CommitOptions {
  /** The image keeps what it has (default false) */
  readonly keep?: boolean;
  /** How many images of the chain are committed: 1, the image alone (default), 2 with the one under it, and so on */
  readonly depth?: number;
  readonly onProgress?: Progress;
}

/**
 * Writes everything that an image has by itself into the disk below it, which the caller opened for writing; the
 * image then has nothing of its own unless `keep`. Nobody else uses the two.
 */
export async function commitQcow2(image: Qcow2Image, below: DiskImage, options: CommitOptions = {}): Promise<void> {
  const { sizeBytes } = image;
  const { depth = 1 } = options;
  if (below.sizeBytes < sizeBytes) {
    if (below.resize === undefined) {
      throw new ImageError('ENOSPC', `Cannot commit ${sizeBytes} bytes into a disk of ${below.sizeBytes}`);
    }
    await below.resize(sizeBytes);
  }
  for (let at = 0; at < sizeBytes; ) {
    const length = Math.min(PIECE_BYTES, sizeBytes - at);
    const extents =
      depth === 1 ? await image.ownExtents(at, length) : await image.allocationDepth(at, length, MAX_EXTENTS);
    for (const { lengthBytes, flags } of extents) {
      if (flags !== 0 && flags <= depth) {
        const piece = new Uint8Array(lengthBytes);
        await image.read(at, piece);
        if (isZero(piece)) await below.writeZeroes(at, lengthBytes, { mayUnmap: true, fast: false });
        else await below.write(at, piece);
      }
      at += lengthBytes;
    }
    options.onProgress?.(at, sizeBytes);
  }
  await below.flush();
  // Only now: until here a power cut costs nothing.
  if (options.keep !== true && image.backing !== undefined) await image.dropFrom(0);
  await image.flush();
}

/**
 * Puts an image over another disk, or over none, so that it reads as before: what differs between the old and the new
 * is copied into it. `name` is what the header says of the new one. The disk that was under it is closed.
 */
export async function rebaseQcow2(
  image: Qcow2Image,
  below: DiskImage | undefined,
  name: { readonly file: string; readonly format: string } | null,
  options: { readonly onProgress?: Progress } = {},
): Promise<void> {
  const { sizeBytes } = image;
  for (let at = 0; at < sizeBytes; ) {
    for (const { lengthBytes, flags } of await image.ownExtents(at, Math.min(PIECE_BYTES, sizeBytes - at))) {
      if (flags === 0) {
        const [before, after] = [new Uint8Array(lengthBytes), new Uint8Array(lengthBytes)];
        await image.read(at, before);
        const there = Math.max(0, Math.min(lengthBytes, (below?.sizeBytes ?? 0) - at));
        if (there > 0) await below!.read(at, after.subarray(0, there));
        await writeDifferences(image, at, before, after);
      }
      at += lengthBytes;
    }
    options.onProgress?.(at, sizeBytes);
  }
  await image.flush();
  await image.changeBacking(below, { name });
}

/**
 * Says in the header of the image in `file`, open for writing, what is below it now; nothing else is looked at. Readers
 * of the image learn it when they read its tables anew.
 */
export async function renameBacking(
  file: ImageFile,
  name: { readonly file: string; readonly format: string },
): Promise<void> {
  const { header } = await readMetadata(file);
  await writeHeader(file, header, { backingFile: name.file, backingFormat: name.format });
}

/**
 * By whole clusters of the image: what is the same below stays there, neighbours go together. Behind the end of the disk
 * that was below, zeroes are said by entries that hide what comes under the image, also where nothing is under it yet;
 * zeroes that somebody wrote are data, as with qemu-img.
 */
async function writeDifferences(
  image: Qcow2Image,
  offset: number,
  before: Uint8Array,
  after: Uint8Array,
): Promise<void> {
  const { clusterBytes } = image.header;
  const oldEnd = image.backing?.sizeBytes ?? 0;
  const clusterEnd = (from: number): number =>
    Math.min(before.length, from + clusterBytes - ((offset + from) % clusterBytes));
  const kindAt = (from: number): 'same' | 'zeroes' | 'data' => {
    const to = clusterEnd(from);
    const piece = before.subarray(from, to);
    if (Buffer.compare(piece, after.subarray(from, to)) === 0) return 'same';
    const whole =
      (offset + from) % clusterBytes === 0 && (to - from === clusterBytes || offset + to === image.sizeBytes);
    return whole && offset + from >= oldEnd && isZero(piece) ? 'zeroes' : 'data';
  };
  for (let from = 0; from < before.length; ) {
    const kind = kindAt(from);
    let to = clusterEnd(from);
    while (to < before.length && kindAt(to) === kind) to = clusterEnd(to);
    if (kind === 'data') await image.write(offset + from, before.subarray(from, to));
    else if (kind === 'zeroes') await image.hide(offset + from, to - from);
    from = to;
  }
}

/**
 * Gives every cluster its place in the file: `metadata` only in the tables, `full` with zeroes written, so that the
 * host's space is taken, too (plain Node knows no other way to take it, so `falloc` is the same).
 */
export async function preallocateQcow2(
  image: Qcow2Image,
  mode: 'metadata' | 'falloc' | 'full',
  options: { readonly onProgress?: Progress } = {},
): Promise<void> {
  const { sizeBytes } = image;
  const zeroes = new Uint8Array(Math.min(PIECE_BYTES, sizeBytes));
  for (let at = 0; at < sizeBytes; at += PIECE_BYTES) {
    const length = Math.min(PIECE_BYTES, sizeBytes - at);
    if (mode === 'metadata') await image.preallocate(at, length);
    else await image.write(at, zeroes.subarray(0, length));
    options.onProgress?.(at + length, sizeBytes);
  }
  await image.flush();
}
