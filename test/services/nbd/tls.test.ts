import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import ava from 'ava';
import {
  encodeGreeting,
  encodeOption,
  encodeOptionReply,
  HANDSHAKE_FLAG,
  OPT,
  optionName,
  REP,
} from '../../../protocols/nbd/mod.ts';
import {
  ExportSet,
  MemoryImage,
  NbdClient,
  NbdListener,
  type NbdServerTls,
  type NbdSessionSummary,
  type ServeNbdOptions,
} from '../../../services/nbd/mod.ts';
import {
  readTlsCredentials,
  socketPair,
  TlsClient,
  type TlsIdentity,
  TlsServer,
} from '../../../services/shared/mod.ts';
import { hasOpenssl, makeCredentials, type TestCredentials } from '../../fixtures/certificates.ts';
import { ByteClient, goOption, joined, twoDisks } from './harness.ts';

const test = hasOpenssl ? ava : ava.skip;
let made: TestCredentials;
const directory = mkdtempSync(join(tmpdir(), 'caisson-nbd-tls-'));
if (hasOpenssl) {
  ava.before(() => {
    made = makeCredentials();
  });
}
ava.after.always(() => {
  made?.remove();
  rmSync(directory, { recursive: true, force: true });
});
let count = 0;

const serverTls = (mode: NbdServerTls['mode'], path = made.keys): NbdServerTls => ({
  server: new TlsServer(readTlsCredentials(path, 'server')),
  mode,
});
const clientTls = (path = made.keys, user?: string): TlsClient => {
  const name = user ?? (path === made.keys ? 'alice' : undefined);
  return new TlsClient(readTlsCredentials(path, 'client'), name === undefined ? {} : { user: name });
};
const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

/** A client past the greeting, over sockets as the ones that TLS is for. */
async function connected(exports?: ExportSet, options: ServeNbdOptions = {}): Promise<ByteClient> {
  const [near, far] = await socketPair();
  const client = new ByteClient(exports, options, [near, far]);
  near.resume();
  far.resume();
  return client.hello();
}

/** A disk for everybody, one for TLS only, one for alice only. */
function threeDisks(): ExportSet {
  const exports = new ExportSet();
  const image = new MemoryImage(1 << 20);
  const isAlice = (peer: TlsIdentity | undefined): boolean =>
    (peer?.kind === 'psk' && peer.user === 'alice') ||
    (peer?.kind === 'x509' && (peer.subject === 'CN=alice,O=Example' || peer.altNames.includes('DNS:alice')));
  exports.add({ name: 'open', image, writable: true });
  exports.add({ name: 'secret', image, writable: true, tlsOnly: true });
  exports.add({ name: 'alice', image, writable: true, tlsOnly: true, authorize: isAlice });
  return exports;
}

test('H9: STARTTLS with data is refused, and the session goes on', async (t) => {
  const client = await connected(undefined, { tls: serverTls('allow') });
  client.send(encodeOption(OPT.STARTTLS, new Uint8Array(1)));
  t.deepEqual(await client.answers(), [REP.ERR_INVALID]);
  await client.startTls(clientTls());
  client.send(goOption());
  t.is((await client.answers()).at(-1), REP.ACK);
  client.stream.destroy();
});

test('H9: STARTTLS inside TLS is refused, and the session goes on', async (t) => {
  const client = await connected(undefined, { tls: serverTls('require') });
  await client.startTls(clientTls());
  client.send(encodeOption(OPT.STARTTLS));
  t.deepEqual(await client.answers(), [REP.ERR_INVALID]);
  client.send(goOption());
  t.is((await client.answers()).at(-1), REP.ACK);
  client.stream.destroy();
  t.deepEqual((await client.summary).peer, { kind: 'psk', user: 'alice' });
});

test('H9: what was agreed before TLS is forgotten behind it', async (t) => {
  const client = await connected(undefined, { tls: serverTls('allow') });
  client.send(encodeOption(OPT.STRUCTURED_REPLY));
  t.deepEqual(await client.answers(), [REP.ACK]);
  await client.startTls(clientTls());
  // Both would be answered otherwise if structured replies were still on.
  client.send(encodeOption(OPT.SET_META_CONTEXT, new Uint8Array(8)));
  t.deepEqual(await client.answers(), [REP.ERR_INVALID]);
  client.send(goOption());
  t.is((await client.answers()).at(-1), REP.ACK);
  const reply = await client.ask({ length: 512 });
  t.is(reply?.type, undefined, 'a simple reply');
  client.stream.destroy();
});

for (const [what, behind] of [
  ['an option', () => goOption()],
  ['one byte', () => new Uint8Array(1)],
  ['the start of a TLS record', () => new Uint8Array([22, 3, 1])],
  ['100 KiB', () => new Uint8Array(100 << 10)],
] as const) {
  test(`H9, CVE-2021-3716: ${what} as plain text behind STARTTLS ends the session without an answer`, async (t) => {
    const client = await connected(undefined, { tls: serverTls('allow') });
    client.send(joined(encodeOption(OPT.STARTTLS), behind()));
    t.is((await client.rest()).length, 0);
    const { error, exportName } = await client.summary;
    t.regex(error!.message, /plain text behind NBD_OPT_STARTTLS/);
    t.is(exportName, undefined);
  });
}

test('H9: plain text that comes instead of a TLS handshake ends the session', async (t) => {
  const client = await connected(undefined, { tls: serverTls('allow') });
  client.send(encodeOption(OPT.STARTTLS));
  t.deepEqual(await client.answers(), [REP.ACK]);
  client.send(goOption());
  t.deepEqual(
    (await client.rest()).filter((byte, index) => index === 0 && byte !== 21),
    new Uint8Array(0),
    'an alert at most',
  );
  t.regex((await client.summary).error!.message, /Cannot accept the TLS client/);
});

test('H10: NOTLS refuses STARTTLS by policy, and never says that TLS is required', async (t) => {
  const client = await connected(threeDisks());
  client.send(encodeOption(OPT.STARTTLS));
  t.deepEqual(await client.answers(), [REP.ERR_POLICY]);
  client.send(goOption('secret'));
  t.deepEqual(await client.answers(), [REP.ERR_UNKNOWN]);
  client.send(encodeOption(OPT.LIST));
  t.deepEqual(await client.answers(), [REP.SERVER, REP.ACK]);
  client.send(goOption('open'));
  t.is((await client.answers()).at(-1), REP.ACK);
  client.stream.destroy();
});

test('H10: FORCEDTLS answers every option but STARTTLS and ABORT with TLS_REQD', async (t) => {
  const client = await connected(undefined, { tls: serverTls('require') });
  for (const option of [3, 4, 6, 7, 8, 9, 10, 11, 12, 0x4242_4242]) {
    client.send(encodeOption(option, option === OPT.GO ? new Uint8Array(6) : new Uint8Array(0)));
    t.deepEqual(await client.answers(), [REP.ERR_TLS_REQD], optionName(option));
  }
  client.send(encodeOption(OPT.ABORT));
  t.deepEqual(await client.answers(), [REP.ACK]);
  await client.rest();
});

test('H10: FORCEDTLS closes on EXPORT_NAME', async (t) => {
  const client = await connected(undefined, { tls: serverTls('require') });
  client.send(encodeOption(OPT.EXPORT_NAME, bytesOf('disk')));
  t.is((await client.rest()).length, 0);
  t.regex((await client.summary).error!.message, /TLS has to come first/);
});

test('H10: SELECTIVETLS hides and refuses what is for TLS only, and serves the rest', async (t) => {
  const tls = serverTls('allow');
  const client = await connected(threeDisks(), { tls });
  client.send(encodeOption(OPT.LIST));
  t.deepEqual(await client.answers(), [REP.SERVER, REP.ACK]);
  for (const name of ['secret', 'alice']) {
    client.send(goOption(name));
    t.deepEqual(await client.answers(), [REP.ERR_TLS_REQD]);
  }
  client.send(goOption('open'));
  t.is((await client.answers()).at(-1), REP.ACK);
  client.stream.destroy();
  const old = await connected(threeDisks(), { tls });
  old.send(encodeOption(OPT.EXPORT_NAME, bytesOf('secret')));
  t.is((await old.rest()).length, 0);
  const secure = await connected(threeDisks(), { tls });
  await secure.startTls(clientTls());
  secure.send(encodeOption(OPT.LIST));
  t.deepEqual(await secure.answers(), [REP.SERVER, REP.SERVER, REP.SERVER, REP.ACK]);
  secure.send(goOption('secret'));
  t.is((await secure.answers()).at(-1), REP.ACK);
  secure.stream.destroy();
});

for (const [kind, alice, other] of [
  ['PSK', () => [made.keys, made.keys, 'alice'], () => [made.keys, made.keys, 'bob']],
  ['X.509', () => [made.good, made.good], () => [made.good, made.misnamed]],
] as const) {
  test(`H11: an export is there for who may use it, by ${kind} identity`, async (t) => {
    for (const [who, allowed] of [
      [alice, true],
      [other, false],
    ] as const) {
      const [server, path, user] = who();
      const client = await connected(threeDisks(), { tls: serverTls('require', server) });
      await client.startTls(clientTls(path, user));
      client.send(encodeOption(OPT.LIST));
      t.is((await client.answers()).length, allowed ? 4 : 3);
      client.send(goOption('alice'));
      t.is((await client.answers()).at(-1), allowed ? REP.ACK : REP.ERR_UNKNOWN);
      client.stream.destroy();
    }
  });
}

for (const who of ['bare', 'impostor', 'expired'] as const) {
  test(`H11: a client that is ${who} gets no answer inside TLS`, async (t) => {
    const client = await connected(undefined, { tls: serverTls('require', made.good) });
    try {
      await client.startTls(clientTls(made[who]));
      client.send(encodeOption(OPT.LIST));
      t.is((await client.rest()).length, 0);
    } catch (error) {
      t.is((error as { code?: string }).code, 'ERR_TLS_PEER');
    }
    const { error, peer } = await client.summary;
    t.is((error as { code?: string }).code, 'ERR_TLS_PEER');
    t.is(peer, undefined);
  });
}

test('H14: the deadline of the handshake holds inside the TLS handshake and behind it', async (t) => {
  const limits = { handshakeMs: 300 };
  const stuck = await connected(undefined, { tls: serverTls('require'), limits });
  stuck.send(encodeOption(OPT.STARTTLS));
  await stuck.answers();
  const late = await connected(undefined, { tls: serverTls('require'), limits: { handshakeMs: 5000 } });
  await late.startTls(clientTls());
  for (const client of [stuck, late]) {
    const { error } = await client.summary;
    t.is((error as { code?: string }).code, 'ERR_WIRE_TIMEOUT');
  }
});

test('H15: a shutdown ends a session in the middle of its TLS handshake', async (t) => {
  const abort = new AbortController();
  const client = await connected(undefined, { tls: serverTls('require'), signal: abort.signal });
  client.send(encodeOption(OPT.STARTTLS));
  await client.answers();
  abort.abort();
  await client.summary;
  t.pass();
});

test('T20: a client that disappears at any byte of its TLS handshake leaves nothing behind', async (t) => {
  // The bytes of a good hello, taken from a client of ours
  const [near, far] = await socketPair();
  far.resume();
  near.resume();
  const hello = new Promise<Uint8Array>((resolve) => far.once('data', resolve));
  clientTls()
    .upgrade(near, { serverName: 'localhost' })
    .catch(() => {});
  const bytes = await hello;
  near.destroy();
  const tls = serverTls('require');
  for (let cut = 0; cut <= bytes.length; cut += 23) {
    const client = await connected(undefined, { tls });
    client.send(encodeOption(OPT.STARTTLS));
    await client.answers();
    client.send(bytes.subarray(0, cut));
    client.stream.end();
    t.truthy((await client.summary).error);
  }
});

async function listening(
  t: { teardown(work: () => Promise<void>): void },
  tls: NbdServerTls | undefined,
  tcp = false,
): Promise<{ listener: NbdListener; sessions: NbdSessionSummary[] }> {
  const sessions: NbdSessionSummary[] = [];
  const address = tcp
    ? ({ type: 'inet', port: 0 } as const)
    : ({ type: 'unix', path: join(directory, `${count++}.sock`) } as const);
  const listener = await NbdListener.listen(address, threeDisks(), {
    ...(tls === undefined ? {} : { tls }),
    onSession: (summary) => sessions.push(summary),
  });
  t.teardown(() => listener.close());
  return { listener, sessions };
}

for (const kind of ['PSK', 'X.509'] as const) {
  for (const tcp of [false, true]) {
    test(`our client and our server over ${kind}, ${tcp ? 'TCP' : 'UNIX socket'}`, async (t) => {
      const path = kind === 'PSK' ? made.keys : made.good;
      const { listener, sessions } = await listening(t, serverTls('require', path), tcp);
      t.regex(listener.uriOf('secret'), /^nbds/);
      const client = await NbdClient.connect(listener.uriOf('secret'), { tls: { client: clientTls(path) } });
      t.is(client.peer?.kind, kind === 'PSK' ? 'psk' : 'x509');
      t.true(client.canBlockStatus);
      const data = Buffer.alloc(700_000, 'caisson');
      await Promise.all([client.write(1000, data), client.flush()]);
      const back = Buffer.alloc(data.length);
      await Promise.all(
        Array.from({ length: 7 }, (_, index) =>
          client.read(1000 + index * 100_000, back.subarray(index * 100_000, (index + 1) * 100_000)),
        ),
      );
      t.true(back.equals(data));
      t.true((await client.blockStatus(0, 1 << 20)).length > 0);
      await client.close();
      await listener.close();
      t.is(sessions[0]?.error, undefined);
      t.is(sessions[0]?.peer?.kind, kind === 'PSK' ? 'psk' : 'x509');
      const names = await t.throwsAsync(NbdClient.list(listener.uri, { tls: { client: clientTls(path) } }));
      t.truthy(names, 'the listener is closed');
    });
  }
}

test('C2: the URI names keys, certificates, user and host, as libnbd reads it', async (t) => {
  const keys = await listening(t, serverTls('require'));
  const withKeys = keys.listener.uriOf('alice').replace('nbds+unix://', 'nbds+unix://alice@');
  const uri = `${withKeys}&tls-psk-file=${made.keys}`;
  await (await NbdClient.connect(uri, { uriFiles: true })).close();
  t.is((await NbdClient.list(uri, { uriFiles: true })).length, 3);
  const asBob = uri.replace('alice@', 'bob@');
  t.is((await NbdClient.list(asBob, { uriFiles: true })).length, 2);
  await t.throwsAsync(NbdClient.connect(asBob, { uriFiles: true }), { code: 'ERR_WIRE_STATE', message: /ERR_UNKNOWN/ });
  // A URI may come from anywhere: it does not get to read files by itself.
  await t.throwsAsync(NbdClient.connect(uri), { code: 'ERR_TLS_CREDENTIALS', message: /not allowed/ });
  await t.throwsAsync(NbdClient.connect(withKeys), { code: 'ERR_TLS_CREDENTIALS', message: /neither/ });
  const named = await listening(t, serverTls('require', made.good), true);
  const certificates = `${named.listener.uriOf('alice')}?tls-certificates=${made.good}`;
  await (await NbdClient.connect(certificates, { uriFiles: true })).close();
  await t.throwsAsync(NbdClient.connect(`${certificates}&tls-hostname=elsewhere.example`, { uriFiles: true }), {
    code: 'ERR_TLS_PEER',
    message: /ALTNAME_INVALID/,
  });
});

for (const tcp of [true, false]) {
  test(`C2, CVE-2024-7383: the name in the certificate is checked, ${tcp ? 'over TCP' : 'also on a UNIX socket'}`, async (t) => {
    const { listener } = await listening(t, serverTls('require', made.misnamed), tcp);
    const client = clientTls(made.good);
    await t.throwsAsync(NbdClient.connect(listener.uri, { tls: { client } }), { code: 'ERR_TLS_PEER' });
    const right = await NbdClient.connect(listener.uri, { tls: { client, serverName: 'elsewhere.example' } });
    await right.close();
  });
}

/** A server that says what it is told to, once for each thing that the client says. */
async function scripted(answers: readonly Uint8Array[]): Promise<{ uri: string; said: Buffer[]; close: () => void }> {
  const path = join(directory, `${count++}.sock`);
  const said: Buffer[] = [];
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => {});
    const left = [...answers];
    socket.write(left.shift()!);
    socket.on('data', (chunk: Buffer) => {
      said.push(chunk);
      const next = left.shift();
      if (next !== undefined) socket.write(next);
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return {
    uri: `nbd+unix:///?socket=${path}`,
    said,
    close: () => {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}
const greeting = encodeGreeting({ flags: HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES });

for (const [what, answers, code] of [
  ['that refuses it', [greeting, encodeOptionReply(OPT.STARTTLS, REP.ERR_POLICY)], 'ERR_WIRE_STATE'],
  ['that does not know it', [greeting, encodeOptionReply(OPT.STARTTLS, REP.ERR_UNSUP)], 'ERR_WIRE_STATE'],
  ['of the style before it', [encodeGreeting({ flags: 0 })], 'ERR_WIRE_STATE'],
  [
    'that puts words behind its answer',
    [greeting, joined(encodeOptionReply(OPT.STARTTLS, REP.ACK), encodeOptionReply(OPT.STRUCTURED_REPLY, REP.ACK))],
    'ERR_WIRE_STATE',
  ],
  [
    'that goes on in plain text',
    [
      greeting,
      encodeOptionReply(OPT.STARTTLS, REP.ACK),
      joined(encodeOptionReply(OPT.STRUCTURED_REPLY, REP.ACK), new Uint8Array(64)),
    ],
    'ERR_TLS_PEER',
  ],
] as const) {
  test(`C2, CVE-2019-14842: a client that requires TLS leaves a server ${what}`, async (t) => {
    const { uri, said, close } = await scripted(answers);
    const tls = { client: clientTls() };
    for (const target of [uri, uri.replace('nbd+', 'nbds+')]) {
      await t.throwsAsync(NbdClient.connect(target, { tls: { ...tls, mode: 'require' } }), { code });
      // nbds:// requires TLS whatever the options say.
      if (target.startsWith('nbds')) {
        await t.throwsAsync(NbdClient.connect(target, { tls: { ...tls, mode: 'allow' } }), { code });
      }
    }
    t.false(Buffer.concat(said).includes(encodeOption(OPT.STRUCTURED_REPLY)), 'nothing was agreed in plain text');
    close();
  });
}

test('C2: nothing but STARTTLS is asked before TLS', async (t) => {
  const { uri, said, close } = await scripted([greeting, encodeOptionReply(OPT.STARTTLS, REP.ERR_POLICY)]);
  await t.throwsAsync(NbdClient.connect(uri, { tls: { client: clientTls() } }));
  const words = Buffer.concat(said);
  t.deepEqual(new Uint8Array(words.subarray(4, 20)), new Uint8Array(encodeOption(OPT.STARTTLS)));
  t.true(words.length === 20 || words.subarray(20).equals(encodeOption(OPT.ABORT)));
  close();
});

test('a client that allows TLS goes on without it where the server has none, and uses it where it has', async (t) => {
  const tls = { client: clientTls(), mode: 'allow' } as const;
  const without = await listening(t, undefined);
  const plain = await NbdClient.connect(without.listener.uriOf('open'), { tls });
  t.is(plain.peer, undefined);
  await plain.close();
  const withTls = await listening(t, serverTls('allow'));
  const secure = await NbdClient.connect(withTls.listener.uriOf('alice'), { tls });
  t.deepEqual(secure.peer, { kind: 'psk', user: 'alice' });
  await secure.close();
  // TLS that fails is not TLS that is missing.
  const stranger = { client: clientTls(made.strangerKeys), mode: 'allow' } as const;
  await t.throwsAsync(NbdClient.connect(withTls.listener.uriOf('open'), { tls: stranger }), { code: 'ERR_TLS_PEER' });
});

test('a client without TLS is told when the server requires it', async (t) => {
  const { listener } = await listening(t, serverTls('require'));
  await t.throwsAsync(NbdClient.connect(listener.uri.replace('nbds', 'nbd')), { message: /ERR_TLS_REQD/ });
});

test('a client gives up on a server that is stuck in the TLS handshake', async (t) => {
  const { uri, close } = await scripted([greeting, encodeOptionReply(OPT.STARTTLS, REP.ACK)]);
  const tls = { client: clientTls() };
  await t.throwsAsync(NbdClient.connect(uri, { tls, openTimeoutMs: 300 }), { code: 'ERR_WIRE_TIMEOUT' });
  const abort = new AbortController();
  const connecting = NbdClient.connect(uri, { tls, signal: abort.signal });
  setTimeout(() => abort.abort(new Error('enough')), 100);
  await t.throwsAsync(connecting, { message: 'enough' });
  close();
});

test('images stay whole: twoDisks() serves over TLS like over anything else', async (t) => {
  const { exports, image } = twoDisks();
  const client = await connected(exports, { tls: serverTls('require') });
  await client.startTls(clientTls());
  client.send(goOption('disk'));
  await client.answers();
  t.is((await client.ask({ type: 1, offset: 4096n, length: 3 }, bytesOf('abc')))?.error, 0);
  const into = new Uint8Array(3);
  await image.read(4096, into);
  t.deepEqual(into, bytesOf('abc'));
  client.stream.destroy();
});
