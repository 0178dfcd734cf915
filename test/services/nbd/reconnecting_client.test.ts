import { type Duplex, duplexPair } from 'node:stream';
import test from 'ava';
import {
  ExportSet,
  ImageError,
  MemoryImage,
  NbdClient,
  type NbdClientOptions,
  type NbdConnectionEvent,
  NbdError,
  NbdImage,
  NbdReconnectingClient,
  type NbdReconnectOptions,
  serveNbd,
} from '../../../services/nbd/mod.ts';

const SIZE = 1 << 20;

/** Loses with a crash what was not flushed before, like a host whose power goes. */
class VolatileImage extends MemoryImage {
  readonly stable = new MemoryImage(SIZE);
  flushes = 0;
  override async flush(): Promise<void> {
    this.flushes++;
    const all = new Uint8Array(SIZE);
    this.readNow(0, all);
    this.stable.writeNow(0, all);
  }
  crash(): void {
    const all = new Uint8Array(SIZE);
    this.stable.readNow(0, all);
    super.writeNow(0, all);
  }
}

/** A server that can go and come back, as its clients see it. */
class Host {
  image: VolatileImage = new VolatileImage(SIZE);
  up = true;
  multiConn = true;
  writable = true;
  connects = 0;
  #streams: Duplex[] = [];
  readonly events: NbdConnectionEvent[] = [];

  readonly connect = async (options: NbdClientOptions = {}): Promise<NbdClient> => {
    this.connects++;
    if (!this.up) throw new Error('connection refused');
    const [near, far] = duplexPair();
    const exports = new ExportSet();
    exports.add({ name: 'disk', image: this.image, writable: this.writable, multiConn: this.multiConn });
    void serveNbd(far, exports);
    this.#streams.push(far);
    return NbdClient.connect(near, options);
  };

  client(options: NbdReconnectOptions = {}): Promise<NbdReconnectingClient> {
    return NbdReconnectingClient.connect(() => this.connect(options), {
      reconnectDelayMs: 20_000,
      onEvent: (event) => this.events.push(event),
      ...options,
    });
  }

  /** All connections break; with `power` what was not flushed is gone, too. */
  crash(options: { power?: boolean; down?: boolean } = {}): void {
    this.up = options.down !== true;
    for (const stream of this.#streams) stream.destroy(new Error('crash'));
    this.#streams = [];
    if (options.power) this.image.crash();
  }
}

const filled = (length: number, value: number): Uint8Array => new Uint8Array(length).fill(value);
async function readAll(disk: { read(offset: number, into: Uint8Array): Promise<void> }, length: number) {
  const into = new Uint8Array(length);
  await disk.read(0, into);
  return into;
}

test('C7: a request that is under way when the connection breaks is sent again', async (t) => {
  const host = new Host();
  await using disk = await host.client();
  await disk.write(0, filled(4096, 1));
  const running = [disk.write(4096, filled(4096, 2)), readAll(disk, 4096), disk.flush(), disk.trim(8192, 4096)];
  host.crash();
  await Promise.all(running);
  t.deepEqual((await readAll(disk, 8192)).subarray(0, 8192), Uint8Array.from([...filled(4096, 1), ...filled(4096, 2)]));
  t.deepEqual(
    host.events.map(({ kind }) => kind),
    ['lost', 'back'],
  );
});

test('C7: what was answered and not flushed is there again behind a crash that loses it', async (t) => {
  const host = new Host();
  await using disk = await host.client();
  await disk.write(0, filled(8192, 1));
  await disk.flush();
  await disk.write(0, filled(4096, 2));
  await disk.write(1000, filled(1000, 3));
  await disk.writeZeroes(1500, 100);
  await disk.write(1550, filled(10, 4), { fua: false });
  const before = await readAll(disk, 8192);
  for (let round = 0; round < 3; round++) {
    host.crash({ power: true });
    t.deepEqual(await readAll(disk, 8192), before, `crash ${round}`);
  }
  t.true(host.events.some((event) => event.kind === 'back' && event.replayed === 4));
  await disk.flush();
  host.crash({ power: true });
  t.deepEqual(await readAll(disk, 8192), before);
  t.deepEqual(host.events.at(-1), { kind: 'back', replayed: 0 }, 'a flush ends the need to remember');
});

test('C7: a FUA write over a change that comes again comes again behind it', async (t) => {
  const host = new Host();
  await using disk = await host.client();
  await disk.write(0, filled(4096, 1));
  await disk.write(0, filled(512, 2), { fua: true });
  host.crash({ power: true });
  const found = await readAll(disk, 4096);
  t.deepEqual(found.subarray(0, 512), filled(512, 2));
  t.deepEqual(found.subarray(512), filled(3584, 1));
});

test('C7: a client that waits for a server longer than its delay fails, and goes on when the server is back', async (t) => {
  const host = new Host();
  await using disk = await host.client({ reconnectDelayMs: 300 });
  await disk.write(0, filled(512, 7));
  host.crash({ down: true });
  const start = performance.now();
  await t.throwsAsync(disk.write(512, filled(512, 8)), { instanceOf: NbdError, code: 'EIO' });
  t.true(performance.now() - start >= 250);
  await t.throwsAsync(disk.flush(), { code: 'EIO' });
  t.true(performance.now() - start < 5000, 'later ones fail at once');
  host.up = true;
  for (let tries = 0; tries < 200 && disk.connections === 0; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  t.deepEqual(await readAll(disk, 512), filled(512, 7));
});

test('C7: without a delay a request fails at once', async (t) => {
  const host = new Host();
  await using disk = await host.client({ reconnectDelayMs: 0 });
  host.crash({ down: true });
  await t.throwsAsync(readAll(disk, 512), { instanceOf: NbdError });
});

test('C7: another disk under the same name is not gone on with', async (t) => {
  const host = new Host();
  await using disk = await host.client({ reconnectDelayMs: 500 });
  await disk.write(0, filled(512, 7));
  host.crash({ down: true });
  host.image = new (class extends VolatileImage {
    override get sizeBytes(): number {
      return SIZE / 2;
    }
  })(SIZE);
  host.up = true;
  await t.throwsAsync(readAll(disk, 512), { instanceOf: NbdError });
  t.true(host.events.some((event) => event.kind === 'failed' && event.reason.includes('Cannot go on')));
});

test('C7: changes that the server does not take again are told by the next flush, and by every one behind it', async (t) => {
  const host = new Host();
  await using disk = await host.client();
  await disk.write(0, filled(512, 7));
  host.image.writeNow = () => {
    throw new ImageError('ENOSPC', 'full');
  };
  host.crash();
  await readAll(disk, 512);
  await t.throwsAsync(disk.flush(), { code: 'EIO' });
  await t.throwsAsync(disk.flush(), { code: 'EIO' });
});

test('C7: a server that says it is shutting down is as good as gone', async (t) => {
  const host = new Host();
  await using disk = await host.client();
  let refused = 0;
  const { readNow } = host.image;
  host.image.readNow = function (this: VolatileImage, ...args) {
    if (refused++ === 0) throw new ImageError('ESHUTDOWN', 'going');
    return readNow.apply(this, args);
  };
  await readAll(disk, 512);
  t.is(refused, 2);
  t.is(host.connects, 2);
});

test('C7: a request that ends every server it meets is given up', async (t) => {
  const host = new Host();
  await using disk = await host.client({ reconnectDelayMs: 400 });
  host.image.readNow = () => {
    host.crash();
    return true;
  };
  await t.throwsAsync(readAll(disk, 512), { instanceOf: NbdError });
  t.true(host.connects < 50);
});

test('C7: many changes without a flush make the client flush by itself, and its memory stays bounded', async (t) => {
  const host = new Host();
  await using disk = await host.client({ replayBytes: 64 * 1024 });
  for (let round = 0; round < 100; round++) await disk.write((round % 8) * 8192, filled(8192, round));
  t.true(host.image.flushes >= 4, `${host.image.flushes} flushes`);
  host.crash({ power: true });
  const found = await readAll(disk, 65536);
  for (let part = 0; part < 8; part++) t.is(found[part * 8192], part < 4 ? 96 + part : 88 + part);
});

test('C7: opening tries again until its time is over', async (t) => {
  const host = new Host();
  host.up = false;
  setTimeout(() => {
    host.up = true;
  }, 300);
  const disk = await host.client({ retryOpenMs: 10_000 });
  t.true(host.connects > 1);
  await disk.close();
  host.up = false;
  await t.throwsAsync(host.client({ retryOpenMs: 200 }), { message: 'connection refused' });
});

test('C8: several connections are used where the server allows them, and one where it does not', async (t) => {
  const host = new Host();
  await using disk = await host.client({ connections: 4 });
  t.is(disk.connections, 4);
  await Promise.all(Array.from({ length: 64 }, (_, index) => disk.write(index * 4096, filled(4096, index))));
  await disk.flush();
  const found = await readAll(disk, 64 * 4096);
  for (let index = 0; index < 64; index++) t.is(found[index * 4096 + 4095], index);
  const single = new Host();
  single.multiConn = false;
  await using other = await single.client({ connections: 4 });
  t.is(other.connections, 1);
});

test('C8: one connection of several that breaks takes nothing with it', async (t) => {
  const host = new Host();
  await using disk = await host.client({ connections: 3 });
  const writes = Array.from({ length: 100 }, (_, index) => disk.write(index * 512, filled(512, index)));
  host.crash({ power: true });
  await Promise.all(writes);
  const found = await readAll(disk, 100 * 512);
  for (let index = 0; index < 100; index++) t.is(found[index * 512], index);
  t.is(disk.connections, 3);
});

test('C7: close() ends what waits for a server', async (t) => {
  const host = new Host();
  const disk = await host.client();
  host.crash({ down: true });
  const waiting = t.throwsAsync(readAll(disk, 512), { code: 'ESHUTDOWN' });
  await new Promise((resolve) => setTimeout(resolve, 50));
  await disk.close();
  await waiting;
  await disk.close();
  await t.throwsAsync(disk.read(0, new Uint8Array(1)), { code: 'ESHUTDOWN' });
});

test('NbdImage: a disk behind NBD is an image like any other, also one that is served again', async (t) => {
  const host = new Host();
  const image = new NbdImage(await host.client());
  const exports = new ExportSet();
  exports.add({ name: 'again', image, writable: true });
  const [near, far] = duplexPair();
  void serveNbd(far, exports);
  await using disk = await NbdClient.connect(near);
  await disk.write(100, filled(1000, 5), { fua: true });
  t.deepEqual(await disk.blockStatus(1 << 19, 4096), [{ lengthBytes: 4096, flags: 3 }]);
  host.crash({ power: true });
  const found = await readAll(disk, 2000);
  t.deepEqual(found.subarray(100, 1100), filled(1000, 5));
  await disk.writeZeroes(0, 500);
  await disk.trim(0, 4096);
  await image.inactivate();
  await t.throwsAsync(disk.write(0, filled(1, 1)), { code: 'EPERM' });
  await image.activate();
  await disk.write(0, filled(1, 1));
  await image.close();
});

test('NbdImage: a read-only export makes no writable image', async (t) => {
  const host = new Host();
  host.writable = false;
  const client = await host.client();
  t.throws(() => new NbdImage(client), { instanceOf: ImageError, code: 'EPERM' });
  const image = new NbdImage(client, { readOnly: true });
  await t.throwsAsync(image.write(0, filled(1, 1)), { code: 'EPERM' });
  await image.read(0, new Uint8Array(1));
  await image.close();
});

test('C7: a server that ends each connection as soon as it is open is not stormed', async (t) => {
  const host = new Host();
  let flaky = false;
  const disk = await NbdReconnectingClient.connect(
    async () => {
      const client = await host.connect();
      if (flaky) setImmediate(() => host.crash());
      return client;
    },
    { reconnectDelayMs: 20_000, onEvent: (event) => host.events.push(event) },
  );
  t.teardown(() => disk.close());
  flaky = true;
  host.connects = 0;
  const flakyMs = performance.now();
  host.crash();
  await new Promise((resolve) => setTimeout(resolve, 1000));
  // A busy host has hardly begun by now
  for (let tries = 0; tries < 600 && host.connects < 2; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  // Pauses are 100 ms and twice as long each time
  const elapsedMs = performance.now() - flakyMs;
  const most = Math.log2(elapsedMs / 100 + 1) + 3;
  t.true(host.connects >= 2 && host.connects <= most, `${host.connects} connections in ${elapsedMs} ms`);
  t.true(host.events.length <= 4 * most, `${host.events.length} events`);
  flaky = false;
  await disk.write(0, filled(512, 7));
  t.deepEqual(await readAll(disk, 512), filled(512, 7));
  // Once it has stayed for a while, the next loss is mended at once.
  await new Promise((resolve) => setTimeout(resolve, 1100));
  const startedMs = performance.now();
  host.crash();
  await readAll(disk, 512);
  t.true(performance.now() - startedMs < 5000);
  await disk.close();
});
