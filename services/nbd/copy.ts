import { BASE_ALLOCATION, type Extent, STATE } from '../../protocols/nbd/mod.ts';
import type { NbdDisk } from './nbd_disk.ts';
import { NbdError } from './nbd_error.ts';

const PIECE_BYTES = 1 << 20;
const DEFAULT_REQUESTS = 8;

export interface CopyOptions {
  /** Pieces of 1 MiB that are under way at once (default 8) */
  readonly requests?: number;
  /** The target reads as zeroes already: what is zero in the source is left alone (default false) */
  readonly targetIsZero?: boolean;
  /** Called with what is done, in `bytes` */
  readonly onProgress?: (doneBytes: number) => void;
  readonly signal?: AbortSignal;
}

/**
 * Copies one disk onto another that is at least as large. What the source says is zero is not read, and not written:
 * the target gets zeroes that it may keep as holes, fast where it can, else only where the command says that it has to.
 * The target is flushed at the end.
 * @throws NbdError of whichever fails first (CVE-2022-0485: a failed piece fails the copy); the signal's reason
 */
export async function copyDisk(source: NbdDisk, target: NbdDisk, options: CopyOptions = {}): Promise<void> {
  if (target.sizeBytes < source.sizeBytes) {
    throw new NbdError('ENOSPC', `Cannot copy ${source.sizeBytes} bytes: the target has ${target.sizeBytes}`);
  }
  const pieces = piecesOf(source);
  let done = 0;
  const work = async (): Promise<void> => {
    for (;;) {
      options.signal?.throwIfAborted();
      const next = await pieces.next();
      if (next.done) return;
      const { offset, length, zero } = next.value;
      if (zero) await clear(target, offset, length, options.targetIsZero === true);
      else {
        const data = new Uint8Array(length);
        await source.read(offset, data);
        await target.write(offset, data);
      }
      done += length;
      options.onProgress?.(done);
    }
  };
  const workers = await Promise.allSettled(Array.from({ length: options.requests ?? DEFAULT_REQUESTS }, work));
  const failed = workers.find((worker) => worker.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
  await target.flush();
}

interface Piece {
  readonly offset: number;
  readonly length: number;
  readonly zero: boolean;
}

/** Data in pieces, zeroes as they come. Several may ask for the next one at once: a generator answers in order. */
async function* piecesOf(source: NbdDisk): AsyncGenerator<Piece, void, void> {
  for (let offset = 0; offset < source.sizeBytes; ) {
    for (const extent of await extentsOf(source, offset)) {
      const zero = (extent.flags & STATE.ZERO) !== 0;
      const end = offset + extent.lengthBytes;
      while (offset < end) {
        const length = zero ? end - offset : Math.min(PIECE_BYTES, end - offset);
        yield { offset, length, zero };
        offset += length;
      }
    }
  }
}

async function extentsOf(source: NbdDisk, offset: number): Promise<readonly Extent[]> {
  const lengthBytes = source.sizeBytes - offset;
  if (!source.contexts.includes(BASE_ALLOCATION)) return [{ lengthBytes, flags: 0 }];
  const found = await source.status(offset, lengthBytes, { contexts: [BASE_ALLOCATION] });
  return found.get(BASE_ALLOCATION)!;
}

async function clear(target: NbdDisk, offset: number, length: number, isZero: boolean): Promise<void> {
  if (isZero) return;
  if (target.canWriteZeroes) {
    await target.writeZeroes(offset, length, { mayUnmap: true });
    return;
  }
  const zero = new Uint8Array(Math.min(length, PIECE_BYTES));
  for (let at = 0; at < length; at += zero.length) {
    await target.write(offset + at, zero.subarray(0, Math.min(zero.length, length - at)));
  }
}
