import process from 'node:process';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import test from 'ava';
import type { ImageFile } from '../../../../services/nbd/images/qcow2/image_file.ts';
import { TableCache } from '../../../../services/nbd/images/qcow2/table_cache.ts';

const CLUSTER_BYTES = 512;

/** Reads as its own offset; counts reads. */
function fakeFile(): ImageFile & { readonly reads: number[] } {
  const reads: number[] = [];
  const read = async (offset: number, into: Uint8Array): Promise<void> => {
    reads.push(offset);
    into.fill(offset / CLUSTER_BYTES);
  };
  return { reads, read, write: async () => {} } as unknown as ImageFile & { readonly reads: number[] };
}

test('TableCache: what is asked for stays while others come and go', async (t) => {
  const file = fakeFile();
  const cache = new TableCache(file, CLUSTER_BYTES, 4 * CLUSTER_BYTES);
  for (let index = 0; index < 100; index++) {
    await cache.load(index * CLUSTER_BYTES);
    t.is(cache.peek(0)?.bytes[0], 0, `after ${index} others`);
  }
  t.is(file.reads.filter((offset) => offset === 0).length, 1);
});

test('TableCache: holds no more than fits, also where all of it was asked for', async (t) => {
  const cache = new TableCache(fakeFile(), CLUSTER_BYTES, 8 * CLUSTER_BYTES);
  const hosts = Array.from({ length: 50 }, (_, index) => index * CLUSTER_BYTES);
  for (const host of hosts) {
    await cache.load(host);
    for (const other of hosts) cache.peek(other);
  }
  t.is(hosts.filter((host) => cache.peek(host) !== undefined).length, 8);
});

test('TableCache: a dirty table stays until it was written', async (t) => {
  const cache = new TableCache(fakeFile(), CLUSTER_BYTES, 4 * CLUSTER_BYTES);
  cache.add(0, new Uint8Array(CLUSTER_BYTES));
  for (let index = 1; index < 20; index++) await cache.load(index * CLUSTER_BYTES);
  t.true(cache.dirty);
  t.not(cache.peek(0), undefined);
  await cache.writeDirty();
  t.false(cache.dirty);
  for (let index = 20; index < 40; index++) await cache.load(index * CLUSTER_BYTES);
  t.is(cache.peek(0), undefined);
});

test('TableCache: asking for a table leaves no garbage that outlives it', async (t) => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const cache = new TableCache(fakeFile(), CLUSTER_BYTES, 4 * CLUSTER_BYTES);
  await cache.load(0);
  collect();
  const before = process.memoryUsage().heapUsed;
  for (let count = 0; count < 1_000_000; count++) cache.peek(0);
  const grown = process.memoryUsage().heapUsed - before;
  t.true(grown < 8 << 20, `${grown} bytes`);
});
