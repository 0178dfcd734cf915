import test from 'ava';
import {
  CMD,
  CMD_FLAG,
  decodeBlockStatus,
  decodeReplyError,
  type Extent,
  NBD_ERROR,
  REPLY_TYPE,
} from '../../../protocols/nbd/mod.ts';
import { type DiskImage, ExportSet, ImageError, MemoryImage } from '../../../services/nbd/mod.ts';
import { ByteClient, joined, requestBytes, twoDisks } from './harness.ts';

const data = (length: number, seed = 1): Uint8Array =>
  Uint8Array.from({ length }, (_, index) => (index * 7 + seed) & 0xff);

/** An image whose reads and writes wait until the test lets them go. */
class SlowImage extends MemoryImage {
  readonly log: string[] = [];
  #gates: (() => void)[] = [];

  override readNow(): boolean {
    return false;
  }
  override writeNow(): boolean {
    return false;
  }
  override async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#gate(`read ${offset}`);
    super.readNow(offset, into);
  }
  override async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#gate(`write ${offset}`);
    super.writeNow(offset, bytes);
  }
  override async flush(): Promise<void> {
    await this.#gate('flush');
  }
  get waiting(): number {
    return this.#gates.length;
  }
  letGo(count = Number.POSITIVE_INFINITY): void {
    for (const go of this.#gates.splice(0, count)) go();
  }
  async #gate(what: string): Promise<void> {
    this.log.push(`start ${what}`);
    await new Promise<void>((resolve) => this.#gates.push(resolve));
    this.log.push(`end ${what}`);
  }
}

function exportOf(image: DiskImage): ExportSet {
  const exports = new ExportSet();
  exports.add({ name: 'disk', image, writable: true });
  return exports;
}

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 2));

test('T1: a wrong request magic closes', async (t) => {
  const client = await new ByteClient().go();
  client.send(new Uint8Array(28).fill(0x42));
  t.is((await client.rest()).length, 0);
  t.like((await client.summary).error, { code: 'ERR_WIRE_MAGIC' });
});

test('T2: reads what was written, at any alignment, simple and structured', async (t) => {
  for (const structured of [false, true]) {
    const client = await new ByteClient().go('', { structured });
    for (const [offset, length] of [
      [0, 512],
      [511, 3],
      [65_000, 70_000],
      [1048575, 1],
    ] as const) {
      const bytes = data(length, offset);
      t.is((await client.ask({ type: CMD.WRITE, offset: BigInt(offset), length }, bytes))?.error, 0);
      const reply = await client.ask({ offset: BigInt(offset), length });
      t.deepEqual(structured ? reply!.data.subarray(8) : reply!.data, bytes);
    }
    client.stream.destroy();
  }
});

test('T2: a refused write of up to 64 MiB is skipped, and the session goes on', async (t) => {
  const client = await new ByteClient().go();
  const length = (32 << 20) + 1;
  client.send(requestBytes({ type: CMD.WRITE, length }));
  for (let sent = 0; sent < length; sent += 1 << 20) {
    client.send(new Uint8Array(Math.min(1 << 20, length - sent)));
    await turn();
  }
  t.is((await client.reply())?.error, NBD_ERROR.EINVAL);
  t.is((await client.ask({ length: 1 }))?.error, 0);
  client.stream.destroy();
});

test('T2: a write of 2^32-1 bytes closes', async (t) => {
  const client = await new ByteClient().go();
  client.send(requestBytes({ type: CMD.WRITE, length: 0xffff_ffff }));
  t.is((await client.rest()).length, 0);
  t.like((await client.summary).error, { code: 'ERR_WIRE_LIMIT' });
});

test('T3: an export of almost 2^53 bytes is read and written at its end, and nowhere behind it', async (t) => {
  const size = 2 ** 53 - 512;
  const client = await new ByteClient(exportOf(new MemoryImage(size))).go();
  const end = BigInt(size);
  t.is((await client.ask({ type: CMD.WRITE, offset: end - 513n, length: 513 }, data(513)))?.error, 0);
  t.deepEqual((await client.ask({ offset: end - 513n, length: 513 }))?.data, data(513));
  t.deepEqual((await client.ask({ offset: end - 514n, length: 1 }))?.data, new Uint8Array(1));
  for (const offset of [end, end - 512n, 1n << 53n, (1n << 53n) + 1n, (1n << 63n) - 1n, (1n << 64n) - 513n]) {
    t.is((await client.ask({ offset, length: 513 }))?.error, NBD_ERROR.EINVAL, `${offset}`);
    t.is((await client.ask({ type: CMD.WRITE, offset, length: 513 }, data(513)))?.error, NBD_ERROR.ENOSPC);
  }
  client.stream.destroy();
});

test('T4: refused writes leave the stream in step', async (t) => {
  const client = await new ByteClient().go('locked');
  t.is((await client.ask({ type: CMD.WRITE, length: 512 }, data(512)))?.error, NBD_ERROR.EPERM);
  t.is((await client.ask({ length: 1 }))?.error, 0);
  const other = await new ByteClient().go();
  t.is((await other.ask({ type: CMD.WRITE, offset: 1n << 20n, length: 512 }, data(512)))?.error, NBD_ERROR.ENOSPC);
  t.is((await other.ask({ length: 1 }))?.error, 0);
  client.stream.destroy();
  other.stream.destroy();
});

test('T6: nothing is read, written, zeroed and trimmed without an error', async (t) => {
  for (const structured of [false, true]) {
    const client = await new ByteClient().go('', { structured });
    for (const type of [CMD.READ, CMD.WRITE, CMD.WRITE_ZEROES, CMD.TRIM]) {
      t.is((await client.ask({ type, length: 0 }))?.error, 0, `command ${type}`);
    }
    client.stream.destroy();
  }
});

test('T7: structured reads of zeroes come as a hole, data as data, errors with a text', async (t) => {
  const client = await new ByteClient().go('', { structured: true });
  const hole = await client.ask({ offset: 4096n, length: 8192 });
  t.is(hole?.type, REPLY_TYPE.OFFSET_HOLE);
  t.deepEqual([...hole!.data], [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x20, 0]);
  await client.ask({ type: CMD.WRITE, offset: 8191n, length: 1 }, Uint8Array.of(1));
  t.is((await client.ask({ flags: CMD_FLAG.DF, offset: 4096n, length: 8192 }))?.type, REPLY_TYPE.OFFSET_DATA);
  const refused = await client.ask({ offset: 1n << 60n, length: 1 });
  t.is(refused?.type, REPLY_TYPE.ERROR);
  t.regex(decodeReplyError(REPLY_TYPE.ERROR, refused!.data).text, /^Cannot run NBD_CMD_READ: /);
  client.stream.destroy();
});

test('T8, T9: what goes wrong in the image becomes an error reply, with no byte of data before it', async (t) => {
  class BadImage extends MemoryImage {
    override readNow(offset: number, into: Uint8Array): boolean {
      into.fill(0x55);
      if (offset === 0) throw new ImageError('EIO', 'bad sector');
      return false;
    }
    override async read(): Promise<void> {
      throw Object.assign(new Error('quota'), { code: 'EDQUOT' });
    }
    override writeNow(): boolean {
      throw Object.assign(new Error('/secret/path: no space'), { code: 'ENOSPC' });
    }
    override async flush(): Promise<void> {
      throw new Error('unexpected');
    }
  }
  const client = await new ByteClient(exportOf(new BadImage(1 << 20))).go('', { structured: true });
  t.is((await client.ask({ length: 4096 }))?.error, NBD_ERROR.EIO);
  t.is((await client.ask({ offset: 512n, length: 100_000 }))?.error, NBD_ERROR.ENOSPC);
  const write = await client.ask({ type: CMD.WRITE, length: 4 }, data(4));
  t.is(write?.error, NBD_ERROR.ENOSPC);
  t.false(Buffer.from(write!.data).toString().includes('secret'));
  t.is((await client.ask({ type: CMD.FLUSH }))?.error, NBD_ERROR.EIO);
  client.stream.destroy();
});

test('T8: whatever the system calls it, a client gets one of the codes of the specification', async (t) => {
  const codes: Record<string, number> = {
    EDQUOT: NBD_ERROR.ENOSPC,
    EFBIG: NBD_ERROR.ENOSPC,
    ENOSPC: NBD_ERROR.ENOSPC,
    EROFS: NBD_ERROR.EPERM,
    EACCES: NBD_ERROR.EPERM,
    ETIMEDOUT: NBD_ERROR.EIO,
    EAGAIN: NBD_ERROR.EIO,
    ESTALE: NBD_ERROR.EIO,
    ERR_INVALID_ARG_VALUE: NBD_ERROR.EIO,
  };
  for (const [code, expected] of Object.entries(codes)) {
    const image = new MemoryImage(1 << 20);
    image.writeNow = () => {
      throw Object.assign(new Error(`${code} at /secret/path`), { code });
    };
    const client = await new ByteClient(exportOf(image)).go();
    t.is((await client.ask({ type: CMD.WRITE, length: 4 }, data(4)))?.error, expected, code);
    t.is((await client.ask({ cookie: 2n, length: 1 }))?.error, 0, 'the session goes on');
    client.stream.destroy();
  }
});

test('T9: a read that cannot be whole tells where, when replies are structured', async (t) => {
  const broken = new MemoryImage(1 << 20);
  broken.readNow = (offset) => {
    throw new ImageError('EIO', 'the file ends here', { offset: Math.max(offset, 70_000) });
  };
  for (const structured of [true, false]) {
    const client = await new ByteClient(exportOf(broken)).go('disk', { structured });
    client.send(requestBytes({ offset: 65_536n, length: 8192 }));
    const reply = await client.reply();
    if (structured) {
      t.is(reply?.type, REPLY_TYPE.ERROR_OFFSET);
      const error = decodeReplyError(REPLY_TYPE.ERROR_OFFSET, reply!.data);
      t.deepEqual(error, { error: NBD_ERROR.EIO, text: 'the file ends here', offset: 70_000n });
    } else t.is(reply?.error, NBD_ERROR.EIO);
    t.is((await client.ask({ cookie: 2n, type: CMD.FLUSH }))?.error, 0, 'the session goes on');
    client.stream.destroy();
  }
});

test('T10: FUA flushes before the reply, on writes, zeroes and trims', async (t) => {
  class Flushes extends MemoryImage {
    flushes = 0;
    override async flush(): Promise<void> {
      await turn();
      this.flushes++;
    }
  }
  const image = new Flushes(1 << 20);
  const client = await new ByteClient(exportOf(image)).go();
  let expected = 0;
  for (const type of [CMD.WRITE, CMD.WRITE_ZEROES, CMD.TRIM]) {
    await client.ask({ type, length: 512 }, type === CMD.WRITE ? data(512) : undefined);
    t.is(image.flushes, expected, 'without FUA');
    await client.ask({ type, flags: CMD_FLAG.FUA, length: 512 }, type === CMD.WRITE ? data(512) : undefined);
    t.is(image.flushes, ++expected, 'with FUA');
  }
  client.stream.destroy();
});

test('T10: a flush on one connection covers writes that were answered on another', async (t) => {
  /** What was written is lost at a power cut until it is flushed, whoever asks for that. */
  class Cached extends MemoryImage {
    readonly stable = new MemoryImage(1 << 20);
    #waiting: [number, Uint8Array][] = [];
    override writeNow(offset: number, bytes: Uint8Array): boolean {
      this.#waiting.push([offset, bytes.slice()]);
      return super.writeNow(offset, bytes);
    }
    override async flush(): Promise<void> {
      const flushed = this.#waiting;
      this.#waiting = [];
      await turn();
      for (const [offset, bytes] of flushed) this.stable.writeNow(offset, bytes);
    }
  }
  const image = new Cached(1 << 20);
  const exports = exportOf(image);
  const first = await new ByteClient(exports).go();
  const second = await new ByteClient(exports).go();
  await first.ask({ type: CMD.WRITE, offset: 100n, length: 4 }, data(4));
  const stable = new Uint8Array(4);
  image.stable.readNow(100, stable);
  t.deepEqual(stable, new Uint8Array(4), 'a write without FUA needs no flush');
  t.is((await second.ask({ type: CMD.FLUSH }))?.error, 0);
  image.stable.readNow(100, stable);
  t.deepEqual(stable, data(4));
  first.stream.destroy();
  second.stream.destroy();
});

test('T11: zeroes of any length read back as zeroes and take no memory', async (t) => {
  const image = new MemoryImage(8 * 2 ** 30);
  const client = await new ByteClient(exportOf(image)).go();
  await client.ask({ type: CMD.WRITE, offset: 70_000n, length: 4096 }, data(4096));
  for (const flags of [0, CMD_FLAG.NO_HOLE, CMD_FLAG.FAST_ZERO]) {
    t.is((await client.ask({ type: CMD.WRITE_ZEROES, flags, length: 0xffff_ffff }))?.error, 0);
  }
  t.deepEqual((await client.ask({ offset: 70_000n, length: 4096 }))?.data, new Uint8Array(4096));
  t.true(image.allocatedBytes <= 128 * 1024);
  client.stream.destroy();
});

test('T12: a trim touches nothing outside its range', async (t) => {
  const client = await new ByteClient().go();
  await client.ask({ type: CMD.WRITE, length: 300_000 }, data(300_000));
  t.is((await client.ask({ type: CMD.TRIM, offset: 1000n, length: 250_000 }))?.error, 0);
  const after = await client.ask({ length: 300_000 });
  t.deepEqual(after!.data.subarray(0, 1000), data(300_000).subarray(0, 1000));
  t.deepEqual(after!.data.subarray(251_000), data(300_000).subarray(251_000));
  client.stream.destroy();
});

test('T13: CACHE changes nothing', async (t) => {
  const client = await new ByteClient().go();
  await client.ask({ type: CMD.WRITE, length: 512 }, data(512));
  t.is((await client.ask({ type: CMD.CACHE, length: 1 << 20 }))?.error, 0);
  t.deepEqual((await client.ask({ length: 512 }))?.data, data(512));
  client.stream.destroy();
});

test('T14: block status tells data and holes; REQ_ONE tells one', async (t) => {
  const client = await new ByteClient().go('', { context: true });
  await client.ask({ type: CMD.WRITE, offset: 65536n, length: 1 }, data(1));
  const extentsOf = async (flags: number): Promise<readonly Extent[]> => {
    const reply = await client.ask({ type: CMD.BLOCK_STATUS, flags, length: 1 << 20 });
    t.is(reply?.type, REPLY_TYPE.BLOCK_STATUS);
    return decodeBlockStatus(reply!.data).extents;
  };
  t.deepEqual(await extentsOf(0), [
    { lengthBytes: 65536, flags: 3 },
    { lengthBytes: 65536, flags: 0 },
    { lengthBytes: (1 << 20) - 131072, flags: 3 },
  ]);
  t.deepEqual(await extentsOf(CMD_FLAG.REQ_ONE), [{ lengthBytes: 65536, flags: 3 }]);
  client.stream.destroy();
});

test('T14: block status of 4 GiB in small pieces stays within its extents', async (t) => {
  class Striped extends MemoryImage {
    override async blockStatus(): Promise<Extent[]> {
      return Array.from({ length: 100_000 }, (_, index) => ({ lengthBytes: 4096, flags: index % 2 }));
    }
  }
  const client = await new ByteClient(exportOf(new Striped(2 ** 33))).go('', { context: true });
  const reply = await client.ask({ type: CMD.BLOCK_STATUS, length: 0xffff_ffff });
  t.is(decodeBlockStatus(reply!.data).extents.length, 8192);
  client.stream.destroy();
});

test('T16: DISC finishes outstanding work, and nothing behind it is read', async (t) => {
  const image = new SlowImage(1 << 20);
  const client = await new ByteClient(exportOf(image)).go();
  client.send(
    requestBytes({ cookie: 5n, length: 4 }),
    requestBytes({ type: CMD.DISC }),
    requestBytes({ type: CMD.WRITE, length: 4 }),
    data(4),
    new Uint8Array(1000).fill(0xff),
  );
  await turn();
  image.letGo();
  t.is((await client.reply(4))?.cookie, 5n);
  t.is((await client.rest()).length, 0);
  t.deepEqual(image.log, ['start read 0', 'end read 0']);
  t.is((await client.summary).error, undefined);
});

test('T17: no more than the allowed requests and bytes are worked on at once', async (t) => {
  const image = new SlowImage(1 << 20);
  const limits = { requests: 3, requestBytes: 100_000 };
  const client = await new ByteClient(exportOf(image), { limits }).go();
  for (let index = 0; index < 20; index++) {
    client.send(requestBytes({ cookie: BigInt(index), offset: BigInt(index * 4), length: 4 }));
  }
  await turn();
  t.is(image.waiting, 3);
  for (let answered = 0; answered < 20; answered++) {
    image.letGo(1);
    await client.reply(4);
    await turn();
    t.true(image.waiting <= 3);
  }
  for (let index = 0; index < 5; index++) client.send(requestBytes({ length: 90_000 }));
  await turn();
  t.is(image.waiting, 1, 'the second would be above the bytes');
  client.stream.destroy();
});

test('T18: overlapping requests keep their order, others may overtake', async (t) => {
  const image = new SlowImage(1 << 20);
  const client = await new ByteClient(exportOf(image)).go();
  client.send(
    requestBytes({ type: CMD.WRITE, cookie: 1n, offset: 0n, length: 8 }),
    data(8),
    requestBytes({ cookie: 2n, offset: 100n, length: 8 }),
    requestBytes({ cookie: 3n, offset: 4n, length: 8 }),
  );
  await turn();
  t.deepEqual(image.log, ['start write 0', 'start read 100']);
  image.letGo();
  await turn();
  image.letGo();
  await client.take(16 + 16 + 8); // the write and the other read, in either order
  const third = await client.reply(8);
  t.is(third?.cookie, 3n);
  t.deepEqual(third?.data.subarray(0, 4), data(8).subarray(4));
  client.stream.destroy();
});

test('H15: shutdown gives ESHUTDOWN to what waits, finishes what runs, and closes', async (t) => {
  const image = new SlowImage(1 << 20);
  const abort = new AbortController();
  const client = await new ByteClient(exportOf(image), { signal: abort.signal, limits: { requests: 1 } }).go();
  const first = requestBytes({ cookie: 1n, length: 4 });
  const second = requestBytes({ cookie: 2n, length: 4 });
  const third = requestBytes({ cookie: 3n, type: CMD.WRITE, length: 4 });
  client.send(joined(first, second, third, data(4)));
  await turn();
  abort.abort();
  t.deepEqual(await client.reply(), { cookie: 2n, error: NBD_ERROR.ESHUTDOWN, data: new Uint8Array(0) });
  t.is((await client.reply())?.cookie, 3n);
  image.letGo();
  t.like(await client.reply(4), { cookie: 1n, error: 0 });
  t.is((await client.rest()).length, 0);
  await client.summary;
});

test('an export that is taken away while in use ends its sessions', async (t) => {
  const { exports } = twoDisks();
  const client = await new ByteClient(exports).go('disk');
  t.true(exports.remove('disk'));
  t.is((await client.rest()).length, 0);
  await client.summary;
});
