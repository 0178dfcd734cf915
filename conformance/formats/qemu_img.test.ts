// VHD, VHDX and VMDK in both directions: what qemu-img made reads the same here, what we wrote reads the same there.

import { createHash, randomBytes } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { createVhd, createVmdk, type DiskImage, type ImageFormat, openImage } from '../../services/nbd/images/mod.ts';
import { randomNumbers } from '../../test/fixtures/log_image_file.ts';
import { VHDX_AT, vhdxImage, vhdxLogEntry } from '../../test/fixtures/vhdx_image.ts';
import { hasPrograms, mustRun, run, scratch } from '../nbd/peers.ts';

const { path, remove } = scratch();
test.after.always(remove);
const MIB = 1 << 20;
const DISK_BYTES = 40 * MIB;

/** Random bytes, text that compresses, and holes; ends in the middle of a block of any format */
const source = path('source.raw');
const fd = openSync(source, 'w');
writeSync(fd, randomBytes(3 * MIB + 512), 0, 3 * MIB + 512, 0);
writeSync(fd, Buffer.from('caisson '.repeat(MIB / 8)), 0, MIB, 9 * MIB);
writeSync(fd, randomBytes(MIB), 0, MIB, 31 * MIB - 1024);
ftruncateSync(fd, DISK_BYTES);
closeSync(fd);

async function digest(image: DiskImage, lengthBytes: number): Promise<string> {
  const hash = createHash('sha256');
  const piece = Buffer.alloc(MIB + 4096);
  for (let at = 0; at < lengthBytes; at += piece.length) {
    const part = piece.subarray(0, Math.min(piece.length, lengthBytes - at));
    part.fill(0x55);
    await image.read(at, part);
    hash.update(part);
  }
  return hash.digest('hex');
}

async function sourceDigest(): Promise<string> {
  const image = await openImage({ path: source, format: 'raw' }, { readOnly: true });
  try {
    return await digest(image, DISK_BYTES);
  } finally {
    await image.close();
  }
}

const made: readonly [format: ImageFormat, options: string][] = [
  ['vpc', 'subformat=dynamic'],
  ['vpc', 'subformat=fixed'],
  ['vpc', 'subformat=dynamic,force_size=on'],
  ['vpc', 'subformat=fixed,force_size=on'],
  ['vhdx', 'subformat=dynamic'],
  ['vhdx', 'subformat=fixed'],
  ['vhdx', 'subformat=dynamic,block_size=1M'],
  ['vhdx', 'subformat=dynamic,block_size=256M,log_size=2M'],
  ['vmdk', 'subformat=monolithicSparse'],
  ['vmdk', 'subformat=monolithicSparse,zeroed_grain=on'],
  ['vmdk', 'subformat=streamOptimized'],
  ['vmdk', 'subformat=monolithicFlat'],
  ['vmdk', 'subformat=twoGbMaxExtentSparse'],
  ['vmdk', 'subformat=twoGbMaxExtentFlat'],
  ['vmdk', 'subformat=monolithicSparse,compat6=on'],
];

for (const [index, [format, options]] of made.entries()) {
  test(`qemu-img's ${format} with ${options} reads as it was`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const file = path(`made${index}.img`);
    await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', format, '-o', options, source, file]);
    const image = await openImage({ path: file, format, allowExtents: true }, { readOnly: true });
    t.teardown(() => image.close());
    // Virtual PC's disks are whole cylinders: the rest is zeroes.
    t.true(image.sizeBytes >= DISK_BYTES && image.sizeBytes < DISK_BYTES + 2 * MIB, String(image.sizeBytes));
    t.is(await digest(image, DISK_BYTES), await sourceDigest());
    const info = JSON.parse(await mustRun(t, 'qemu-img', ['info', '--output=json', '-f', format, file]));
    t.is(image.sizeBytes, info['virtual-size']);
    // QEMU calls all of a VHDX image data.
    if (format !== 'vhdx') await sameMap(t, image, format, file);
  });
}

/** Holes as QEMU sees them: what it calls data, we do not call zero; what it calls zero we may know to be data of zeroes */
async function sameMap(t: ExecutionContext, image: DiskImage, format: string, file: string): Promise<void> {
  const map = JSON.parse(await mustRun(t, 'qemu-img', ['map', '--output=json', '-f', format, file])) as {
    start: number;
    length: number;
    zero: boolean;
    data: boolean;
  }[];
  for (const { start, length, zero, data } of map) {
    if (length === 0) continue;
    for (let at = start; at < start + length; ) {
      const [extent] = await image.blockStatus(at, start + length - at, 1);
      if (data && !zero) t.is(extent!.flags & 2, 0, `${start}`);
      at += extent!.lengthBytes;
    }
  }
}

const writers: readonly [
  name: string,
  format: ImageFormat,
  create: (file: string, sizeBytes: number) => Promise<void>,
][] = [
  ['dynamic VHD', 'vpc', (file, sizeBytes) => createVhd(file, { sizeBytes, forceSize: true })],
  ['dynamic VHD of a geometry', 'vpc', (file, sizeBytes) => createVhd(file, { sizeBytes })],
  ['fixed VHD', 'vpc', (file, sizeBytes) => createVhd(file, { sizeBytes, type: 'fixed', forceSize: true })],
  ['monolithicSparse VMDK', 'vmdk', (file, sizeBytes) => createVmdk(file, { sizeBytes })],
];

for (const [index, [name, format, create]] of writers.entries()) {
  test(`random writes to our ${name} read the same for qemu-img, and after reopening here`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const file = path(`ours${index}.img`);
    await create(file, 12 * MIB + 512);
    const random = randomNumbers(index + 1);
    let image = await openImage({ path: file, format }, { readOnly: false });
    const expected = Buffer.alloc(image.sizeBytes);
    for (let step = 0; step < 60; step++) {
      const offset = random(expected.length - 1);
      const length = 1 + random(Math.min(expected.length - offset, step % 10 === 0 ? 2 * MIB : 20_000));
      if (step % 5 === 4) {
        await image.writeZeroes(offset, length, { mayUnmap: true, fast: false });
        expected.fill(0, offset, offset + length);
      } else {
        const data = randomBytes(length);
        if (!image.writeNow(offset, data)) await image.write(offset, data);
        data.copy(expected, offset);
      }
      if (step % 20 === 19) {
        await image.flush();
        await image.close();
        image = await openImage({ path: file, format }, { readOnly: false });
      }
    }
    await image.flush();
    const mine = Buffer.alloc(expected.length);
    await image.read(0, mine);
    await image.close();
    t.true(mine.equals(expected));
    const back = path(`back${index}.raw`);
    rmSync(back, { force: true });
    await mustRun(t, 'qemu-img', ['convert', '-f', format, '-O', 'raw', file, back]);
    const theirs = await openImage({ path: back, format: 'raw' }, { readOnly: true });
    t.teardown(() => theirs.close());
    t.is(theirs.sizeBytes, expected.length);
    const seen = Buffer.alloc(expected.length);
    await theirs.read(0, seen);
    t.true(seen.equals(expected));
    const { status, stderr } = await run('qemu-img', ['check', '-f', format, file]);
    t.true(status === 0 || stderr.includes('does not support checks'), stderr);
  });
}

test("a VHDX image whose log waits reads here as after QEMU's replay", async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const table = new Uint8Array(4096);
  for (let at = 0; at < 16; at += 8) new DataView(table.buffer).setBigUint64(at, BigInt(VHDX_AT.data) | 6n, true);
  const filled = new Uint8Array(4096).map((_, index) => index * 13);
  const first = vhdxLogEntry(1, 0, [
    { offset: VHDX_AT.bat, data: table },
    { offset: VHDX_AT.data + 8192, zeroBytes: 16_384 },
  ]);
  const second = vhdxLogEntry(2, 0, [{ offset: VHDX_AT.data + 12_288, data: filled }]);
  const file = path('dirty.vhdx');
  writeFileSync(file, vhdxImage(new Uint8Array(Buffer.concat([first, second]))));
  const read = async (): Promise<string> => {
    const image = await openImage({ path: file, format: 'vhdx' }, { readOnly: true });
    try {
      return await digest(image, image.sizeBytes);
    } finally {
      await image.close();
    }
  };
  const before = await read();
  // QEMU replays only where it may write.
  const refused = await run('qemu-img', ['convert', '-f', 'vhdx', '-O', 'raw', file, path('refused.raw')]);
  t.not(refused.status, 0);
  t.regex(refused.stderr, /log that needs to be replayed/);
  await mustRun(t, 'qemu-img', ['check', '-r', 'all', '-f', 'vhdx', file]);
  t.is(await read(), before);
  const raw = path('replayed.raw');
  await mustRun(t, 'qemu-img', ['convert', '-f', 'vhdx', '-O', 'raw', file, raw]);
  const theirs = await openImage({ path: raw, format: 'raw' }, { readOnly: true });
  t.teardown(() => theirs.close());
  t.is(await digest(theirs, theirs.sizeBytes), before);
});
