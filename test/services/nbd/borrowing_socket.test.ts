import { mkdtempSync, rmSync } from 'node:fs';
import { connect, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { duplexPair } from 'node:stream';
import test from 'ava';
import { CMD } from '../../../protocols/nbd/mod.ts';
import { borrowingSocket } from '../../../services/nbd/borrowing_socket.ts';
import { ExportSet, MemoryImage, NbdClient, NbdListener, serveNbd } from '../../../services/nbd/mod.ts';
import { socketPair } from '../../../services/shared/stream_pair.ts';
import { requestBytes } from './harness.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-borrow-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));

/** Writes late: whoever lends a buffer and takes it back too early is found out. */
class LateImage extends MemoryImage {
  override writeNow(): boolean {
    return false;
  }
  override async write(offset: number, data: Uint8Array): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, 1));
    super.writeNow(offset, data);
  }
}

for (const address of [
  { type: 'unix', path: join(directory, 'late.sock') },
  { type: 'inet', port: 0 },
] as const) {
  for (const late of [true, false]) {
    test(`the one receive buffer is never used twice at once: ${address.type}, late writes ${late}`, async (t) => {
      const size = 8 << 20;
      const image = late ? new LateImage(size) : new MemoryImage(size);
      const exports = new ExportSet();
      exports.add({ name: '', image, writable: true });
      const path = address.type === 'unix' ? `${address.path}${late}` : '';
      const listener = await NbdListener.listen(address.type === 'unix' ? { type: 'unix', path } : address, exports);
      const client = await NbdClient.connect(listener.uri);
      const expected = new Uint8Array(size);
      let seed = 7;
      const random = (below: number): number => {
        seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
        return Math.floor((seed / 2 ** 32) * below);
      };
      for (let round = 0; round < 6; round++) {
        const writes: Promise<void>[] = [];
        // Overlapping ones among them: they are held back, and must not be kept as a view either.
        for (let count = 0; count < 60; count++) {
          const length = 1 + random(count % 30 === 0 ? 2_000_000 : count % 10 === 0 ? 300_000 : 9000);
          const offset = random(size - length);
          const data = new Uint8Array(length).fill(1 + random(255));
          expected.set(data, offset);
          writes.push(client.write(offset, data));
        }
        await Promise.all(writes);
      }
      const found = new Uint8Array(size);
      await client.read(0, found);
      t.true(Buffer.from(found).equals(expected));
      await client.close();
      await listener.close();
    });
  }
}

test('a client that leaves within a large payload does not write into buffers of others', async (t) => {
  const size = 16 << 20;
  const image = new MemoryImage(size);
  const exports = new ExportSet();
  exports.add({ name: '', image, writable: true });
  const path = join(directory, 'leaver.sock');
  const listener = await NbdListener.listen({ type: 'unix', path }, exports);
  const good = await NbdClient.connect(listener.uri);
  const hello = Buffer.alloc(4 + 16 + 6);
  hello.writeUInt32BE(3, 0);
  hello.write('IHAVEOPT', 4, 'latin1');
  hello.writeUInt32BE(7, 12);
  hello.writeUInt32BE(6, 16);
  const expected = Buffer.alloc(size);
  const payload = new Uint8Array(1 << 20);
  for (let round = 0; round < 12; round++) {
    const leaver = connect(path);
    leaver.on('error', () => {});
    const closed = new Promise((resolve) => leaver.once('close', resolve));
    leaver.write(Buffer.concat([hello, requestBytes({ type: CMD.WRITE, length: 1 << 20 })]));
    leaver.write(new Uint8Array(100_000 + round * 70_000).fill(0xbd));
    // Others get buffers from the same pool while it still sends, and when it has gone.
    payload.fill(round + 1);
    expected.fill(round + 1, round << 20, (round + 1) << 20);
    await good.write(round << 20, payload);
    leaver.write(new Uint8Array(50_000).fill(0xbd));
    leaver.end();
    leaver.resume();
    await Promise.all([good.write(round << 20, payload), closed]);
  }
  const found = new Uint8Array(size);
  await good.read(0, found);
  t.true(expected.equals(found));
  await good.close();
  await listener.close();
});

test('T17: a client that does not read is not read either, over a socket', async (t) => {
  const exports = new ExportSet();
  exports.add({ name: '', image: new MemoryImage(64 << 20), writable: true });
  const path = join(directory, 'deaf.sock');
  const listener = await NbdListener.listen({ type: 'unix', path }, exports);
  const good = await NbdClient.connect(listener.uri);
  const deaf = connect(path);
  deaf.on('error', () => {});
  deaf.pause();
  const go = Buffer.alloc(16 + 6);
  go.write('IHAVEOPT', 0);
  go.writeUInt32BE(7, 8);
  go.writeUInt32BE(6, 12);
  deaf.write(Buffer.from([0, 0, 0, 3]));
  deaf.write(go);
  const request = requestBytes({ type: CMD.READ, length: 1 << 20 });
  for (let count = 0; count < 20_000; count++) deaf.write(request);
  await new Promise((resolve) => setTimeout(resolve, 300));
  const held = listener.metrics().sessions.map((session) => session.heldBytes);
  t.true(Math.max(...held) < 16 << 20, `${held}`);
  await good.read(0, new Uint8Array(4096));
  deaf.destroy();
  await good.close();
  await listener.close();
  t.is(listener.connections, 0);
});

test('a socket without a handle is used as it is', (t) => {
  const socket = new Socket();
  t.is(borrowingSocket(socket), socket);
  socket.destroy();
});

test('a stream that is no socket is used as it is, and nothing is read from it', async (t) => {
  const [near, far] = duplexPair();
  t.is(borrowingSocket(near), near);
  far.write('early');
  await new Promise((resolve) => setImmediate(resolve));
  t.is(near.readableFlowing, null);
  t.is(String(near.read()), 'early');
});

test('a client and a server over a pair of borrowing sockets: reads go straight to shared memory, whole and in order', async (t) => {
  const size = 8 << 20;
  const image = new MemoryImage(size);
  const content = Uint8Array.from({ length: size }, (_, index) => (index * 31 + (index >> 12)) & 0xff);
  image.writeNow(0, content);
  const exports = new ExportSet();
  exports.add({ name: 'disk', image, writable: true });
  const [near, far] = await socketPair();
  const served = serveNbd(borrowingSocket(far), exports, { limits: { handshakeMs: 0, payloadMs: 0 } });
  const client = await NbdClient.connect(borrowingSocket(near), { exportName: 'disk' });
  const memory = new SharedArrayBuffer(size);
  const lengths = [4096, 1 << 20, 16 * 1024, 65_536, 300_000, 1, 2 << 20, 70_001];
  const reads: Promise<void>[] = [];
  let offset = 0;
  for (let index = 0; offset < size; index++) {
    const length = Math.min(lengths[index % lengths.length]!, size - offset);
    reads.push(client.read(offset, new Uint8Array(memory, offset, length)));
    offset += length;
  }
  await Promise.all(reads);
  t.true(Buffer.from(memory).equals(content));
  await client.write(5000, new Uint8Array(300_000).fill(9));
  const written = new Uint8Array(300_002);
  await client.read(4999, written);
  t.deepEqual([written[0], written[1], written[300_000], written[300_001]], [content[4999], 9, 9, content[305_000]]);
  await client.close();
  await served;
});

test('a server that goes within a large read: the client says so, and nothing is written to its memory afterwards', async (t) => {
  const size = 8 << 20;
  const exports = new ExportSet();
  exports.add({ name: 'disk', image: new MemoryImage(size), writable: true });
  const [near, far] = await socketPair();
  const server = borrowingSocket(far);
  const served = serveNbd(server, exports);
  const client = await NbdClient.connect(borrowingSocket(near), { exportName: 'disk' });
  const into = new Uint8Array(new SharedArrayBuffer(size)).fill(1);
  const reading = client.read(0, into);
  setImmediate(() => server.destroy());
  await t.throwsAsync(reading, { name: 'NbdError' });
  const before = Buffer.from(into);
  await new Promise((resolve) => setTimeout(resolve, 50));
  t.true(Buffer.from(into).equals(before));
  await client.closed;
  await served;
});
