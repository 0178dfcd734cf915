import process from 'node:process';
import test from 'ava';
import {
  CMD,
  CMD_FLAG,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  OPT,
  REP,
} from '../../../protocols/nbd/mod.ts';
import { ExportSet, MemoryImage } from '../../../services/nbd/mod.ts';
import { ByteClient, goOption, joined, requestBytes } from './harness.ts';

/** Memory of this thread, what nothing refers to any more included, in `bytes`: test files share a process and its RSS */
function usedBytes(): number {
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

/** The bad-message table: what a wrong client sends, and how the server takes it. */
type Answer = 'close' | number;

const length = (option: number, announced: number, data = new Uint8Array(0)): Uint8Array => {
  const bytes = encodeOption(option, data);
  new DataView(bytes.buffer).setUint32(12, announced);
  return bytes;
};
const infoWith = (change: (data: Uint8Array) => Uint8Array): Uint8Array =>
  encodeOption(OPT.GO, change(encodeInfoRequest({ name: 'disk', requests: [] })));
const raw = (...bytes: number[]): Uint8Array => Uint8Array.from(bytes);
const structured = encodeOption(OPT.STRUCTURED_REPLY);
const meta = encodeMetaContextRequest({ exportName: 'disk', queries: ['base:allocation'] });

const negotiation: [string, Uint8Array[], Answer][] = [
  ['bad option magic', [encodeOption(OPT.LIST).fill(0, 0, 8)], 'close'],
  ['option length 2^32-1', [length(OPT.LIST, 0xffff_ffff)], 'close'],
  ['option length 64 MiB+1', [length(OPT.LIST, (64 << 20) + 1)], 'close'],
  ['LIST with data', [encodeOption(OPT.LIST, raw(0))], REP.ERR_INVALID],
  ['GO name length > option', [infoWith((data) => data.fill(0xff, 0, 4))], REP.ERR_INVALID],
  ['GO name length one more than there is', [infoWith((data) => data.fill(7, 3, 4))], REP.ERR_INVALID],
  ['GO with 5 bytes of data', [encodeOption(OPT.GO, raw(0, 0, 0, 0, 0))], REP.ERR_INVALID],
  ['GO without data', [encodeOption(OPT.GO)], REP.ERR_INVALID],
  ['GO name 4097', [goOption('x'.repeat(4097))], REP.ERR_INVALID],
  ['name with 0xff', [encodeOption(OPT.GO, raw(0, 0, 0, 1, 0xff, 0, 0))], REP.ERR_INVALID],
  ['name with NUL', [encodeOption(OPT.GO, raw(0, 0, 0, 1, 0, 0, 0))], REP.ERR_INVALID],
  ['trailing bytes after info list', [infoWith((data) => joined(data, raw(0, 0)))], REP.ERR_INVALID],
  ['65 535 info requests, none sent', [infoWith((data) => data.fill(0xff, 8, 10))], REP.ERR_INVALID],
  ['SET_META before structured', [encodeOption(OPT.SET_META_CONTEXT, meta)], REP.ERR_INVALID],
  [
    'SET_META with 2^32-1 queries',
    [structured, encodeOption(OPT.SET_META_CONTEXT, meta.slice().fill(0xff, 8, 12))],
    REP.ERR_INVALID,
  ],
  [
    'SET_META query longer than the option',
    [structured, encodeOption(OPT.SET_META_CONTEXT, meta.slice().fill(0xff, 12, 16))],
    REP.ERR_TOO_BIG,
  ],
  ['STRUCTURED_REPLY twice', [structured, structured], REP.ERR_INVALID],
];

for (const [what, options, expected] of negotiation) {
  test(`negotiation: ${what}`, async (t) => {
    const client = await new ByteClient().hello();
    let found: Answer = 'close';
    for (const option of options) {
      client.send(option);
      found = (await client.answers()).at(-1) ?? 'close';
    }
    t.is(found, expected);
    if (expected !== 'close') {
      client.send(goOption('disk'));
      t.is((await client.answers()).at(-1), REP.ACK, 'the session goes on');
    }
    client.stream.end();
    await client.summary;
  });
}

test('negotiation: unknown client flag', async (t) => {
  const client = new ByteClient();
  await client.take(18);
  client.send(encodeClientFlags(0x8000_0003));
  t.is((await client.rest()).length, 0);
});

const size = 1n << 20n;
const context = { context: true };
const transmission: [string, Uint8Array, Answer, { structured?: boolean; context?: boolean }?][] = [
  ['zero-length read', requestBytes({ length: 0 }), 0],
  ['read past end', requestBytes({ offset: size, length: 512 }), 22],
  ['wrapping offset', requestBytes({ offset: (1n << 64n) - 512n, length: 1024 }), 22],
  ['read > 32 MiB', requestBytes({ length: (32 << 20) + 1 }), 22],
  ['read of 2^32-1', requestBytes({ length: 0xffff_ffff }), 22],
  ['write length 2^32-1', requestBytes({ type: CMD.WRITE, length: 0xffff_ffff }), 'close'],
  ['write past end', joined(requestBytes({ type: CMD.WRITE, offset: size, length: 4 }), raw(1, 2, 3, 4)), 28],
  ['unknown command', requestBytes({ type: 4711 }), 22],
  ['unknown flag', requestBytes({ flags: 1 << 9, length: 4 }), 22],
  ['DF without structured', requestBytes({ flags: CMD_FLAG.DF, length: 4 }), 22],
  ['BLOCK_STATUS without context', requestBytes({ type: CMD.BLOCK_STATUS, length: 4 }), 22],
  [
    'BLOCK_STATUS without context, structured',
    requestBytes({ type: CMD.BLOCK_STATUS, length: 4 }),
    22,
    { structured: true },
  ],
  ['FLUSH with offset/length set', requestBytes({ type: CMD.FLUSH, offset: 1n, length: 1 }), 22],
  ['TRIM across the end', requestBytes({ type: CMD.TRIM, offset: size - 1n, length: 2 }), 22],
  ['BLOCK_STATUS across the end', requestBytes({ type: CMD.BLOCK_STATUS, offset: size - 1n, length: 2 }), 22, context],
  ['REQ_ONE with length 0', requestBytes({ type: CMD.BLOCK_STATUS, flags: CMD_FLAG.REQ_ONE, length: 0 }), 22, context],
  ['WRITE_ZEROES 2^32-1 on 1 MiB', requestBytes({ type: CMD.WRITE_ZEROES, length: 0xffff_ffff }), 28],
  ['PAYLOAD_LEN on a read', requestBytes({ flags: CMD_FLAG.PAYLOAD_LEN, length: 4 }), 22],
  ['bad request magic', requestBytes({ length: 4 }).fill(0, 0, 4), 'close'],
];
for (const [what, bytes, expected, options] of transmission) {
  test(`transmission: ${what}`, async (t) => {
    const client = await new ByteClient().go('', options);
    client.send(bytes);
    t.is((await client.reply())?.error ?? 'close', expected);
    if (expected !== 'close') t.is((await client.ask({ cookie: 2n, length: 4 }))?.error, 0, 'the session goes on');
    client.stream.end();
    await client.summary;
  });
}

test('transmission: FAST_ZERO although not advertised', async (t) => {
  class Slow extends MemoryImage {
    override readonly canFastZero = false;
    zeroes = 0;
    override async writeZeroes(): Promise<void> {
      this.zeroes++;
    }
  }
  const image = new Slow(1 << 20);
  const exports = new ExportSet();
  exports.add({ name: 'disk', image, writable: true });
  const client = await new ByteClient(exports).go();
  const fast = { type: CMD.WRITE_ZEROES, flags: CMD_FLAG.FAST_ZERO, length: 512 };
  t.is((await client.ask(fast))?.error, 22);
  t.is(image.zeroes, 0);
  t.is((await client.ask({ ...fast, cookie: 2n, flags: 0 }))?.error, 0, 'the session goes on');
  t.is(image.zeroes, 1);
  client.stream.destroy();
});

// What it counts is the whole thread's: no other test may run beside it.
test.serial('transmission: WRITE_ZEROES 2^32-1 on an export of 2^53-512 bytes', async (t) => {
  const image = new MemoryImage(2 ** 53 - 512);
  const exports = new ExportSet();
  exports.add({ name: 'disk', image, writable: true });
  const client = await new ByteClient(exports).go();
  const end = (1n << 53n) - 512n;
  const length = 0xffff_ffff;
  const before = usedBytes();
  t.is((await client.ask({ type: CMD.WRITE_ZEROES, offset: end - BigInt(length), length }))?.error, 0);
  t.is((await client.ask({ type: CMD.WRITE_ZEROES, offset: end - BigInt(length) + 1n, length }))?.error, 28);
  const grown = usedBytes() - before;
  t.true(grown < 64 << 20, `${grown} bytes`);
  client.stream.destroy();
});

test('transmission: duplicate cookies are both answered', async (t) => {
  const client = await new ByteClient().go();
  client.send(requestBytes({ cookie: 7n, length: 1 }), requestBytes({ cookie: 7n, offset: 1n, length: 1 }));
  t.is((await client.reply(1))?.cookie, 7n);
  t.is((await client.reply(1))?.cookie, 7n);
  client.stream.destroy();
});

test('transmission: DISC followed by garbage', async (t) => {
  const client = await new ByteClient().go();
  client.send(joined(requestBytes({ type: CMD.DISC }), new Uint8Array(5000).fill(0x99)));
  t.is((await client.rest()).length, 0);
  t.is((await client.summary).error, undefined);
});

test('transmission: CVE-2019-14851: commands in any order after GO end in answers or a close, never in more', async (t) => {
  const ends = new Set<unknown>();
  for (let seed = 1; seed <= 60; seed++) {
    const client = await new ByteClient().go('', { context: seed % 2 === 0 });
    let state = seed;
    const random = (below: number): number => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      return Math.floor((state / 2 ** 32) * below);
    };
    for (let count = 0; count < 50; count++) {
      const type = random(10);
      const bytes = random(3) === 0 ? random(0xffff_ffff) : random(5000);
      client.send(
        requestBytes({ type, flags: random(4) === 0 ? random(64) : 0, offset: BigInt(random(1 << 21)), length: bytes }),
      );
      if (type === CMD.WRITE) client.send(new Uint8Array(Math.min(bytes, 5000)));
    }
    client.stream.end();
    client.stream.resume();
    ends.add(((await client.summary).error as { code?: string } | undefined)?.code);
  }
  // In order, cut off in a payload that never came, or refused by what it sent: nothing else may end a session.
  const expected = [undefined, 'ERR_WIRE_TRUNCATED', 'ERR_WIRE_MAGIC', 'ERR_WIRE_LIMIT'];
  t.deepEqual(
    [...ends].filter((code) => !expected.includes(code as string | undefined)),
    [],
  );
  t.true(ends.size > 1, 'some of it was wrong');
});
