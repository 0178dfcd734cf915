import { duplexPair } from 'node:stream';
import test from 'ava';
import fc from 'fast-check';
import {
  copyDisk,
  ExportSet,
  ImageError,
  MemoryImage,
  NbdClient,
  type NbdClientOptions,
  serveNbd,
} from '../../../services/nbd/mod.ts';

const SIZE = 4 << 20;

async function clientOf(image: MemoryImage, options: NbdClientOptions = {}): Promise<NbdClient> {
  const [near, far] = duplexPair();
  const exports = new ExportSet();
  exports.add({ name: 'disk', image, writable: true });
  void serveNbd(far, exports);
  return NbdClient.connect(near, options);
}

function contents(image: MemoryImage): Uint8Array {
  const all = new Uint8Array(image.sizeBytes);
  image.readNow(0, all);
  return all;
}

test('C9: a copy is the same for any source, with and without block status, over what was there', async (t) => {
  const parts = fc.array(fc.tuple(fc.integer({ min: 0, max: SIZE - 1 }), fc.integer({ min: 1, max: 300_000 })), {
    maxLength: 6,
  });
  await fc.assert(
    fc.asyncProperty(parts, fc.boolean(), async (ranges, structured) => {
      const [from, to] = [new MemoryImage(SIZE), new MemoryImage(SIZE + 4096)];
      for (const [offset, length] of ranges) {
        from.writeNow(offset, new Uint8Array(Math.min(length, SIZE - offset)).fill((offset % 255) + 1));
      }
      to.writeNow(1 << 20, new Uint8Array(1 << 20).fill(0xee));
      const source = await clientOf(from, { structured });
      const target = await clientOf(to);
      await copyDisk(source, target);
      t.true(Buffer.from(contents(to).subarray(0, SIZE)).equals(contents(from)));
      await Promise.all([source.close(), target.close()]);
    }),
    { numRuns: 12 },
  );
});

test('C9: holes of the source are neither read nor allocated in the target', async (t) => {
  const [from, to] = [new MemoryImage(2 ** 40), new MemoryImage(2 ** 40)];
  from.writeNow(2 ** 39, new Uint8Array(65_536).fill(1));
  const source = await clientOf(from);
  const target = await clientOf(to);
  const progress: number[] = [];
  await copyDisk(source, target, { onProgress: (done) => progress.push(done) });
  t.is(to.allocatedBytes, 65_536);
  t.is(progress.at(-1), 2 ** 40);
  const again = new MemoryImage(2 ** 40);
  let zeroed = 0;
  again.writeZeroes = async () => void zeroed++;
  await copyDisk(source, await clientOf(again), { targetIsZero: true });
  t.is(zeroed, 0);
});

test('C9, CVE-2022-0485: a piece that cannot be read or written fails the copy', async (t) => {
  for (const bad of ['source', 'target'] as const) {
    const [from, to] = [new MemoryImage(SIZE), new MemoryImage(SIZE)];
    from.writeNow(0, new Uint8Array(SIZE).fill(1));
    const failing = (offset: number): boolean => {
      if (offset >= 2 << 20 && offset < 3 << 20) throw new ImageError('EIO', 'bad sector');
      return false;
    };
    if (bad === 'source') from.readNow = failing;
    else to.writeNow = failing;
    from.read = async (offset, into) => void MemoryImage.prototype.readNow.call(from, offset, into);
    to.write = async (offset, data) => void MemoryImage.prototype.writeNow.call(to, offset, data);
    await t.throwsAsync(copyDisk(await clientOf(from), await clientOf(to)), { code: 'EIO' }, bad);
  }
});

test('C9: a target that is too small is refused before a byte is written, and a copy can be stopped', async (t) => {
  const [from, to] = [new MemoryImage(SIZE), new MemoryImage(SIZE - 1)];
  from.writeNow(0, new Uint8Array(SIZE).fill(1));
  await t.throwsAsync(copyDisk(await clientOf(from), await clientOf(to)), { code: 'ENOSPC' });
  t.is(to.allocatedBytes, 0);
  const abort = new AbortController();
  const stopped = copyDisk(await clientOf(from), await clientOf(new MemoryImage(SIZE)), {
    requests: 1,
    signal: abort.signal,
    onProgress: () => abort.abort(),
  });
  await t.throwsAsync(stopped, { name: 'AbortError' });
});
