// No program of Debian 12 speaks extended headers: their bytes are written out here by the text of the extension.
import test from 'ava';
import {
  CMD,
  CMD_FLAG,
  encodeExtendedRequest,
  encodeMetaContextRequest,
  encodeOption,
  OPT,
  REP,
  REPLY_TYPE,
  TRANSMISSION_FLAG,
} from '../../../protocols/nbd/mod.ts';
import type { ServeNbdOptions } from '../../../services/nbd/mod.ts';
import { ByteClient, goOption, joined, twoDisks } from './harness.ts';

const MIB = 1 << 20;
const { PAYLOAD_LEN } = CMD_FLAG;

interface Chunk {
  readonly flags: number;
  readonly type: number;
  readonly cookie: bigint;
  readonly offset: bigint;
  readonly payload: DataView;
}

class ExtendedClient extends ByteClient {
  transmissionFlags = 0;

  async start(context = true, exportName = 'disk'): Promise<this> {
    await this.hello();
    this.send(encodeOption(OPT.EXTENDED_HEADERS));
    await this.answers();
    if (context) {
      this.send(
        encodeOption(OPT.SET_META_CONTEXT, encodeMetaContextRequest({ exportName, queries: ['base:allocation'] })),
      );
      await this.answers();
    }
    this.send(goOption(exportName));
    for (;;) {
      const reply = await this.optionReply();
      if (reply === undefined || reply.type === REP.ACK) return this;
      const view = new DataView(reply.data.buffer, reply.data.byteOffset);
      if (view.getUint16(0) === 0) this.transmissionFlags = view.getUint16(10);
    }
  }

  request(
    type: number,
    offset: bigint,
    length: bigint | number,
    options: { flags?: number; data?: Uint8Array; cookie?: bigint } = {},
  ): Promise<Chunk | undefined> {
    const { flags = 0, data = new Uint8Array(0), cookie = 0xfedc_ba98_7654_3210n } = options;
    this.send(joined(encodeExtendedRequest({ flags, type, cookie, offset, length: BigInt(length) }), data));
    return this.chunk();
  }

  async chunk(): Promise<Chunk | undefined> {
    const bytes = await this.take(32);
    if (bytes.length < 32) return undefined;
    const header = new DataView(bytes.buffer, bytes.byteOffset);
    if (header.getUint32(0) !== 0x6e8a278c) throw new Error('not an extended reply');
    const payload = await this.take(Number(header.getBigUint64(24)));
    return {
      flags: header.getUint16(4),
      type: header.getUint16(6),
      cookie: header.getBigUint64(8),
      offset: header.getBigUint64(16),
      payload: new DataView(payload.buffer, payload.byteOffset, payload.length),
    };
  }
}

const newClient = (options: ServeNbdOptions = {}): ExtendedClient => new ExtendedClient(twoDisks().exports, options);

/** The payload of a BLOCK_STATUS that filters */
function filter(length: bigint, ...ids: number[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(8 + ids.length * 4));
  view.setBigUint64(0, length);
  for (const [index, id] of ids.entries()) view.setUint32(8 + index * 4, id);
  return new Uint8Array(view.buffer);
}

test('an extended request is 32 bytes, with a length of 64 bits', (t) => {
  t.is(
    Buffer.from(encodeExtendedRequest({ flags: 32, type: 1, cookie: 2n, offset: 3n, length: 1n << 40n })).toString(
      'hex',
    ),
    `21e41c71${'0020'}${'0001'}${'0000000000000002'}${'0000000000000003'}${'0000010000000000'}`,
  );
});

test('H12: EXTENDED_HEADERS with data is refused, twice is refused, once is enough for structured ones', async (t) => {
  const client = await newClient().hello();
  for (const [option, data, expected] of [
    [OPT.EXTENDED_HEADERS, 1, REP.ERR_INVALID],
    [OPT.EXTENDED_HEADERS, 0, REP.ACK],
    [OPT.EXTENDED_HEADERS, 0, REP.ERR_INVALID],
    [OPT.STRUCTURED_REPLY, 1, REP.ERR_INVALID],
    [OPT.STRUCTURED_REPLY, 0, REP.ERR_EXT_HEADER_REQD],
  ] as const) {
    client.send(encodeOption(option, new Uint8Array(data)));
    t.deepEqual(await client.answers(), [expected]);
  }
  client.stream.destroy();
});

test('H12: structured replies may come first, extended headers take precedence', async (t) => {
  const client = await newClient().hello();
  for (const option of [OPT.STRUCTURED_REPLY, OPT.EXTENDED_HEADERS]) {
    client.send(encodeOption(option));
    t.deepEqual(await client.answers(), [REP.ACK]);
  }
  client.send(goOption());
  await client.answers();
  t.is((await client.request(CMD.FLUSH, 0n, 0))?.type, REPLY_TYPE.NONE);
  client.stream.destroy();
});

test('H12: EXPORT_NAME behind EXTENDED_HEADERS closes', async (t) => {
  const client = await newClient().hello();
  client.send(encodeOption(OPT.EXTENDED_HEADERS));
  await client.answers();
  client.send(encodeOption(OPT.EXPORT_NAME, new TextEncoder().encode('disk')));
  t.is((await client.rest()).length, 0);
});

test('H12: BLOCK_STATUS_PAYLOAD is offered where contexts were selected, and only there', async (t) => {
  const withContext = await newClient().start(true);
  t.not(withContext.transmissionFlags & TRANSMISSION_FLAG.BLOCK_STATUS_PAYLOAD, 0);
  const without = await newClient().start(false);
  t.is(without.transmissionFlags & TRANSMISSION_FLAG.BLOCK_STATUS_PAYLOAD, 0);
  t.not(without.transmissionFlags & TRANSMISSION_FLAG.SEND_DF, 0);
  withContext.stream.destroy();
  without.stream.destroy();
});

test('T7: every reply is an extended one, with cookie and offset of its request', async (t) => {
  const client = await newClient().start();
  const written = await client.request(CMD.WRITE, 4096n, 3, { flags: PAYLOAD_LEN, data: Uint8Array.of(1, 2, 3) });
  t.like(written, { flags: 1, type: REPLY_TYPE.NONE, cookie: 0xfedc_ba98_7654_3210n, offset: 4096n });
  const read = await client.request(CMD.READ, 4095n, 5);
  t.like(read, { flags: 1, type: REPLY_TYPE.OFFSET_DATA, cookie: 0xfedc_ba98_7654_3210n, offset: 4095n });
  t.is(read!.payload.getBigUint64(0), 4095n);
  t.deepEqual(
    [0, 1, 2, 3, 4].map((index) => read!.payload.getUint8(8 + index)),
    [0, 1, 2, 3, 0],
  );
  t.is(read!.payload.byteLength, 13);
  for (const length of [8192, 256 * 1024]) {
    const hole = await client.request(CMD.READ, 65536n, length);
    t.like(hole, { flags: 1, type: REPLY_TYPE.OFFSET_HOLE, offset: 65536n });
    t.deepEqual([hole!.payload.getBigUint64(0), hole!.payload.getUint32(8)], [65536n, length]);
    t.is(hole!.payload.byteLength, 12);
  }
  await client.request(CMD.WRITE, 512n * 1024n, 1, { flags: PAYLOAD_LEN, data: Uint8Array.of(9) });
  const large = await client.request(CMD.READ, 512n * 1024n, 128 * 1024);
  t.like(large, { type: REPLY_TYPE.OFFSET_DATA, offset: 512n * 1024n });
  t.deepEqual([large!.payload.byteLength, large!.payload.getUint8(8)], [8 + 128 * 1024, 9]);
  const failed = await client.request(CMD.READ, BigInt(MIB), 1);
  t.like(failed, { flags: 1, type: REPLY_TYPE.ERROR, offset: BigInt(MIB) });
  t.is(failed!.payload.getUint32(0), 22);
  client.stream.destroy();
});

test('T5: PAYLOAD_LEN has to be there for WRITE, and for nothing that knows no payload', async (t) => {
  const client = await newClient().start();
  for (const [type, flags, data] of [
    [CMD.WRITE, 0, 0],
    [CMD.READ, PAYLOAD_LEN, 512],
    [CMD.FLUSH, PAYLOAD_LEN, 8],
    [CMD.TRIM, PAYLOAD_LEN, 512],
    [CMD.WRITE_ZEROES, PAYLOAD_LEN, 512],
    [CMD.CACHE, PAYLOAD_LEN, 512],
    [77, PAYLOAD_LEN, 512],
    [77, 0, 0],
  ] as const) {
    const reply = await client.request(type, 0n, data === 0 ? 512 : data, { flags, data: new Uint8Array(data) });
    t.is(reply?.type, REPLY_TYPE.ERROR, `command ${type} flags ${flags}`);
    t.is(reply!.payload.getUint32(0), 22);
  }
  t.is((await client.request(CMD.READ, 0n, 1))?.type, REPLY_TYPE.OFFSET_DATA, 'the session lives');
  client.stream.destroy();
});

test('T5: PAYLOAD_LEN without extended headers is refused', async (t) => {
  const client = await new ByteClient().go('disk', { structured: true });
  t.is((await client.ask({ type: CMD.WRITE, flags: PAYLOAD_LEN, length: 4 }, new Uint8Array(4)))?.error, 22);
  t.is((await client.ask({ type: CMD.READ, length: 4 }))?.error, 0);
  client.stream.destroy();
});

test('T3: lengths of 64 bits do not wrap, and lose nothing', async (t) => {
  const client = await newClient().start();
  for (const length of [1n << 32n, (1n << 32n) + 512n, (1n << 53n) + 1n, 1n << 63n, (1n << 64n) - 1n]) {
    for (const type of [CMD.READ, CMD.TRIM, CMD.WRITE_ZEROES, CMD.CACHE, CMD.BLOCK_STATUS]) {
      const reply = await client.request(type, 512n, length);
      t.is(reply?.type, REPLY_TYPE.ERROR, `command ${type} length ${length}`);
      t.is(reply!.payload.getUint32(0), type === CMD.WRITE_ZEROES ? 28 : 22);
    }
  }
  client.stream.destroy();
});

test('T2: a payload that is too long to skip ends the session', async (t) => {
  for (const length of [(64n << 20n) + 1n, 1n << 40n, (1n << 64n) - 1n]) {
    const client = await newClient().start();
    t.is(await client.request(CMD.WRITE, 0n, length, { flags: PAYLOAD_LEN }), undefined);
    t.is(((await client.summary).error as { code?: string }).code, 'ERR_WIRE_LIMIT');
  }
});

test('T14: block status comes with a count and 64-bit descriptors', async (t) => {
  const client = await newClient().start();
  await client.request(CMD.WRITE, 65536n, 4, { flags: PAYLOAD_LEN, data: Uint8Array.of(1, 2, 3, 4) });
  const reply = await client.request(CMD.BLOCK_STATUS, 0n, MIB);
  t.like(reply, { flags: 1, type: REPLY_TYPE.BLOCK_STATUS_EXT, offset: 0n });
  const { payload } = reply!;
  t.is(payload.getUint32(0), 1, 'context');
  const count = payload.getUint32(4);
  t.is(payload.byteLength, 8 + 16 * count);
  let covered = 0n;
  for (let index = 0; index < count; index++) {
    const length = payload.getBigUint64(8 + index * 16);
    t.true(length > 0n);
    t.true(payload.getBigUint64(16 + index * 16) <= 3n, 'upper half is zero');
    covered += length;
  }
  t.true(covered <= BigInt(MIB));
  const one = await client.request(CMD.BLOCK_STATUS, 0n, MIB, { flags: CMD_FLAG.REQ_ONE });
  t.is(one!.payload.getUint32(4), 1);
  client.stream.destroy();
});

test('T14: the payload of BLOCK_STATUS picks contexts, and says the length', async (t) => {
  const client = await newClient().start();
  const data = filter(4096n, 1);
  const reply = await client.request(CMD.BLOCK_STATUS, 8192n, data.length, { flags: PAYLOAD_LEN, data });
  t.like(reply, { type: REPLY_TYPE.BLOCK_STATUS_EXT, offset: 8192n });
  t.is(reply!.payload.getUint32(0), 1);
  t.is(reply!.payload.getBigUint64(8), 4096n);
  client.stream.destroy();
});

for (const [what, payload] of [
  ['an unknown id', filter(4096n, 2)],
  ['the id 0', filter(4096n, 0)],
  ['an id twice', filter(4096n, 1, 1)],
  ['no id', filter(4096n)],
  ['half an id', filter(4096n, 1).subarray(0, 10)],
  ['half a length', filter(4096n, 1).subarray(0, 4)],
  ['a length of 0', filter(0n, 1)],
  ['a length past the end', filter(BigInt(MIB) + 1n, 1)],
  ['a length of 2^64-1', filter((1n << 64n) - 1n, 1)],
  ['a megabyte of ids', new Uint8Array(MIB)],
] as const) {
  test(`T14: BLOCK_STATUS for ${what} is refused, its payload consumed, any split`, async (t) => {
    const client = await newClient().start();
    const request = encodeExtendedRequest({
      flags: PAYLOAD_LEN,
      type: CMD.BLOCK_STATUS,
      cookie: 5n,
      offset: 0n,
      length: BigInt(payload.length),
    });
    const bytes = joined(request, payload);
    for (const cut of [0, 1, 31, 32, 33, bytes.length - 1]) {
      client.send(bytes.subarray(0, cut));
      await new Promise((resolve) => setImmediate(resolve));
      client.send(bytes.subarray(cut));
      const reply = await client.chunk();
      t.like(reply, { type: REPLY_TYPE.ERROR, cookie: 5n, offset: 0n });
      t.is(reply!.payload.getUint32(0), 22);
    }
    t.is((await client.request(CMD.READ, 0n, 1))?.type, REPLY_TYPE.OFFSET_DATA, 'the session lives');
    client.stream.destroy();
  });
}

test('T14: a filter where no context was selected is refused', async (t) => {
  const client = await newClient().start(false);
  const data = filter(4096n, 1);
  const reply = await client.request(CMD.BLOCK_STATUS, 0n, data.length, { flags: PAYLOAD_LEN, data });
  t.is(reply?.type, REPLY_TYPE.ERROR);
  t.is((await client.request(CMD.FLUSH, 0n, 0))?.type, REPLY_TYPE.NONE);
  client.stream.destroy();
});

test('T1: a compact request where extended headers were agreed ends the session', async (t) => {
  const client = await newClient().start();
  client.send(Uint8Array.of(0x25, 0x60, 0x95, 0x13), new Uint8Array(28));
  t.is(await client.chunk(), undefined);
  t.is(((await client.summary).error as { code?: string }).code, 'ERR_WIRE_MAGIC');
});
