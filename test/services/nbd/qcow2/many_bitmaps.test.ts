import test from 'ava';
import { AUTOCLEAR, decodeBitmapDirectory, encodeBitmapDirectory } from '../../../../protocols/qcow2/mod.ts';
import { DirtyBitmap } from '../../../../services/nbd/images/mod.ts';
import { emptyImage, Qcow2Image } from '../../../../services/nbd/images/qcow2/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';

// Images with as many bitmaps as the format knows: small files that must not cost time and memory.

const CLUSTER = 65_536;
const DISK_BYTES = 2 ** 40;

function directoryOf(count: number, table: { offset: number; entries: number }, granularityBits = 16): Uint8Array {
  const bitmaps = Array.from({ length: count }, (_, index) => ({
    name: index.toString(36).padStart(8, '0'),
    tableOffset: table.offset,
    tableEntries: table.entries,
    inUse: false,
    auto: true,
    granularityBits,
  }));
  return encodeBitmapDirectory(bitmaps).bytes;
}

test('Q13 decodeBitmapDirectory() takes as many names as there may be in less than two seconds', (t) => {
  const count = 65_535;
  const bytes = directoryOf(count, { offset: 0, entries: 0 });
  const startedMs = performance.now();
  const extension = { count, directoryBytes: bytes.length, directoryOffset: CLUSTER };
  t.is(decodeBitmapDirectory(bytes, extension, CLUSTER, 1 << 30).length, count);
  t.true(performance.now() - startedMs < 2000, `${performance.now() - startedMs} ms`);
});

/** A disk of 1 TiB with bitmaps of 2 MiB, which share one table: all dirty, in one cluster of entries. */
function manyBitmaps(count: number): { bytes: Uint8Array; bitmapBytes: number } {
  const empty = emptyImage({ sizeBytes: DISK_BYTES });
  const tableAt = Math.ceil(empty.length / CLUSTER) * CLUSTER;
  const bitmapBytes = DISK_BYTES / CLUSTER / 8;
  const entries = bitmapBytes / CLUSTER;
  const directory = directoryOf(count, { offset: tableAt, entries });
  const bytes = new Uint8Array(tableAt + CLUSTER + directory.length);
  bytes.set(empty);
  const view = new DataView(bytes.buffer);
  for (let index = 0; index < entries; index++) view.setBigUint64(tableAt + index * 8, 1n);
  bytes.set(directory, tableAt + CLUSTER);
  view.setBigUint64(88, 1n << BigInt(AUTOCLEAR.bitmaps));
  // The bitmaps extension, in the place of all others
  bytes.fill(0, 112, 152);
  view.setUint32(112, 0x23852875);
  view.setUint32(116, 24);
  view.setUint32(120, count);
  view.setBigUint64(128, BigInt(directory.length));
  view.setBigUint64(136, BigInt(tableAt + CLUSTER));
  return { bytes, bitmapBytes };
}

test('Q13 bitmaps of an image take no more memory than all of them may; what is beyond counts as not usable', async (t) => {
  const few = await Qcow2Image.openFile(new LogImageFile(manyBitmaps(8).bytes), { readOnly: true });
  t.is(few.dirtyBitmaps().length, 8);
  t.is(few.bitmaps.get('00000000').dirtyBytes, DISK_BYTES);
  await few.close();

  const count = 1000;
  const { bytes, bitmapBytes } = manyBitmaps(count);
  const image = await Qcow2Image.openFile(new LogImageFile(bytes), { readOnly: true });
  const usable = image.dirtyBitmaps().length;
  t.is(image.bitmaps.size, count, 'all are known');
  t.true(usable > 0 && usable * bitmapBytes <= 256 << 20, `${usable} of ${bitmapBytes} bytes`);
  await image.close();
});

test('Q13 a bitmap of as many bits as QEMU lets one have is kept in the image, and takes little there', async (t) => {
  const sizeBytes = 2 ** 41;
  const file = new LogImageFile(emptyImage({ sizeBytes, clusterBytes: 2 << 20 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  t.throws(() => new DirtyBitmap(2 * sizeBytes, 512), { message: /limit is 536870912/ });
  const bitmap = new DirtyBitmap(sizeBytes, 512, { persistent: true });
  bitmap.mark(12_345 * 512, 512);
  bitmap.mark(sizeBytes / 2, 2 ** 33);
  image.bitmaps.add('large', bitmap);
  await image.touchBitmaps();
  await image.close();
  t.true(file.contents.length < 64 << 20, `${file.contents.length} bytes`);
  const again = await Qcow2Image.openFile(file, { readOnly: true });
  const kept = again.bitmaps.get('large');
  t.is(kept.dirtyBytes, 512 + 2 ** 33);
  t.deepEqual(kept.next(0), { offset: 12_345 * 512, lengthBytes: 512 });
  t.deepEqual(kept.next(12_346 * 512), { offset: sizeBytes / 2, lengthBytes: 2 ** 33 });
  await again.close();
});
