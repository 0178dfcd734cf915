import type { DiskImage } from '../../../../services/nbd/images/mod.ts';
import { randomNumbers } from './log_image_file.ts';

/** What the disk has to read as; `undefined` ranges (after a discard) are read back from the image. */
export interface RandomWork {
  readonly seed: number;
  readonly steps: number;
  /** Largest access, in `bytes` */
  readonly maxBytes: number;
  /** After a flush was answered, with what the disk holds then */
  readonly onFlush?: (model: Uint8Array) => void;
}

/**
 * Writes, zeroes, discards, reads and flushes at random, with a model in memory beside it. Throws where the two differ.
 */
export async function randomWork(image: DiskImage, model: Uint8Array, work: RandomWork): Promise<void> {
  const random = randomNumbers(work.seed);
  for (let step = 0; step < work.steps; step++) {
    const length = Math.min(1 + random(random(4) === 0 ? work.maxBytes : 4096), model.length);
    // Sectors and clusters have edges: half of the work starts at one.
    let offset = random(model.length - length + 1);
    if (random(2) === 0) offset -= offset % 512;
    const fill = 1 + random(255);
    const kind = random(10);
    if (kind < 5) {
      const data = new Uint8Array(length).fill(fill);
      if (!image.writeNow(offset, data)) await image.write(offset, data);
      model.set(data, offset);
    } else if (kind === 5) {
      await image.writeZeroes(offset, length, { mayUnmap: random(2) === 0, fast: false });
      model.fill(0, offset, offset + length);
    } else if (kind === 6) {
      await image.discard(offset, length);
      await image.read(offset, model.subarray(offset, offset + length));
    } else if (kind === 7) {
      await image.flush();
      work.onFlush?.(model);
    } else {
      const got = new Uint8Array(length);
      if (!image.readNow(offset, got)) await image.read(offset, got);
      const at = Buffer.compare(got, model.subarray(offset, offset + length));
      if (at !== 0) throw new Error(`step ${step}: read of ${length} bytes at ${offset} differs from the model`);
    }
  }
  const all = new Uint8Array(model.length);
  await image.read(0, all);
  if (Buffer.compare(all, model) !== 0) throw new Error('the whole disk differs from the model');
}
