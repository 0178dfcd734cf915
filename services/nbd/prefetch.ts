import type { BufferPool } from './buffer_pool.ts';
import type { DiskImage } from './images/mod.ts';

const PIECE_BYTES = 1 << 20;
/** One request pulls no more than this, in `bytes`: the command is a hint */
const MAX_BYTES = 32 << 20;

/** NBD_CMD_CACHE: reading pulls a range into the page cache. */
export async function prefetch(image: DiskImage, pool: BufferPool, offset: number, lengthBytes: number): Promise<void> {
  const end = offset + Math.min(lengthBytes, MAX_BYTES);
  const buffer = pool.take(Math.min(PIECE_BYTES, Math.max(end - offset, 1)));
  try {
    for (let at = offset; at < end; at += PIECE_BYTES) {
      await image.read(at, buffer.subarray(0, Math.min(PIECE_BYTES, end - at)));
    }
  } finally {
    pool.give(buffer);
  }
}
