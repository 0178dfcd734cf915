import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deflateSync } from 'node:zlib';
import test from 'ava';
import { WireError } from '../../../../protocols/bytes/mod.ts';
import { encodeVmdkGrainMarker, encodeVmdkSparseHeader } from '../../../../protocols/vmdk/mod.ts';
import { ImageError, MemoryImage, openVmdk } from '../../../../services/nbd/images/mod.ts';
import { emptyVmdk, openVmdkFile } from '../../../../services/nbd/images/vmdk/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';

const MIB = 1 << 20;
const GRAIN = 64 << 10;
const DISK = 40 * MIB;
const readOnly = { readOnly: true };
const directory = mkdtempSync(join(tmpdir(), 'caisson-vmdk-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const open = (bytes: Uint8Array) => openVmdkFile(new LogImageFile(bytes), undefined, readOnly);

/** Where directory, first grain table and first grain are, in `bytes` */
const empty = emptyVmdk({ sizeBytes: DISK }, 'x.vmdk');
const emptyView = new DataView(empty.buffer);
const DIRECTORY = emptyView.getUint32(56, true) * 512;
const TABLE = emptyView.getUint32(DIRECTORY, true) * 512;
const DATA = empty.length;

/** Its first grain is full of 0x11. */
function goodImage(): { bytes: Uint8Array; view: DataView } {
  const bytes = new Uint8Array(DATA + GRAIN);
  bytes.set(empty);
  bytes.fill(0x11, DATA);
  const view = new DataView(bytes.buffer);
  view.setUint32(TABLE, DATA / 512, true);
  return { bytes, view };
}

function compressedImage(grain: Uint8Array): { bytes: Uint8Array; view: DataView } {
  const bytes = new Uint8Array(DATA + 12 + grain.length);
  bytes.set(emptyVmdk({ sizeBytes: DISK, type: 'streamOptimized' }, 'x.vmdk'));
  bytes.set(encodeVmdkGrainMarker(0, grain.length), DATA);
  bytes.set(grain, DATA + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(TABLE, DATA / 512, true);
  return { bytes, view };
}

test('a sparse image reads its grains, and zeroes where there is none', async (t) => {
  const image = await open(goodImage().bytes);
  t.is(image.sizeBytes, DISK);
  const into = new Uint8Array(1024);
  await image.read(GRAIN - 512, into);
  t.deepEqual(into, new Uint8Array(1024).fill(0x11, 0, 512));
  t.true(image.readNow(GRAIN - 512, into));
  t.deepEqual(await image.blockStatus(0, DISK, 10), [
    { lengthBytes: GRAIN, flags: 0 },
    { lengthBytes: DISK - GRAIN, flags: 3 },
  ]);
});

test('a compressed grain is read, and one that is shorter than what is asked for is an error', async (t) => {
  const image = await open(compressedImage(deflateSync(new Uint8Array(GRAIN).fill(0x22))).bytes);
  const into = new Uint8Array(1024);
  await image.read(1000, into);
  t.deepEqual(into, new Uint8Array(1024).fill(0x22));
  const short = await open(compressedImage(deflateSync(new Uint8Array(1000))).bytes);
  await short.read(0, into.subarray(0, 1000));
  await t.throwsAsync(short.read(0, into), { code: 'EIO', message: /1000 bytes, expected more/ });
});

const bad: readonly [
  name: string,
  change: (bytes: Uint8Array, view: DataView) => Uint8Array | undefined,
  expected: RegExp,
][] = [
  ['empty file', () => new Uint8Array(0), /version "missing"/],
  ['file of one byte', () => Uint8Array.of(0x4b), /neither a value nor an extent/],
  ['header only', (bytes) => bytes.slice(0, 512), /directory.*not inside/],
  [
    'magic, of a large file',
    (bytes) => new Uint8Array(2 * MIB).fill(1, 0, bytes.length ? 1 : 0),
    /neither a sparse disk/,
  ],
  ['grain directory past the end', (_, v) => void v.setBigUint64(56, 1n << 30n, true), /directory.*not inside/],
  ['grain directory in the header', (_, v) => void v.setBigUint64(56, 0n, true), /directory.*at 0/],
  ['redundant directory past the end', (_, v) => void v.setBigUint64(48, 1n << 30n, true), /not inside the file/],
  ['descriptor past the end', (_, v) => void v.setBigUint64(28, 1n << 30n, true), /descriptor is behind/],
  ['a footer that is not there', (_, v) => void v.setBigUint64(56, 2n ** 64n - 1n, true), /footer/],
  [
    'createType of a disk in several files',
    (bytes) => {
      const at = Buffer.from(bytes.buffer).indexOf('monolithicSparse');
      bytes.set(Buffer.from('monolithicFlat" '), at);
      return undefined;
    },
    /neither a value|of type monolithicFlat/,
  ],
  [
    'a parent that was not given',
    (bytes) => {
      bytes.set(Buffer.from('12345678'), Buffer.from(bytes.buffer).indexOf('parentCID=') + 10);
      return undefined;
    },
    /has a parent/,
  ],
];
for (const [name, change, expected] of bad) {
  test(`§8.3 VMDK: a bad image is refused: ${name}`, async (t) => {
    const { bytes, view } = goodImage();
    const file = new LogImageFile(change(bytes, view) ?? bytes);
    const error = await t.throwsAsync(openVmdkFile(file, undefined, readOnly), { message: expected });
    t.true(error instanceof WireError || error instanceof ImageError);
    t.true(file.closed);
    t.is(file.log.length, 0);
  });
}

test('§8.3 VMDK: a footer that names another footer is refused, not followed in a loop', async (t) => {
  const { bytes, view } = goodImage();
  view.setBigUint64(56, 2n ** 64n - 1n, true);
  const looping = new Uint8Array(bytes.length + 1536);
  looping.set(bytes);
  const footer = new DataView(looping.buffer, bytes.length);
  footer.setBigUint64(0, 1n, true);
  footer.setUint32(12, 3, true);
  looping.set(bytes.subarray(0, 512), bytes.length + 512);
  await t.throwsAsync(open(looping), { message: /says that there is another one/ });
});

const badEntries: readonly [name: string, change: (view: DataView) => void][] = [
  ['a grain past the end', (v) => v.setUint32(TABLE, 0x7fff_ffff, true)],
  ['a grain in the descriptor', (v) => v.setUint32(TABLE, 3, true)],
  ['a grain at sector 1 without the flag for zeroes', (v) => v.setUint32(TABLE, 1, true)],
  ['a grain in the grain directory', (v) => v.setUint32(TABLE, DIRECTORY / 512, true)],
  ['a grain table past the end', (v) => v.setUint32(DIRECTORY, 0x7fff_ffff, true)],
];
for (const [name, change] of badEntries) {
  test(`§8.3 VMDK: reads fail with EIO, and the others stay readable: ${name}`, async (t) => {
    const { bytes, view } = goodImage();
    change(view);
    const file = new LogImageFile(bytes);
    const image = await openVmdkFile(file, undefined, readOnly);
    const into = new Uint8Array(512);
    t.false(image.readNow(0, into));
    await t.throwsAsync(image.read(0, into), { instanceOf: ImageError, code: 'EIO' });
    await image.read(DISK - 512, into);
    t.is(file.log.length, 0);
  });
}

for (const [name, change] of [
  ['two grain tables in one place', (v) => v.setUint32(DIRECTORY + 4, TABLE / 512, true)],
  [
    'a grain table in the header',
    (v) => v.setUint32(DIRECTORY, 0, true) ?? v.setUint32(DIRECTORY + 4, 0, true) ?? v.setUint32(DIRECTORY, 1, true),
  ],
  ['a grain table among the grains', (v) => v.setUint32(DIRECTORY, DATA / 512, true)],
] as readonly [string, (view: DataView) => void][]) {
  test(`§8.3 VMDK: an image is not opened for writing with ${name}`, async (t) => {
    const { bytes, view } = goodImage();
    change(view);
    await t.throwsAsync(openVmdkFile(new LogImageFile(bytes), undefined, { readOnly: false }), {
      message: /open it read-only/,
    });
  });
}

for (const [name, grain, change] of [
  ['not deflate data', new Uint8Array(1000).fill(0xee), undefined],
  ['more than a grain', deflateSync(new Uint8Array(GRAIN + 1)), undefined],
  ['a bomb of 64 MiB', deflateSync(new Uint8Array(64 * MIB)), undefined],
  ['cut off', deflateSync(Buffer.from('x'.repeat(GRAIN))).subarray(0, 20), undefined],
  ['of 2^32-1 bytes', deflateSync(new Uint8Array(GRAIN)), (v: DataView) => v.setUint32(DATA + 8, 0xffff_ffff, true)],
  ['of no bytes', deflateSync(new Uint8Array(GRAIN)), (v: DataView) => v.setUint32(DATA + 8, 0, true)],
] as const) {
  test(`§8.3 VMDK: a compressed grain is refused: ${name}`, async (t) => {
    const { bytes, view } = compressedImage(grain);
    change?.(view);
    const image = await open(bytes);
    await t.throwsAsync(image.read(0, new Uint8Array(512)), { instanceOf: ImageError, code: 'EIO' });
  });
}

const descriptor = (extent: string, createType = 'monolithicFlat') =>
  `# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType="${createType}"\n${extent}\n`;

function file(name: string, contents: string | Uint8Array): string {
  const path = join(directory, name);
  writeFileSync(path, contents);
  return path;
}

test('CVE-2022-47951: a descriptor opens no file by default', async (t) => {
  file('flat.bin', new Uint8Array(MIB));
  const path = file('deny.vmdk', descriptor('RW 2048 FLAT "flat.bin" 0'));
  await t.throwsAsync(openVmdk(path, readOnly), { message: /--allow-extents/ });
});

test('with leave, extents in its own folder are read one after the other', async (t) => {
  file('one.bin', new Uint8Array(MIB).fill(1));
  file('two.bin', new Uint8Array(MIB).fill(2));
  const lines = 'RW 2047 FLAT "one.bin" 1\nRW 16 ZERO\nRW 1024 FLAT "two.bin" 0\nNOACCESS 8 FLAT "one.bin" 0';
  const image = await openVmdk(file('allow.vmdk', descriptor(lines)), { readOnly: true, allowExtents: true });
  t.is(image.sizeBytes, (2047 + 16 + 1024 + 8) * 512);
  const into = new Uint8Array(image.sizeBytes);
  await image.read(0, into);
  const sector = (index: number) => into[index * 512];
  t.deepEqual([0, 2046, 2047, 2062, 2063, 3086, 3087, 3094].map(sector), [1, 1, 0, 0, 2, 2, 0, 0]);
  await image.close();
});

symlinkSync('/etc/hostname', join(directory, 'link.bin'));
for (const [name, extent, expected] of [
  ['a path', 'RW 1 FLAT "/etc/hostname" 0', /plain name/],
  ['a path upwards', 'RW 1 FLAT "../secret" 0', /plain name/],
  ['a path with backslashes', 'RW 1 FLAT "..\\secret" 0', /plain name/],
  ['the folder itself', 'RW 1 FLAT "." 0', /plain name/],
  ['a protocol', 'RW 1 FLAT "nbd:host" 0', /protocols are not followed/],
  ['json:', 'RW 1 FLAT "json:{}" 0', /protocols are not followed/],
  ['a link that leads elsewhere', 'RW 1 FLAT "link.bin" 0', /a link/],
  ['a file that is not there', 'RW 1 FLAT "none.bin" 0', /ENOENT/],
  ['a file that is too short', 'RW 9999999 FLAT "flat.bin" 0', /an extent's file has/],
] as const) {
  test(`§8.3 VMDK: an extent is not opened: ${name}`, async (t) => {
    file('flat.bin', new Uint8Array(MIB));
    const path = file(`extent-${name.replaceAll(/\W/g, '')}.vmdk`, descriptor(extent));
    await t.throwsAsync(openVmdk(path, { readOnly: true, allowExtents: true }), {
      instanceOf: ImageError,
      message: expected,
    });
  });
}

test('a disk of several files is only read, and only by its path', async (t) => {
  file('flat.bin', new Uint8Array(MIB));
  const path = file('write.vmdk', descriptor('RW 2048 FLAT "flat.bin" 0'));
  await t.throwsAsync(openVmdk(path, { readOnly: false, allowExtents: true }), { message: /only read/ });
  const bytes = Buffer.from(descriptor('RW 2048 FLAT "flat.bin" 0'));
  await t.throwsAsync(openVmdkFile(new LogImageFile(bytes), undefined, { readOnly: true, allowExtents: true }), {
    message: /without a folder/,
  });
});

test('a disk of a kind that is not known is refused by its name', async (t) => {
  const path = file('raw.vmdk', descriptor('RW 2048 FLAT "flat.bin" 0', 'fullDevice'));
  await t.throwsAsync(openVmdk(path, { readOnly: true, allowExtents: true }), { message: /fullDevice/ });
});

test('over its parent, holes show what the parent has', async (t) => {
  const { bytes } = goodImage();
  bytes.set(Buffer.from('12345678'), Buffer.from(bytes.buffer).indexOf('parentCID=') + 10);
  const backing = new MemoryImage(DISK);
  await backing.write(0, new Uint8Array(MIB).fill(0x77));
  const image = await openVmdkFile(new LogImageFile(bytes), undefined, { readOnly: true, backing });
  const into = new Uint8Array(1024);
  await image.read(GRAIN - 512, into);
  t.deepEqual([into[0], into[512]], [0x11, 0x77]);
});

test('a power cut after any write leaves the old contents or the new', async (t) => {
  const log = new LogImageFile(goodImage().bytes);
  const image = await openVmdkFile(log, undefined, { readOnly: false });
  await image.write(5 * GRAIN + 100, new Uint8Array(1000).fill(0x33));
  await image.flush();
  await image.write(0, new Uint8Array(100).fill(0x11));
  await image.write(35 * MIB, new Uint8Array(1000).fill(0x44));
  await image.flush();
  t.true(log.log.length > 6);
  for (let cut = 0; cut <= log.log.length; cut++) {
    const cutFile = new LogImageFile(goodImage().bytes);
    for (const step of log.log.slice(0, cut)) if (step !== 'sync') await cutFile.write(step.offset, step.data);
    const after = await openVmdkFile(new LogImageFile(cutFile.contents), undefined, { readOnly: false });
    const into = new Uint8Array(1000);
    await after.read(0, into);
    t.true(
      into.every((byte) => byte === 0x11),
      `${cut}`,
    );
    await after.read(5 * GRAIN + 100, into);
    t.true(into.every((byte) => byte === 0) || into.every((byte) => byte === 0x33), `${cut}`);
  }
});

test('extents take no more memory for their directories than one disk may, however often a file is named', async (t) => {
  const directoryBytes = 4 << 20;
  const bytes = new Uint8Array(512 + directoryBytes);
  bytes.set(
    encodeVmdkSparseHeader({
      version: 1,
      flags: 1,
      sizeBytes: 2 ** 45,
      grainBytes: GRAIN,
      descriptorOffset: 0,
      descriptorBytes: 0,
      tableEntries: 512,
      redundantDirectoryOffset: 0,
      directoryOffset: 512,
      overheadBytes: 512,
      uncleanShutdown: false,
      compression: 0,
    }),
  );
  writeFileSync(join(directory, 'many.vmdk'), bytes);
  const path = join(directory, 'many-descriptor.vmdk');
  const describe = (lines: number): void => {
    const extents = 'RW 128 SPARSE "many.vmdk"\n'.repeat(lines);
    writeFileSync(path, `version=1\nCID=1\ncreateType="twoGbMaxExtentSparse"\n${extents}`);
  };
  describe(8);
  const image = await openVmdk(path, { ...readOnly, allowExtents: true });
  t.is(image.sizeBytes, 8 * GRAIN);
  await image.close();
  describe(40);
  await t.throwsAsync(openVmdk(path, { ...readOnly, allowExtents: true }), {
    instanceOf: ImageError,
    message: /grain directories of \d+ bytes in all, limit is 67108864/,
  });
});
