import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import { FileHoles } from '../../../services/nbd/images/file_holes.ts';
import { DirtyBitmap, ImageError, RawImage } from '../../../services/nbd/images/mod.ts';

const MIB = 1 << 20;
const directory = mkdtempSync(join(tmpdir(), 'caisson-holes-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));

/** 1 MiB of data, 2 of hole, 1 of data */
function sparse(name: string): string {
  const path = join(directory, name);
  const fd = openSync(path, 'w');
  writeSync(fd, Buffer.alloc(MIB, 1), 0, MIB, 0);
  writeSync(fd, Buffer.alloc(MIB, 2), 0, MIB, 3 * MIB);
  ftruncateSync(fd, 4 * MIB);
  closeSync(fd);
  return path;
}

/** False, with a reason, where this Node or this file system has no such calls. */
function hasHoles(t: ExecutionContext, path: string): boolean {
  const fd = openSync(path, 'r+');
  try {
    const holes = FileHoles.load();
    if (holes?.runAt(fd, MIB, 4 * MIB)?.hole === true && holes.punch(fd, MIB, 4096)) return true;
  } finally {
    closeSync(fd);
  }
  t.log('SKIPPED: no node:ffi here, or a file system without holes');
  t.pass();
  return false;
}

test('with unmap, the map of a raw image is the file system’s', async (t) => {
  const path = sparse('map.raw');
  if (!hasHoles(t, path)) return;
  const image = await RawImage.open(path, { readOnly: true, unmap: true });
  t.teardown(() => image.close());
  t.deepEqual(await image.blockStatus(0, 4 * MIB, 10), [
    { lengthBytes: MIB, flags: 0 },
    { lengthBytes: 2 * MIB, flags: 3 },
    { lengthBytes: MIB, flags: 0 },
  ]);
  t.deepEqual(await image.blockStatus(MIB + 5, 100, 10), [{ lengthBytes: 100, flags: 3 }]);
  t.is((await image.blockStatus(0, 4 * MIB, 2)).length, 2);
  t.false(image.canFastZero);
});

test('a hole at the end of the file goes to its end', async (t) => {
  const path = sparse('end.raw');
  if (!hasHoles(t, path)) return;
  const fd = openSync(path, 'r+');
  ftruncateSync(fd, 6 * MIB);
  closeSync(fd);
  const image = await RawImage.open(path, { readOnly: true, unmap: true });
  t.teardown(() => image.close());
  t.deepEqual(await image.blockStatus(4 * MIB, 2 * MIB, 10), [{ lengthBytes: 2 * MIB, flags: 3 }]);
});

test('with unmap, TRIM and zeroes give space back, and touch nothing beside the range', async (t) => {
  const path = sparse('punch.raw');
  if (!hasHoles(t, path)) return;
  const image = await RawImage.open(path, { readOnly: false, unmap: true });
  t.teardown(() => image.close());
  t.true(image.canFastZero);
  const before = statSync(path).blocks;
  await image.discard(100, MIB - 200);
  await image.flush();
  t.true(statSync(path).blocks < before - 1000, `${before} ${statSync(path).blocks}`);
  const into = new Uint8Array(MIB);
  await image.read(0, into);
  t.true(into.subarray(0, 100).every((byte) => byte === 1) && into.subarray(-100).every((byte) => byte === 1));
  t.true(into.subarray(100, -100).every((byte) => byte === 0));
  await image.writeZeroes(3 * MIB + 1, 1000, { mayUnmap: true, fast: true });
  await image.read(3 * MIB, into);
  t.deepEqual([into[0], into[1], into[1000], into[1001]], [2, 0, 0, 2]);
  t.is(image.sizeBytes, 4 * MIB);
  t.is(statSync(path).size, 4 * MIB);
});

test('zeroes that must keep their space keep it', async (t) => {
  const path = sparse('keep.raw');
  if (!hasHoles(t, path)) return;
  const image = await RawImage.open(path, { readOnly: false, unmap: true });
  t.teardown(() => image.close());
  const before = statSync(path).blocks;
  await image.writeZeroes(3 * MIB, MIB, { mayUnmap: false, fast: false });
  const into = new Uint8Array(MIB);
  await image.read(3 * MIB, into);
  t.true(into.every((byte) => byte === 0));
  t.is(statSync(path).blocks, before);
});

test.serial(
  'with holes alone, the map is the file system’s, nothing is given back, and Node does not warn',
  async (t) => {
    const path = sparse('holes.raw');
    const warned: unknown[] = [];
    const note = (warning: Error) => warned.push(warning.message);
    process.on('warning', note);
    t.teardown(() => process.off('warning', note));
    const image = await RawImage.open(path, { readOnly: false, holes: true });
    t.teardown(() => image.close());
    if (!hasHoles(t, path)) return;
    t.deepEqual(
      (await image.blockStatus(0, 4 * MIB, 10)).map(({ flags }) => flags),
      [0, 3, 0],
    );
    t.false(image.canFastZero);
    const before = statSync(path).blocks;
    await image.discard(0, MIB);
    t.is(statSync(path).blocks, before);
    await new Promise((resolve) => setImmediate(resolve));
    t.deepEqual(
      warned.filter((text) => /FFI/.test(String(text))),
      [],
    );
  },
);

test('without unmap nothing of it is used', async (t) => {
  const path = sparse('off.raw');
  const image = await RawImage.open(path, { readOnly: false });
  t.teardown(() => image.close());
  t.false(image.canFastZero);
  const before = statSync(path).blocks;
  await image.discard(0, MIB);
  t.is(statSync(path).blocks, before);
  await t.throwsAsync(image.writeZeroes(0, 512, { mayUnmap: true, fast: true }), {
    instanceOf: ImageError,
    code: 'ENOTSUP',
  });
  const full = join(directory, 'full.raw');
  writeFileSync(full, new Uint8Array(4096).fill(1));
  const other = await RawImage.open(full, { readOnly: true });
  t.deepEqual(await other.blockStatus(0, 4096, 1), [{ lengthBytes: 4096, flags: 0 }]);
  await other.close();
});

test.serial('T12 Q13 a trim that the file system stops half way is in the bitmaps as far as it went', async (t) => {
  const path = sparse('half.raw');
  const load = FileHoles.load;
  t.teardown(() => {
    FileHoles.load = load;
  });
  // Large ranges are several calls, of which a later one may fail: here all but the first MiB of a range.
  const half = { punch: () => MIB, zero: () => MIB, runAt: () => undefined } as unknown as FileHoles;
  FileHoles.load = () => half;
  const image = await RawImage.open(path, { readOnly: false, unmap: true });
  t.teardown(() => image.close());
  const bitmap = new DirtyBitmap(image.sizeBytes);
  image.bitmaps.add('b', bitmap);
  await image.discard(0, 3 * MIB);
  t.deepEqual(bitmap.extents(0, 4 * MIB, 10), [
    { lengthBytes: MIB, flags: 1 },
    { lengthBytes: 3 * MIB, flags: 0 },
  ]);
  bitmap.clear();
  // What the file system does not do is written.
  await image.writeZeroes(2 * MIB, 2 * MIB, { mayUnmap: true, fast: false });
  t.deepEqual(bitmap.extents(0, 4 * MIB, 10), [
    { lengthBytes: 2 * MIB, flags: 0 },
    { lengthBytes: 2 * MIB, flags: 1 },
  ]);
  const into = new Uint8Array(MIB);
  await image.read(3 * MIB, into);
  t.true(into.every((byte) => byte === 0));
});
