import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import {
  checkQcow2,
  copyImage,
  createQcow2,
  createVmdk,
  type DiskImage,
  ImageError,
  MemoryImage,
  openImage,
  openVmdkStream,
  Qcow2Image,
} from '../../../services/nbd/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-copy-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const DISK_BYTES = 1 << 20;
const CLUSTER = 65_536;

/** Data between holes that begin and end inside the target's blocks of 64 KiB. */
async function holey(name: string): Promise<Qcow2Image> {
  const path = join(directory, name);
  await createQcow2(path, { sizeBytes: DISK_BYTES, clusterBytes: 4096 });
  const image = await Qcow2Image.open(path, { readOnly: false });
  for (const [offset, length] of [
    [4096, 200 << 10],
    [640 << 10, 4096],
    [DISK_BYTES - 8192, 4096],
  ] as const) {
    await image.write(
      offset,
      Uint8Array.from({ length }, (_, index) => (index * 7 + (index >> 8)) | 1),
    );
  }
  return image;
}

async function contentsOf(image: DiskImage): Promise<Buffer> {
  const all = Buffer.alloc(image.sizeBytes);
  await image.read(0, all);
  return all;
}

test('copyImage() gives a compressed target whole blocks where holes of the source end inside one: VMDK', async (t) => {
  const source = await holey('vmdk-source.qcow2');
  const path = join(directory, 'stream.vmdk');
  await createVmdk(path, { sizeBytes: DISK_BYTES, type: 'streamOptimized' });
  const target = await openVmdkStream(path);
  await copyImage(source, target.image, { sparseBytes: 4096, targetIsZero: true, compressed: target });
  await target.finish();
  t.true((await contentsOf(target.image)).equals(await contentsOf(source)));
  await target.image.close();
  await source.close();
});

test('copyImage() gives a compressed target whole blocks where holes of the source end inside one: qcow2', async (t) => {
  const source = await holey('qcow2-source.qcow2');
  const path = join(directory, 'target.qcow2');
  await createQcow2(path, { sizeBytes: DISK_BYTES });
  const target = await Qcow2Image.open(path, { readOnly: false });
  const compressed = {
    blockBytes: target.header.clusterBytes,
    write: (offset: number, data: Uint8Array) => target.writeCompressed(offset, data),
  };
  await copyImage(source, target, { sparseBytes: 4096, targetIsZero: true, compressed });
  t.true((await contentsOf(target)).equals(await contentsOf(source)));
  await target.close();
  await source.close();
});

test('copyImage() still leaves whole blocks of zeroes out of a compressed target', async (t) => {
  const source = await holey('sparse-source.qcow2');
  const written: number[] = [];
  const compressed = { blockBytes: 65_536, write: async (offset: number) => void written.push(offset / 65_536) };
  await copyImage(source, new MemoryImage(DISK_BYTES), { sparseBytes: 4096, targetIsZero: true, compressed });
  t.deepEqual(written, [0, 1, 2, 3, 10, 15]);
  await source.close();
});

test('copyImage() compresses whole blocks where zeroes of the source begin and end inside them', async (t) => {
  const [from, to] = [join(directory, 'from.qcow2'), join(directory, 'to.qcow2')];
  // The last block is shorter, and the source's clusters are smaller than the target's.
  const sizeBytes = 20 * CLUSTER + 512;
  await createQcow2(from, { sizeBytes, clusterBytes: 4096 });
  await createQcow2(to, { sizeBytes });
  const source = await Qcow2Image.open(from, { readOnly: false });
  const want = new Uint8Array(sizeBytes);
  for (const at of [3 * CLUSTER + 4096, 7 * CLUSTER - 4096, 12 * CLUSTER + 8192, sizeBytes - 512]) {
    want.fill(0xa5, at, at + 512);
    await source.write(at, want.subarray(at, at + 512));
  }
  await source.flush();
  const target = (await openImage({ path: to, format: 'qcow2' }, { readOnly: false })) as Qcow2Image;
  const progress: number[] = [];
  await copyImage(source, target, {
    sparseBytes: 4096,
    targetIsZero: true,
    compressed: { blockBytes: CLUSTER, write: (offset, data) => target.writeCompressed(offset, data) },
    onProgress: (done) => progress.push(done),
  });
  await target.flush();
  const got = new Uint8Array(sizeBytes).fill(0xee);
  await target.read(0, got);
  t.deepEqual(Buffer.compare(got, want), 0);
  t.is(progress.at(-1), sizeBytes);
  await source.close();
  await target.close();
  const { corruptions, leaks, compressedClusters, allocatedClusters } = await checkQcow2(to);
  t.deepEqual(
    { corruptions, leaks, compressedClusters, allocatedClusters },
    {
      corruptions: 0,
      leaks: 0,
      compressedClusters: 4,
      allocatedClusters: 4,
    },
  );
});

test('copyImage() says at which byte there was no room', async (t) => {
  const source = new MemoryImage(6 << 20);
  source.writeNow(0, new Uint8Array(6 << 20).fill(1));
  const target = new (class extends MemoryImage {
    override async write(offset: number, data: Uint8Array): Promise<void> {
      if (offset + data.length > 3 << 20) throw new ImageError('ENOSPC', 'Cannot write: no space left');
      this.writeNow(offset, data);
    }
  })(6 << 20);
  await t.throwsAsync(copyImage(source, target, { sparseBytes: 4096, targetIsZero: true }), {
    code: 'ENOSPC',
    message: `Cannot write at byte ${2 << 20}: no space left`,
  });
});
