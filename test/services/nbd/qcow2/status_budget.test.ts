import test from 'ava';
import type { Extent } from '../../../../protocols/nbd/mod.ts';
import { type DiskImage, MemoryImage, type StatusBudget } from '../../../../services/nbd/images/mod.ts';
import { emptyImage, Qcow2Image } from '../../../../services/nbd/images/qcow2/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';

// One request for block status is answered in bounded work, however many images are under each other.

const DEPTH = 16;
const CLUSTER = 4096;
const MIB = 1 << 20;
const STEP = 1024;

async function over(backing: DiskImage, clusterBytes = CLUSTER): Promise<Qcow2Image> {
  const file = new LogImageFile(
    emptyImage({ sizeBytes: 256 * MIB, clusterBytes, backing: { file: 'b', format: 'raw' } }),
  );
  return Qcow2Image.openFile(file, { readOnly: false, backing });
}

/** Says the same of every KiB, one extent at a time, and counts how often it is asked. */
class SlowImage extends MemoryImage {
  asked = 0;
  override async blockStatus(offset: number, lengthBytes: number): Promise<Extent[]> {
    this.asked++;
    return [{ lengthBytes: Math.min(STEP, lengthBytes), flags: (offset / STEP) % 2 }];
  }
  override async allocationDepth(offset: number, lengthBytes: number): Promise<Extent[]> {
    this.asked++;
    return [{ lengthBytes: Math.min(STEP, lengthBytes), flags: (offset / STEP) % 2 }];
  }
}

test('T14 a chain of 16 images answers block status in bounded work, from where the last answer ended to the end', async (t) => {
  const lowest = new SlowImage(256 * MIB);
  let image: Qcow2Image = await over(lowest);
  for (let depth = 2; depth < DEPTH; depth++) image = await over(image);
  // One request that may have as many extents as it likes
  const extents = await image.blockStatus(0, 256 * MIB, 1 << 20);
  t.true(extents.length > 0 && lowest.asked <= 65_536, `${lowest.asked}`);
  // Each answer goes on; together they cover all.
  let at = 0;
  let answers = 0;
  while (at < 256 * MIB) {
    const found = await image.blockStatus(at, 256 * MIB - at, 8192);
    for (const { lengthBytes, flags } of found) {
      t.is(flags, (at / STEP) % 2);
      at += lengthBytes;
    }
    answers++;
  }
  t.is(at, 256 * MIB);
  t.true(answers <= 100, `${answers} answers`);
});

test('T15 allocation depth of a chain is answered in bounded work', async (t) => {
  const lowest = new SlowImage(256 * MIB);
  let image: Qcow2Image = await over(lowest);
  for (let depth = 2; depth < DEPTH; depth++) image = await over(image);
  const extents = await image.allocationDepth(0, 256 * MIB, 1 << 20);
  t.true(extents.length > 0);
  t.true(lowest.asked <= 65_536, `${lowest.asked}`);
});

test('T14 what an image itself has leaves room for what is under it', async (t) => {
  const lowest = new SlowImage(256 * MIB);
  const image = await over(lowest);
  // Every second cluster: no two neighbours are one run.
  const data = new Uint8Array(CLUSTER).fill(1);
  for (let at = 0; at < 32 * MIB; at += 2 * CLUSTER) await image.write(at, data);
  const budget: StatusBudget = { left: 1000 };
  const extents = await image.blockStatus(0, 32 * MIB, 8192, budget);
  t.true(extents.length > 200, `${extents.length} extents`);
  t.true(lowest.asked <= 1000);
});
