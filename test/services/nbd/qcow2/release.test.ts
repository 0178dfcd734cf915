import { closeSync, mkdtempSync, openSync, rmSync, statSync, truncateSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { FileHoles } from '../../../../services/nbd/images/file_holes.ts';
import {
  checkQcow2,
  createQcow2,
  createSnapshot,
  deleteSnapshot,
  openImage,
  type Qcow2Image,
  resizeQcow2,
} from '../../../../services/nbd/images/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-release-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const MIB = 1 << 20;
const path = (name: string): string => join(directory, name);
const used = (name: string): number => statSync(path(name)).blocks * 512;
const open = async (name: string): Promise<Qcow2Image> =>
  (await openImage({ path: path(name), format: 'qcow2' }, { readOnly: false })) as Qcow2Image;

/** A disk of 16 MiB with 4 MiB of data at its end, first in the file, and 1 MiB at its start. */
async function disk(name: string): Promise<void> {
  await createQcow2(path(name), { sizeBytes: 16 * MIB });
  const image = await open(name);
  await image.write(12 * MIB, new Uint8Array(4 * MIB).fill(7));
  await image.write(0, new Uint8Array(MIB).fill(8));
  await image.close();
}

async function start(name: string): Promise<Uint8Array> {
  const image = await open(name);
  const into = new Uint8Array(MIB);
  await image.read(0, into);
  await image.close();
  return into;
}

test('Q17 clusters of a disk that shrank are given back, also those amid the file', async (t) => {
  await disk('middle.qcow2');
  const before = used('middle.qcow2');
  const image = await open('middle.qcow2');
  await resizeQcow2(image, MIB, { shrink: true });
  await image.releaseSpace();
  // It goes on to be written to.
  await image.write(0, new Uint8Array(4096).fill(8));
  await image.close();
  if (FileHoles.load({ quiet: true }) === undefined) t.log('no holes can be made here');
  else t.true(before - used('middle.qcow2') >= 4 * MIB - 65_536, `${before} before, ${used('middle.qcow2')} after`);
  t.true((await start('middle.qcow2')).every((byte) => byte === 8));
  const { corruptions, leaks } = await checkQcow2(path('middle.qcow2'));
  t.deepEqual({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
});

test('Q12 Q17 the file ends where the last cluster in use does, once a snapshot is gone', async (t) => {
  await disk('tail.qcow2');
  const image = await open('tail.qcow2');
  const { id } = await createSnapshot(image, 'before');
  await image.write(0, new Uint8Array(MIB).fill(9));
  await image.writeZeroes(0, MIB, { mayUnmap: true, fast: false });
  await image.flush();
  const long = statSync(path('tail.qcow2')).size;
  await deleteSnapshot(image, id);
  await image.releaseSpace();
  await image.close();
  t.true(statSync(path('tail.qcow2')).size < long);
  t.true((await start('tail.qcow2')).every((byte) => byte === 0));
  const { corruptions, leaks } = await checkQcow2(path('tail.qcow2'));
  t.deepEqual({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
});

test('Q17 nothing is given back where refcounts and tables disagree', async (t) => {
  await disk('wrong.qcow2');
  const { header } = await open('wrong.qcow2').then(async (image) => {
    await image.close();
    return image;
  });
  // The refcount of what the disk has at its end is 0 in the file: a repair finds it in the tables.
  const image = await open('wrong.qcow2');
  const host = (await image.places(12 * MIB, 65_536))[0]!.host;
  await image.close();
  const fd = openSync(path('wrong.qcow2'), 'r+');
  writeSync(fd, new Uint8Array(2), 0, 2, 2 * header.clusterBytes + (host / header.clusterBytes) * 2);
  closeSync(fd);
  t.is((await checkQcow2(path('wrong.qcow2'))).corruptions > 0, true);
  const before = [statSync(path('wrong.qcow2')).size, used('wrong.qcow2')];
  const again = await open('wrong.qcow2');
  await again.releaseSpace();
  await again.close();
  t.deepEqual([statSync(path('wrong.qcow2')).size, used('wrong.qcow2')], before);
});

test('A file of holes with more clusters than are counted is refused by check, and nothing of it is given back', async (t) => {
  await createQcow2(path('holes.qcow2'), { sizeBytes: MIB, clusterBytes: 512 });
  const sizeBytes = 2 ** 42;
  truncateSync(path('holes.qcow2'), sizeBytes);
  await t.throwsAsync(checkQcow2(path('holes.qcow2')), {
    code: 'ENOTSUP',
    message: /has 8589934592 clusters, limit is/,
  });
  const image = await open('holes.qcow2');
  await image.releaseSpace();
  await image.close();
  t.is(statSync(path('holes.qcow2')).size, sizeBytes);
});
