import { duplexPair } from 'node:stream';
import test from 'ava';
import {
  ExportSet,
  MemoryImage,
  NbdClient,
  type NbdClientOptions,
  type NbdExport,
  serveNbd,
} from '../../../services/nbd/mod.ts';

/** Our client on our server: the hostile servers are in client.test.ts and extended_replies.test.ts. */
async function opened(served: Partial<NbdExport> = {}, options: NbdClientOptions = {}): Promise<NbdClient> {
  const [near, far] = duplexPair();
  const exports = new ExportSet();
  exports.add({ name: 'disk', image: new MemoryImage(2 ** 45), writable: true, ...served });
  void serveNbd(far, exports);
  return NbdClient.connect(near, options);
}

test('C1: extended headers are agreed, and everything works over them', async (t) => {
  await using client = await opened();
  t.true(client.export.extended);
  const data = Uint8Array.from({ length: 100_000 }, (_, index) => index & 0xff);
  await client.write(2 ** 40 + 3, data, { fua: true });
  const into = new Uint8Array(100_000);
  await client.read(2 ** 40 + 3, into);
  t.deepEqual(into, data);
  await client.trim(0, 2 ** 40);
  await client.writeZeroes(2 ** 40 + 3, 50_000);
  await client.read(2 ** 40 + 3, into);
  t.true(into.subarray(0, 50_000).every((byte) => byte === 0));
  await client.cache(0, 4096);
  await client.flush();
  await t.throwsAsync(client.read(2 ** 45, new Uint8Array(1)), { code: 'EINVAL' });
});

test('C1: one request covers more than 4 GiB with extended headers, and several without', async (t) => {
  for (const extended of [true, false]) {
    await using client = await opened({}, { extended });
    t.is(client.export.extended, extended);
    t.true(client.export.structured);
    const extents = await client.blockStatus(0, 2 ** 45);
    t.deepEqual(extents, [{ lengthBytes: extended ? 2 ** 45 : 2 ** 31, flags: 3 }]);
    await client.writeZeroes(0, 2 ** 34, { fast: true });
  }
});

test('C5: status of a context that was not selected fails without a request', async (t) => {
  await using client = await opened({}, { contexts: [] });
  t.deepEqual(client.contexts, []);
  await t.throwsAsync(client.blockStatus(0, 4096), { code: 'ENOTSUP' });
  await t.throwsAsync(client.status(0, 4096), { code: 'ENOTSUP' });
});
