import { closeSync, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { CMD, decodeReplyError, NBD_ERROR, REPLY_TYPE } from '../../../protocols/nbd/mod.ts';
import { borrowingSocket } from '../../../services/nbd/borrowing_socket.ts';
import { FileSender } from '../../../services/nbd/images/file_sender.ts';
import { type DiskImage, ExportSet, ImageError, MemoryImage, RawImage } from '../../../services/nbd/mod.ts';
import type { ServeNbdOptions } from '../../../services/nbd/server.ts';
import { socketPair } from '../../../services/shared/stream_pair.ts';
import { ByteClient, joined, requestBytes } from './harness.ts';

// Large reads that go from the image to the socket, between replies that go by the stream.

const MIB = 1 << 20;
const directory = mkdtempSync(join(tmpdir(), 'caisson-sendfile-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));

/** No two words of the first 2^32 look alike */
const words = Uint32Array.from({ length: 10 * MIB + 1 }, (_, index) => Math.imul(index + 1, 0x9e3779b1));
const patterns = Buffer.from(words.buffer);

function pattern(lengthBytes: number, at = 0): Uint8Array {
  return Uint8Array.prototype.slice.call(patterns, at, at + lengthBytes);
}

/** Sends as sendfile(2) does, from memory: at most `atOnce` bytes a call, and nothing where it is told not to. */
class SendingImage extends MemoryImage {
  canSend = true;
  sentBytes = 0;
  willSend: (offset: number, lengthBytes: number) => void = () => {};
  calls = 0;
  atOnce = Number.POSITIVE_INFINITY;
  /** What a call says instead of sending */
  instead: ((offset: number) => 'nothing' | 'pool' | 'send') | undefined;
  /** Reading from there on fails */
  badFrom = Number.POSITIVE_INFINITY;
  /** Resolves before reads of the pool do */
  poolWaits: Promise<void> | undefined;
  readonly poolAsked = Promise.withResolvers<void>();

  sendNow(socket: number, offset: number, lengthBytes: number): number | undefined {
    this.calls++;
    const said = this.instead?.(offset) ?? 'send';
    if (said !== 'send') return said === 'pool' ? undefined : 0;
    const length = Math.min(lengthBytes, this.atOnce, this.badFrom - offset);
    if (length <= 0) return 0;
    const bytes = new Uint8Array(length);
    super.readNow(offset, bytes);
    try {
      const sent = writeSync(socket, bytes);
      this.sentBytes += sent;
      return sent;
    } catch {
      return 0;
    }
  }
  override readNow(offset: number, into: Uint8Array): boolean {
    if (offset + into.length > this.badFrom) throw new ImageError('EIO', 'Cannot read: bad', { offset: this.badFrom });
    return super.readNow(offset, into);
  }
  override async read(offset: number, into: Uint8Array): Promise<void> {
    this.poolAsked.resolve();
    await this.poolWaits;
    this.readNow(offset, into);
  }
}

function sendingImage(sizeBytes: number): SendingImage {
  const image = new SendingImage(sizeBytes);
  image.writeNow(0, pattern(sizeBytes));
  return image;
}

async function connected(image: DiskImage, options: ServeNbdOptions = {}, structured = true): Promise<ByteClient> {
  const exports = new ExportSet();
  exports.add({ name: '', image, writable: true });
  const [near, far] = await socketPair();
  const client = new ByteClient(exports, options, [near, borrowingSocket(far)]);
  near.resume();
  return await client.go('', { structured });
}

function reads(...ranges: readonly (readonly [offset: number, length: number])[]): Uint8Array {
  return joined(
    ...ranges.map(([offset, length], index) =>
      requestBytes({ cookie: BigInt(index), offset: BigInt(offset), length, type: CMD.READ }),
    ),
  );
}

/** Takes chunks until `count` replies are whole, and gives the data of each by its cookie. */
async function replies(
  client: ByteClient,
  count: number,
): Promise<Map<number, { data: Uint8Array; types: number[]; error: Uint8Array | undefined }>> {
  const found = new Map<number, { data: Uint8Array; types: number[]; error: Uint8Array | undefined }>();
  for (let done = 0; done < count; ) {
    const header = Buffer.from(await client.take(20));
    if (header.length < 20) throw new Error(`Closed after ${done} replies`);
    const [flags, type, length] = [header.readUInt16BE(4), header.readUInt16BE(6), header.readUInt32BE(16)];
    const cookie = Number(header.readBigUInt64BE(8));
    const payload = await client.take(length);
    const reply = found.get(cookie) ?? { data: new Uint8Array(0), types: [], error: undefined };
    reply.types.push(type);
    if (type === REPLY_TYPE.OFFSET_DATA) reply.data = payload.slice(8);
    if (type >= 0x8000) reply.error = payload;
    found.set(cookie, reply);
    if ((flags & 1) !== 0) done++;
  }
  return found;
}

async function leave(client: ByteClient): Promise<void> {
  client.send(requestBytes({ type: CMD.DISC }));
  await client.summary;
}

/** A raw image of a file, whose sends are counted; undefined, with a reason, where there is no sendfile(2). */
async function rawImage(
  t: ExecutionContext,
  name: string,
  contents: Uint8Array,
): Promise<{ image: RawImage; path: string; sent: { bytes: number } } | undefined> {
  const path = join(directory, name);
  writeFileSync(path, contents);
  const image = await RawImage.open(path, { readOnly: false, sendfile: true });
  t.teardown(() => image.close());
  if (!image.canSend) {
    t.log('SKIPPED: no node:ffi here');
    t.pass();
    return undefined;
  }
  const sent = { bytes: 0 };
  const sendNow = image.sendNow.bind(image);
  image.sendNow = (socket, offset, lengthBytes) => {
    const count = sendNow(socket, offset, lengthBytes);
    sent.bytes += count ?? 0;
    return count;
  };
  return { image, path, sent };
}

test('large reads of a raw image go by sendfile(2), whole and at any place, among small ones', async (t) => {
  const contents = pattern(40 * MIB);
  const opened = await rawImage(t, 'large.raw', contents);
  if (opened === undefined) return;
  const client = await connected(opened.image);
  const ranges = [
    [0, MIB],
    [1, 64 * 1024 + 1],
    [100, 512],
    [4095, 3 * MIB + 7],
    [MIB, 64 * 1024],
    [0, 32 * MIB],
    [40 * MIB - 70_001, 70_001],
    [8 * MIB, 128 * 1024],
    [5, 1],
  ] as const;
  client.send(reads(...ranges));
  const found = await replies(client, ranges.length);
  for (const [index, [offset, length]] of ranges.entries()) {
    const { data, error } = found.get(index)!;
    t.is(error, undefined);
    t.true(Buffer.from(contents.buffer, offset, length).equals(data), `${length} bytes from ${offset} on`);
  }
  const large = ranges.filter(([, length]) => length > 64 * 1024).reduce((sum, [, length]) => sum + length, 0);
  t.true(opened.sent.bytes > 0 && opened.sent.bytes < large, `${opened.sent.bytes} of ${large} bytes`);
  await leave(client);
});

test('what begins with zeroes is looked at as before, and a hole is sent as one', async (t) => {
  const contents = new Uint8Array(4 * MIB);
  contents.set(pattern(MIB), 2 * MIB + 4096);
  const opened = await rawImage(t, 'hole.raw', contents);
  if (opened === undefined) return;
  const client = await connected(opened.image);
  client.send(reads([0, MIB], [2 * MIB, MIB]));
  const found = await replies(client, 2);
  t.deepEqual(found.get(0)!.types, [REPLY_TYPE.OFFSET_HOLE]);
  t.true(Buffer.from(contents.buffer, 2 * MIB, MIB).equals(found.get(1)!.data));
  t.is(opened.sent.bytes, 0);
  await leave(client);
});

test('a file that became shorter: an error with its place, zeroes before it, and the session goes on', async (t) => {
  const contents = pattern(16 * MIB);
  const opened = await rawImage(t, 'shorter.raw', contents);
  if (opened === undefined) return;
  const client = await connected(opened.image);
  client.stream.pause();
  client.send(reads([0, 8 * MIB]));
  // The socket takes a part, and then nothing more.
  for (let before = -1; opened.sent.bytes === 0 || opened.sent.bytes !== before; ) {
    before = opened.sent.bytes;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const cut = 4 * MIB;
  truncateSync(opened.path, cut);
  client.stream.resume();
  const { data, types, error } = (await replies(client, 1)).get(0)!;
  t.deepEqual(types, [REPLY_TYPE.OFFSET_DATA, REPLY_TYPE.ERROR_OFFSET]);
  const told = decodeReplyError(REPLY_TYPE.ERROR_OFFSET, error!);
  t.is(told.error, NBD_ERROR.EIO);
  const valid = Number(told.offset);
  t.true(valid > cut - 256 * 1024 && valid <= cut, `valid up to ${valid}`);
  t.is(data.length, 8 * MIB);
  t.true(Buffer.from(contents.buffer, 0, valid).equals(data.subarray(0, valid)));
  t.true(data.subarray(valid).every((byte) => byte === 0));
  client.send(reads([0, 100_000]));
  t.true(Buffer.from(contents.buffer, 0, 100_000).equals((await replies(client, 1)).get(0)!.data));
  await leave(client);
});

test('where sending is slower than copying, large reads are copied, whole, among some that are sent', async (t) => {
  const image = sendingImage(4 * MIB);
  const sleep = new Int32Array(new SharedArrayBuffer(4));
  image.instead = () => {
    Atomics.wait(sleep, 0, 0, 1);
    return 'send';
  };
  const client = await connected(image);
  const lengthBytes = MIB - 4096;
  const offsets = [0, 4096, 8192, 12_288];
  // While the ways are tried, 8 MiB are copied at once. A busy host needs more turns: reads too far apart do not count.
  let copied = 0;
  for (let turn = 0; turn < 300 && copied < 10; turn++) {
    const { sentBytes } = image;
    client.send(reads(...offsets.map((offset) => [offset, lengthBytes] as const)));
    for (const [index, { data }] of await replies(client, 4)) {
      t.is(Buffer.compare(data, pattern(lengthBytes, offsets[index])), 0);
    }
    copied = image.sentBytes === sentBytes ? copied + 1 : 0;
  }
  t.is(copied, 10, 'turns of 4 MiB in a row that were copied');
  t.true(image.sentBytes > 20 * MIB, `${image.sentBytes}`);
  await leave(client);
});

test('simple replies have no place for a late error: their data is read before they begin', async (t) => {
  const image = sendingImage(2 * MIB);
  const client = await connected(image, {}, false);
  client.send(reads([7, MIB]));
  const reply = await client.reply(MIB);
  t.true(Buffer.from(pattern(MIB, 7)).equals(reply!.data));
  t.is(image.calls, 0);
  await leave(client);
});

test('reads of any size, by a client that takes little at a time, while the socket, the cache and the pool say no', async (t) => {
  const image = sendingImage(8 * MIB);
  let turn = 0;
  image.atOnce = 100_000;
  image.instead = () => (++turn % 7 === 0 ? 'pool' : turn % 5 === 0 ? 'nothing' : 'send');
  image.poolWaits = new Promise((resolve) => setTimeout(resolve, 20));
  const client = await connected(image);
  let seed = 20_261_130;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };
  for (let round = 0; round < 8; round++) {
    const ranges = Array.from({ length: 40 }, () => {
      const length = 1 + random(random(3) === 0 ? 2 * MIB : random(2) === 0 ? 200_000 : 5000);
      return [random(8 * MIB - length), length] as const;
    });
    client.send(reads(...ranges));
    const found = await replies(client, ranges.length);
    for (const [index, [offset, length]] of ranges.entries()) {
      t.true(Buffer.from(pattern(length, offset)).equals(found.get(index)!.data), `${length} bytes from ${offset} on`);
    }
  }
  t.true(image.sentBytes > 10 * MIB);
  await leave(client);
});

for (const when of ['in place', 'by the pool'] as const) {
  test(`a part that cannot be read ${when} is an error with its place, and what is behind it comes`, async (t) => {
    const image = sendingImage(4 * MIB);
    image.badFrom = 700_000;
    if (when === 'by the pool') image.instead = (offset) => (offset > 300_000 ? 'pool' : 'send');
    const client = await connected(image);
    client.send(reads([100_000, MIB], [0, 4096], [50, 200_000]));
    const found = await replies(client, 3);
    const first = found.get(0)!;
    t.deepEqual(first.types, [REPLY_TYPE.OFFSET_DATA, REPLY_TYPE.ERROR_OFFSET]);
    const told = decodeReplyError(REPLY_TYPE.ERROR_OFFSET, first.error!);
    const end = Number(told.offset);
    t.true(end > 300_000 && end <= 700_000, `valid up to ${end}`);
    t.is(first.data.length, MIB);
    const valid = end - 100_000;
    t.true(Buffer.from(pattern(valid, 100_000)).equals(first.data.subarray(0, valid)));
    t.true(first.data.subarray(valid).every((byte) => byte === 0));
    t.true(Buffer.from(pattern(4096)).equals(found.get(1)!.data));
    t.true(Buffer.from(pattern(200_000, 50)).equals(found.get(2)!.data));
    await leave(client);
    t.is((await client.summary).counters.failed, 1);
  });
}

test('what is not at hand is fetched for all parts that wait, once', async (t) => {
  const image = sendingImage(8 * MIB);
  const announced: [number, number][] = [];
  image.willSend = (offset, lengthBytes) => void announced.push([offset, lengthBytes]);
  image.instead = (offset) => (offset < 200_000 ? 'send' : 'pool');
  image.poolWaits = new Promise((resolve) => setTimeout(resolve, 50));
  const client = await connected(image);
  client.send(reads([0, MIB], [2 * MIB, 100_000], [4 * MIB, MIB]));
  const found = await replies(client, 3);
  for (const [index, offset] of [0, 2 * MIB, 4 * MIB].entries()) {
    const { data } = found.get(index)!;
    t.true(Buffer.from(pattern(data.length, offset)).equals(data));
  }
  t.is(announced.length, 3);
  const [first, second, third] = announced;
  t.true(first![0] >= 200_000 && first![0] + first![1] === MIB);
  t.deepEqual(second, [2 * MIB + 4096, 100_000 - 4096]);
  t.deepEqual(third, [4 * MIB + 4096, MIB - 4096]);
  await leave(client);
});

test('a client that leaves in the middle: the session is over, and the image at rest', async (t) => {
  const image = sendingImage(32 * MIB);
  const { promise: poolWaits, resolve: answer } = Promise.withResolvers<void>();
  image.poolWaits = poolWaits;
  image.instead = (offset) => (offset > MIB ? 'pool' : 'send');
  const client = await connected(image);
  client.send(reads([0, 16 * MIB], [0, 16 * MIB], [0, 100]));
  await Promise.all([client.take(MIB), image.poolAsked.promise]);
  client.stream.destroy();
  let isOver = false;
  void client.summary.then(() => {
    isOver = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 100));
  t.false(isOver, 'a read is under way');
  answer();
  await client.summary;
});

test('a client that leaves while the socket is full leaves nothing behind', async (t) => {
  const image = sendingImage(32 * MIB);
  const client = await connected(image);
  client.stream.pause();
  client.send(reads([0, 16 * MIB], [0, 16 * MIB], [0, 100]));
  while (image.calls === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  client.stream.destroy();
  await client.summary;
  t.true(image.sentBytes < 16 * MIB);
});

test('H15: shutting down sends what has begun, whole', async (t) => {
  const image = sendingImage(8 * MIB);
  const abort = new AbortController();
  const client = await connected(image, { signal: abort.signal });
  client.stream.pause();
  client.send(reads([0, 4 * MIB], [MIB, MIB]));
  while (image.calls === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  abort.abort();
  await new Promise((resolve) => setTimeout(resolve, 50));
  client.stream.resume();
  const found = await replies(client, 2);
  t.true(Buffer.from(pattern(4 * MIB)).equals(found.get(0)!.data));
  t.true(Buffer.from(pattern(MIB, MIB)).equals(found.get(1)!.data));
  t.is((await client.rest()).length, 0);
  await client.summary;
});

test('what was asked for before bad bytes, or before the last request, comes whole', async (t) => {
  for (const last of [new Uint8Array(28).fill(1), requestBytes({ type: CMD.DISC })]) {
    const image = sendingImage(8 * MIB);
    const client = await connected(image);
    client.send(joined(reads([0, 4 * MIB], [3, 100]), last));
    const found = await replies(client, 2);
    t.true(Buffer.from(pattern(4 * MIB)).equals(found.get(0)!.data));
    t.true(Buffer.from(pattern(100, 3)).equals(found.get(1)!.data));
    t.is((await client.rest()).length, 0);
    await client.summary;
  }
});

test('a client that says good-bye and takes nothing has the time to leave, and no more', async (t) => {
  const image = sendingImage(8 * MIB);
  const client = await connected(image, { limits: { drainMs: 200 } });
  client.stream.pause();
  client.send(joined(reads([0, 8 * MIB]), requestBytes({ type: CMD.DISC })));
  const { error } = await client.summary;
  t.is((error as { code?: string }).code, 'ERR_WIRE_TIMEOUT');
  t.true(image.sentBytes < 8 * MIB);
});

test('a write over what is being sent waits until it is', async (t) => {
  const image = sendingImage(8 * MIB);
  const client = await connected(image);
  client.stream.pause();
  client.send(reads([0, 4 * MIB]), requestBytes({ type: CMD.WRITE, cookie: 9n, offset: 3_000_000n, length: 1000 }));
  client.send(new Uint8Array(1000).fill(255));
  while (image.calls === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  await new Promise((resolve) => setTimeout(resolve, 50));
  client.stream.resume();
  t.true(Buffer.from(pattern(4 * MIB)).equals((await replies(client, 1)).get(0)!.data));
  t.is((await client.reply())?.error, 0);
  const after = new Uint8Array(1000);
  image.readNow(3_000_000, after);
  t.true(after.every((byte) => byte === 255));
  await leave(client);
});

test('FileSender gives up on a file that has no way out', (t) => {
  const path = join(directory, 'stuck');
  writeFileSync(path, pattern(100));
  const fd = openSync(path, 'r');
  t.teardown(() => closeSync(fd));
  const sender = FileSender.load(fd);
  if (sender === undefined) {
    t.log('SKIPPED: no node:ffi here');
    t.pass();
    return;
  }
  // A descriptor that cannot be written to.
  for (let call = 0; sender.works; call++) {
    t.true(call < 100);
    t.is(sender.send(fd, 0, 100), 0);
  }
});
