import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import { type DiskImage, ImageError, MemoryImage, RawImage } from '../../../services/nbd/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-image-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;
function file(bytes: number | Uint8Array = 1 << 20): string {
  const path = join(directory, `image${files++}.raw`);
  writeFileSync(path, typeof bytes === 'number' ? '' : bytes);
  if (typeof bytes === 'number') truncateSync(path, bytes);
  return path;
}
const writable = { readOnly: false };

/** Every image against the simplest one that can be thought of: an array. */
async function behavesLikeAnArray(image: DiskImage): Promise<void> {
  const size = image.sizeBytes;
  const model = new Uint8Array(size);
  const range = fc.tuple(fc.nat(size - 1), fc.nat(200_000)).map(([offset, length]) => ({
    offset,
    length: Math.min(length, size - offset),
  }));
  const kinds = fc.constantFrom('write', 'writeNow', 'zero', 'zero keep', 'read', 'readNow', 'status');
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(kinds, range, fc.nat(255)), { maxLength: 12 }), async (steps) => {
      for (const [kind, { offset, length }, seed] of steps) {
        const data = Uint8Array.from({ length }, (_, index) => (seed === 0 ? 0 : (index + seed) & 0xff));
        if (kind === 'write' || kind === 'writeNow') {
          model.set(data, offset);
          if (kind === 'write' || !image.writeNow(offset, data)) await image.write(offset, data);
        } else if (kind === 'zero' || kind === 'zero keep') {
          model.fill(0, offset, offset + length);
          await image.writeZeroes(offset, length, { mayUnmap: kind === 'zero', fast: false });
        } else if (kind === 'status') {
          if (length === 0) continue;
          let at = offset;
          for (const extent of await image.blockStatus(offset, length, 5)) {
            const end = Math.min(at + extent.lengthBytes, offset + length);
            if ((extent.flags & 2) !== 0 && model.subarray(at, end).some((byte) => byte !== 0)) {
              throw new Error(`data at ${at}..${end} is called zero`);
            }
            at = end;
          }
          if (at === offset) throw new Error('block status is empty');
        } else {
          const into = new Uint8Array(length).fill(0xee);
          if (kind === 'read' || !image.readNow(offset, into)) await image.read(offset, into);
          if (Buffer.compare(into, model.subarray(offset, offset + length)) !== 0)
            throw new Error(`differs at ${offset}`);
        }
      }
    }),
    { numRuns: 60, interruptAfterTimeLimit: 10_000, markInterruptAsFailure: false },
  );
}

test('MemoryImage behaves like an array', async (t) => {
  await behavesLikeAnArray(new MemoryImage(700_001));
  t.pass();
});

test('RawImage behaves like an array', async (t) => {
  const image = await RawImage.open(file(700_001), writable);
  await behavesLikeAnArray(image);
  await image.close();
  t.pass();
});

test('MemoryImage tells holes of a huge disk at once, and forgets what is zeroed', async (t) => {
  const image = new MemoryImage(2 ** 50);
  await image.write(2 ** 49, Uint8Array.of(1));
  t.is(image.allocatedBytes, 65_536);
  t.deepEqual(await image.blockStatus(0, 2 ** 50, 10), [
    { lengthBytes: 2 ** 49, flags: 3 },
    { lengthBytes: 65_536, flags: 0 },
    { lengthBytes: 2 ** 49 - 65_536, flags: 3 },
  ]);
  await image.writeZeroes(0, 2 ** 50, { mayUnmap: true, fast: true });
  t.is(image.allocatedBytes, 0);
});

test('RawImage keeps holes: zeroes over a hole allocate nothing', async (t) => {
  const path = file(32 << 20);
  const image = await RawImage.open(path, writable);
  await image.write(1 << 20, new Uint8Array(4096).fill(7));
  await image.flush();
  const before = statSync(path).blocks;
  await image.writeZeroes(0, 32 << 20, { mayUnmap: true, fast: false });
  await image.flush();
  t.true(statSync(path).blocks <= before);
  t.true(readFileSync(path).every((byte) => byte === 0));
  await image.close();
});

test('RawImage calls nothing zero that is not: data in the last bytes of a sparse file', async (t) => {
  const path = file(1_000_001);
  const image = await RawImage.open(path, writable);
  await image.write(1_000_000, Uint8Array.of(9));
  t.deepEqual(await image.blockStatus(0, 1_000_001, 10), [
    { lengthBytes: 15 * 65_536, flags: 2 },
    { lengthBytes: 1_000_001 - 15 * 65_536, flags: 0 },
  ]);
  await image.close();
});

test('RawImage refuses fast zeroes and leaves the data', async (t) => {
  const image = await RawImage.open(file(Uint8Array.of(1, 2, 3)), writable);
  await t.throwsAsync(image.writeZeroes(0, 3, { mayUnmap: true, fast: true }), { code: 'ENOTSUP' });
  const into = new Uint8Array(3);
  await image.read(0, into);
  t.deepEqual([...into], [1, 2, 3]);
  await image.close();
});

test('a file that is truncated while it is served gives EIO, in place and on the pool', async (t) => {
  const path = file(1 << 20);
  const image = await RawImage.open(path, writable);
  truncateSync(path, 1000);
  const into = new Uint8Array(512);
  t.throws(() => image.readNow(4096, into), { instanceOf: ImageError, code: 'EIO' });
  const inPlace = (): void => {
    // A slow read sends the next ones, at most 8192, to the pool.
    for (let tries = 0; tries <= 8192; tries++) image.readNow(900, into);
  };
  t.throws(inPlace, { code: 'EIO' });
  await t.throwsAsync(image.read(900, into), { instanceOf: ImageError, code: 'EIO' });
  // Here, too, the slow reads before may have sent it to the pool.
  t.true(Array.from({ length: 8193 }, () => image.readNow(0, into)).includes(true));
  await image.close();
});

test('a read-only image is opened O_RDONLY and refuses every change', async (t) => {
  const path = file(4096);
  const image = await RawImage.open(path, { readOnly: true });
  const flags = /flags:\s*(\d+)/.exec(
    execFileSync('sh', [
      '-c',
      `for f in /proc/${process.pid}/fd/*; do [ "$(readlink $f)" = "${path}" ] && cat /proc/${process.pid}/fdinfo/$(basename $f); done; true`,
    ]).toString(),
  )?.[1];
  t.is(Number.parseInt(flags ?? '2', 8) & 3, 0);
  for (const change of [
    async () => image.writeNow(0, Uint8Array.of(1)),
    () => image.write(0, Uint8Array.of(1)),
    () => image.discard(0, 1),
    () => image.writeZeroes(0, 1, { mayUnmap: true, fast: false }),
  ]) {
    await t.throwsAsync(change, { code: 'EPERM' });
  }
  await image.flush();
  await image.close();
});

test('a read-only descriptor is refused for a writable image', async (t) => {
  const fd = openSync(file(4096), 'r');
  await t.throwsAsync(RawImage.fromFd(fd, writable), { code: 'EPERM' });
  closeSync(fd);
});

test('a descriptor may be handed over', async (t) => {
  const path = file(4096);
  const image = await RawImage.fromFd(openSync(path, 'r+'), writable);
  await image.write(10, Uint8Array.of(1, 2));
  await image.close();
  t.deepEqual([...readFileSync(path).subarray(10, 12)], [1, 2]);
});

test('a directory, a FIFO and a missing file are no images', async (t) => {
  await t.throwsAsync(RawImage.open(directory, { readOnly: true }), { code: 'EINVAL' });
  const fifo = join(directory, 'fifo');
  execFileSync('mkfifo', [fifo]);
  await t.throwsAsync(RawImage.open(fifo, { readOnly: true }), { code: 'EINVAL' });
  await t.throwsAsync(RawImage.open(fifo, writable), { code: 'EINVAL' });
  await t.throwsAsync(RawImage.open(join(directory, 'none'), writable), { code: 'ENOENT' });
});

test('an empty file and a file of one byte are disks of that size', async (t) => {
  for (const size of [0, 1]) {
    const image = await RawImage.open(file(size), writable);
    t.is(image.sizeBytes, size);
    await image.close();
  }
});

test('a second writer in this process is refused until the first has closed', async (t) => {
  const path = file();
  const first = await RawImage.open(path, writable);
  await t.throwsAsync(RawImage.open(path, writable), { code: 'EPERM', message: /open for writing/ });
  const reader = await RawImage.open(path, { readOnly: true });
  await reader.close();
  await first.close();
  const second = await RawImage.open(path, writable);
  await second.close();
});

test('a second writer in another process is refused', async (t) => {
  const path = file();
  const image = await RawImage.open(path, writable);
  const code = `
    import { RawImage } from ${JSON.stringify(new URL('../../../services/nbd/mod.ts', import.meta.url).href)};
    try { await RawImage.open(${JSON.stringify(path)}, { readOnly: false }); console.log('opened'); }
    catch (error) { console.log(error.code); }
    process.exit(0);`;
  const other = (): string => execFileSync(process.execPath, ['--input-type=module', '-e', code]).toString().trim();
  if (process.platform === 'linux') t.is(other(), 'EPERM');
  await image.close();
  t.is(other(), 'opened');
});

test('an image changes hands: what is inactive cannot be written, and its other owner can', async (t) => {
  const path = file();
  const source = await RawImage.open(path, writable);
  const target = await RawImage.open(path, { readOnly: false, inactive: true });
  await source.write(0, Uint8Array.of(1));
  await t.throwsAsync(target.write(0, Uint8Array.of(2)), { code: 'EPERM' });
  await t.throwsAsync(target.activate(), { code: 'EPERM' });
  await source.inactivate();
  await target.activate();
  await t.throwsAsync(source.write(0, Uint8Array.of(3)), { code: 'EPERM' });
  await target.write(1, Uint8Array.of(4));
  const into = new Uint8Array(2);
  await target.read(0, into);
  t.deepEqual([...into], [1, 4]);
  await source.close();
  await target.close();
});

test('after close() an image refuses instead of touching a descriptor that may be another', async (t) => {
  const image = await RawImage.open(file(), writable);
  await image.close();
  await image.close();
  await t.throwsAsync(image.read(0, new Uint8Array(1)), { code: 'ESHUTDOWN' });
  await t.throwsAsync(image.flush(), { code: 'ESHUTDOWN' });
});
