import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { looksLikeSomeFormat, RawImage, SectorImage } from '../../../services/nbd/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-sectors-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;
async function open(bytes: number, options: { guessed?: boolean; readOnly?: boolean } = {}) {
  const path = join(directory, `disk${files++}.raw`);
  writeFileSync(path, Buffer.alloc(bytes, 0x5a));
  const raw = await RawImage.open(path, { readOnly: options.readOnly ?? false });
  return { path, image: new SectorImage(raw, options) };
}
const ZERO_HOLE = 3;

test('SectorImage shows 1000 bytes as two sectors, and what the file has not as a hole', async (t) => {
  const { image } = await open(1000);
  t.is(image.sizeBytes, 1024);
  t.is(image.blockBytes, 1);
  const into = new Uint8Array(100).fill(0xee);
  t.false(image.readNow(950, into), 'a read over the end is not done in place');
  await image.read(950, into);
  t.deepEqual(into, new Uint8Array(100).fill(0x5a, 0, 50));
  t.deepEqual(await image.blockStatus(0, 1024, 10), [
    { lengthBytes: 1000, flags: 0 },
    { lengthBytes: 24, flags: ZERO_HOLE },
  ]);
  t.deepEqual(await image.blockStatus(0, 1024, 1), [{ lengthBytes: 1000, flags: 0 }]);
  t.deepEqual(await image.blockStatus(1004, 8, 10), [{ lengthBytes: 8, flags: ZERO_HOLE }]);
  t.deepEqual(await image.allocationDepth(0, 1024), [{ lengthBytes: 1024, flags: 1 }]);
  await image.close();
});

test('SectorImage lets the file grow to whole sectors where something is written behind its end, and only there', async (t) => {
  const { image, path } = await open(1000);
  await image.writeZeroes(900, 124, { mayUnmap: false, fast: false });
  await image.discard(1000, 24);
  t.false(image.writeNow(990, new Uint8Array(20)));
  t.is(statSync(path).size, 1000);
  await image.write(1010, Uint8Array.of(7));
  await image.flush();
  const bytes = readFileSync(path);
  t.is(bytes.length, 1024);
  t.is(bytes[1010], 7);
  t.true(bytes.subarray(900, 1010).every((byte) => byte === 0));
  await image.close();
});

test('SectorImage of a disk that was guessed to be raw knows whole sectors', async (t) => {
  const { image } = await open(1000, { guessed: true });
  t.is(image.blockBytes, 512);
  t.deepEqual(await image.blockStatus(0, 1024, 10), [{ lengthBytes: 1024, flags: 0 }]);
  await image.close();
});

for (const [what, magic, at] of [
  ['qcow2', 'QFI\xfb', 0],
  ['vhdx', 'vhdxfile', 0],
  ['vmdk', '# Disk DescriptorFile\n', 0],
  ['vpc', 'conectix', 0],
  ['LUKS', 'LUKS\xba\xbe', 0],
  ['VDI, in two pieces', '\xda\xbe', 0x42],
] as const) {
  test(`SectorImage refuses a guest that makes a guessed raw disk one of ${what}`, async (t) => {
    const { image, path } = await open(4096, { guessed: true });
    if (at !== 0) await image.write(0x40, Buffer.from('\x7f\x10', 'latin1'));
    const sector = new Uint8Array(512);
    if (at !== 0) sector.set([0x7f, 0x10], 0x40);
    sector.set(Buffer.from(magic, 'latin1'), at);
    t.true(looksLikeSomeFormat(sector));
    const before = readFileSync(path);
    t.false(image.writeNow(0, sector));
    await t.throwsAsync(image.write(0, sector), { code: 'EPERM', message: /that of another format/ });
    await t.throwsAsync(image.write(at, Buffer.from(magic, 'latin1')), { code: 'EPERM' });
    t.deepEqual(readFileSync(path), before);
    // Elsewhere it is data, and where the format was said, anything may be written.
    await image.write(512, sector);
    await image.close();
    const said = await open(4096);
    await said.image.write(0, sector);
    await said.image.close();
  });
}

test('SectorImage read-only stays so', async (t) => {
  const { image } = await open(1000, { readOnly: true });
  t.true(image.readOnly);
  await t.throwsAsync(image.write(0, new Uint8Array(1)), { code: 'EPERM' });
  await image.close();
});
