import { type Extent, STATE } from '../../../protocols/nbd/mod.ts';
import { type DiskImage, ImageError } from './disk_image.ts';
import { isZero } from './zeroes.ts';

const PIECE_BYTES = 2 << 20;
const MAX_EXTENTS = 1024;
/** Extents are asked for in parts of this size, in `bytes` */
const STATUS_BYTES = 1 << 30;

/** What can take whole blocks compressed. */
export interface CompressedTarget {
  /** In `bytes`; pieces are whole blocks, but for the last one of the disk */
  readonly blockBytes: number;
  write(offset: number, data: Uint8Array): Promise<void>;
}

export interface CopyOptions {
  /** Runs of zeroes of this size are not written where the target reads as zeroes anyway; 0: all is written. In `bytes` */
  readonly sparseBytes: number;
  /** The target was just made, and reads as zeroes */
  readonly targetIsZero: boolean;
  readonly compressed?: CompressedTarget;
  /** How many `bytes` of the disk are done */
  readonly onProgress?: (doneBytes: number) => void;
  readonly signal?: AbortSignal;
  /** Where the source's first byte goes, in `bytes` (default 0) */
  readonly offset?: number;
  /** Extents with flags 0 are not copied: what is under the target has them. May cover less than asked */
  readonly own?: (offset: number, lengthBytes: number) => Promise<readonly Extent[]>;
}

interface Part {
  readonly lengthBytes: number;
  readonly kind: 'data' | 'zero' | 'below';
}

/** Copies a whole disk; holes of the source become holes of the target. @throws ImageError, or the reason of `signal` */
export async function copyImage(source: DiskImage, target: DiskImage, options: CopyOptions): Promise<void> {
  const { offset = 0 } = options;
  const sizeBytes = source.sizeBytes;
  if (offset + sizeBytes > target.sizeBytes) {
    const room = target.sizeBytes - offset;
    throw new ImageError('ENOSPC', `Cannot copy ${sizeBytes} bytes: the target has room for ${room}`);
  }
  const buffers = [Buffer.allocUnsafe(PIECE_BYTES), Buffer.allocUnsafe(PIECE_BYTES)];
  let turn = 0;
  /** One write is on its way while the next piece is read. */
  let writing: Promise<void> = Promise.resolve();
  try {
    for (let at = 0; at < sizeBytes; ) {
      for (const { lengthBytes, kind } of await partsFrom(source, at, options)) {
        const end = Math.min(sizeBytes, at + lengthBytes);
        const zero = kind === 'below' || (kind === 'zero' && options.sparseBytes > 0);
        const zeroEnd = zero ? wholeBlocksEnd(end, sizeBytes, options) : 0;
        while (at < end) {
          options.signal?.throwIfAborted();
          if (at < zeroEnd) {
            await writing;
            if (kind === 'zero') await zeroTarget(target, offset + at, zeroEnd - at, options);
            at = zeroEnd;
          } else {
            const piece = buffers[turn]!.subarray(0, pieceBytes(at, sizeBytes, end, options));
            await source.read(at, piece);
            await writing;
            writing = writePiece(target, offset + at, piece, options).catch(noRoomAt(offset + at));
            writing.catch(() => {}); // awaited before the next one
            turn = 1 - turn;
            at += piece.length;
          }
          options.onProgress?.(at);
        }
        // A compressed piece may reach into the next extent.
        if (options.compressed !== undefined && at > end) break;
      }
    }
  } finally {
    await writing;
  }
}

/** Where the zeroes that end at `end` may be left out up to: a compressed block cannot begin behind a part of itself. */
function wholeBlocksEnd(end: number, sizeBytes: number, { compressed }: CopyOptions): number {
  return compressed === undefined || end === sizeBytes ? end : end - (end % compressed.blockBytes);
}

/** Compressed pieces are whole blocks, whatever the extents are. */
function pieceBytes(at: number, sizeBytes: number, extentEnd: number, { compressed }: CopyOptions): number {
  if (compressed !== undefined) return Math.min(compressed.blockBytes, sizeBytes - at);
  // Ends at whole pieces of the disk, so that blocks of the target are written once.
  return Math.min(extentEnd - at, PIECE_BYTES - (at % PIECE_BYTES));
}

async function partsFrom(source: DiskImage, at: number, { own }: CopyOptions): Promise<Part[]> {
  const length = Math.min(STATUS_BYTES, source.sizeBytes - at);
  if (own === undefined) return statusFrom(source, at, length);
  const parts: Part[] = [];
  let from = at;
  for (const { lengthBytes, flags } of await own(at, length)) {
    if (flags === 0) parts.push({ lengthBytes, kind: 'below' });
    else {
      // The status may cover less: what is left comes with the next call.
      const inside = await statusFrom(source, from, lengthBytes);
      parts.push(...inside);
      if (inside.reduce((sum, part) => sum + part.lengthBytes, 0) < lengthBytes) return parts;
    }
    from += lengthBytes;
  }
  return parts;
}

async function statusFrom(source: DiskImage, at: number, lengthBytes: number): Promise<Part[]> {
  const extents = await source.blockStatus(at, lengthBytes, MAX_EXTENTS);
  if (extents.length === 0) throw new ImageError('EIO', `Cannot copy: the source says nothing about ${at}`);
  let left = lengthBytes;
  return extents.map(({ lengthBytes: length, flags }) => {
    const part = Math.min(length, left);
    left -= part;
    return { lengthBytes: part, kind: (flags & STATE.ZERO) !== 0 ? 'zero' : 'data' } as const;
  });
}

async function zeroTarget(target: DiskImage, at: number, length: number, { targetIsZero }: CopyOptions): Promise<void> {
  if (!targetIsZero) await target.writeZeroes(at, length, { mayUnmap: true, fast: false });
}

async function writePiece(target: DiskImage, at: number, piece: Uint8Array, options: CopyOptions): Promise<void> {
  const { compressed, sparseBytes } = options;
  if (sparseBytes > 0 && isZero(piece)) return zeroTarget(target, at, piece.length, options);
  if (compressed !== undefined) return compressed.write(at, piece);
  if (sparseBytes === 0) return target.write(at, piece);
  for (let from = 0; from < piece.length; ) {
    const { zero, end } = sparseRun(piece, from, sparseBytes);
    if (zero) await zeroTarget(target, at + from, end - from, options);
    else await target.write(at + from, piece.subarray(from, end));
    from = end;
  }
}

/** Says how far a target went that is full. */
function noRoomAt(at: number): (cause: unknown) => never {
  return (cause) => {
    if (!(cause instanceof ImageError) || cause.code !== 'ENOSPC') throw cause;
    throw new ImageError('ENOSPC', `Cannot write at byte ${at}: no space left`, { cause });
  };
}

/** The run of zeroes, or of anything else, that begins at `from`, in steps of `sparseBytes`. */
function sparseRun(piece: Uint8Array, from: number, sparseBytes: number): { zero: boolean; end: number } {
  const step = (at: number) => Math.min(piece.length, at + sparseBytes);
  const zero = isZero(piece.subarray(from, step(from)));
  let end = step(from);
  while (end < piece.length && isZero(piece.subarray(end, step(end))) === zero) end = step(end);
  return { zero, end };
}
