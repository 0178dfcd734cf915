import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { checkQcow2, copyImage, createQcow2, openImage, Qcow2Image } from '../../../services/nbd/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-copy-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const CLUSTER = 65_536;

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
