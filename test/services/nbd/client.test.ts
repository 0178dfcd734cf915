import { type Duplex, duplexPair } from 'node:stream';
import test, { type ExecutionContext } from 'ava';
import { BlockError } from '../../../emulator/devices/backends.ts';
import { WireError } from '../../../protocols/bytes/mod.ts';
import {
  BASE_ALLOCATION,
  CMD,
  decodeOption,
  decodeRequest,
  encodeBlockStatus,
  encodeChunkHeader,
  encodeExportNameReply,
  encodeGreeting,
  encodeHole,
  encodeInformation,
  encodeListedExport,
  encodeMetaContext,
  encodeOptionReply,
  encodeReplyError,
  encodeSimpleReply,
  INFO,
  OPT,
  REP,
  REPLY_TYPE,
  REQUEST_MAGIC,
  type Request,
  TRANSMISSION_FLAG,
} from '../../../protocols/nbd/mod.ts';
import {
  ExportSet,
  MemoryImage,
  NbdBlockBackend,
  NbdClient,
  type NbdClientOptions,
  NbdError,
  serveNbd,
} from '../../../services/nbd/mod.ts';
import { joined } from './harness.ts';

const F = TRANSMISSION_FLAG;
const ALL_FLAGS =
  F.HAS_FLAGS | F.SEND_FLUSH | F.SEND_FUA | F.SEND_TRIM | F.SEND_WRITE_ZEROES | F.SEND_DF | F.SEND_CACHE;

/** What a server that the test makes up answers. Each function gets what the client sent; undefined: the usual answer. */
interface FakeServer {
  readonly greeting?: Uint8Array;
  readonly flags?: number;
  readonly sizeBytes?: bigint;
  readonly option?: (option: number, data: Uint8Array) => Uint8Array | undefined;
  readonly request?: (request: Request, data: Uint8Array) => Uint8Array | undefined;
}

/** Plays the server's part by hand, so that it can be wrong in any way. */
function fake(server: FakeServer): { stream: Duplex; options: number[]; requests: Request[] } {
  const [near, far] = duplexPair();
  const options: number[] = [];
  const requests: Request[] = [];
  let buffered = Buffer.alloc(0);
  let phase: 'flags' | 'options' | 'requests' = 'flags';
  const usual = (option: number): Uint8Array => {
    const ack = encodeOptionReply(option, REP.ACK);
    const info = encodeInformation({
      type: INFO.EXPORT,
      sizeBytes: server.sizeBytes ?? 1n << 20n,
      flags: server.flags ?? ALL_FLAGS,
    });
    if (option === OPT.GO) return joined(encodeOptionReply(option, REP.INFO, info), ack);
    if (option === OPT.SET_META_CONTEXT) {
      const context = encodeMetaContext({ id: 5, name: BASE_ALLOCATION });
      return joined(encodeOptionReply(option, REP.META_CONTEXT, context), ack);
    }
    if (option === OPT.EXTENDED_HEADERS) return encodeOptionReply(option, REP.ERR_UNSUP);
    if (option === OPT.EXPORT_NAME) {
      return encodeExportNameReply({ sizeBytes: 1n << 20n, flags: server.flags ?? ALL_FLAGS }, true);
    }
    return ack;
  };
  const advance = (): boolean => {
    if (phase === 'flags') {
      if (buffered.length < 4) return false;
      buffered = buffered.subarray(4);
      phase = 'options';
      return true;
    }
    if (phase === 'options') {
      if (buffered.length < 16 || buffered.length < 16 + buffered.readUInt32BE(12)) return false;
      const bytes = buffered.subarray(0, 16 + buffered.readUInt32BE(12));
      buffered = buffered.subarray(bytes.length);
      const { option, data } = decodeOption(bytes);
      options.push(option);
      const answer = server.option?.(option, data) ?? usual(option);
      const isOpen = option === OPT.EXPORT_NAME || (option === OPT.GO && answer[11] === OPT.GO && answer[12] === 0);
      if (isOpen) phase = 'requests';
      if (answer.length > 0) far.write(answer);
      return true;
    }
    // A client that did not like the answer to GO says ABORT.
    if (buffered.length < 28 || buffered.readUInt32BE(0) !== REQUEST_MAGIC) return false;
    const request = decodeRequest(buffered.subarray(0, 28));
    const payload = request.type === CMD.WRITE ? request.length : 0;
    if (buffered.length < 28 + payload) return false;
    const data = buffered.subarray(28, 28 + payload);
    buffered = buffered.subarray(28 + payload);
    requests.push(request);
    const reply = server.request?.(request, data) ?? encodeSimpleReply({ error: 0, cookie: request.cookie });
    if (reply.length > 0) far.write(reply);
    return true;
  };
  far.on('data', (chunk: Uint8Array) => {
    buffered = Buffer.concat([buffered, chunk]);
    while (advance());
  });
  far.on('error', () => {});
  far.write(server.greeting ?? encodeGreeting({ flags: 3 }));
  return { stream: near, options, requests };
}

async function connected(server: FakeServer, options?: NbdClientOptions): Promise<NbdClient> {
  return NbdClient.connect(fake(server).stream, options);
}

async function realServer(image = new MemoryImage(8 << 20), options?: NbdClientOptions): Promise<NbdClient> {
  const [near, far] = duplexPair();
  const exports = new ExportSet();
  exports.add({ name: 'disk', image, writable: true });
  void serveNbd(far, exports);
  return NbdClient.connect(near, options);
}

for (const structured of [true, false]) {
  test(`C1: everything that our own server offers, structured replies ${structured}`, async (t) => {
    const client = await realServer(undefined, { structured });
    t.is(client.canBlockStatus, structured);
    const data = Uint8Array.from({ length: 300_000 }, (_, index) => index & 0xff);
    await Promise.all([client.write(5000, data), client.write(1 << 20, data, { fua: true })]);
    const into = new Uint8Array(300_000);
    await client.read(5000, into);
    t.deepEqual(into, data);
    await client.writeZeroes(5000, 1000, { mayUnmap: false });
    await client.writeZeroes(6000, 1000, { fast: true });
    await client.trim(1 << 20, 65_536);
    await client.cache(0, 1 << 20);
    await client.flush();
    await client.read(5000, into.subarray(0, 2000));
    t.true(into.subarray(0, 2000).every((byte) => byte === 0));
    t.is(into[2000], data[2000]);
    if (structured) t.deepEqual((await client.blockStatus(4 << 20, 4096))[0], { lengthBytes: 4096, flags: 3 });
    else await t.throwsAsync(client.blockStatus(0, 1), { code: 'ENOTSUP' });
    await client.close();
    await t.throwsAsync(client.read(0, into), { instanceOf: NbdError, code: 'ESHUTDOWN' });
  });
}

test('C1: falls back from GO to EXPORT_NAME, from extended headers to structured replies, and from these to simple ones', async (t) => {
  const server = fake({
    option: (option) => (option === OPT.EXPORT_NAME ? undefined : encodeOptionReply(option, REP.ERR_UNSUP)),
    request: (request) =>
      joined(encodeSimpleReply({ error: 0, cookie: request.cookie }), new Uint8Array(request.length)),
  });
  const client = await NbdClient.connect(server.stream);
  t.deepEqual(server.options, [OPT.EXTENDED_HEADERS, OPT.STRUCTURED_REPLY, OPT.GO, OPT.EXPORT_NAME]);
  t.false(client.export.structured);
  await client.read(0, new Uint8Array(512));
  client.destroy();
});

test('C1: a server without FIXED_NEWSTYLE gets EXPORT_NAME and nothing else', async (t) => {
  const server = fake({ greeting: encodeGreeting({ flags: 2 }) });
  const client = await NbdClient.connect(server.stream, { exportName: 'x' });
  t.deepEqual(server.options, [OPT.EXPORT_NAME]);
  client.destroy();
  await t.throwsAsync(NbdClient.list(fake({ greeting: encodeGreeting({ flags: 2 }) }).stream), {
    code: 'ERR_WIRE_STATE',
  });
});

test('C1: what was not advertised is not sent', async (t) => {
  const server = fake({ flags: F.HAS_FLAGS });
  const client = await NbdClient.connect(server.stream);
  await t.throwsAsync(client.trim(0, 512), { code: 'ENOTSUP' });
  await t.throwsAsync(client.writeZeroes(0, 512), { code: 'ENOTSUP' });
  await t.throwsAsync(client.cache(0, 512), { code: 'ENOTSUP' });
  await client.flush();
  await client.write(0, new Uint8Array(4), { fua: true });
  t.deepEqual(
    server.requests.map((request) => [request.type, request.flags]),
    [[CMD.WRITE, 0]],
  );
  client.destroy();
});

test('requests above the server’s maximum are split, outside of the export they are not sent', async (t) => {
  const blockSizes = { minimum: 512, preferred: 4096, maximum: 8192 };
  const info = encodeInformation({ type: INFO.EXPORT, sizeBytes: 1n << 20n, flags: ALL_FLAGS });
  const server = fake({
    option: (option) =>
      option === OPT.GO
        ? joined(
            encodeOptionReply(option, REP.INFO, info),
            encodeOptionReply(option, REP.INFO, encodeInformation({ type: INFO.BLOCK_SIZE, blockSizes })),
            encodeOptionReply(option, REP.ACK),
          )
        : undefined,
  });
  const client = await NbdClient.connect(server.stream);
  await client.write(0, new Uint8Array(20_480));
  t.deepEqual(
    server.requests.map((request) => request.length),
    [8192, 8192, 4096],
  );
  await t.throwsAsync(client.write(1, new Uint8Array(512)), { code: 'EINVAL' });
  await t.throwsAsync(client.read(1 << 20, new Uint8Array(1)), { code: 'EINVAL' });
  t.is(server.requests.length, 3);
  client.destroy();
});

const sizeInfo = (size: bigint): Uint8Array => encodeInformation({ type: INFO.EXPORT, sizeBytes: size, flags: 1 });
const goWith = (...replies: Uint8Array[]): FakeServer => ({
  option: (option) => (option === OPT.GO ? joined(...replies) : undefined),
});
const info = (data: Uint8Array): Uint8Array => encodeOptionReply(OPT.GO, REP.INFO, data);
const sizes = (minimum: number, preferred: number, maximum: number): Uint8Array =>
  info(encodeInformation({ type: INFO.BLOCK_SIZE, blockSizes: { minimum, preferred, maximum } }));
const ack = encodeOptionReply(OPT.GO, REP.ACK);
const huge = (bytes: Uint8Array, at: number): Uint8Array => {
  const changed = bytes.slice();
  changed.fill(0xff, at, at + 4);
  return changed;
};

const badHandshakes: [string, FakeServer][] = [
  ['another protocol', { greeting: Buffer.from('SSH-2.0-OpenSSH_9.2\r\n') }],
  [
    'an oldstyle greeting',
    { greeting: Buffer.from(`NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53${'\0'.repeat(136)}`, 'latin1') },
  ],
  ['a reply with a wrong magic', goWith(ack.slice().fill(0, 0, 8))],
  ['a reply to an option that was not sent', goWith(encodeOptionReply(OPT.LIST, REP.ACK))],
  ['C3, CVE-2017-2630: a reply of 4 GiB', goWith(huge(ack, 16))],
  ['C3: information without end', goWith(...Array.from({ length: 65 }, () => info(sizeInfo(1n))))],
  ['GO acknowledged without a size', goWith(ack)],
  ['GO refused: ERR_UNKNOWN', goWith(encodeOptionReply(OPT.GO, REP.ERR_UNKNOWN))],
  ['GO refused: ERR_TLS_REQD', goWith(encodeOptionReply(OPT.GO, REP.ERR_TLS_REQD))],
  ['an unknown reply type', goWith(encodeOptionReply(OPT.GO, 77))],
  ['C4, CVE-2023-5215: a size of 2^63', goWith(info(sizeInfo(1n << 63n)), ack)],
  ['C4: a size of 2^64-1', goWith(info(sizeInfo((1n << 64n) - 1n)), ack)],
  ['a size that no number can hold', goWith(info(sizeInfo(1n << 60n)), ack)],
  ['C4: a minimum that is no power of two', goWith(info(sizeInfo(1n)), sizes(3, 4096, 8192), ack)],
  ['C4: a minimum of 0', goWith(info(sizeInfo(1n)), sizes(0, 4096, 8192), ack)],
  ['C4: a minimum above 64 KiB', goWith(info(sizeInfo(1n)), sizes(1 << 17, 1 << 17, 1 << 20), ack)],
  ['C4: a preferred size below 512', goWith(info(sizeInfo(1n)), sizes(1, 256, 8192), ack)],
  ['C4: a maximum below the preferred size', goWith(info(sizeInfo(1n)), sizes(1, 4096, 2048), ack)],
  ['information cut short', goWith(info(sizeInfo(1n).subarray(0, 7)))],
  [
    'a meta context that was not asked for',
    {
      option: (option) =>
        option === OPT.SET_META_CONTEXT
          ? encodeOptionReply(option, REP.META_CONTEXT, encodeMetaContext({ id: 1, name: 'x:y' }))
          : undefined,
    },
  ],
];
for (const [what, server] of badHandshakes) {
  test(`handshake: refuses ${what}`, async (t) => {
    await t.throwsAsync(connected(server), { instanceOf: WireError });
  });
}

test('CVE-2021-20286: a server that leaves in the middle of GO ends the handshake, at any byte', async (t) => {
  const answer = joined(info(sizeInfo(1n << 20n)), sizes(1, 4096, 8192), ack);
  for (let at = 0; at < answer.length; at += 3) {
    const { stream } = fake({ option: (option) => (option === OPT.GO ? answer.subarray(0, at) : undefined) });
    setTimeout(() => stream.destroy(new Error('gone')), 2);
    await t.throwsAsync(NbdClient.connect(stream));
  }
});

test('a server that is silent runs into the open timeout', async (t) => {
  const { stream } = fake({ option: () => new Uint8Array(0) });
  await t.throwsAsync(NbdClient.connect(stream, { openTimeoutMs: 20 }), { code: 'ERR_WIRE_TIMEOUT' });
});

test('C7: close() waits for a server that answers, and not for ever for one that does not', async (t) => {
  const silent = await connected(
    { request: (request) => (request.type === CMD.READ ? new Uint8Array(0) : undefined) },
    { closeTimeoutMs: 50 },
  );
  const read = t.throwsAsync(silent.read(0, new Uint8Array(512)), { code: 'EIO', message: /no answer in 50 ms/ });
  await silent.close();
  await read;
  // Nothing is under way, but the server takes nothing: DISC never leaves.
  const full = fake({});
  const client = await NbdClient.connect(full.stream, { closeTimeoutMs: 50 });
  full.stream._write = () => {};
  full.stream._final = () => {};
  await client.close();
  t.true(full.stream.destroyed);
});

test('list() names exports, and refuses a list without end', async (t) => {
  const entry = (name: string): Uint8Array => encodeOptionReply(OPT.LIST, REP.SERVER, encodeListedExport({ name }));
  const listed = await NbdClient.list(
    fake({ option: () => joined(entry('a'), entry(''), encodeOptionReply(OPT.LIST, REP.ACK)) }).stream,
  );
  t.deepEqual(listed, [{ name: 'a' }, { name: '' }]);
  const endless = joined(...Array.from({ length: 10_001 }, () => entry('x')));
  await t.throwsAsync(NbdClient.list(fake({ option: () => endless }).stream), { code: 'ERR_WIRE_LIMIT' });
});

// Replies, structured: a read of 512 bytes at 1024 that goes wrong in one way each.
const chunk = (request: Request, type: number, payload: Uint8Array, done = false): Uint8Array =>
  joined(encodeChunkHeader({ flags: done ? 1 : 0, type, cookie: request.cookie, length: payload.length }), payload);
const dataAt = (request: Request, offset: bigint, length: number, done = false): Uint8Array => {
  const payload = Buffer.alloc(8 + length, 0x5a);
  payload.writeBigUInt64BE(offset);
  return chunk(request, REPLY_TYPE.OFFSET_DATA, payload, done);
};
const none = (request: Request): Uint8Array => chunk(request, REPLY_TYPE.NONE, new Uint8Array(0), true);
const hole = (request: Request, offset: bigint, lengthBytes: number): Uint8Array =>
  chunk(request, REPLY_TYPE.OFFSET_HOLE, encodeHole({ offset, lengthBytes }));

const badReplies: [string, (request: Request) => Uint8Array][] = [
  ['data before the request', (r) => dataAt(r, 1023n, 512, true)],
  ['data behind the request', (r) => dataAt(r, 1025n, 512, true)],
  ['data at 2^64-1', (r) => dataAt(r, (1n << 64n) - 1n, 512, true)],
  ['more data than was asked for', (r) => dataAt(r, 1024n, 513, true)],
  ['data without a byte', (r) => dataAt(r, 1024n, 0, true)],
  ['an overlap', (r) => joined(dataAt(r, 1024n, 300), dataAt(r, 1200n, 300))],
  ['an overlap from behind', (r) => joined(dataAt(r, 1300n, 236), dataAt(r, 1024n, 300))],
  ['the same bytes twice', (r) => joined(dataAt(r, 1024n, 512), dataAt(r, 1024n, 512))],
  ['a hole over data', (r) => joined(dataAt(r, 1024n, 512), hole(r, 1024n, 512))],
  ['a hole of nothing', (r) => hole(r, 1024n, 0)],
  ['a hole beyond the request', (r) => hole(r, 1024n, 0xffff_ffff)],
  ['an end before all bytes came', (r) => joined(dataAt(r, 1024n, 300), none(r))],
  ['an end with a hole in the middle', (r) => joined(dataAt(r, 1024n, 100), dataAt(r, 1200n, 336), none(r))],
  ['NONE that is not the end', (r) => chunk(r, REPLY_TYPE.NONE, new Uint8Array(0))],
  ['NONE with a payload', (r) => chunk(r, REPLY_TYPE.NONE, new Uint8Array(4), true)],
  ['block status for a read', (r) => chunk(r, REPLY_TYPE.BLOCK_STATUS, new Uint8Array(12), true)],
  ['an unknown chunk type that is no error', (r) => chunk(r, 99, new Uint8Array(4), true)],
  ['a simple reply to a read', (r) => encodeSimpleReply({ error: 0, cookie: r.cookie })],
  ['an unknown cookie', (r) => none({ ...r, cookie: r.cookie + 1n })],
  ['a cookie of 2^64-1', (r) => none({ ...r, cookie: (1n << 64n) - 1n })],
  ['a wrong magic', () => new Uint8Array(20)],
  ['an error without a number', (r) => chunk(r, REPLY_TYPE.ERROR, encodeReplyError({ error: 0, text: '' }), true)],
  ['C3: an error text of 64 KiB', (r) => chunk(r, REPLY_TYPE.ERROR, new Uint8Array(65_000), true)],
  [
    'an error outside of the request',
    (r) => chunk(r, REPLY_TYPE.ERROR_OFFSET, encodeReplyError({ error: 5, text: '', offset: 9999n }), true),
  ],
];
for (const [what, reply] of badReplies) {
  test(`C5: a read reply with ${what} ends the connection`, async (t) => {
    const client = await connected({ request: reply });
    const into = new Uint8Array(520).fill(1);
    await t.throwsAsync(client.read(1024, into.subarray(0, 512)), { instanceOf: NbdError });
    t.true(
      into.subarray(512).every((byte) => byte === 1),
      'nothing was written behind the reader’s memory',
    );
    await client.closed;
    await t.throwsAsync(client.read(0, new Uint8Array(1)), { instanceOf: NbdError });
  });
}

async function statusOf(t: ExecutionContext, reply: (request: Request) => Uint8Array): Promise<void> {
  const client = await connected({ request: reply });
  await t.throwsAsync(client.blockStatus(0, 4096), { instanceOf: NbdError });
  await client.closed;
}
const status = (request: Request, contextId: number, lengthBytes: number, done = true): Uint8Array =>
  chunk(request, REPLY_TYPE.BLOCK_STATUS, encodeBlockStatus({ contextId, extents: [{ lengthBytes, flags: 0 }] }), done);

test('C5: block status of a wrong context', (t) => statusOf(t, (r) => status(r, 6, 4096)));
test('C5: block status twice', (t) => statusOf(t, (r) => joined(status(r, 5, 4096, false), status(r, 5, 4096))));
test('C5: block status with an extent of nothing', (t) => statusOf(t, (r) => status(r, 5, 0)));
test('C5, CVE-2023-5871: block status without any', (t) => statusOf(t, none));
test('C3: block status above 2^20 extents', (t) =>
  statusOf(t, (r) =>
    encodeChunkHeader({ flags: 1, type: REPLY_TYPE.BLOCK_STATUS, cookie: r.cookie, length: 4 + 8 * ((1 << 20) + 1) }),
  ));

test('block status that reaches past the request is cut to it', async (t) => {
  const client = await connected({ request: (r) => status(r, 5, 0xffff_ffff) });
  t.deepEqual(await client.blockStatus(0, 4096), [{ lengthBytes: 4096, flags: 0 }]);
  client.destroy();
});

test('C5: replies in pieces and out of order are put together, holes and all', async (t) => {
  const client = await connected({
    request: (r) => joined(dataAt(r, 1400n, 136), hole(r, 1224n, 176), dataAt(r, 1024n, 200), none(r)),
  });
  const into = new Uint8Array(512).fill(1);
  await client.read(1024, into);
  t.deepEqual(
    into,
    Uint8Array.from({ length: 512 }, (_, at) => (at < 200 || at >= 376 ? 0x5a : 0)),
  );
  client.destroy();
});

test('C6: an unknown error number is EINVAL, an unknown error chunk fails its request; both times the connection lives', async (t) => {
  let count = 0;
  const client = await connected({
    request: (r) => {
      count++;
      if (count === 1) return chunk(r, REPLY_TYPE.ERROR, encodeReplyError({ error: 4711, text: 'odd' }), true);
      if (count === 2) return chunk(r, 0x8077, encodeReplyError({ error: 5, text: 'new' }), true);
      if (count === 3) {
        const at = encodeReplyError({ error: 28, text: 'full', offset: 1100n });
        return joined(dataAt(r, 1024n, 76), chunk(r, REPLY_TYPE.ERROR_OFFSET, at, true));
      }
      return dataAt(r, 1024n, 512, true);
    },
  });
  const into = new Uint8Array(512);
  await t.throwsAsync(client.read(1024, into), { code: 'EINVAL', message: /odd/ });
  await t.throwsAsync(client.read(1024, into), { code: 'EIO' });
  await t.throwsAsync(client.read(1024, into), { code: 'ENOSPC' });
  await client.read(1024, into);
  t.true(into.every((byte) => byte === 0x5a));
  client.destroy();
});

test('CVE-2022-0485: one failed piece fails the whole read', async (t) => {
  const client = await connected({
    sizeBytes: 1n << 30n,
    request: (r) =>
      r.offset === 0n
        ? chunk(r, REPLY_TYPE.OFFSET_HOLE, encodeHole({ offset: 0n, lengthBytes: r.length }), true)
        : chunk(r, REPLY_TYPE.ERROR, encodeReplyError({ error: 5, text: '' }), true),
  });
  await t.throwsAsync(client.read(0, new Uint8Array((32 << 20) + 512)), { code: 'EIO' });
  client.destroy();
});

test('a connection that breaks fails what is under way and what waits', async (t) => {
  const server = fake({ request: () => new Uint8Array(0) });
  const client = await NbdClient.connect(server.stream, { requests: 2 });
  const results = Promise.allSettled(Array.from({ length: 5 }, () => client.read(0, new Uint8Array(1))));
  await new Promise((resolve) => setTimeout(resolve, 5));
  t.is(server.requests.length, 2);
  server.stream.destroy(new Error('cable cut'));
  t.true((await results).every((result) => result.status === 'rejected' && result.reason instanceof NbdError));
  await client.close();
});

test('NbdBlockBackend gives a guest whole sectors, and errors by name', async (t) => {
  const image = new MemoryImage(4096 + 100);
  const client = await realServer(image);
  const disk = new NbdBlockBackend(client);
  t.is(disk.sizeBytes, 4096);
  t.is(disk.blockBytes, 512);
  const shared = new Uint8Array(new SharedArrayBuffer(512)).fill(3);
  await disk.write(512, shared, { fua: true });
  const into = new Uint8Array(new SharedArrayBuffer(512));
  await disk.read(512, into);
  t.deepEqual([...into], [...shared]);
  await disk.writeZeroes!(512, 512, { mayUnmap: true });
  await disk.discard!(0, 512);
  await disk.flush();
  await client.close();
  await t.throwsAsync(disk.read(0, into), { instanceOf: BlockError, code: 'ESHUTDOWN' });
});

test('NbdBlockBackend of a read-only export refuses writes with EPERM', async (t) => {
  const [near, far] = duplexPair();
  const exports = new ExportSet();
  exports.add({ name: 'disk', image: new MemoryImage(4096), writable: false });
  void serveNbd(far, exports);
  const client = await NbdClient.connect(near);
  const disk = new NbdBlockBackend(client);
  t.true(disk.readOnly);
  t.is(disk.discard, undefined);
  await t.throwsAsync(disk.write(0, new Uint8Array(512)), { instanceOf: BlockError, code: 'EPERM' });
  await client.close();
});
