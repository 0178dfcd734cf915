import test from 'ava';
import { encodeSnapshotTable, type Qcow2Snapshot } from '../../../../protocols/qcow2/mod.ts';
import { MemoryImage } from '../../../../services/nbd/images/mod.ts';
import { checkFile, createSnapshot, emptyImage, Qcow2Image } from '../../../../services/nbd/images/qcow2/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';

// What a check costs, and what a repair may touch.

const CLUSTER = 4096;
const COPIED = 1n << 63n;
const [REFCOUNT_TABLE, REFCOUNTS, L1, L2, DATA, SNAPSHOTS] = [1, 2, 3, 4, 5, 6].map((it) => it * CLUSTER) as [
  number,
  number,
  number,
  number,
  number,
  number,
];

/** A file that tells how much of it was read. */
class CountingFile extends LogImageFile {
  readBytes = 0;
  override readNow(offset: number, into: Uint8Array): void {
    this.readBytes += into.length;
    super.readNow(offset, into);
  }
}

/** A disk of 512 MiB whose first cluster is there, and as many snapshots as asked for, all with the disk's L1 table. */
function imageWithSnapshots(count: number, change: (view: DataView) => void = () => {}): CountingFile {
  const sizeBytes = 512 << 20;
  const bytes = new Uint8Array(64 * CLUSTER + count * 80);
  bytes.set(emptyImage({ sizeBytes, clusterBytes: CLUSTER }));
  const view = new DataView(bytes.buffer);
  view.setBigUint64(L1, BigInt(L2));
  view.setBigUint64(L2, BigInt(DATA));
  const raw = {
    id: new Uint8Array([49]),
    name: new Uint8Array([97]),
    furtherExtra: new Uint8Array(0),
    incomplete: false,
  };
  const snapshot: Qcow2Snapshot = {
    id: '1',
    name: 'a',
    l1Offset: L1,
    l1Entries: sizeBytes / (CLUSTER / 8) / CLUSTER,
    dateSeconds: 0,
    dateNanoseconds: 0,
    vmClock: 0n,
    vmStateBytes: 0n,
    diskBytes: BigInt(sizeBytes),
    raw,
  };
  if (count > 0) {
    view.setUint32(60, count);
    view.setBigUint64(64, BigInt(SNAPSHOTS));
    const table = encodeSnapshotTable(Array.from({ length: count }, () => snapshot));
    bytes.set(table, SNAPSHOTS);
    const first = SNAPSHOTS / CLUSTER;
    for (let at = 0; at < table.length; at += CLUSTER) view.setUint16(REFCOUNTS + (first + at / CLUSTER) * 2, 1);
  }
  for (const [host, refs] of [
    [L2, count + 1],
    [DATA, count + 1],
    [L1, count + 1],
  ] as const) {
    view.setUint16(REFCOUNTS + (host / CLUSTER) * 2, refs);
  }
  if (count === 0) {
    view.setBigUint64(L1, BigInt(L2) | COPIED);
    view.setBigUint64(L2, BigInt(DATA) | COPIED);
  }
  change(view);
  return new CountingFile(bytes);
}

test('Q16 many snapshots that share an L1 table cost no more reading than one, and count as often', async (t) => {
  const one = imageWithSnapshots(1);
  await checkFile(one);
  const many = imageWithSnapshots(3000);
  const result = await checkFile(many);
  t.is(result.corruptions, 0, result.problems.join('\n'));
  t.is(result.checkErrors, 0);
  t.true(many.readBytes < one.readBytes + 3000 * 200, `${many.readBytes} bytes for 3000, ${one.readBytes} for one`);
  // An entry that leads nowhere is wrong once for each of them, and looked at once.
  const bad = await checkFile(imageWithSnapshots(3000, (view) => view.setBigUint64(L2 + 8, 0x100n)));
  t.is(bad.corruptions, 3001);
  t.is(bad.problems.filter((text) => text.includes('reserved bits of an L2 entry')).length, 1);
});

test('Q16 an L1 table that names one L2 table many times costs one reading of it', async (t) => {
  const file = imageWithSnapshots(0, (view) => {
    for (let index = 0; index < 256; index++) view.setBigUint64(L1 + index * 8, BigInt(L2));
    view.setBigUint64(L2, BigInt(DATA));
    for (const host of [L2, DATA]) view.setUint16(REFCOUNTS + (host / CLUSTER) * 2, 256);
  });
  const result = await checkFile(file);
  t.is(result.corruptions, 0, result.problems.join('\n'));
  t.is(result.allocatedClusters, 256);
  t.true(file.readBytes < 40 * CLUSTER, `${file.readBytes} bytes`);
});

for (const [what, place] of [
  ['the header', 0],
  ['the refcount table', REFCOUNT_TABLE],
  ['a refcount block', REFCOUNTS],
  ['the L1 table', L1],
] as const) {
  test(`Q9 repair does not write into ${what} that an L1 entry calls an L2 table`, async (t) => {
    // The second L1 entry; what it leads to is full of entries that are wrong ones.
    const file = imageWithSnapshots(0, (view) => view.setBigUint64(L1 + 8, BigInt(place) | COPIED));
    const before = file.contents.slice();
    if (place > 0) {
      const found = await checkFile(file);
      t.true(found.problems.some((text) => /an L2 table at \d+, in the .*, L1 entry 1 of the disk/.test(text)));
    }
    const result = await checkFile(file, 'all');
    t.is(result.corruptions, 0, result.problems.join('\n'));
    const header = file.contents.subarray(0, 24);
    t.deepEqual(header, before.subarray(0, 24));
    t.is(new DataView(file.contents.slice().buffer).getBigUint64(L1 + 8), place === 0 ? COPIED : 0n);
    const image = await Qcow2Image.openFile(file, { readOnly: false });
    await image.write(0, new Uint8Array(512).fill(1));
    await image.flush();
    t.is((await checkFile(file)).corruptions, 0);
  });
}

test('Q9 repair refuses an image whose snapshot has its L1 table in the refcount table, and writes nothing', async (t) => {
  const file = imageWithSnapshots(1, (view) => {
    view.setBigUint64(SNAPSHOTS, BigInt(REFCOUNT_TABLE));
    view.setBigUint64(REFCOUNT_TABLE + 8, 0x100n);
  });
  await t.throwsAsync(checkFile(file, 'all'), { message: /L1 table of snapshot 1 overlaps the refcount table/ });
  t.is(file.log.length, 0);
});

test('Q16 what could not be looked at is not given free by a repair', async (t) => {
  const good = imageWithSnapshots(0);
  const image = await Qcow2Image.openFile(good, { readOnly: false });
  await image.write(1 << 20, new Uint8Array(CLUSTER).fill(7));
  await createSnapshot(image, 's');
  await image.close();
  const file = new CountingFile(good.contents.slice());
  const read = file.readNow.bind(file);
  file.readNow = (offset, into) => {
    if (offset === L2) throw Object.assign(new Error('EIO'), { code: 'EIO' });
    read(offset, into);
  };
  const result = await checkFile(file, 'all');
  t.is(result.checkErrors, 1);
  t.is(file.log.length, 0);
});

test('Q6 Q16 repair of an extended entry that leads nowhere loses the subclusters it had, and no others', async (t) => {
  const cluster = 16_384;
  const options = { sizeBytes: 4 * cluster, clusterBytes: cluster, extendedL2: true };
  const file = new CountingFile(emptyImage({ ...options, backing: { file: 'b', format: 'raw' } }));
  const below = () => {
    const image = new MemoryImage(4 * cluster);
    image.writeNow(0, new Uint8Array(4 * cluster).fill(9));
    return image;
  };
  const disk = await Qcow2Image.openFile(file, { readOnly: false, backing: below() });
  // Subclusters 0 and 1 of the first cluster have data, 4 is zeroes, of the second cluster none has anything.
  await disk.write(0, new Uint8Array(1024).fill(5));
  await disk.writeZeroes(4 * 512, 512, { mayUnmap: true, fast: false });
  await disk.write(cluster, new Uint8Array(512).fill(5));
  await disk.close();
  const view = new DataView(new ArrayBuffer(16));
  const l1 = new DataView(file.contents.slice().buffer).getBigUint64(40);
  const l2 = new DataView(file.contents.slice().buffer).getBigUint64(Number(l1)) & 0x00ff_ffff_ffff_fe00n;
  file.readNow(Number(l2), new Uint8Array(view.buffer));
  view.setBigUint64(0, view.getBigUint64(0) + 0x200n);
  file.writeNow(Number(l2), new Uint8Array(view.buffer.slice(0, 8)));
  view.setBigUint64(0, 0x8000_0000_0000_0200n);
  view.setBigUint64(8, 0n);
  file.writeNow(Number(l2) + 16, new Uint8Array(view.buffer));
  t.is((await checkFile(file, 'all')).corruptions, 0);
  const again = await Qcow2Image.openFile(file, { readOnly: true, backing: below() });
  const bytes = new Uint8Array(2 * cluster);
  await again.read(0, bytes);
  t.deepEqual(
    [0, 512, 1024, 4 * 512, 5 * 512, cluster, cluster + 512].map((at) => bytes[at]),
    [0, 0, 9, 0, 9, 9, 9],
  );
});
