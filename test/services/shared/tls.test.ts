import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, connect as netConnect, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect as tlsConnect } from 'node:tls';
import ava, { type ExecutionContext } from 'ava';
import {
  duplexPair,
  readPskFile,
  readTlsCredentials,
  readX509Folder,
  type SecureStream,
  TlsClient,
  type TlsClientOptions,
  TlsServer,
  type TlsServerOptions,
} from '../../../services/shared/mod.ts';
import { hasOpenssl, makeCredentials, type TestCredentials } from '../../fixtures/certificates.ts';

const test = hasOpenssl ? ava : ava.skip;
let made: TestCredentials;
if (hasOpenssl) {
  ava.before(() => {
    made = makeCredentials();
  });
}
ava.after.always(() => made?.remove());
const scratch = mkdtempSync(join(tmpdir(), 'caisson-tls-files-'));
ava.after.always(() => rmSync(scratch, { recursive: true, force: true }));
let count = 0;

/** A connected pair of UNIX sockets. */
async function connected(t: ExecutionContext): Promise<{ near: Socket; far: Socket }> {
  const path = join(scratch, `${count++}.sock`);
  let server: Server;
  const accepted = new Promise<Socket>((resolve) => {
    server = createServer({ allowHalfOpen: true }, resolve);
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const near = netConnect(path);
  const far = await accepted;
  near.on('error', () => {});
  far.on('error', () => {});
  server!.close();
  t.teardown(() => {
    near.destroy();
    far.destroy();
  });
  return { near, far };
}

interface Ends {
  readonly server: PromiseSettledResult<SecureStream>;
  readonly client: PromiseSettledResult<SecureStream>;
}

interface Wanted extends TlsServerOptions, Omit<TlsClientOptions, 'minVersion'> {
  readonly serverName?: string;
  readonly clientVersion?: 'TLSv1.2' | 'TLSv1.3';
}

async function handshake(t: ExecutionContext, serverPath: string, clientPath: string, o: Wanted = {}): Promise<Ends> {
  const { near, far } = await connected(t);
  const server = new TlsServer(readTlsCredentials(serverPath, 'server'), o);
  const client = new TlsClient(readTlsCredentials(clientPath, 'client'), {
    ...(o.user === undefined ? {} : { user: o.user }),
    ...(o.clientVersion === undefined ? {} : { minVersion: o.clientVersion }),
  });
  const [serverEnd, clientEnd] = await Promise.allSettled([
    server.upgrade(far),
    client.upgrade(near, { serverName: o.serverName ?? 'localhost' }),
  ]);
  return { server: serverEnd, client: clientEnd };
}

/** The client may believe that it is in (TLS 1.3 tells it afterwards), but it gets no byte out of the server. */
async function refused(t: ExecutionContext, ends: Ends, code: string, text: RegExp): Promise<void> {
  if (ends.server.status === 'fulfilled') return t.fail('the server let it in');
  t.is(ends.server.reason.code, code);
  t.regex(ends.server.reason.message, text);
  if (ends.client.status === 'rejected') return;
  const { stream } = ends.client.value;
  const got = await new Promise<number>((resolve) => {
    let bytes = 0;
    stream.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
    });
    stream.on('close', () => resolve(bytes));
    stream.resume();
  });
  t.is(got, 0);
}

async function talks(t: ExecutionContext, ends: Ends): Promise<{ server: SecureStream; client: SecureStream }> {
  if (ends.server.status === 'rejected') throw ends.server.reason;
  if (ends.client.status === 'rejected') throw ends.client.reason;
  const [server, client] = [ends.server.value, ends.client.value];
  const data = Buffer.alloc(100_000, 7);
  const received = new Promise<number>((resolve) => {
    let bytes = 0;
    server.stream.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes === data.length) resolve(bytes);
    });
  });
  client.stream.write(data);
  t.is(await received, data.length);
  client.stream.destroy();
  server.stream.destroy();
  return { server, client };
}

test('X.509: both ends know who the other one is', async (t) => {
  const { server, client } = await talks(t, await handshake(t, made.good, made.good));
  t.like(server.peer, { kind: 'x509', subject: 'CN=alice,O=Example', altNames: ['DNS:alice'] });
  t.like(client.peer, { kind: 'x509', subject: 'CN=localhost', altNames: ['DNS:localhost', 'IP Address:127.0.0.1'] });
});

test('X.509: an address is a name too', async (t) => {
  await talks(t, await handshake(t, made.good, made.good, { serverName: '127.0.0.1' }));
});

test('PSK: both ends know who the other one is', async (t) => {
  const { server, client } = await talks(t, await handshake(t, made.keys, made.keys, { user: 'bob' }));
  t.deepEqual(server.peer, { kind: 'psk', user: 'bob' });
  t.deepEqual(client.peer, { kind: 'psk', user: 'bob' });
});

test('TLS 1.3 is spoken, and 1.2 only by option', async (t) => {
  for (const [credentials, user] of [
    [made.good, undefined],
    [made.keys, 'alice'],
  ] as const) {
    const who = user === undefined ? {} : { user };
    const first = await handshake(t, credentials, credentials, who);
    if (first.client.status === 'rejected') throw first.client.reason;
    t.is(first.client.value.stream.getProtocol(), 'TLSv1.3');
    t.is(first.client.value.stream.getCipher().name, 'TLS_AES_128_GCM_SHA256');
  }
  // A client that can do no better than 1.2
  for (const [minVersion, accepted] of [
    ['TLSv1.3', false],
    ['TLSv1.2', true],
  ] as const) {
    const { near, far } = await connected(t);
    const server = new TlsServer(readX509Folder(made.good, 'server'), { minVersion });
    const { ca, own } = readX509Folder(made.good, 'client');
    const old = tlsConnect({ socket: near, ca, cert: own!.certificate, key: own!.key, maxVersion: 'TLSv1.2' });
    old.on('error', () => {});
    const upgraded = server.upgrade(far);
    if (accepted) t.is((await upgraded).stream.getProtocol(), 'TLSv1.2');
    else await t.throwsAsync(upgraded, { code: 'ERR_TLS_PEER' });
    old.destroy();
  }
});

test('a newest version is kept to by either end, with certificates and with keys', async (t) => {
  for (const [credentials, who] of [
    [made.good, {}],
    [made.keys, { user: 'alice' }],
  ] as const) {
    const older = { ...who, minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' } as const;
    const both = await handshake(t, credentials, credentials, { ...older, clientVersion: 'TLSv1.2' });
    if (both.client.status === 'rejected') throw both.client.reason;
    t.is(both.client.value.stream.getProtocol(), 'TLSv1.2');
    // The client speaks 1.3 only.
    await refused(
      t,
      await handshake(t, credentials, credentials, older),
      'ERR_TLS_PEER',
      /Cannot accept the TLS client/,
    );
  }
});

test('PSK over TLS 1.2 has forward secrecy', async (t) => {
  const { near, far } = await connected(t);
  const keys = readPskFile(made.keys);
  const server = new TlsServer(keys, { minVersion: 'TLSv1.2' });
  const old = tlsConnect({
    socket: near,
    maxVersion: 'TLSv1.2',
    ciphers: 'PSK',
    pskCallback: () => ({ psk: keys.keys.get('alice')!.export(), identity: 'alice' }),
    checkServerIdentity: () => undefined,
  });
  old.on('error', () => {});
  const { stream, peer } = await server.upgrade(far);
  t.deepEqual(peer, { kind: 'psk', user: 'alice' });
  t.regex(stream.getCipher().name, /^(EC)?DHE-PSK-/);
  old.destroy();
  stream.destroy();
});

for (const [who, folder, text] of [
  ['without a certificate', 'bare', /PEER_DID_NOT_RETURN_A_CERTIFICATE|UNABLE_TO_GET_ISSUER_CERT/],
  ['of a foreign authority', 'impostor', /UNABLE_TO_VERIFY|UNABLE_TO_GET_ISSUER|SELF_SIGNED|DEPTH_ZERO/],
  ['with an expired certificate', 'expired', /CERT_HAS_EXPIRED/],
] as const) {
  test(`TlsServer refuses a client ${who}`, async (t) => {
    await refused(t, await handshake(t, made.good, made[folder]), 'ERR_TLS_PEER', text);
  });
}

test("TlsServer refuses a client that shows a server's certificate", async (t) => {
  const { near, far } = await connected(t);
  const { ca, own } = readX509Folder(made.good, 'server');
  const wrong = tlsConnect({ socket: near, ca, cert: own!.certificate, key: own!.key });
  wrong.on('error', () => {});
  const error = await t.throwsAsync(new TlsServer(readX509Folder(made.good, 'server')).upgrade(far), {
    code: 'ERR_TLS_PEER',
  });
  t.regex(error!.message, /INVALID_PURPOSE/);
});

test('TlsServer refuses a client that is not on the list, and asks once', async (t) => {
  const asked: unknown[] = [];
  const authorize = async (peer: { kind: string; subject?: string }): Promise<boolean> => {
    asked.push(peer.subject);
    return peer.subject === 'CN=alice,O=Example';
  };
  await talks(t, await handshake(t, made.good, made.good, { authorize }));
  await refused(
    t,
    await handshake(t, made.good, made.misnamed, { authorize }),
    'ERR_TLS_UNAUTHORIZED',
    /"CN=mallory" is not allowed/,
  );
  t.deepEqual(asked, ['CN=alice,O=Example', 'CN=mallory']);
});

test('TlsServer refuses a client when the list cannot be read', async (t) => {
  const authorize = (): never => {
    throw new Error('no list');
  };
  const ends = await handshake(t, made.keys, made.keys, { authorize, user: 'alice' });
  t.is(ends.server.status, 'rejected');
});

for (const [who, file] of [
  ['with a wrong key', 'wrongKeys'],
  ['that it does not know', 'strangerKeys'],
] as const) {
  test(`TlsServer refuses a PSK client ${who}`, async (t) => {
    const ends = await handshake(t, made.keys, made[file]);
    t.is(ends.client.status, 'rejected');
    await refused(t, ends, 'ERR_TLS_PEER', /ERR_SSL/);
  });
}

test('TlsServer refuses a certificate where keys are used, and the other way round', async (t) => {
  for (const [server, client] of [
    [made.keys, made.good],
    [made.good, made.wrongKeys],
  ] as const) {
    const ends = await handshake(t, server, client);
    t.is(ends.server.status, 'rejected');
    t.is(ends.client.status, 'rejected');
  }
});

/** A ClientHello of TLS 1.3 that offers one pre-shared key; the binder is rubbish. */
function helloWithIdentity(identity: Buffer): Buffer {
  const u16 = (value: number): Buffer => Buffer.from([value >> 8, value & 0xff]);
  const sized = (data: Buffer): Buffer => Buffer.concat([u16(data.length), data]);
  const extension = (type: number, data: Buffer): Buffer => Buffer.concat([u16(type), sized(data)]);
  const identities = sized(Buffer.concat([sized(identity), Buffer.alloc(4)]));
  const binders = sized(Buffer.concat([Buffer.from([32]), Buffer.alloc(32, 1)]));
  const share = sized(Buffer.concat([u16(0x001d), sized(Buffer.alloc(32, 9))]));
  const extensions = Buffer.concat([
    extension(0x2b, Buffer.from([2, 3, 4])), // supported_versions: TLS 1.3
    extension(0x0a, sized(u16(0x001d))), // supported_groups: X25519
    extension(0x0d, sized(u16(0x0403))), // signature_algorithms
    extension(0x33, share),
    extension(0x2d, Buffer.from([1, 1])), // psk_key_exchange_modes: psk_dhe_ke
    // pre_shared_key's own length cannot say 64 KiB and more: cut to what fits
    Buffer.concat([u16(0x29), u16(Math.min(identities.length + binders.length, 0xffff)), identities, binders]),
  ]);
  const body = Buffer.concat([
    Buffer.from([3, 3]),
    Buffer.alloc(32, 5),
    Buffer.from([0, 0, 2, 0x13, 0x01, 1, 0]),
    u16(Math.min(extensions.length, 0xffff)),
    extensions,
  ]);
  const message = Buffer.concat([
    Buffer.from([1, (body.length >> 16) & 0xff, (body.length >> 8) & 0xff, body.length & 0xff]),
    body,
  ]);
  const records: Buffer[] = [];
  for (let at = 0; at < message.length; at += 16384) {
    const piece = message.subarray(at, at + 16384);
    records.push(Buffer.from([22, 3, 1]), sized(piece));
  }
  return Buffer.concat(records);
}

for (const [what, bytes] of [
  ['speaks plain text', () => Buffer.from('GET / HTTP/1.0\r\n\r\n')],
  ['sends an alert', () => Buffer.from([21, 3, 3, 0, 2, 2, 40])],
  ['offers an identity of 1 KiB', () => helloWithIdentity(Buffer.alloc(1024, 0x61))],
  ['offers an identity of 60 000 bytes', () => helloWithIdentity(Buffer.alloc(60_000, 0x61))],
  ['offers an identity of 64 KiB', () => helloWithIdentity(Buffer.alloc(65_535, 0x61))],
] as const) {
  test(`TlsServer refuses a client that ${what}`, async (t) => {
    const { near, far } = await connected(t);
    const upgraded = new TlsServer(readPskFile(made.keys)).upgrade(far);
    near.write(bytes());
    near.resume();
    await t.throwsAsync(upgraded, { code: 'ERR_TLS_PEER' });
    t.true(far.destroyed);
  });
}

test('a hand-made hello is not refused for its form: with a known user it is its binder that is wrong', async (t) => {
  const { near, far } = await connected(t);
  const upgraded = new TlsServer(readPskFile(made.keys)).upgrade(far);
  near.write(helloWithIdentity(Buffer.from('alice')));
  near.resume();
  const error = await t.throwsAsync(upgraded, { code: 'ERR_TLS_PEER' });
  t.regex(error!.message, /BINDER_DOES_NOT_VERIFY/);
});

test('TlsServer ends a handshake that takes too long, also one that drips', async (t) => {
  const { near, far } = await connected(t);
  const hello = helloWithIdentity(Buffer.from('alice'));
  let at = 0;
  const drip = setInterval(() => near.write(hello.subarray(at, ++at)), 20);
  t.teardown(() => clearInterval(drip));
  await t.throwsAsync(new TlsServer(readPskFile(made.keys), { handshakeMs: 200 }).upgrade(far), {
    code: 'ERR_TLS_TIMEOUT',
  });
  t.true(far.destroyed);
});

test('a handshake ends with its signal, or with the other side', async (t) => {
  const server = new TlsServer(readPskFile(made.keys));
  const client = new TlsClient(readPskFile(made.keys), { user: 'alice' });
  const first = await connected(t);
  const abort = new AbortController();
  const both = [
    server.upgrade(first.far, { signal: abort.signal }),
    client.upgrade((await connected(t)).near, { serverName: 'localhost', signal: abort.signal }),
  ];
  abort.abort(new Error('enough'));
  for (const one of both) await t.throwsAsync(one, { message: 'enough' });
  const second = await connected(t);
  const left = [server.upgrade(second.far), client.upgrade((await connected(t)).near, { serverName: 'localhost' })];
  left[1]!.catch(() => {});
  second.near.destroy();
  await t.throwsAsync(left[0]!, { code: 'ERR_TLS_PEER' });
  const third = await connected(t);
  const alone = client.upgrade(third.near, { serverName: 'localhost' });
  third.far.destroy();
  await t.throwsAsync(alone, { code: 'ERR_TLS_PEER' });
});

for (const [what, folder, name, text] of [
  ['of another name', 'misnamed', 'localhost', /ERR_TLS_CERT_ALTNAME_INVALID/],
  ['of another address', 'good', '192.0.2.7', /ERR_TLS_CERT_ALTNAME_INVALID/],
  ['with an expired certificate', 'expired', 'localhost', /CERT_HAS_EXPIRED/],
  ['of a foreign authority', 'foreign', 'localhost', /UNABLE_TO_VERIFY|SELF_SIGNED|UNABLE_TO_GET_ISSUER/],
] as const) {
  test(`TlsClient refuses a server ${what}`, async (t) => {
    const ends = await handshake(t, made[folder], made.good, { serverName: name, verifyPeer: false });
    if (ends.client.status === 'fulfilled') return t.fail('the client trusts it');
    t.is(ends.client.reason.code, 'ERR_TLS_PEER');
    t.regex(ends.client.reason.message, text);
  });
}

test('TlsClient refuses a server that has another key, and one that speaks no TLS', async (t) => {
  const ends = await handshake(t, made.wrongKeys, made.keys, { user: 'alice' });
  t.is(ends.client.status, 'rejected');
  const { near, far } = await connected(t);
  const client = new TlsClient(readPskFile(made.keys), { user: 'alice' });
  const upgraded = client.upgrade(near, { serverName: 'localhost' });
  far.write('220 mail.example ESMTP\r\n');
  await t.throwsAsync(upgraded, { code: 'ERR_TLS_PEER' });
});

test('without verifyPeer a client needs no certificate, and has no name', async (t) => {
  const { server } = await talks(t, await handshake(t, made.good, made.bare, { verifyPeer: false }));
  t.deepEqual(server.peer, { kind: 'anonymous' });
});

test('works over streams that are no sockets', async (t) => {
  const [near, far] = duplexPair();
  const server = new TlsServer(readPskFile(made.keys)).upgrade(far);
  const client = new TlsClient(readPskFile(made.keys), { user: 'alice' }).upgrade(near, { serverName: 'localhost' });
  const [serverEnd, clientEnd] = await Promise.allSettled([server, client]);
  await talks(t, { server: serverEnd, client: clientEnd });
});

test('readPskFile() refuses files that are wrong, and never repeats a key', (t) => {
  const file = join(scratch, 'keys');
  const hex = 'ab'.repeat(32);
  for (const [text, why] of [
    ['', /no key/],
    ['alice\n', /line 1.*user:hexkey/],
    [`alice:${hex}\nalice:${hex}\n`, /line 2.*twice/],
    ['alice:abcd\n', /16 to 256 bytes/],
    [`alice:${hex}x\n`, /16 to 256 bytes/],
    [`:${hex}\n`, /user:hexkey/],
    [`${'a'.repeat(200)}:${hex}\n`, /longer than/],
    ['x'.repeat(2 << 20), /no file of at most/],
  ] as const) {
    writeFileSync(file, text);
    const error = t.throws(() => readPskFile(file), { code: 'ERR_TLS_CREDENTIALS' });
    t.regex(error!.message, why);
    t.false(error!.message.includes(hex));
  }
  t.throws(() => readPskFile(join(scratch, 'nothing')), { code: 'ERR_TLS_CREDENTIALS', message: /missing/ });
  t.throws(() => new TlsClient(readPskFile(made.keys)), { message: /several/ });
  t.throws(() => new TlsClient(readPskFile(made.keys), { user: 'mallory' }), { message: /none for "mallory"/ });
});

test('readX509Folder() says what is missing or wrong', (t) => {
  t.throws(() => readX509Folder(scratch, 'server'), {
    code: 'ERR_TLS_CREDENTIALS',
    message: /ca-cert\.pem is missing/,
  });
  t.throws(() => readX509Folder(made.bare, 'server'), { message: /server-cert\.pem is missing/ });
  t.is(readX509Folder(made.bare, 'client').own, undefined);
  t.throws(() => new TlsServer(readX509Folder(made.bare, 'client')), { message: /no certificate/ });
  const folder = mkdtempSync(join(scratch, 'x'));
  for (const name of ['ca-cert.pem', 'server-cert.pem', 'server-key.pem'])
    writeFileSync(join(folder, name), 'nonsense');
  t.throws(() => readX509Folder(folder, 'server'), { message: /ca-cert\.pem is not a certificate/ });
  const good = readX509Folder(made.good, 'server');
  const other = readX509Folder(made.foreign, 'server');
  const mixed = { ...good, own: { certificate: good.own!.certificate, key: other.own!.key } };
  t.throws(() => new TlsServer(mixed), { code: 'ERR_TLS_CREDENTIALS', message: /mismatch/i });
});
