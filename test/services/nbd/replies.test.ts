import { Duplex } from 'node:stream';
import test from 'ava';
import { CMD, decodeChunkHeader, REPLY_TYPE } from '../../../protocols/nbd/mod.ts';
import { BufferPool } from '../../../services/nbd/buffer_pool.ts';
import { ExportSet, MemoryImage } from '../../../services/nbd/mod.ts';
import { ReplyQueue } from '../../../services/nbd/reply_queue.ts';
import { ReplyWriter } from '../../../services/nbd/reply_writer.ts';
import { ByteClient, joined, requestBytes } from './harness.ts';

// How replies are put together: what leaves together, and how much is made before it is taken.

const MIB = 1 << 20;

/** Counts reads; those of `inPlace` false have to wait */
class CountingImage extends MemoryImage {
  reads = 0;
  readonly inPlace: boolean;

  constructor(sizeBytes: number, inPlace: boolean) {
    super(sizeBytes);
    this.inPlace = inPlace;
  }

  override readNow(offset: number, into: Uint8Array): boolean {
    if (!this.inPlace) return false;
    this.reads++;
    return super.readNow(offset, into);
  }

  override async read(offset: number, into: Uint8Array): Promise<void> {
    this.reads++;
    super.readNow(offset, into);
  }
}

function served(image: MemoryImage): ExportSet {
  const exports = new ExportSet();
  exports.add({ name: '', image, writable: true });
  return exports;
}

test('replies to small reads that the pool has done in one turn leave in one piece', async (t) => {
  const image = new CountingImage(MIB, false);
  image.writeNow(0, new Uint8Array(MIB).fill(7));
  const client = await new ByteClient(served(image)).go('', { structured: true });
  const pieces: number[] = [];
  client.stream.on('data', (chunk: Uint8Array) => pieces.push(chunk.length));
  client.send(
    joined(...Array.from({ length: 8 }, (_, index) => requestBytes({ offset: BigInt(index), length: 4096 }))),
  );
  for (let index = 0; index < 8; index++) t.is((await client.reply())?.data.length, 8 + 4096);
  t.deepEqual(pieces, [8 * (20 + 8 + 4096)]);
  client.send(requestBytes({ type: CMD.DISC }));
  await client.summary;
});

test('large reads of a client that takes nothing are not made far ahead', async (t) => {
  const image = new CountingImage(MIB, true);
  image.writeNow(0, new Uint8Array(MIB).fill(7));
  const client = await new ByteClient(served(image)).go();
  client.stream.pause();
  client.send(
    joined(...Array.from({ length: 32 }, (_, index) => requestBytes({ cookie: BigInt(index), length: MIB }))),
  );
  for (let before = -1; image.reads === 0 || image.reads !== before; ) {
    before = image.reads;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  t.true(image.reads > 0 && image.reads <= 2, `${image.reads} reads`);
  client.stream.resume();
  for (let index = 0; index < 32; index++) {
    const reply = await client.reply(MIB);
    t.is(reply?.cookie, BigInt(index));
    t.is(reply?.data.at(-1), 7);
  }
  t.is(image.reads, 32);
  client.send(requestBytes({ type: CMD.DISC }));
  await client.summary;
});

test('a client that leaves while replies wait: their memory is given back once, whatever is asked of the stream then', async (t) => {
  const taken: ((error?: Error) => void)[] = [];
  const stream = new Duplex({
    read: () => {},
    write: (_bytes, _encoding, callback) => void taken.push(callback),
    writev: (_chunks, callback) => void taken.push(callback),
  });
  stream.on('error', () => {});
  const given = new Map<Buffer, number>();
  const pool = new (class extends BufferPool {
    override give(buffer: Buffer): void {
      given.set(buffer, (given.get(buffer) ?? 0) + 1);
    }
  })();
  let told = 0;
  // A session does that: once there is room enough, a request that has waited is answered.
  const queue = new ReplyQueue(stream, pool, () => {
    if (++told > 2 && told < 20) appendOne();
  });
  const appendOne = (): void => {
    const at = queue.reserve(28);
    queue.bytes.fill(1, at, at + 28);
    queue.commit(28);
    queue.appendOwned(pool.take(MIB), MIB);
  };
  for (let count = 0; count < 4; count++) appendOne();
  const closed = new Promise((resolve) => stream.once('close', resolve));
  while (taken.length > 0) {
    taken.shift()!(new Error('write EPIPE'));
    await new Promise((resolve) => setImmediate(resolve));
  }
  await closed;
  t.true(given.size >= 4);
  t.deepEqual(
    [...given.values()].filter((times) => times !== 1),
    [],
  );
});

test('replies that are built behind a failed write give their memory back once', async (t) => {
  const pool = new BufferPool();
  const stream = new Duplex({ read() {}, write: (_bytes, _encoding, done) => done(new Error('write EPIPE')) });
  stream.on('error', () => {});
  const queue = new ReplyQueue(stream, pool, () => {});
  const slabBytes = 256 * 1024;
  queue.append(new Uint8Array(100));
  queue.flush();
  await new Promise((resolve) => setImmediate(resolve));
  // A session that has more to do builds them before it hears that the stream is gone.
  t.notThrows(() => {
    for (let built = 0; built < 4 * slabBytes; built += 60_000) queue.append(new Uint8Array(60_000));
    queue.flush();
  });
  t.is(pool.idleBytes, slabBytes);
});

for (const failing of [false, true]) {
  test(`TLS gets large replies in pieces, all of them in order; a stream that fails in the middle: ${failing}`, async (t) => {
    const written: Buffer[] = [];
    const stream = Object.assign(
      new Duplex({
        read: () => {},
        write: (bytes: Buffer, _encoding, callback) => {
          written.push(Buffer.from(bytes));
          setImmediate(callback, failing && written.length === 3 ? new Error('write EPIPE') : null);
        },
      }),
      { encrypted: true },
    );
    stream.on('error', () => {});
    const given: Buffer[] = [];
    const pool = new (class extends BufferPool {
      override give(buffer: Buffer): void {
        given.push(buffer);
      }
    })();
    const queue = new ReplyQueue(stream, pool, () => {});
    const expected: Buffer[] = [];
    const large: Buffer[] = [];
    for (let count = 1; count <= 3; count++) {
      const at = queue.reserve(28);
      queue.bytes.fill(count, at, at + 28);
      queue.commit(28);
      const buffer = pool.take(MIB);
      buffer.fill(0x10 + count);
      large.push(buffer);
      queue.appendOwned(buffer, MIB - count);
      expected.push(Buffer.alloc(28, count), Buffer.alloc(MIB - count, 0x10 + count));
    }
    t.true(queue.pendingBytes > 2 * MIB);
    let sent = 0;
    queue.whenSent(() => {
      sent++;
    });
    t.is(sent, 0);
    const closed = new Promise((resolve) => stream.once('close', resolve));
    if (failing) await closed.then(() => queue.abandon());
    else while (queue.pendingBytes > 0) await new Promise((resolve) => setImmediate(resolve));
    t.true(written.every(({ length }) => length <= 128 * 1024));
    const all = Buffer.concat(written);
    t.true(all.equals(Buffer.concat(expected).subarray(0, all.length)));
    t.is(all.length < 3 * MIB, failing);
    t.is(sent, failing ? 0 : 1);
    for (const buffer of large) t.is(given.filter((other) => other === buffer).length, 1);
  });
}

test('ReplyWriter says offsets beyond 32 bits as they are', (t) => {
  const written: Buffer[] = [];
  const stream = { write: (bytes: Buffer) => written.push(bytes) } as unknown as ConstructorParameters<
    typeof ReplyQueue
  >[0];
  const queue = new ReplyQueue(stream, new BufferPool(0), () => {});
  const writer = new ReplyWriter(queue, { structured: true, extended: false });
  const offsets = [0, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 40 + 3, Number.MAX_SAFE_INTEGER - 5];
  for (const offset of offsets) writer.sendRead({ cookie: 5n, offset, length: 5 }, Buffer.from('hello'));
  queue.flush();
  const all = Buffer.concat(written);
  for (const [index, offset] of offsets.entries()) {
    const at = index * (20 + 8 + 5);
    t.is(decodeChunkHeader(all.subarray(at, at + 20)).type, REPLY_TYPE.OFFSET_DATA);
    t.is(all.readBigUInt64BE(at + 20), BigInt(offset));
    t.is(all.toString('latin1', at + 28, at + 33), 'hello');
  }
});

test('ReplyQueue gives a view again only where it is the same one', (t) => {
  const pool = new BufferPool();
  const stream = { write: (_: unknown, done: () => void) => done() } as unknown as ConstructorParameters<
    typeof ReplyQueue
  >[0];
  const queue = new ReplyQueue(stream, pool, () => {});
  const sizes = [
    [100, 200, 100],
    [100, 200, 100],
    [100, 64, 300],
    [1, 200, 100],
  ];
  let seed = 0;
  for (const lengths of sizes) {
    const expected: number[] = [];
    let start: number | undefined;
    for (const length of lengths) {
      const at = queue.reserve(length + 4);
      start ??= at;
      const piece = queue.piece(at + 4, length);
      t.is(piece.length, length);
      t.is(piece.byteOffset, queue.bytes.byteOffset + at + 4);
      piece.fill(++seed);
      queue.view.setUint32(at, length);
      queue.commit(length + 4);
      expected.push(...new Uint8Array(new Uint32Array([length]).buffer).reverse(), ...new Array(length).fill(seed));
    }
    t.deepEqual([...queue.bytes.subarray(start, start! + expected.length)], expected);
    queue.flush();
  }
});

test('success without data is a simple reply, but to extended headers; READ keeps the form that was agreed', (t) => {
  const magicOf = (form: { structured: boolean; extended: boolean }, reply: (writer: ReplyWriter) => void): number => {
    const written: Buffer[] = [];
    const stream = { write: (bytes: Buffer) => written.push(bytes) } as unknown as ConstructorParameters<
      typeof ReplyQueue
    >[0];
    const queue = new ReplyQueue(stream, new BufferPool(0), () => {});
    reply(new ReplyWriter(queue, form));
    queue.flush();
    return Buffer.concat(written).readUInt32BE(0);
  };
  const [simple, chunk, extendedChunk] = [0x67446698, 0x668e33ef, 0x6e8a278c];
  const request = { cookie: 1n, offset: 0 };
  const done = (writer: ReplyWriter) => writer.succeed(request);
  const nothingRead = (writer: ReplyWriter) => writer.succeedRead(request);
  const failed = (writer: ReplyWriter) => writer.fail(request, { error: 5, text: 'why' });
  const plain = { structured: false, extended: false };
  const structured = { structured: true, extended: false };
  const extended = { structured: true, extended: true };
  for (const reply of [done, nothingRead, failed]) t.is(magicOf(plain, reply), simple);
  t.is(magicOf(structured, done), simple);
  for (const reply of [nothingRead, failed]) t.is(magicOf(structured, reply), chunk);
  for (const reply of [done, nothingRead, failed]) t.is(magicOf(extended, reply), extendedChunk);
});
