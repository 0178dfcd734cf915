import test from 'ava';
import { STATE } from '../../../../protocols/nbd/mod.ts';
import { DirtyBitmap, MemoryImage } from '../../../../services/nbd/images/mod.ts';
import { type CreateQcow2Options, emptyImage, Qcow2Image } from '../../../../services/nbd/images/qcow2/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';
import { randomWork } from '../../../fixtures/random_work.ts';

const variants: readonly (Omit<CreateQcow2Options, 'sizeBytes'> & { diskBytes: number })[] = [
  { diskBytes: 300_032, clusterBytes: 512, refcountBits: 64 },
  { diskBytes: 1_000_448, clusterBytes: 512, refcountBits: 1 },
  { diskBytes: 1 << 20, clusterBytes: 1024, refcountBits: 8 },
  { diskBytes: 2 << 20, clusterBytes: 4096, refcountBits: 4 },
  { diskBytes: 2 << 20, clusterBytes: 4096, version: 2 },
  { diskBytes: (8 << 20) + 512, clusterBytes: 65_536, refcountBits: 16 },
  { diskBytes: 16 << 20, clusterBytes: 2 << 20, refcountBits: 32 },
  { diskBytes: (2 << 20) + 512, clusterBytes: 16_384, extendedL2: true },
  { diskBytes: 4 << 20, clusterBytes: 131_072, extendedL2: true, compression: 'zstd' },
];

for (const [index, variant] of variants.entries()) {
  const { diskBytes, ...options } = variant;
  const name = `v${options.version ?? 3}, clusters of ${options.clusterBytes}, ${options.refcountBits ?? 16}-bit refcounts${options.extendedL2 ? ', extended' : ''}`;

  test(`Q5 Q7 Q15 random work reads back, also after reopening: ${name}`, async (t) => {
    const file = new LogImageFile(emptyImage({ ...options, sizeBytes: diskBytes }));
    const model = new Uint8Array(diskBytes);
    for (let round = 0; round < 3; round++) {
      const image = await Qcow2Image.openFile(file, { readOnly: false });
      t.is(image.sizeBytes, diskBytes);
      await randomWork(image, model, { seed: index * 100 + round, steps: 150, maxBytes: diskBytes / 4 });
      await image.flush();
      await image.close();
    }
    const image = await Qcow2Image.openFile(file, { readOnly: true });
    const all = new Uint8Array(diskBytes);
    await image.read(0, all);
    t.is(Buffer.compare(all, model), 0);
  });

  test(`Q10 random work over a shorter backing disk reads back: ${name}`, async (t) => {
    const backing = new MemoryImage(Math.floor(diskBytes / 1024) * 512);
    await backing.write(0, new Uint8Array(backing.sizeBytes).fill(0xbb));
    const model = new Uint8Array(diskBytes).fill(0xbb, 0, backing.sizeBytes);
    const file = new LogImageFile(
      emptyImage({ ...options, sizeBytes: diskBytes, backing: { file: 'base.raw', format: 'raw' } }),
    );
    const image = await Qcow2Image.openFile(file, { readOnly: false, backing });
    await randomWork(image, model, { seed: index, steps: 150, maxBytes: diskBytes / 4 });
    const below = new Uint8Array(backing.sizeBytes);
    await backing.read(0, below);
    t.true(
      below.every((byte) => byte === 0xbb),
      'the backing disk was written to',
    );
    await image.close();
  });
}

test('Q7 writes at once, to the same and to other clusters, all arrive', async (t) => {
  const file = new LogImageFile(emptyImage({ sizeBytes: 1 << 20, clusterBytes: 4096 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  const pieces = Array.from({ length: 512 }, (_, index) => index);
  await Promise.all(pieces.map((index) => image.write(index * 2048, new Uint8Array(2048).fill((index % 255) + 1))));
  await image.flush();
  const all = new Uint8Array(1 << 20);
  await image.read(0, all);
  for (const index of pieces) t.is(all[index * 2048 + 2047], (index % 255) + 1);
});

test('T14 blockStatus() tells holes, zeroes, data and what the backing disk has', async (t) => {
  const cluster = 65_536;
  const file = new LogImageFile(emptyImage({ sizeBytes: cluster * 8 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await image.write(cluster, new Uint8Array(2 * cluster).fill(1));
  await image.write(cluster * 4, new Uint8Array(cluster).fill(1));
  await image.writeZeroes(cluster * 2, cluster, { mayUnmap: false, fast: true });
  await image.writeZeroes(cluster * 4, cluster, { mayUnmap: true, fast: true });
  t.deepEqual(await image.blockStatus(0, image.sizeBytes, 100), [
    { lengthBytes: cluster, flags: STATE.HOLE | STATE.ZERO },
    { lengthBytes: cluster, flags: 0 },
    { lengthBytes: cluster, flags: STATE.ZERO },
    { lengthBytes: cluster * 5, flags: STATE.HOLE | STATE.ZERO },
  ]);
  t.is((await image.blockStatus(100, image.sizeBytes - 100, 1)).length, 1);

  const backing = new MemoryImage(cluster * 2);
  await backing.write(cluster, new Uint8Array(10).fill(7));
  const over = new LogImageFile(emptyImage({ sizeBytes: cluster * 4, backing: { file: 'x', format: 'raw' } }));
  const overlay = await Qcow2Image.openFile(over, { readOnly: true, backing });
  t.deepEqual(await overlay.blockStatus(0, cluster * 4, 100), [
    { lengthBytes: cluster, flags: STATE.HOLE | STATE.ZERO },
    { lengthBytes: cluster, flags: 0 },
    { lengthBytes: cluster * 2, flags: STATE.HOLE | STATE.ZERO },
  ]);
});

test('T15 allocationDepth() asks the image below no more often than the answer needs', async (t) => {
  const piece = 4096;
  let calls = 0;
  /** Every other piece is allocated. */
  class Fragmented extends MemoryImage {
    override async allocationDepth(offset: number, lengthBytes: number, maxExtents: number) {
      calls++;
      const count = Math.min(maxExtents, lengthBytes / piece);
      return Array.from({ length: count }, (_, index) => ({
        lengthBytes: piece,
        flags: (offset / piece + index) % 2,
      }));
    }
  }
  const sizeBytes = 64 << 20;
  const backing = { file: 'below', format: 'raw' };
  const file = new LogImageFile(emptyImage({ sizeBytes, backing }));
  const top = await Qcow2Image.openFile(file, { readOnly: true, backing: new Fragmented(sizeBytes) });
  const found = await top.allocationDepth(0, sizeBytes, 100);
  t.deepEqual(found.slice(0, 3), [
    { lengthBytes: piece, flags: 0 },
    { lengthBytes: piece, flags: 2 },
    { lengthBytes: piece, flags: 0 },
  ]);
  t.is(found.length, 100);
  t.true(calls <= 2, `${calls} calls`);
  calls = 0;
  t.deepEqual(await top.allocationDepth(piece, sizeBytes - piece, 1), [{ lengthBytes: piece, flags: 2 }]);
  t.true(calls <= 2, `${calls} calls`);
  await top.close();
});

test('T15 allocationDepth() tells which image of a chain has what', async (t) => {
  const cluster = 65_536;
  const base = new MemoryImage(cluster * 3);
  await base.write(cluster * 2, new Uint8Array(1).fill(1));
  const options = { sizeBytes: cluster * 4, backing: { file: 'x', format: 'raw' } };
  const middle = await Qcow2Image.openFile(new LogImageFile(emptyImage(options)), { readOnly: false, backing: base });
  await middle.write(cluster, new Uint8Array(cluster).fill(1));
  const top = await Qcow2Image.openFile(new LogImageFile(emptyImage(options)), { readOnly: false, backing: middle });
  await top.write(0, new Uint8Array(cluster).fill(1));
  const depths = await top.allocationDepth(0, cluster * 4, 10);
  t.deepEqual(
    depths.map(({ lengthBytes, flags }) => [lengthBytes / cluster, flags]),
    [
      [1, 1],
      [1, 2],
      [1, 3],
      [1, 0],
    ],
  );
  t.is((await top.allocationDepth(0, cluster * 4, 2)).length, 2);
});

test('Q15 clusters that were discarded are used again after a flush', async (t) => {
  const file = new LogImageFile(emptyImage({ sizeBytes: 4 << 20 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  for (let round = 0; round < 10; round++) {
    await image.write(0, new Uint8Array(1 << 20).fill(round + 1));
    await image.flush();
    await image.discard(0, 1 << 20);
    await image.flush();
  }
  t.true(file.sizeBytes < 3 << 20, `file has ${file.sizeBytes} bytes`);
});

test('writeZeroes() with `fast` refuses parts of clusters, contents untouched', async (t) => {
  const file = new LogImageFile(emptyImage({ sizeBytes: 1 << 20 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await image.write(0, new Uint8Array(1 << 20).fill(5));
  await t.throwsAsync(image.writeZeroes(512, 1 << 17, { mayUnmap: true, fast: true }), { code: 'ENOTSUP' });
  const all = new Uint8Array(1 << 20);
  await image.read(0, all);
  t.true(all.every((byte) => byte === 5));
});

test('a full host disk fails the write with ENOSPC and leaves the rest readable', async (t) => {
  const file = new LogImageFile(emptyImage({ sizeBytes: 4 << 20 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await image.write(0, new Uint8Array(65_536).fill(1));
  await image.flush();
  file.limitBytes = file.sizeBytes + 65_536;
  await t.throwsAsync(image.write(65_536, new Uint8Array(1 << 20).fill(2)), { code: 'ENOSPC' });
  file.limitBytes = Number.POSITIVE_INFINITY;
  const got = new Uint8Array(65_536);
  await image.read(0, got);
  t.true(got.every((byte) => byte === 1));
  await image.write(65_536, new Uint8Array(1 << 20).fill(2));
  await image.flush();
});

test('an image opened read-only or inactive cannot be written', async (t) => {
  const contents = emptyImage({ sizeBytes: 1 << 20 });
  const readOnly = await Qcow2Image.openFile(new LogImageFile(contents), { readOnly: true });
  await t.throwsAsync(readOnly.write(0, new Uint8Array(1)), { code: 'EPERM' });
  const waiting = await Qcow2Image.openFile(new LogImageFile(contents), { readOnly: false, inactive: true });
  await t.throwsAsync(waiting.write(0, new Uint8Array(1)), { code: 'EPERM' });
  await waiting.activate();
  await waiting.write(0, new Uint8Array(1));
});

test('Q13 an overlay offers the bitmaps of what is under it, its own first', async (t) => {
  const base = new MemoryImage(1 << 20);
  for (const name of ['both', 'below']) base.bitmaps.add(name, new DirtyBitmap(1 << 20, 65_536));
  await base.write(0, new Uint8Array(512));
  const file = new LogImageFile(emptyImage({ sizeBytes: 2 << 20, backing: { file: 'b', format: 'raw' } }));
  const image = await Qcow2Image.openFile(file, { readOnly: false, backing: base });
  image.bitmaps.add('both', new DirtyBitmap(2 << 20, 65_536));
  t.deepEqual(image.dirtyBitmaps(), ['both', 'below']);
  t.deepEqual(await image.dirtyBitmap('both', 0, 2 << 20, 9), [{ lengthBytes: 2 << 20, flags: 0 }]);
  t.deepEqual(await image.dirtyBitmap('below', 0, 2 << 20, 9), [
    { lengthBytes: 65_536, flags: 1 },
    { lengthBytes: (1 << 20) - 65_536, flags: 0 },
  ]);
  t.deepEqual(await image.dirtyBitmap('below', 1 << 20, 1 << 20, 9), [{ lengthBytes: 1 << 20, flags: 0 }]);
  await t.throwsAsync(image.dirtyBitmap('none', 0, 512, 9), { code: 'EINVAL' });
});
