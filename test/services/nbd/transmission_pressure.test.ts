import test from 'ava';
import { CMD, encodeClientFlags, encodeOption, OPT } from '../../../protocols/nbd/mod.ts';
import { ExportSet, MemoryImage } from '../../../services/nbd/mod.ts';
import { collectGarbage } from '../../fixtures/collect_garbage.ts';
import { ByteClient, goOption, joined, requestBytes, twoDisks } from './harness.ts';

// A session under pressure: in pieces, cut off, not read, read slowly, beside a greedy one.

const data = (length: number, seed = 1): Uint8Array =>
  Uint8Array.from({ length }, (_, index) => (index * 7 + seed) & 0xff);

function exportOf(image: MemoryImage): ExportSet {
  const exports = new ExportSet();
  exports.add({ name: 'disk', image, writable: true });
  return exports;
}

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 2));

/** A whole session whose replies do not depend on timing: everything runs in place, the flush comes last. */
function wholeSession(): Uint8Array {
  return joined(
    encodeClientFlags(3),
    encodeOption(4711, data(5)),
    encodeOption(OPT.LIST),
    encodeOption(OPT.STRUCTURED_REPLY),
    goOption('disk', [0, 1, 2, 3]),
    requestBytes({ type: CMD.WRITE, cookie: 1n, offset: 3n, length: 40 }),
    data(40),
    requestBytes({ cookie: 2n, length: 64 }),
    requestBytes({ type: CMD.WRITE, cookie: 3n, offset: 1n << 40n, length: 20 }),
    data(20),
    requestBytes({ cookie: 4n, type: 99 }),
    requestBytes({ cookie: 5n, length: 5000 }),
    requestBytes({ cookie: 6n, type: CMD.FLUSH }),
    requestBytes({ type: CMD.DISC }),
  );
}

async function transcript(chunks: readonly Uint8Array[]): Promise<string> {
  const client = new ByteClient();
  for (const chunk of chunks) client.send(chunk);
  const bytes = await client.rest();
  await client.summary;
  return Buffer.from(bytes).toString('hex');
}

test('H4, CVE-2017-7539: the same session in any two pieces, or byte by byte, gives the same transcript', async (t) => {
  const session = wholeSession();
  const expected = await transcript([session]);
  t.true(expected.length > 600);
  t.is(await transcript([...session].map((byte) => Uint8Array.of(byte))), expected);
  for (let at = 1; at < session.length; at++) {
    const found = await transcript([session.slice(0, at), session.slice(at)]);
    if (found !== expected) t.is(found, expected, `split at ${at}`);
  }
});

test('T20, CVE-2017-9524, CVE-2013-7441: a client that leaves at any byte leaves nothing behind', async (t) => {
  const session = wholeSession();
  const { exports } = twoDisks();
  for (let at = 0; at < session.length; at++) {
    for (const leave of ['destroy', 'end'] as const) {
      const client = new ByteClient(exports);
      client.send(session.slice(0, at));
      if (at % 3 === 0) await new Promise((resolve) => setImmediate(resolve));
      if (leave === 'destroy') client.stream.destroy(new Error('gone'));
      else client.stream.end();
      client.stream.resume();
      const { error } = await client.summary; // hangs, and the test with it, if anything is left
      const code = (error as { code?: string } | undefined)?.code;
      if (
        error !== undefined &&
        !/^(?:ERR_WIRE_|ERR_STREAM_|ECONN|EPIPE)/.test(code ?? '') &&
        error.message !== 'gone'
      ) {
        t.fail(`byte ${at}, ${leave}: ${error.stack}`);
      }
    }
  }
  // What the sessions had in hand is given back: a new client finds the disk as it was left.
  const last = await new ByteClient(exports).go('disk');
  t.deepEqual((await last.ask({ offset: 3n, length: 40 }))?.data, data(40));
  last.stream.destroy();
});

// What it measures is the whole process's: no other test may run beside it.
test.serial('T17: a reader that takes little at a time gets all in order, and little is kept for it', async (t) => {
  const { exports, image } = twoDisks();
  image.writeNow(0, data(1 << 20));
  const client = await new ByteClient(exports, { limits: { replyBytes: 64 * 1024 } }).go();
  client.stream.removeAllListeners('data');
  client.stream.pause();
  const asked = 64;
  const each = 32_768;
  const sending = (async () => {
    for (let index = 0; index < asked; index++) {
      const whole = client.stream.write(requestBytes({ cookie: BigInt(index), length: each, offset: BigInt(index) }));
      if (!whole) await new Promise((resolve) => client.stream.once('drain', resolve));
    }
  })();
  const expected = 16 + each;
  const before = process.memoryUsage().arrayBuffers;
  let seen = 0;
  let most = 0;
  let piece = 1;
  for (let got = Buffer.alloc(0); seen < asked; ) {
    const bytes: Buffer | null = client.stream.read(piece) ?? client.stream.read();
    if (bytes === null) await turn();
    else got = Buffer.concat([got, bytes]);
    // A byte, then more at a time, and a byte again: a byte at a time for 2 MiB would take minutes.
    piece = piece === 1 ? 777 : piece === 777 ? 20_011 : 1;
    const seenBefore = seen;
    for (; got.length >= expected && seen < asked; seen++) {
      if (Number(got.readBigUInt64BE(8)) !== seen) t.fail(`reply ${got.readBigUInt64BE(8)} instead of ${seen}`);
      if (got[16] !== ((seen * 7 + 1) & 0xff)) t.fail(`wrong data in reply ${seen}`);
      got = got.subarray(expected);
    }
    if (seen === seenBefore) continue;
    collectGarbage();
    most = Math.max(most, process.memoryUsage().arrayBuffers - before);
  }
  await sending;
  t.true(most < 16 << 20, `${most} bytes`);
  client.stream.destroy(new Error('gone'));
  await client.summary;
});

for (const [what, limits] of [
  ['10 000 requests before a reply is read', { replyBytes: 64 * 1024 }],
  ['10 000 requests before a reply is read, default limits', {}],
] as const) {
  test.serial(`T17: memory stays flat for a client that does not read: ${what}`, async (t) => {
    const { exports, image } = twoDisks();
    image.writeNow(0, data(1 << 20));
    const client = await new ByteClient(exports, { limits }).go();
    client.stream.pause();
    const before = process.memoryUsage().arrayBuffers;
    let refusedToBuffer = 0;
    for (let index = 0; index < 10_000; index++) {
      if (!client.stream.write(requestBytes({ cookie: BigInt(index), length: 32_768 }))) refusedToBuffer++;
      if (index % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    // What counts is what is kept: when the collector gets to the rest depends on how busy the host is
    collectGarbage();
    const grown = process.memoryUsage().arrayBuffers - before;
    const bound = (limits as { replyBytes?: number }).replyBytes ?? 4 << 20;
    // 320 MB of replies were asked for.
    t.true(grown < bound + (4 << 20), `${grown} bytes more`);
    t.true(refusedToBuffer > 0, 'the server stopped reading');
    client.stream.destroy(new Error('gone'));
    await client.summary;
  });
}

test.serial('T17: a write that is announced and never comes takes no memory of its length', async (t) => {
  const image = new MemoryImage(64 << 20);
  const before = process.memoryUsage().arrayBuffers;
  const clients: ByteClient[] = [];
  for (let index = 0; index < 20; index++) {
    const client = await new ByteClient(exportOf(image)).go();
    client.send(requestBytes({ type: CMD.WRITE, length: 32 << 20 }), data(100));
    clients.push(client);
  }
  await turn();
  t.true(process.memoryUsage().arrayBuffers - before < 20 << 20);
  for (const client of clients) client.stream.destroy();
  await Promise.all(clients.map((client) => client.summary));
});

test('a client that sends many requests at once does not keep others from theirs', async (t) => {
  const { exports } = twoDisks();
  const greedy = await new ByteClient(exports).go();
  const modest = await new ByteClient(exports).go();
  const many = joined(...Array.from({ length: 4000 }, () => requestBytes({ length: 64 })));
  greedy.send(many);
  const asked = modest.ask({ cookie: 9n, length: 1 });
  let answeredFirst = false;
  const all = greedy.take(4000 * 80).then((bytes) => {
    t.is(bytes.length, 4000 * 80);
    return answeredFirst;
  });
  await asked;
  answeredFirst = true;
  t.true(await all, 'the modest client was answered before the greedy one was done');
  greedy.stream.destroy();
  modest.stream.destroy();
});
