import test, { type ExecutionContext } from 'ava';
import { MemoryImage } from '../../../../services/nbd/images/mod.ts';
import {
  amendQcow2,
  checkFile,
  createSnapshot,
  emptyImage,
  Qcow2Image,
} from '../../../../services/nbd/images/qcow2/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';

const CLUSTER = 4096;
const MIB = 1 << 20;

interface Options {
  readonly backing?: boolean;
  readonly refcountBits?: number;
  readonly snapshots?: boolean;
}

function below(): MemoryImage {
  const image = new MemoryImage(MIB);
  image.writeNow(0, new Uint8Array(MIB).fill(9));
  return image;
}

function open(file: LogImageFile, { backing = false }: Options, snapshot?: string): Promise<Qcow2Image> {
  return Qcow2Image.openFile(file, {
    readOnly: snapshot !== undefined,
    ...(backing ? { backing: below() } : {}),
    ...(snapshot === undefined ? {} : { snapshot }),
  });
}

/** Data, zeroes with and without a place, and holes; with a snapshot of that, and changes behind it. */
async function image(options: Options): Promise<LogImageFile> {
  const { backing = false, refcountBits = 16 } = options;
  const file = new LogImageFile(
    emptyImage({
      sizeBytes: MIB,
      clusterBytes: CLUSTER,
      refcountBits,
      ...(backing ? { backing: { file: 'b', format: 'raw' } } : {}),
    }),
  );
  const disk = await open(file, options);
  await disk.write(0, new Uint8Array(8 * CLUSTER).fill(1));
  await disk.writeZeroes(2 * CLUSTER, CLUSTER, { mayUnmap: false, fast: false });
  await disk.writeZeroes(4 * CLUSTER, CLUSTER, { mayUnmap: true, fast: false });
  await disk.writeZeroes(64 * CLUSTER, 3 * CLUSTER, { mayUnmap: true, fast: false });
  if (options.snapshots === true) {
    await createSnapshot(disk, 'a');
    await createSnapshot(disk, 'b');
    await disk.write(64 * CLUSTER, new Uint8Array(CLUSTER).fill(3));
    await disk.writeZeroes(0, CLUSTER, { mayUnmap: true, fast: false });
  }
  await disk.close();
  return file;
}

/** The whole disk, a number for each cluster: all of its bytes are this one */
async function contents(file: LogImageFile, options: Options, snapshot?: string): Promise<string> {
  const disk = await open(new LogImageFile(file.contents.slice()), options, snapshot);
  const bytes = new Uint8Array(MIB);
  await disk.read(0, bytes);
  const runs: string[] = [];
  for (let at = 0; at < MIB; at += CLUSTER) {
    const piece = bytes.subarray(at, at + CLUSTER);
    runs.push(piece.every((byte) => byte === piece[0]) ? String(piece[0]) : `mixed at ${at}`);
  }
  return runs.join(',');
}

async function sound(t: ExecutionContext, file: LogImageFile): Promise<void> {
  const { corruptions, leaks, problems } = await checkFile(file);
  t.deepEqual([corruptions, leaks], [0, 0], problems.join('\n'));
}

for (const backing of [false, true]) {
  for (const snapshots of [false, true]) {
    test(`Q17 an image is amended to version 2 and back, over another disk ${backing}, with snapshots ${snapshots}`, async (t) => {
      const options = { backing, snapshots };
      const file = await image(options);
      const views = [undefined, ...(snapshots ? ['a', 'b'] : [])];
      const before = await Promise.all(views.map((view) => contents(file, options, view)));
      const disk = await open(file, options);
      await amendQcow2(disk, { version: 2 });
      t.is(disk.header.version, 2);
      await disk.close();
      await sound(t, file);
      t.is(new DataView(file.contents.slice().buffer).getUint32(4), 2);
      for (const [index, view] of views.entries()) t.is(await contents(file, options, view), before[index]!);
      const again = await open(file, options);
      await again.write(5 * CLUSTER, new Uint8Array(CLUSTER).fill(4));
      await amendQcow2(again, { version: 3, lazyRefcounts: true });
      await again.close();
      await sound(t, file);
      t.is((await contents(file, options)).split(',')[5], '4');
    });
  }
}

test('Q17 Q7 refcounts of an image take any width that holds them, and the image is whole each time', async (t) => {
  const file = await image({});
  const before = await contents(file, {});
  for (const bits of [1, 64, 2, 32, 4, 8, 16]) {
    const disk = await open(file, {});
    await amendQcow2(disk, { refcountBits: bits });
    t.is(2 ** disk.header.refcountOrder, bits);
    await disk.write(100 * CLUSTER, new Uint8Array(CLUSTER).fill(bits));
    await disk.close();
    await sound(t, file);
    t.deepEqual((await contents(file, {})).split(',').toSpliced(100, 1), before.split(',').toSpliced(100, 1));
  }
  const disk = await open(file, {});
  await createSnapshot(disk, 'a');
  await t.throwsAsync(amendQcow2(disk, { refcountBits: 1 }), { message: /to 1 bits: the cluster at \d+ has 2/ });
  await amendQcow2(disk, { refcountBits: 2 });
  await disk.close();
  await sound(t, file);
});

for (const [what, options, changes, expected] of [
  [
    'refcounts of 16 bits',
    { refcountBits: 1 },
    { version: 2 },
    /version 2 has refcounts of 16 bits, and the image of 1/,
  ],
  ['other refcounts', {}, { version: 2, refcountBits: 32 }, /refcounts of 32 bits need version 3/],
  ['lazy refcounts', {}, { version: 2, lazyRefcounts: true }, /lazy refcounts need version 3/],
  ['refcounts of no power of two', {}, { refcountBits: 12 }, /a power of two up to 64/],
] as const) {
  test(`Q17 amend refuses ${what}, and changes nothing`, async (t) => {
    const file = await image(options);
    const before = file.contents.slice();
    const disk = await open(file, options);
    await t.throwsAsync(amendQcow2(disk, changes), { message: expected });
    await disk.close();
    t.true(Buffer.from(before).equals(file.contents));
  });
}

test('Q8 Q17 an image whose lazy refcounts are turned off is clean when it is closed', async (t) => {
  const file = new LogImageFile(emptyImage({ sizeBytes: MIB, clusterBytes: CLUSTER, lazyRefcounts: true }));
  const disk = await open(file, {});
  await disk.write(0, new Uint8Array(CLUSTER).fill(1));
  await amendQcow2(disk, { lazyRefcounts: false });
  await disk.write(CLUSTER, new Uint8Array(CLUSTER).fill(1));
  await disk.close();
  const { header } = await Qcow2Image.openFile(new LogImageFile(file.contents.slice()), { readOnly: true });
  t.deepEqual([header.incompatibleFeatures, header.compatibleFeatures], [0n, 0n]);
  await sound(t, file);
});

test('Q17 amend to version 2 refuses zstd, extended entries and snapshots of another size', async (t) => {
  for (const more of [{ compression: 'zstd' as const }, { extendedL2: true, clusterBytes: 16_384 }]) {
    const file = new LogImageFile(emptyImage({ sizeBytes: MIB, ...more }));
    const disk = await Qcow2Image.openFile(file, { readOnly: false });
    await t.throwsAsync(amendQcow2(disk, { version: 2 }), { message: /no incompatible features, and 0x/ });
  }
  const disk = await open(await image({ snapshots: true }), {});
  await disk.resize(2 * MIB);
  await t.throwsAsync(amendQcow2(disk, { version: 2 }), { message: /no snapshots of another size/ });
});

test('Q7 Q17 a power cut at any write of an amend leaves the image as it was or as it will be', async (t) => {
  const options = { backing: true, snapshots: true };
  const start = await image(options);
  const before = await contents(start, options);
  const file = new LogImageFile(start.contents.slice());
  const disk = await open(file, options);
  await amendQcow2(disk, { version: 2 });
  await amendQcow2(disk, { version: 3 });
  await amendQcow2(disk, { refcountBits: 64 });
  for (let steps = 0; steps <= file.log.length; steps++) {
    const cut = new LogImageFile(start.contents.slice());
    for (const step of file.log.slice(0, steps)) if (step !== 'sync') cut.writeNow(step.offset, step.data);
    cut.log.length = 0;
    const { corruptions, problems } = await checkFile(cut);
    // What a shared cluster lost and the disk has not yet taken for its own is told as a wrong flag, and costs nothing.
    const costly = problems.filter((text) => !text.includes('OFLAG_COPIED') && !text.startsWith('Leaked'));
    t.deepEqual(costly, [], `${corruptions} after ${steps} of ${file.log.length} steps`);
    t.is(await contents(cut, options), before, `after ${steps} steps`);
  }
});
