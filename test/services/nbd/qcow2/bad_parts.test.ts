import { spawnSync } from 'node:child_process';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { WireError } from '../../../../protocols/bytes/mod.ts';
import { DirtyBitmap, ImageError } from '../../../../services/nbd/images/mod.ts';
import { checkFile, createSnapshot, emptyImage, Qcow2Image } from '../../../../services/nbd/images/qcow2/mod.ts';
import { CLUSTER, COMPRESSED, COPIED, DATA, goodQcow2, L2 } from '../../../fixtures/good_qcow2.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';
import type { ZstdWindowResult } from '../../../fixtures/zstd_window.ts';

// Bad images, part two: extensions, snapshots, bitmaps, and parts that contradict each other.

const ZSTD_WINDOW = fileURLToPath(new URL('../../../fixtures/zstd_window.ts', import.meta.url));

function goodImage(options: { extendedL2?: boolean } = {}): { bytes: Uint8Array; view: DataView } {
  const { extendedL2 = false } = options;
  return goodQcow2({ sizeBytes: 16 << 20, clusters: 8, extendedL2 });
}

const open = (bytes: Uint8Array, readOnly = true): Promise<Qcow2Image> =>
  Qcow2Image.openFile(new LogImageFile(bytes), { readOnly });

async function refused(t: ExecutionContext, bytes: Uint8Array, expected: RegExp): Promise<void> {
  const error = await t.throwsAsync(open(bytes), { message: expected });
  t.true(error instanceof WireError || error instanceof ImageError, String(error));
}

async function refusedForWriting(t: ExecutionContext, bytes: Uint8Array, expected: RegExp): Promise<void> {
  const file = new LogImageFile(bytes);
  await t.throwsAsync(Qcow2Image.openFile(file, { readOnly: false }), { message: expected });
  t.is(file.log.length, 0, 'something was written');
}

test('Q3 extensions without an end marker end where the cluster does', async (t) => {
  const { bytes, view } = goodImage();
  for (let at = 112, type = 0x1000; at < CLUSTER; at += 256, type++) {
    view.setUint32(at, type);
    view.setUint32(at + 4, Math.min(248, CLUSTER - at - 8));
  }
  // 255 of them fill the cluster exactly, and none says that it is the last.
  const image = await open(bytes);
  t.is(image.header.otherExtensions.length, Math.ceil((CLUSTER - 112) / 256));
  for (let at = 112, type = 0x1000; at < CLUSTER; at += 16, type++) {
    view.setUint32(at, type);
    view.setUint32(at + 4, 8);
  }
  await refused(t, bytes, /more than 256 header extensions/);
});

test('Q3 a feature name that is not terminated is shown up to its end, and no further', async (t) => {
  const { bytes, view } = goodImage();
  view.setBigUint64(72, 1n << 40n);
  view.setUint32(112, 0x6803f857);
  view.setUint32(116, 48);
  bytes.fill(0x41, 120, 168);
  bytes.set([0, 40], 120);
  bytes.fill(0, 168, 176);
  bytes.fill(0x42, 176, 300);
  await refused(t, bytes, /features: A{46}$/);
});

test('Q3 a feature name that is cut off by the end of its table is shown as far as it goes', async (t) => {
  const { bytes, view } = goodImage();
  view.setBigUint64(72, 1n << 40n);
  view.setUint32(112, 0x6803f857);
  view.setUint32(116, 5);
  bytes.set([0, 40, 0x41, 0x42, 0x43, 0, 0, 0], 120);
  bytes.fill(0, 128, 136);
  await refused(t, bytes, /features: ABC$/);
});

test('Q1 version 2 does not look at the fields of version 3', async (t) => {
  const bytes = new Uint8Array(8 * CLUSTER);
  bytes.set(emptyImage({ sizeBytes: 1 << 20, version: 2 }));
  // In the place of version 3's fields stand extensions here: an unknown one.
  new DataView(bytes.buffer).setBigUint64(72, 0x1234_5678_0000_0008n);
  const image = await open(bytes, false);
  t.is(image.header.version, 2);
  await image.write(0, new Uint8Array(512).fill(1));
  await image.flush();
});

test('Q1 unknown compatible bits are ignored, unknown autoclear bits are cleared before the first write', async (t) => {
  const { bytes, view } = goodImage();
  view.setBigUint64(80, 1n << 50n);
  view.setBigUint64(88, (1n << 63n) | (1n << 40n));
  const reader = new LogImageFile(bytes);
  await (await Qcow2Image.openFile(reader, { readOnly: true })).close();
  t.is(reader.log.length, 0, 'whoever reads clears nothing');
  const file = new LogImageFile(bytes);
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await image.write(CLUSTER, new Uint8Array(CLUSTER).fill(1));
  await image.flush();
  const after = new DataView(file.contents.slice().buffer);
  t.is(after.getBigUint64(80), 1n << 50n, 'what is compatible stays');
  t.is(after.getBigUint64(88), 0n);
  // Cleared, and on stable storage, before anything else is written.
  const first = file.log[0];
  t.true(first !== 'sync' && first !== undefined && first.offset < 96 && first.offset + first.data.length > 88);
  t.is(file.log[1], 'sync');
});

test('Q3 extensions that nobody here knows are kept when the header is written anew', async (t) => {
  const { bytes, view } = goodImage();
  view.setUint32(112, 0x1234_5678);
  view.setUint32(116, 11);
  bytes.set(new TextEncoder().encode('hello there'), 120);
  const file = new LogImageFile(bytes);
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  image.bitmaps.add('b', new DirtyBitmap(image.sizeBytes, 65_536, { persistent: true }));
  await createSnapshot(image, 's');
  await image.close();
  const again = await open(file.contents.slice());
  t.is(again.snapshots.length, 1);
  t.truthy(again.bitmaps.get('b'));
  const kept = again.header.otherExtensions.find(({ type }) => type === 0x1234_5678);
  t.is(Buffer.from(kept!.data).toString(), 'hello there');
});

test('Q1 Q8 an image that is both dirty and corrupt is only read, and its refcounts are left alone', async (t) => {
  const { bytes, view } = goodImage();
  view.setBigUint64(72, 3n);
  view.setUint16(2 * CLUSTER + 5 * 2, 0);
  await refusedForWriting(t, bytes, /marked corrupt/);
  const file = new LogImageFile(bytes);
  const image = await Qcow2Image.openFile(file, { readOnly: true });
  const into = new Uint8Array(512);
  await image.read(0, into);
  t.is(into[0], 0x11);
  t.is(file.log.length, 0);
});

test('Q1 a disk whose size of 1000 bytes is no whole sectors has whole ones, as with QEMU, and nothing behind them', async (t) => {
  const { bytes, view } = goodImage();
  view.setBigUint64(24, 1000n);
  const image = await open(bytes);
  t.is(image.sizeBytes, 512);
  const into = new Uint8Array(512);
  await image.read(0, into);
  t.is(into[511], 0x11);
});

test('Q14 a pointer to a LUKS header past the end, unaligned or huge is refused', async (t) => {
  for (const [offset, length, expected] of [
    [100n * BigInt(CLUSTER), 4096n, /encryption header of/],
    [512n, 4096n, /encryption header at 512/],
    [0n, 4096n, /encryption header at 0/],
    [BigInt(DATA), 1n << 40n, /encryption header of 1099511627776 bytes, limit/],
    [BigInt(DATA), 0n, /encryption header of 0 bytes/],
  ] as const) {
    const { bytes, view } = goodImage();
    view.setUint32(32, 2);
    view.setUint32(112, 0x0537be77);
    view.setUint32(116, 16);
    view.setBigUint64(120, offset);
    view.setBigUint64(128, length);
    await refused(t, bytes, expected);
  }
});

/** With one persistent bitmap, closed in order */
async function withBitmap(): Promise<{ bytes: Uint8Array; view: DataView; directory: number }> {
  const file = new LogImageFile(emptyImage({ sizeBytes: 1 << 20 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  image.bitmaps.add('b', new DirtyBitmap(image.sizeBytes, 512, { persistent: true }));
  await image.write(0, new Uint8Array(512).fill(1));
  await image.close();
  const bytes = file.contents.slice();
  const view = new DataView(bytes.buffer);
  return { bytes, view, directory: Number(view.getBigUint64(112 + 8 + 16)) };
}

test('Q13 a bitmap directory past the end or too large is refused', async (t) => {
  for (const change of [
    (view: DataView) => view.setBigUint64(112 + 8 + 16, 1n << 40n),
    (view: DataView) => view.setBigUint64(112 + 8 + 8, 1n << 40n),
    (view: DataView) => view.setUint32(112 + 8, 65_536),
    (view: DataView) => view.setUint32(112 + 8, 0),
  ]) {
    const { bytes, view } = await withBitmap();
    change(view);
    await refused(t, bytes, /bitmap/);
  }
});

test('Q13 a bitmap table with reserved bits or bits past the end makes the bitmap inconsistent, not the image', async (t) => {
  for (const entry of [2n, 1n << 60n, 1n << 40n, 0x200n]) {
    const { bytes, view, directory } = await withBitmap();
    t.true((await open(bytes)).bitmaps.get('b').isDirty(0));
    view.setBigUint64(Number(view.getBigUint64(directory)), entry);
    const image = await open(bytes);
    t.true(image.bitmaps.get('b').inconsistent, entry.toString(16));
    t.deepEqual(image.dirtyBitmaps(), []);
  }
});

test('Q12 a snapshot table over the L1 table makes the image read-only', async (t) => {
  const file = new LogImageFile(goodImage().bytes);
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await createSnapshot(image, 's');
  await image.close();
  const bytes = file.contents.slice();
  const view = new DataView(bytes.buffer);
  const table = Number(view.getBigUint64(64));
  const l1 = Number(view.getBigUint64(40));
  bytes.copyWithin(l1, table, table + 80);
  view.setBigUint64(64, BigInt(l1));
  await refusedForWriting(t, bytes, /snapshot table overlaps the L1 table|L1 table overlaps|corrupt/);
  await (await open(bytes)).close();
});

test('Q4 Q16 two places of the disk in one cluster of the file: found by check, and apart after repair', async (t) => {
  const { bytes, view } = goodImage();
  view.setBigUint64(L2 + 8, BigInt(DATA) | COPIED);
  const file = new LogImageFile(bytes);
  t.like(await checkFile(file), { corruptions: 1, leaks: 0 });
  t.like(await checkFile(file, 'all'), { corruptions: 0, leaks: 0 });
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await image.write(0, new Uint8Array(CLUSTER).fill(0x22));
  const second = new Uint8Array(CLUSTER);
  await image.read(CLUSTER, second);
  t.true(
    second.every((byte) => byte === 0x11),
    'a write went to both',
  );
});

test('Q5 compressed data behind the end of a file below 2^32, at an address above it', async (t) => {
  const { bytes, view } = goodImage();
  view.setBigUint64(L2, COMPRESSED | (2n ** 32n + 100n));
  const image = await open(bytes);
  await t.throwsAsync(image.read(0, new Uint8Array(512)), { code: 'EIO' });
});

test('Q5 a zstd frame that asks for a huge window is refused, with little memory', (t) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [ZSTD_WINDOW], { encoding: 'utf8', timeout: 60_000 });
  t.is(status, 0, stderr);
  const { error, cause, grownBytes } = JSON.parse(stdout) as ZstdWindowResult;
  t.is(error, 'EIO');
  // For its window, and not for what the frame lacks behind it
  t.is(cause, 'ZSTD_error_frameParameter_windowTooLarge');
  if (grownBytes === undefined) t.log('the system does not tell the size of an address space');
  else t.true(grownBytes < 16 << 20, `${grownBytes} bytes`);
});

test('Q6 extended entries that contradict themselves give EIO for their subclusters, and no write goes there', async (t) => {
  for (const change of [
    (view: DataView) => view.setBigUint64(L2 + 8, 0x0000_0001_ffff_ffffn),
    (view: DataView) => view.setBigUint64(L2, 0n),
    (view: DataView) => view.setBigUint64(L2, BigInt(DATA) | COMPRESSED),
    (view: DataView) => view.setBigUint64(L2, BigInt(DATA) | COPIED | 1n),
  ]) {
    const { bytes, view } = goodImage({ extendedL2: true });
    const whole = await open(bytes.slice());
    await whole.read(0, new Uint8Array(CLUSTER));
    change(view);
    await t.throwsAsync((await open(bytes)).read(0, new Uint8Array(512)), { code: 'EIO' });
    const image = await open(bytes, false);
    await t.throwsAsync(image.write(0, new Uint8Array(512)), { code: 'EIO' });
  }
});

test('Q7 a refcount that would overflow its one bit stops the snapshot, not the image', async (t) => {
  const file = new LogImageFile(emptyImage({ sizeBytes: 1 << 20, refcountBits: 1 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await image.writeCompressed(0, new Uint8Array(4 * CLUSTER).fill(3));
  await t.throwsAsync(createSnapshot(image, 's'), { code: 'ENOTSUP' });
  const got = new Uint8Array(4 * CLUSTER);
  await image.read(0, got);
  t.true(got.every((byte) => byte === 3));
});

test('a file of one byte and one of nothing are no images', async (t) => {
  for (const length of [0, 1]) await refused(t, new Uint8Array(length).fill(0x51), /qcow2/);
});
