import test from 'ava';
import { MemoryImage } from '../../../../services/nbd/images/mod.ts';
import {
  applySnapshot,
  type CreateQcow2Options,
  createSnapshot,
  deleteSnapshot,
  emptyImage,
  Qcow2Image,
  resizeQcow2,
} from '../../../../services/nbd/images/qcow2/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';
import { randomWork } from '../../../fixtures/random_work.ts';

const variants: readonly (Omit<CreateQcow2Options, 'sizeBytes'> & { diskBytes: number })[] = [
  { diskBytes: 300_032, clusterBytes: 512, refcountBits: 64 },
  { diskBytes: 1 << 20, clusterBytes: 4096, refcountBits: 4 },
  { diskBytes: 1 << 20, clusterBytes: 4096, version: 2 },
  { diskBytes: 2 << 20, clusterBytes: 65_536 },
  { diskBytes: 1 << 20, clusterBytes: 16_384, extendedL2: true },
];

async function contentsOf(image: Qcow2Image): Promise<Uint8Array> {
  const all = new Uint8Array(image.sizeBytes);
  await image.read(0, all);
  return all;
}

for (const [index, { diskBytes, ...options }] of variants.entries()) {
  const name = `v${options.version ?? 3}, clusters of ${options.clusterBytes}${options.extendedL2 ? ', extended' : ''}`;

  test(`Q12 snapshots keep what the disk was, are applied and deleted, also after reopening: ${name}`, async (t) => {
    const file = new LogImageFile(emptyImage({ ...options, sizeBytes: diskBytes }));
    let image = await Qcow2Image.openFile(file, { readOnly: false });
    const model = new Uint8Array(diskBytes);
    const kept: { id: string; contents: Uint8Array }[] = [];
    for (let round = 0; round < 4; round++) {
      await randomWork(image, model, { seed: index * 10 + round, steps: 60, maxBytes: diskBytes / 8 });
      const { id } = await createSnapshot(image, `round ${round}`);
      kept.push({ id, contents: model.slice() });
      await randomWork(image, model, { seed: index * 10 + round + 5, steps: 30, maxBytes: diskBytes / 8 });
      await image.flush();
      await image.close();
      image = await Qcow2Image.openFile(file, { readOnly: false });
    }
    t.deepEqual(
      image.snapshots.map((snapshot) => snapshot.name),
      ['round 0', 'round 1', 'round 2', 'round 3'],
    );
    for (const { id, contents } of kept) {
      const past = await Qcow2Image.openFile(new LogImageFile(file.contents), { readOnly: true, snapshot: id });
      t.is(Buffer.compare(await contentsOf(past), contents), 0, `snapshot ${id} opened`);
    }
    await deleteSnapshot(image, 'round 1');
    await applySnapshot(image, kept[2]!.id);
    t.is(Buffer.compare(await contentsOf(image), kept[2]!.contents), 0);
    model.set(kept[2]!.contents);
    await randomWork(image, model, { seed: 90 + index, steps: 60, maxBytes: diskBytes / 8 });
    await applySnapshot(image, 'round 0');
    t.is(Buffer.compare(await contentsOf(image), kept[0]!.contents), 0);
    for (const { id } of kept) if (id !== kept[1]!.id) await deleteSnapshot(image, id);
    t.is(image.snapshots.length, 0);
    t.is(Buffer.compare(await contentsOf(image), kept[0]!.contents), 0);
    model.set(kept[0]!.contents);
    await randomWork(image, model, { seed: 95 + index, steps: 60, maxBytes: diskBytes / 8 });
    await image.close();
  });

  test(`Q17 a disk that grows and shrinks keeps what is left of it: ${name}`, async (t) => {
    const file = new LogImageFile(emptyImage({ ...options, sizeBytes: diskBytes }));
    const image = await Qcow2Image.openFile(file, { readOnly: false });
    let model = new Uint8Array(diskBytes);
    await randomWork(image, model, { seed: index, steps: 60, maxBytes: diskBytes / 8 });
    for (const factor of [3, 0.5, 40, 0.25]) {
      const wanted = Math.floor((diskBytes * factor) / 512) * 512;
      if (wanted < image.sizeBytes) {
        await t.throwsAsync(resizeQcow2(image, wanted), { code: 'EINVAL', message: /data would be lost/ });
      }
      await resizeQcow2(image, wanted, { shrink: true });
      t.is(image.sizeBytes, wanted);
      const next = new Uint8Array(wanted);
      next.set(model.subarray(0, wanted));
      model = next;
      await randomWork(image, model, { seed: index + factor * 4, steps: 40, maxBytes: diskBytes / 8 });
    }
    await image.flush();
    const again = await Qcow2Image.openFile(new LogImageFile(file.contents), { readOnly: true });
    t.is(Buffer.compare(await contentsOf(again), model), 0);
  });
}

test('Q12 names are checked: a missing snapshot, one that is too long, a data file', async (t) => {
  const image = await Qcow2Image.openFile(new LogImageFile(emptyImage({ sizeBytes: 1 << 20 })), { readOnly: false });
  await t.throwsAsync(applySnapshot(image, 'none'), { code: 'EINVAL' });
  await t.throwsAsync(deleteSnapshot(image, '1'), { code: 'EINVAL' });
  await t.throwsAsync(createSnapshot(image, 'x'.repeat(256)), { code: 'EINVAL' });
  const outside = await Qcow2Image.openFile(
    new LogImageFile(emptyImage({ sizeBytes: 1 << 20, dataFile: { file: 'd', raw: false } })),
    { readOnly: false, dataFile: new LogImageFile(new Uint8Array(0)) },
  );
  await t.throwsAsync(createSnapshot(outside, 'x'), { message: /data files have none/ });
});

test('Q12 refcounts of one bit leave no room for a snapshot, and the image stays as it is', async (t) => {
  const file = new LogImageFile(emptyImage({ sizeBytes: 1 << 20, refcountBits: 1 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await image.write(0, new Uint8Array(70_000).fill(3));
  await t.throwsAsync(createSnapshot(image, 'x'), { code: 'ENOTSUP', message: /refcount/ });
  await image.write(65_536, new Uint8Array(70_000).fill(4));
  await image.flush();
  const again = await Qcow2Image.openFile(new LogImageFile(file.contents), { readOnly: true });
  t.is((await contentsOf(again))[140_000 - 5000], 4);
});

test('Q17 a disk that outgrows its backing file reads zeroes there, and none of a longer backing file', async (t) => {
  const backing = new MemoryImage(1 << 20);
  await backing.write(0, new Uint8Array(1 << 20).fill(9));
  const contents = emptyImage({ sizeBytes: 1 << 18, backing: { file: 'b', format: 'raw' } });
  const image = await Qcow2Image.openFile(new LogImageFile(contents), { readOnly: false, backing });
  await resizeQcow2(image, 2 << 20);
  const all = await contentsOf(image);
  t.true(all.subarray(0, 1 << 18).every((byte) => byte === 9));
  t.true(all.subarray(1 << 18).every((byte) => byte === 0));
});
