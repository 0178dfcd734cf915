import test from 'ava';
import { WireError } from '../../../../protocols/bytes/mod.ts';
import { ImageError, MemoryImage } from '../../../../services/nbd/images/mod.ts';
import { emptyVhd, openVhdFile } from '../../../../services/nbd/images/vhd/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';

const MIB = 1 << 20;
const BLOCK = 2 * MIB;
const DISK = 8 * MIB;
const HEADER = 512;
const TABLE = 1536;
/** Where the first block is: bitmap and data */
const BLOCK_AT = 2048;

function checksummed(bytes: Uint8Array, from: number, length: number, at: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset + from, length);
  view.setUint32(at, 0);
  let sum = 0;
  for (let index = 0; index < length; index++) sum += view.getUint8(index);
  view.setUint32(at, ~sum >>> 0);
}

/** A dynamic disk whose first block is full of 0x11. */
function goodImage(): Uint8Array {
  const bytes = new Uint8Array(BLOCK_AT + 512 + BLOCK + 512);
  for (const { offset, bytes: part } of emptyVhd({ sizeBytes: DISK, forceSize: true })) bytes.set(part, offset);
  bytes.copyWithin(bytes.length - 512, 0, 512);
  new DataView(bytes.buffer).setUint32(TABLE, BLOCK_AT / 512);
  bytes.fill(0xff, BLOCK_AT, BLOCK_AT + 512);
  bytes.fill(0x11, BLOCK_AT + 512, BLOCK_AT + 512 + BLOCK);
  return bytes;
}

type Change = (bytes: Uint8Array, view: DataView) => Uint8Array | undefined;
const footer =
  (change: (view: DataView) => void): Change =>
  (bytes) => {
    const from = bytes.length - 512;
    change(new DataView(bytes.buffer, bytes.byteOffset + from, 512));
    checksummed(bytes, from, 512, 64);
    return undefined;
  };
const header =
  (change: (view: DataView) => void): Change =>
  (bytes) => {
    change(new DataView(bytes.buffer, bytes.byteOffset + HEADER, 1024));
    checksummed(bytes, HEADER, 1024, 36);
    return undefined;
  };

const bad: readonly [name: string, change: Change, expected: RegExp][] = [
  ['empty file', () => new Uint8Array(0), /0 bytes/],
  ['file of one byte', () => new Uint8Array(1), /1 bytes/],
  ['no footer anywhere', (bytes) => bytes.slice(512, -512), /cookie/],
  ['checksum of the footer wrong', (bytes) => void bytes.fill(1, -1), /footer: checksum/],
  ['checksum of the header wrong', (bytes) => void bytes.fill(1, HEADER + 1023, HEADER + 1024), /header: checksum/],
  [
    'footer only, of a fixed disk',
    (bytes) => {
      footer((v) => v.setUint32(60, 2))(bytes, new DataView(bytes.buffer));
      return bytes.slice(-512);
    },
    /fixed disk of 8388608 bytes, the file has 0/,
  ],
  ['footer only, of a dynamic disk', (bytes) => bytes.slice(-512), /header at 512 is behind the end/],
  ['disk type 0', footer((v) => v.setUint32(60, 0)), /disk type 0/],
  ['disk type 7', footer((v) => v.setUint32(60, 7)), /disk type 7/],
  ['format version 2', footer((v) => v.setUint32(12, 0x20000)), /file format version/],
  ['size 2^63-1', footer((v) => v.setBigUint64(48, 2n ** 63n - 1n)), /disk of 9223372036854775807/],
  ['header at 2^63', footer((v) => v.setBigUint64(16, 2n ** 63n)), /header at 9223372036854775808/],
  ['header inside the footer', footer((v) => v.setBigUint64(16, 100n)), /header at 100/],
  ['header behind the end', footer((v) => v.setBigUint64(16, 2n ** 40n)), /behind the end/],
  ['block size 0', header((v) => v.setUint32(32, 0)), /blocks of 0 bytes/],
  ['block size not a power of two', header((v) => v.setUint32(32, 3 * MIB)), /blocks of 3145728/],
  ['block size 2^31', header((v) => v.setUint32(32, 2 ** 31)), /blocks of 2147483648/],
  ['table of one entry for a larger disk', header((v) => v.setUint32(28, 1)), /1 table entries.*needs 4/],
  [
    'table longer than the file',
    (bytes) => {
      footer((v) => v.setBigUint64(48, BigInt(2 ** 40)))(bytes, new DataView(bytes.buffer));
      return header((v) => {
        v.setUint32(28, 0xffff_ffff);
        v.setUint32(32, 4096);
      })(bytes, new DataView(bytes.buffer));
    },
    /limit is 33554432/,
  ],
  [
    'entries x block size beyond 2^53',
    (bytes) => {
      footer((v) => v.setBigUint64(48, BigInt(2 ** 40)))(bytes, new DataView(bytes.buffer));
      return header((v) => {
        v.setUint32(28, 0xffff_ffff);
        v.setUint32(32, 256 * MIB);
        v.setBigUint64(16, 2n ** 40n);
      })(bytes, new DataView(bytes.buffer));
    },
    /longer than the file/,
  ],
  ['table not at a sector', header((v) => v.setBigUint64(16, 1537n)), /table at 1537/],
  ['table over the header', header((v) => v.setBigUint64(16, 512n)), /overlaps the header/],
  ['table over the footer', header((v) => v.setBigUint64(16, 0n)), /overlaps the copy/],
  ['differencing disk without its parent', footer((v) => v.setUint32(60, 4)), /no parent was given/],
];

for (const [name, change, expected] of bad) {
  test(`§8.3 VHD: a bad image is refused: ${name}`, async (t) => {
    const bytes = goodImage();
    const file = new LogImageFile(change(bytes, new DataView(bytes.buffer)) ?? bytes);
    const error = await t.throwsAsync(openVhdFile(file, { readOnly: true }), { message: expected });
    t.true(error instanceof WireError || error instanceof ImageError);
    t.true(file.closed);
    t.is(file.log.length, 0);
  });
}

for (const [name, sector] of [
  ['behind the end', 0x7fff_ffff],
  ['in the copy of the footer', 0],
  ['in the header', 1],
  ['in the table', 3],
  ['reaching behind the end', BLOCK_AT / 512 + 8],
] as const) {
  test(`§8.3 VHD: a block ${name} gives EIO when read, and the image is not opened for writing`, async (t) => {
    const bytes = goodImage();
    new DataView(bytes.buffer).setUint32(TABLE + 4, sector);
    const image = await openVhdFile(new LogImageFile(bytes), { readOnly: true });
    const into = new Uint8Array(512);
    await image.read(0, into);
    t.deepEqual(into, new Uint8Array(512).fill(0x11));
    t.false(image.readNow(BLOCK, into));
    await t.throwsAsync(image.read(BLOCK, into), { instanceOf: ImageError, code: 'EIO' });
    await t.throwsAsync(openVhdFile(new LogImageFile(bytes), { readOnly: false }), { instanceOf: ImageError });
  });
}

test('two blocks in one place are read, and not written to', async (t) => {
  const bytes = goodImage();
  new DataView(bytes.buffer).setUint32(TABLE + 4, BLOCK_AT / 512);
  await openVhdFile(new LogImageFile(bytes), { readOnly: true });
  await t.throwsAsync(openVhdFile(new LogImageFile(bytes), { readOnly: false }), { message: /share their place/ });
});

test("the start of a fixed disk is the guest's: what looks like a dynamic disk's footer there decides nothing", async (t) => {
  const dynamic = goodImage();
  const [tail] = emptyVhd({ sizeBytes: 4 * MIB, type: 'fixed', forceSize: true });
  const bytes = new Uint8Array(4 * MIB + 512);
  bytes.set(dynamic.subarray(0, 4 * MIB));
  bytes.set(tail!.bytes, tail!.offset);
  const image = await openVhdFile(new LogImageFile(bytes), { readOnly: true });
  t.is(image.map.details.type, 'fixed');
  const into = new Uint8Array(4096);
  await image.read(0, into);
  t.deepEqual(into, dynamic.slice(0, 4096));
});

test('a dynamic disk whose end was cut off opens by the copy at its start, and gets its footer back', async (t) => {
  const bytes = goodImage().slice(0, -512);
  const file = new LogImageFile(bytes);
  const image = await openVhdFile(file, { readOnly: false });
  t.false(image.map.details.footerAtEnd);
  await image.write(BLOCK + 100, new Uint8Array(10).fill(0x22));
  await image.flush();
  const again = await openVhdFile(new LogImageFile(file.contents), { readOnly: true });
  t.true(again.map.details.footerAtEnd);
  const into = new Uint8Array(12);
  await again.read(BLOCK + 99, into);
  t.deepEqual([...into], [0, ...new Array<number>(10).fill(0x22), 0]);
});

test('a power cut after any write leaves the old contents or the new, never a broken image', async (t) => {
  const file = new LogImageFile(goodImage());
  const image = await openVhdFile(file, { readOnly: false });
  await image.write(BLOCK, new Uint8Array(1000).fill(0x33));
  await image.flush();
  await image.write(3 * BLOCK, new Uint8Array(1000).fill(0x44));
  await image.flush();
  const steps = file.log.slice();
  t.true(steps.length > 8);
  for (let cut = 0; cut <= steps.length; cut++) {
    const cutFile = new LogImageFile(goodImage());
    for (const step of steps.slice(0, cut)) if (step !== 'sync') await cutFile.write(step.offset, step.data);
    const after = await openVhdFile(new LogImageFile(cutFile.contents), { readOnly: false });
    const into = new Uint8Array(1000);
    await after.read(0, into);
    t.true(
      into.every((byte) => byte === 0x11),
      `${cut}`,
    );
    await after.read(BLOCK, into);
    t.true(into.every((byte) => byte === 0) || into.every((byte) => byte === 0x33), `${cut}`);
  }
});

test('a differencing disk shows its own sectors, and those of its parent where it has none', async (t) => {
  const bytes = goodImage();
  footer((v) => v.setUint32(60, 4))(bytes, new DataView(bytes.buffer));
  // Of the block's sectors, only 0, 1 and 9 are its own.
  bytes.fill(0, BLOCK_AT, BLOCK_AT + 512);
  bytes[BLOCK_AT] = 0b1100_0000;
  bytes[BLOCK_AT + 1] = 0b0100_0000;
  const backing = new MemoryImage(4 * MIB);
  await backing.write(0, new Uint8Array(4 * MIB).fill(0x77));
  const image = await openVhdFile(new LogImageFile(bytes), { readOnly: true, backing });
  const into = new Uint8Array(12 * 512);
  await image.read(0, into);
  const sectors = Array.from({ length: 12 }, (_, index) => into[index * 512]);
  t.deepEqual(sectors, [0x11, 0x11, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0x11, 0x77, 0x77]);
  // The parent is shorter than the disk.
  await image.read(4 * MIB - 512, into);
  t.is(into[0], 0x77);
  t.is(into[512], 0);
  await t.throwsAsync(openVhdFile(new LogImageFile(bytes), { readOnly: false, backing }), { message: /only read/ });
});

test('a write marks the sectors of a block that another program left unmarked', async (t) => {
  const bytes = goodImage();
  bytes.fill(0, BLOCK_AT, BLOCK_AT + 512);
  const file = new LogImageFile(bytes);
  const image = await openVhdFile(file, { readOnly: false });
  t.false(image.writeNow(0, new Uint8Array(10)));
  await image.write(0, new Uint8Array(10));
  t.true(file.contents.subarray(BLOCK_AT, BLOCK_AT + 512).every((byte) => byte === 0xff));
  t.true(image.writeNow(0, new Uint8Array(10)));
});

test('concurrent writes to one new block make one block', async (t) => {
  const file = new LogImageFile(goodImage());
  const image = await openVhdFile(file, { readOnly: false });
  await Promise.all(
    Array.from({ length: 20 }, (_, index) => image.write(2 * BLOCK + index * 100, new Uint8Array(100).fill(index + 1))),
  );
  await image.flush();
  t.is(file.sizeBytes, BLOCK_AT + 2 * (512 + BLOCK) + 512);
  const into = new Uint8Array(2000);
  await image.read(2 * BLOCK, into);
  for (let index = 0; index < 20; index++) t.is(into[index * 100 + 50], index + 1);
});

test('no space left: the write fails with ENOSPC and the block stays a hole', async (t) => {
  const file = new LogImageFile(goodImage());
  const image = await openVhdFile(file, { readOnly: false });
  file.limitBytes = file.sizeBytes;
  await t.throwsAsync(image.write(BLOCK, new Uint8Array(10)), { instanceOf: ImageError, code: 'ENOSPC' });
  t.deepEqual(await image.blockStatus(BLOCK, BLOCK, 1), [{ lengthBytes: BLOCK, flags: 3 }]);
});
