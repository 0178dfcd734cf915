import { type Extent, STATE } from '../../../protocols/nbd/mod.ts';
import type { StatusBudget } from './disk_image.ts';
import { isZero } from './zeroes.ts';

/** Zero detection looks at pieces of this size, in `bytes` */
const GRAIN_BYTES = 64 * 1024;
/** One block-status request reads at most this much, in `bytes`; the client asks again for the rest */
const MAX_SCAN_BYTES = 32 << 20;
/** What looking at a grain counts where a table's entry counts one, see {@link StatusBudget} */
const GRAIN_COST = 128;
const PIECE_BYTES = 1 << 20;

/** For one request that shares with nobody */
export function scanBudget(): StatusBudget {
  return { left: (MAX_SCAN_BYTES / GRAIN_BYTES) * GRAIN_COST };
}

/** The next multiple of `step` above `at` */
export function nextMultiple(at: number, step: number): number {
  return (Math.floor(at / step) + 1) * step;
}

/** Extents from `offset` on, zeroes or not, found by reading: at most `maxExtents`, and as far as `budget` lets it look. */
export async function scanZeroes(
  read: (offset: number, into: Uint8Array) => Promise<void>,
  range: { readonly offset: number; readonly lengthBytes: number },
  maxExtents: number,
  budget: StatusBudget,
): Promise<Extent[]> {
  const { offset, lengthBytes } = range;
  const extents: { lengthBytes: number; flags: number }[] = [];
  const most = Math.max(1, Math.floor(budget.left / GRAIN_COST)) * GRAIN_BYTES;
  const end = offset + Math.min(lengthBytes, most, MAX_SCAN_BYTES);
  budget.left -= Math.ceil((end - offset) / GRAIN_BYTES) * GRAIN_COST;
  const scratch = Buffer.allocUnsafe(Math.min(PIECE_BYTES, end - offset));
  let at = offset;
  while (at < end) {
    // Whole grains of the disk, so that neighbouring requests agree.
    const next = Math.min(end, nextMultiple(at, PIECE_BYTES));
    const piece = scratch.subarray(0, next - at);
    await read(at, piece);
    while (at < next) {
      const stop = Math.min(next, nextMultiple(at, GRAIN_BYTES));
      const from = piece.length - (next - at);
      const flags = isZero(piece.subarray(from, from + stop - at)) ? STATE.ZERO : 0;
      const before = extents.at(-1);
      if (before?.flags === flags) before.lengthBytes += stop - at;
      else if (extents.length === maxExtents) return extents;
      else extents.push({ lengthBytes: stop - at, flags });
      at = stop;
    }
  }
  return extents;
}
