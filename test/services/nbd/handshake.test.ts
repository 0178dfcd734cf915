import test from 'ava';
import {
  decodeInformation,
  decodeListedExport,
  decodeMetaContext,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  INFO,
  OPT,
  REP,
} from '../../../protocols/nbd/mod.ts';
import { ExportSet, MemoryImage } from '../../../services/nbd/mod.ts';
import { BOTH_FLAGS, ByteClient, goOption, joined, requestBytes, twoDisks } from './harness.ts';

const { ACK, ERR_INVALID, ERR_POLICY, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP } = REP;
const setMeta = (exportName: string, ...queries: string[]): Uint8Array =>
  encodeOption(OPT.SET_META_CONTEXT, encodeMetaContextRequest({ exportName, queries }));
const listMeta = (exportName: string, ...queries: string[]): Uint8Array =>
  encodeOption(OPT.LIST_META_CONTEXT, encodeMetaContextRequest({ exportName, queries }));
const structured = encodeOption(OPT.STRUCTURED_REPLY);

/** What the server answers to each of these options, in one session. */
async function answersTo(...options: Uint8Array[]): Promise<number[][]> {
  const client = await new ByteClient().hello();
  const answers: number[][] = [];
  for (const option of options) {
    client.send(option);
    answers.push(await client.answers());
  }
  client.stream.destroy();
  await client.summary;
  return answers;
}

async function closesAfter(bytes: Uint8Array): Promise<boolean> {
  const client = new ByteClient();
  await client.take(18);
  client.send(bytes);
  const rest = await client.rest();
  await client.summary;
  return rest.length === 0;
}

test('H1: greets with NBDMAGIC, IHAVEOPT, FIXED_NEWSTYLE and NO_ZEROES', async (t) => {
  const client = new ByteClient();
  t.is(Buffer.from(await client.take(18)).toString('latin1'), 'NBDMAGICIHAVEOPT\0\x03');
  client.stream.destroy();
});

test('H1: an unknown client flag closes', async (t) => {
  for (const flags of [1 << 2, 1 << 31, 0xffff_fffc]) t.true(await closesAfter(encodeClientFlags(flags >>> 0)));
});

test('H1: without FIXED_NEWSTYLE only EXPORT_NAME is taken', async (t) => {
  t.true(await closesAfter(joined(encodeClientFlags(0), encodeOption(OPT.LIST))));
  const client = await new ByteClient().hello(0);
  client.send(encodeOption(OPT.EXPORT_NAME, Buffer.from('disk')));
  t.is((await client.take(134)).length, 134);
  client.stream.destroy();
});

test('H2: an unknown option gets ERR_UNSUP, data and all, and the next one is parsed', async (t) => {
  const answers = await answersTo(
    encodeOption(4711, Buffer.from('whatever')),
    encodeOption(OPT.PEEK_EXPORT),
    goOption(),
  );
  t.deepEqual(answers, [[ERR_UNSUP], [ERR_UNSUP], [REP.INFO, ACK]]);
});

test('H2: the reply echoes the option', async (t) => {
  const client = await new ByteClient().hello();
  client.send(encodeOption(0xdead_beef));
  t.is((await client.optionReply())?.option, 0xdead_beef);
  client.stream.destroy();
});

test('H3: option data above 16 KiB is taken off the stream and refused, above 64 KiB the session ends', async (t) => {
  const answers = await answersTo(encodeOption(OPT.GO, new Uint8Array(16 * 1024 + 1)), goOption());
  t.deepEqual(answers, [[ERR_TOO_BIG], [REP.INFO, ACK]]);
});

for (const length of [0xffff_ffff, (64 << 20) + 1, 64 * 1024 + 1]) {
  test(`H3, CVE-2017-15119: an option of ${length} bytes closes without waiting for them`, async (t) => {
    const option = encodeOption(OPT.GO);
    new DataView(option.buffer).setUint32(12, length);
    t.true(await closesAfter(joined(encodeClientFlags(BOTH_FLAGS), option)));
  });
}

test('H5: INFO and GO tell size, flags, and what was asked for, both the same', async (t) => {
  const client = await new ByteClient().hello();
  const data = encodeInfoRequest({ name: 'disk', requests: [INFO.NAME, INFO.DESCRIPTION, INFO.BLOCK_SIZE, 77] });
  const seen: unknown[][] = [];
  for (const option of [OPT.INFO, OPT.GO]) {
    client.send(encodeOption(option, data));
    const told: unknown[] = [];
    for (;;) {
      const reply = (await client.optionReply())!;
      if (reply.type === ACK) break;
      told.push(decodeInformation(reply.data));
    }
    seen.push(told);
  }
  t.deepEqual(seen[0], seen[1]);
  t.like(seen[0]![0], { type: INFO.EXPORT, sizeBytes: 1n << 20n });
  t.deepEqual(seen[0]!.slice(1), [
    { type: INFO.NAME, name: 'disk' },
    { type: INFO.DESCRIPTION, description: 'a disk' },
    { type: INFO.BLOCK_SIZE, blockSizes: { minimum: 1, preferred: 4096, maximum: 32 << 20 } },
  ]);
  client.stream.destroy();
});

test('H5: an unknown export gets ERR_UNKNOWN and the session goes on', async (t) => {
  t.deepEqual(await answersTo(goOption('nope'), goOption('disk')), [[ERR_UNKNOWN], [REP.INFO, ACK]]);
});

test('H6: LIST with data gets ERR_INVALID, without it names the exports', async (t) => {
  const client = await new ByteClient().hello();
  client.send(encodeOption(OPT.LIST, Uint8Array.of(1)));
  t.deepEqual(await client.answers(), [ERR_INVALID]);
  client.send(encodeOption(OPT.LIST));
  t.deepEqual(decodeListedExport((await client.optionReply())!.data), { name: 'disk', description: 'a disk' });
  t.deepEqual(decodeListedExport((await client.optionReply())!.data), { name: 'locked' });
  t.deepEqual(await client.answers(), [ACK]);
  client.stream.destroy();
});

test('H6: LIST may be refused by policy', async (t) => {
  const { exports } = twoDisks();
  const client = await new ByteClient({ list: () => undefined, open: (name) => exports.open(name) }).hello();
  client.send(encodeOption(OPT.LIST));
  t.deepEqual(await client.answers(), [ERR_POLICY]);
  client.stream.destroy();
});

test('H7: EXPORT_NAME is answered with 124 zeroes unless NO_ZEROES, and an unknown name closes', async (t) => {
  for (const [flags, length] of [
    [1, 134],
    [3, 10],
  ] as const) {
    const client = await new ByteClient().hello(flags);
    client.send(encodeOption(OPT.EXPORT_NAME, Buffer.from('disk')), requestBytes({ length: 4 }));
    const reply = await client.take(length);
    t.is(Buffer.from(reply).readBigUInt64BE(0), 1n << 20n);
    t.true(reply.subarray(10).every((byte) => byte === 0));
    t.deepEqual((await client.reply(4))?.data, new Uint8Array(4));
    client.stream.destroy();
  }
  t.true(await closesAfter(joined(encodeClientFlags(3), encodeOption(OPT.EXPORT_NAME, Buffer.from('nope')))));
  t.true(await closesAfter(joined(encodeClientFlags(3), encodeOption(OPT.EXPORT_NAME, new Uint8Array(4097).fill(97)))));
});

test('H8: ABORT is acknowledged, with or without data, then the server closes', async (t) => {
  for (const data of [new Uint8Array(0), new Uint8Array(100)]) {
    const client = await new ByteClient().hello();
    client.send(encodeOption(OPT.ABORT, data), goOption());
    t.deepEqual(await client.answers(), [ACK]);
    t.is((await client.rest()).length, 0);
    t.is((await client.summary).error, undefined);
  }
});

test('H8: a client that leaves without waiting for the answer to ABORT has ended its session in order', async (t) => {
  for (const leave of ['end', 'destroy'] as const) {
    const client = await new ByteClient().hello();
    client.send(encodeOption(OPT.ABORT));
    if (leave === 'end') client.stream.end();
    else client.stream.destroy(new Error('gone'));
    const { error } = await client.summary;
    t.true(error === undefined || leave === 'destroy', String(error));
  }
});

test('H9, H10: STARTTLS in NOTLS mode gets ERR_POLICY, with data ERR_INVALID, and clear text goes on', async (t) => {
  const answers = await answersTo(encodeOption(OPT.STARTTLS), encodeOption(OPT.STARTTLS, Uint8Array.of(1)), goOption());
  t.deepEqual(answers, [[ERR_POLICY], [ERR_INVALID], [REP.INFO, ACK]]);
});

test('H12: STRUCTURED_REPLY with data, or twice, gets ERR_INVALID', async (t) => {
  const answers = await answersTo(encodeOption(OPT.STRUCTURED_REPLY, Uint8Array.of(1)), structured, structured);
  t.deepEqual(answers, [[ERR_INVALID], [ACK], [ERR_INVALID]]);
});

test('H13: meta contexts need structured replies', async (t) => {
  t.deepEqual(await answersTo(setMeta('disk', 'base:allocation'), listMeta('disk')), [[ERR_INVALID], [ERR_INVALID]]);
});

test('H13: SET takes whole names, LIST also wildcards; unknown namespaces match nothing', async (t) => {
  const { META_CONTEXT } = REP;
  const answers = await answersTo(
    structured,
    setMeta('disk', 'base:allocation', 'qemu:dirty-bitmap:x', 'nonsense'),
    setMeta('disk', 'base:'),
    listMeta('disk'),
    listMeta('disk', 'base:'),
    listMeta('disk', 'qemu:'),
    listMeta('nope'),
  );
  t.deepEqual(answers.slice(1), [
    [META_CONTEXT, ACK],
    [ACK],
    [META_CONTEXT, ACK],
    [META_CONTEXT, ACK],
    [ACK],
    [ERR_UNKNOWN],
  ]);
});

test('H13: more than 32 queries get ERR_TOO_BIG', async (t) => {
  const many = setMeta('disk', ...Array.from({ length: 33 }, () => 'x:y'));
  t.deepEqual(await answersTo(structured, many), [[ACK], [ERR_TOO_BIG]]);
});

for (const [what, options] of [
  ['a failed SET', [setMeta('disk', 'base:allocation'), setMeta('nope', 'base:allocation'), goOption('disk')]],
  ['another export', [setMeta('locked', 'base:allocation'), goOption('disk')]],
  ['a SET of nothing', [setMeta('disk', 'base:allocation'), setMeta('disk'), goOption('disk')]],
] as const) {
  test(`H13: ${what} drops the selected context`, async (t) => {
    const client = await new ByteClient().hello();
    for (const option of [structured, ...options]) {
      client.send(option);
      await client.answers();
    }
    t.is((await client.ask({ type: 7, length: 4096 }))?.error, 22);
    client.stream.destroy();
  });
}

test('H13: a selected context has a name and an id', async (t) => {
  const client = await new ByteClient().hello();
  client.send(structured, setMeta('disk', 'base:allocation'));
  await client.answers();
  t.deepEqual(decodeMetaContext((await client.optionReply())!.data), { id: 1, name: 'base:allocation' });
  client.stream.destroy();
});

test('H14: silent after connect: a client is cut off at the deadline, before and within an option', async (t) => {
  for (const sent of [new Uint8Array(0), joined(encodeClientFlags(3), goOption().subarray(0, 19))]) {
    const client = new ByteClient(twoDisks().exports, { limits: { handshakeMs: 30 } });
    client.send(sent);
    t.like((await client.summary).error, { code: 'ERR_WIRE_TIMEOUT' });
  }
});

test('H14: the deadline does not hold for the transmission phase', async (t) => {
  // Long enough for the handshake on a busy host
  const client = await new ByteClient(twoDisks().exports, { limits: { handshakeMs: 2000 } }).go();
  await new Promise((resolve) => setTimeout(resolve, 2100));
  t.is((await client.ask({ length: 1 }))?.error, 0);
  client.stream.destroy();
});

test('H14: 200 unknown options are too many', async (t) => {
  const client = await new ByteClient().hello();
  for (let count = 0; count < 200; count++) client.send(encodeOption(1000 + count));
  const answered = (await client.rest()).length;
  t.true(answered > 0);
  t.like((await client.summary).error, { code: 'ERR_WIRE_LIMIT' });
});

test('H14, CVE-2019-14850: an export is opened when a client wants it, not before', async (t) => {
  const { exports } = twoDisks();
  const opened: string[] = [];
  const directory = {
    list: () => exports.list(),
    open: async (name: string) => {
      opened.push(name);
      await new Promise((resolve) => setImmediate(resolve));
      return exports.open(name);
    },
  };
  const client = await new ByteClient(directory).hello();
  client.send(encodeOption(OPT.LIST), goOption('disk'), requestBytes({ length: 2 }));
  await client.answers();
  await client.answers();
  t.deepEqual((await client.reply(2))?.data, new Uint8Array(2));
  t.deepEqual(opened, ['disk']);
  client.stream.destroy();
});

test('H14: an export that does not open is unknown to the client', async (t) => {
  const directory = { list: () => [], open: () => Promise.reject(new Error('disk is on fire')) };
  const client = await new ByteClient(directory).hello();
  client.send(goOption());
  t.deepEqual(await client.answers(), [ERR_UNKNOWN]);
  client.stream.destroy();
});

test('H15, CVE-2024-7409: shutdown ends half-finished handshakes at once', async (t) => {
  const abort = new AbortController();
  const client = await new ByteClient(twoDisks().exports, { signal: abort.signal }).hello();
  client.send(goOption().subarray(0, 10));
  await new Promise((resolve) => setImmediate(resolve));
  abort.abort();
  t.is((await client.rest()).length, 0);
  await client.summary;
});

test('H15: shutdown while an export opens answers ERR_SHUTDOWN', async (t) => {
  const abort = new AbortController();
  const opening = Promise.withResolvers<undefined>();
  const directory = { list: () => [], open: () => opening.promise };
  const client = await new ByteClient(directory, { signal: abort.signal }).hello();
  client.send(goOption());
  await new Promise((resolve) => setTimeout(resolve, 5));
  abort.abort();
  t.deepEqual(await client.answers(), [REP.ERR_SHUTDOWN]);
  opening.resolve(undefined);
  await client.summary;
});

test('a minimum block size above 1 has to be asked for', async (t) => {
  class Sectors extends MemoryImage {
    override readonly blockBytes = 512;
  }
  const exports = new ExportSet();
  exports.add({ name: 'disk', image: new Sectors(8192), writable: true });
  const client = await new ByteClient(exports).hello();
  client.send(goOption('disk'), goOption('disk', [INFO.BLOCK_SIZE]));
  t.deepEqual(await client.answers(), [REP.ERR_BLOCK_SIZE_REQD]);
  t.deepEqual(await client.answers(), [REP.INFO, REP.INFO, ACK]);
  client.stream.destroy();
});

test('a server of simple replies does not know the other options, and clients go on without', async (t) => {
  const client = await new ByteClient(twoDisks().exports, { simpleOnly: true }).hello();
  for (const option of [OPT.STRUCTURED_REPLY, OPT.EXTENDED_HEADERS]) {
    client.send(encodeOption(option));
    t.deepEqual(await client.answers(), [ERR_UNSUP]);
  }
  client.send(goOption('disk'));
  t.is((await client.answers()).at(-1), ACK);
  t.is((await client.ask({ length: 512 }))?.data.length, 512);
});
