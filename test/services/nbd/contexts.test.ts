import { duplexPair } from 'node:stream';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import {
  CMD,
  CMD_FLAG,
  decodeMetaContext,
  encodeMetaContextRequest,
  encodeOption,
  OPT,
  REP,
  TRANSMISSION_FLAG,
} from '../../../protocols/nbd/mod.ts';
import {
  DirtyBitmap,
  ExportSet,
  MemoryImage,
  NbdClient,
  type NbdClientOptions,
  type NbdExport,
  serveNbd,
} from '../../../services/nbd/mod.ts';
import { ByteClient } from './harness.ts';

const KIB = 1024;
const DEPTH = 'qemu:allocation-depth';
const BITMAP = 'qemu:dirty-bitmap:b0';
const ALL = ['base:allocation', DEPTH, BITMAP];

function exportOf(served: Partial<NbdExport> = {}): { exports: ExportSet; image: MemoryImage } {
  const image = new MemoryImage(1 << 20);
  image.bitmaps.add('b0', new DirtyBitmap(image.sizeBytes));
  image.bitmaps.add('secret', new DirtyBitmap(image.sizeBytes));
  const exports = new ExportSet();
  exports.add({ name: 'disk', image, writable: true, bitmaps: ['b0', 'missing'], allocationDepth: true, ...served });
  return { exports, image };
}

async function client(exports: ExportSet, options: NbdClientOptions = { contexts: ALL }): Promise<NbdClient> {
  const [near, far] = duplexPair();
  void serveNbd(far, exports);
  return NbdClient.connect(near, options);
}

for (const extended of [false, true]) {
  test(`T15: depth and dirty bitmap follow what is written, extended headers ${extended}`, async (t) => {
    const { exports } = exportOf();
    await using disk = await client(exports, { contexts: ALL, extended });
    t.deepEqual(disk.contexts, ALL);
    await disk.write(128 * KIB + 5, Uint8Array.of(1));
    await disk.writeZeroes(256 * KIB, 64 * KIB, { mayUnmap: true });
    const found = await disk.status(0, 512 * KIB);
    t.deepEqual(found.get('base:allocation'), [
      { lengthBytes: 128 * KIB, flags: 3 },
      { lengthBytes: 64 * KIB, flags: 0 },
      { lengthBytes: 320 * KIB, flags: 3 },
    ]);
    t.deepEqual(found.get(DEPTH), [
      { lengthBytes: 128 * KIB, flags: 0 },
      { lengthBytes: 64 * KIB, flags: 1 },
      { lengthBytes: 320 * KIB, flags: 0 },
    ]);
    t.deepEqual(found.get(BITMAP), [
      { lengthBytes: 128 * KIB, flags: 0 },
      { lengthBytes: 64 * KIB, flags: 1 },
      { lengthBytes: 64 * KIB, flags: 0 },
      { lengthBytes: 64 * KIB, flags: 1 },
      { lengthBytes: 192 * KIB, flags: 0 },
    ]);
    // One context only: by the request's payload where there is one, by picking otherwise.
    const one = await disk.status(128 * KIB, 4 * KIB, { contexts: [BITMAP], oneExtent: true });
    t.deepEqual([...one], [[BITMAP, [{ lengthBytes: 4 * KIB, flags: 1 }]]]);
    const flag = disk.export.flags & TRANSMISSION_FLAG.BLOCK_STATUS_PAYLOAD;
    t.is(flag !== 0, extended);
  });
}

test('T15: only the bitmaps that the export names are there, and the depth only where it is offered', async (t) => {
  const { exports } = exportOf({ allocationDepth: false });
  await using disk = await client(exports, { contexts: [...ALL, 'qemu:dirty-bitmap:secret'] });
  t.deepEqual(disk.contexts, ['base:allocation', BITMAP]);
});

/** Names that LIST_META_CONTEXT gives for a query. */
async function listed(t: ExecutionContext, query: string, option: number): Promise<string[]> {
  const bytes = await new ByteClient(exportOf().exports).hello();
  bytes.send(encodeOption(OPT.STRUCTURED_REPLY));
  await bytes.answers();
  bytes.send(encodeOption(option, encodeMetaContextRequest({ exportName: 'disk', queries: [query] })));
  const names: string[] = [];
  for (;;) {
    const reply = await bytes.optionReply();
    if (reply?.type !== REP.META_CONTEXT) {
      t.is(reply?.type, REP.ACK);
      break;
    }
    names.push(decodeMetaContext(reply.data).name);
  }
  bytes.stream.destroy();
  return names;
}

test('H13: base:, qemu: and qemu:dirty-bitmap: are wildcards for LIST, and for nothing else', async (t) => {
  t.deepEqual(await listed(t, 'base:', OPT.LIST_META_CONTEXT), ['base:allocation']);
  t.deepEqual(await listed(t, 'qemu:', OPT.LIST_META_CONTEXT), [DEPTH, BITMAP]);
  t.deepEqual(await listed(t, 'qemu:dirty-bitmap:', OPT.LIST_META_CONTEXT), [BITMAP]);
  t.deepEqual(await listed(t, 'qemu:dirty-bitmap:b', OPT.LIST_META_CONTEXT), []);
  t.deepEqual(await listed(t, 'qemu:dirty-bitmap:secret', OPT.LIST_META_CONTEXT), []);
  for (const query of ['base:', 'qemu:', 'qemu:dirty-bitmap:', 'other:thing', '']) {
    t.deepEqual(await listed(t, query, OPT.SET_META_CONTEXT), [], query);
  }
  t.deepEqual(await listed(t, DEPTH, OPT.SET_META_CONTEXT), [DEPTH]);
});

test('T14: a request for two of three contexts gets two chunks, and one for an unselected id is refused', async (t) => {
  const { exports } = exportOf();
  await using disk = await client(exports, { contexts: ALL });
  const two = await disk.status(0, 4096, { contexts: [BITMAP, DEPTH] });
  t.deepEqual([...two.keys()], [BITMAP, DEPTH]);
  await t.throwsAsync(disk.status(0, 4096, { contexts: ['qemu:dirty-bitmap:secret'] }), { code: 'ENOTSUP' });
});

test('T15: a bitmap that has gone in the meantime fails the request, not the session', async (t) => {
  const { exports, image } = exportOf();
  await using disk = await client(exports);
  image.bitmaps.remove('b0');
  await t.throwsAsync(disk.status(0, 4096), { code: 'EINVAL' });
  await disk.read(0, new Uint8Array(1));
});

test('DirtyBitmap tells what was marked, for any marks, in whole granules', (t) => {
  const size = 100_000;
  const mark = fc.tuple(fc.integer({ min: 0, max: size - 1 }), fc.integer({ min: 0, max: size }));
  fc.assert(
    fc.property(fc.array(mark, { maxLength: 8 }), fc.integer({ min: 0, max: size - 1 }), (marks, from) => {
      const bitmap = new DirtyBitmap(size, 512);
      const model = new Uint8Array(Math.ceil(size / 512));
      for (const [offset, length] of marks) {
        const bytes = Math.min(length, size - offset);
        bitmap.mark(offset, bytes);
        if (bytes > 0) model.fill(1, Math.floor(offset / 512), Math.floor((offset + bytes - 1) / 512) + 1);
      }
      let at = from;
      for (const { lengthBytes, flags } of bitmap.extents(from, size - from, 1000)) {
        for (const end = at + lengthBytes; at < end; at++) if (model[Math.floor(at / 512)] !== flags) return false;
      }
      return at === size;
    }),
    { numRuns: 60 },
  );
  t.throws(() => new DirtyBitmap(size, 1000), { code: 'EINVAL' });
  t.throws(() => new DirtyBitmap(size, 256), { code: 'EINVAL' });
  t.throws(() => new DirtyBitmap(2 ** 53 - 1, 512), { code: 'EINVAL' });
  t.deepEqual(new DirtyBitmap(size, 512).extents(0, size, 0), []);
});

test('T19: RESIZE is not there unless it is switched on', async (t) => {
  const { exports } = exportOf();
  await using disk = await client(exports);
  t.false(disk.canResize);
  await t.throwsAsync(disk.resize(4096), { code: 'ENOTSUP' });
  const bytes = await new ByteClient(exports).go('disk');
  t.is((await bytes.ask({ type: CMD.RESIZE, offset: 4096n }))?.error, 22);
  t.is((await bytes.ask({ cookie: 2n, length: 4 }))?.error, 0, 'the session goes on');
  bytes.stream.destroy();
});

test('T19: RESIZE grows with zeroes and shrinks, and the new size holds at once', async (t) => {
  const { exports, image } = exportOf({ resizable: true });
  await using disk = await client(exports);
  t.true(disk.canResize);
  await disk.write(0, new Uint8Array(1 << 20).fill(7));
  await disk.resize(512 * KIB);
  t.is(disk.sizeBytes, 512 * KIB);
  t.is(image.sizeBytes, 512 * KIB);
  await t.throwsAsync(disk.read(512 * KIB, new Uint8Array(1)), { code: 'EINVAL' });
  await disk.resize(2 << 20);
  const into = new Uint8Array(2 << 20).fill(1);
  await disk.read(0, into);
  t.true(into.subarray(0, 512 * KIB).every((byte) => byte === 7));
  t.true(
    into.subarray(512 * KIB).every((byte) => byte === 0),
    'what was cut off does not come back',
  );
  const bitmap = (await disk.status(1 << 20, 1 << 20)).get(BITMAP);
  t.deepEqual(bitmap, [{ lengthBytes: 1 << 20, flags: 1 }], 'what is new is dirty');
});

test('T19: RESIZE is EPERM while another client may write, and allowed beside one that only reads', async (t) => {
  const { exports, image } = exportOf({ resizable: true });
  exports.add({ name: 'reader', image, writable: false });
  await using disk = await client(exports, { exportName: 'disk' });
  const other = await client(exports, { exportName: 'disk' });
  await t.throwsAsync(disk.resize(4096), { code: 'EPERM' });
  await other.close();
  const reader = await client(exports, { exportName: 'reader' });
  await disk.resize(4096);
  await t.throwsAsync(reader.resize(8192), { code: 'ENOTSUP' });
  await reader.close();
});

test('T19: RESIZE with a length, to 2^53 and above, and of a read-only export is refused', async (t) => {
  const { exports, image } = exportOf({ resizable: true });
  const bytes = await new ByteClient(exports).go('disk');
  t.is((await bytes.ask({ type: CMD.RESIZE, offset: 4096n, length: 1 }))?.error, 22);
  t.is((await bytes.ask({ type: CMD.RESIZE, offset: 1n << 53n }))?.error, 28);
  t.is((await bytes.ask({ type: CMD.RESIZE, offset: (1n << 64n) - 1n }))?.error, 28);
  t.is((await bytes.ask({ type: CMD.RESIZE, flags: CMD_FLAG.NO_HOLE, offset: 4096n }))?.error, 22);
  t.is(image.sizeBytes, 1 << 20);
  bytes.stream.destroy();
  const readOnly = exportOf({ resizable: true, writable: false });
  const other = await new ByteClient(readOnly.exports).go('disk');
  t.is((await other.ask({ type: CMD.RESIZE, offset: 4096n }))?.error, 1);
  other.stream.destroy();
});

test('T19: a request behind a RESIZE in the same segment is judged by the new size', async (t) => {
  const { exports, image } = exportOf({ resizable: true });
  const bytes = await new ByteClient(exports).go('disk');
  const write = Buffer.concat([
    request(CMD.RESIZE, 1n, 4096n, 0),
    request(CMD.WRITE, 2n, 8192n, 4),
    Buffer.alloc(4, 9),
  ]);
  bytes.send(write);
  t.is((await bytes.reply())?.error, 0);
  t.is((await bytes.reply())?.error, 28);
  t.is(image.sizeBytes, 4096);
  t.is(image.allocatedBytes, 0);
  bytes.stream.destroy();
});

test('T19: a WRITE whose data comes only after a RESIZE is judged by the new size, too', async (t) => {
  const { exports, image } = exportOf({ resizable: true });
  const bytes = await new ByteClient(exports).go('disk');
  bytes.send(Buffer.concat([request(CMD.RESIZE, 1n, 4096n, 0), request(CMD.WRITE, 2n, 8192n, 4), Buffer.alloc(2, 9)]));
  t.is((await bytes.reply())?.error, 0);
  bytes.send(Buffer.alloc(2, 9));
  t.is((await bytes.reply())?.error, 28);
  t.is(image.sizeBytes, 4096);
  t.is(image.allocatedBytes, 0);
  t.is((await bytes.ask({ cookie: 3n, length: 4 }))?.error, 0, 'the session goes on');
  bytes.stream.destroy();
});

function request(type: number, cookie: bigint, offset: bigint, length: number): Buffer {
  const bytes = Buffer.alloc(28);
  bytes.writeUInt32BE(0x25609513, 0);
  bytes.writeUInt16BE(type, 6);
  bytes.writeBigUInt64BE(cookie, 8);
  bytes.writeBigUInt64BE(offset, 16);
  bytes.writeUInt32BE(length, 24);
  return bytes;
}
