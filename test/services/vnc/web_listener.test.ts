import { request } from 'node:http';
import { connect } from 'node:net';
import type { Duplex } from 'node:stream';
import test from 'ava';
import { WebSocket } from 'ws';
import { websocketStream } from '../../../services/shared/websocket_stream.ts';
import { listenWeb, loadAssets, type WebListener, type WebListenerOptions } from '../../../services/vnc/mod.ts';
import { RfbTestClient } from '../../fixtures/rfb_client.ts';
import { until, ViewerRig } from './rig.ts';

const assets = loadAssets();

async function web(options: Partial<WebListenerOptions> = {}): Promise<{ rig: ViewerRig; listener: WebListener }> {
  const rig = new ViewerRig();
  const listener = await listenWeb(rig.console, assets, {
    address: { kind: 'tcp', host: '127.0.0.1', port: 0 },
    allowedHosts: [],
    oneTime: false,
    viewOnly: false,
    ...options,
  });
  return { rig, listener };
}

interface Answer {
  readonly status: number;
  readonly headers: Record<string, string | string[] | undefined>;
  readonly body: string;
}

/** A request exactly as given: the client must not tidy the path. */
function get(
  listener: WebListener,
  path: string,
  headers: Record<string, string> = {},
  method = 'GET',
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const port = listener.bound.port!;
    const out = request({ host: '127.0.0.1', port, path, method, headers: { host: `127.0.0.1:${port}`, ...headers } });
    out.on('response', (response) => {
      let body = '';
      response.on('data', (chunk) => {
        body += chunk;
      });
      response.on('end', () => resolve({ status: response.statusCode!, headers: response.headers, body }));
    });
    out.on('error', reject);
    out.end();
  });
}

/** 101, or the status of the refusal. */
function upgrade(
  listener: WebListener,
  path: string,
  headers: Record<string, string> = {},
  protocols: string[] = [],
): Promise<{ status: number; socket?: WebSocket; stream?: Duplex; protocol?: string }> {
  return new Promise((resolve, reject) => {
    const port = listener.bound.port!;
    const { Host: host = `127.0.0.1:${port}`, ...rest } = headers;
    const socket = new WebSocket(`ws://127.0.0.1:${port}${path}`, protocols, { headers: { ...rest, Host: host } });
    socket.on('open', () => {
      // At once: the server's first bytes may be here already
      const stream = websocketStream(socket);
      stream.on('error', () => {});
      resolve({ status: 101, socket, stream, protocol: socket.protocol });
    });
    socket.on('unexpected-response', (_request, response) => {
      resolve({ status: response.statusCode! });
      socket.terminate();
    });
    socket.on('error', reject);
  });
}

const cookieOf = (answer: Answer) => String(answer.headers['set-cookie']).split(';')[0]!;

test('T3 the page comes with the token or the session, and with nothing else', async (t) => {
  const { rig, listener } = await web();
  t.is((await get(listener, '/')).status, 403);
  t.is((await get(listener, '/?token=')).status, 403);
  t.is((await get(listener, `/?token=${listener.token}x`)).status, 403);
  t.is((await get(listener, `/?token=${listener.token.slice(0, -1)}`)).status, 403);
  const page = await get(listener, `/?token=${listener.token}`);
  t.is(page.status, 200);
  t.regex(page.body, /<!doctype html>/);
  t.regex(String(page.headers['set-cookie']), /; HttpOnly; SameSite=Strict; Path=\/$/);
  t.false(String(page.headers['set-cookie']).includes(listener.token), 'the cookie is another secret');
  t.is((await get(listener, '/', { cookie: cookieOf(page) })).status, 200);
  t.is((await get(listener, '/', { cookie: `${cookieOf(page)}x` })).status, 403);
  t.is((await get(listener, `/?token=${listener.token}`)).status, 200, 'a second browser');
  rig.console.close();
  await listener.close();
});

test('T3 a one-time token is spent by the first page; its session goes on', async (t) => {
  const { listener } = await web({ oneTime: true });
  const page = await get(listener, `/?token=${listener.token}`);
  t.is(page.status, 200);
  t.is((await get(listener, `/?token=${listener.token}`)).status, 403);
  t.is((await upgrade(listener, `/websocket?token=${listener.token}`)).status, 403);
  t.is((await get(listener, '/', { cookie: cookieOf(page) })).status, 200);
  await listener.close();
});

test('T3 no inline code, no foreign code, no frames, no referrer', async (t) => {
  const { listener } = await web();
  const { headers } = await get(listener, `/?token=${listener.token}`);
  const policy = String(headers['content-security-policy']);
  t.regex(policy, /default-src 'none'/);
  t.regex(policy, /script-src 'self';/);
  t.regex(policy, /frame-ancestors 'none'/);
  t.false(policy.includes('unsafe'));
  t.is(headers['x-content-type-options'], 'nosniff');
  t.is(headers['referrer-policy'], 'no-referrer');
  t.is(headers['cache-control'], 'no-store');
  await listener.close();
});

test('noVNC is served as it is, with its licence', async (t) => {
  const { listener } = await web();
  for (const path of [
    '/novnc/core/rfb.js',
    '/novnc/vendor/pako/lib/zlib/inflate.js',
    '/novnc/LICENSE.txt',
    '/page.css',
  ]) {
    t.is((await get(listener, path)).status, 200, path);
  }
  t.is((await get(listener, '/page.js')).headers['content-type'], 'text/javascript; charset=utf-8');
  const head = await get(listener, '/page.js', {}, 'HEAD');
  t.deepEqual([head.status, head.body], [200, '']);
  await listener.close();
});

for (const path of [
  '/../package.json',
  '/novnc/../../package.json',
  '/novnc/core/../../../ws/package.json',
  '/%2e%2e/package.json',
  '/novnc/%2e%2e/%2e%2e/package.json',
  '/novnc/core/..%2f..%2fpackage.json',
  '/novnc/core/..%5c..%5cpackage.json',
  '/novnc//etc/passwd',
  '//etc/passwd',
  '/novnc/package.json',
  '/index.html',
  '/novnc/core/',
  '/novnc/core/rfb.js%00.txt',
  '/__proto__',
  '/constructor',
]) {
  test(`T3 path ${path} gives nothing`, async (t) => {
    const { listener } = await web();
    const answer = await get(listener, path);
    t.true(answer.status === 404 || answer.status === 400, String(answer.status));
    t.true(answer.body.length < 100);
    await listener.close();
  });
}

test('only GET and HEAD', async (t) => {
  const { listener } = await web();
  for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) t.is((await get(listener, '/', {}, method)).status, 405);
  await listener.close();
});

for (const host of [
  'evil.example',
  '127.0.0.1.evil.example',
  'localhost.evil',
  '0.0.0.0',
  'a b',
  '127.0.0.1:99999999',
  '[::1',
  'user@127.0.0.1',
]) {
  test(`T3 Host "${host}" gets no page and no WebSocket`, async (t) => {
    const { listener } = await web();
    const answer = await get(listener, `/?token=${listener.token}`, { host });
    t.true(answer.status === 403 || answer.status === 400, String(answer.status));
    t.is(answer.headers['set-cookie'], undefined);
    t.is((await upgrade(listener, `/websocket?token=${listener.token}`, { Host: host })).status, 403);
    await listener.close();
  });
}

test('T3 loopback names and names on the list are let in', async (t) => {
  const { listener } = await web({ allowedHosts: ['Console.Example'] });
  for (const host of ['localhost', 'localhost:9999', '127.0.0.1', '[::1]:80', 'console.example:443']) {
    t.is((await get(listener, `/?token=${listener.token}`, { host })).status, 200, host);
  }
  await listener.close();
});

test('T3 the WebSocket: token, or session with the right Origin', async (t) => {
  const { rig, listener } = await web();
  const host = `127.0.0.1:${listener.bound.port}`;
  const cookie = cookieOf(await get(listener, `/?token=${listener.token}`));
  const status = async (path: string, headers: Record<string, string> = {}) => {
    const outcome = await upgrade(listener, path, headers);
    outcome.socket?.terminate();
    return outcome.status;
  };
  t.is(await status('/websocket'), 403, 'nothing');
  t.is(await status('/websocket?token=wrong'), 403, 'wrong token');
  t.is(await status(`/websocket?token=${listener.token}`), 101, 'token of a program');
  t.is(await status('/websocket', { Cookie: cookie, Origin: `http://${host}` }), 101, 'page');
  t.is(await status('/websocket', { Cookie: cookie }), 403, 'session without Origin is no browser');
  for (const origin of [
    'null',
    'http://evil.example',
    'http://127.0.0.1:1',
    `http://${host}.evil.example`,
    `file://${host}`,
    '',
  ]) {
    t.is(await status('/websocket', { Cookie: cookie, Origin: origin }), 403, `Origin ${origin}`);
  }
  t.is(
    await status(`/websocket?token=${listener.token}`, { Origin: 'http://evil.example' }),
    403,
    'token, foreign page',
  );
  t.is(await status(`/other?token=${listener.token}`), 403, 'another path');
  rig.console.close();
  await listener.close();
});

test('T2 no subprotocol and "binary" are taken; nothing is compressed', async (t) => {
  const { rig, listener } = await web();
  const path = `/websocket?token=${listener.token}`;
  const plain = await upgrade(listener, path);
  t.is(plain.protocol, '');
  t.is(plain.socket!.extensions, '');
  const binary = await upgrade(listener, path, {}, ['chat', 'binary']);
  t.is(binary.protocol, 'binary');
  plain.socket!.terminate();
  binary.socket!.terminate();
  rig.console.close();
  await listener.close();
});

test('T2 RFB messages may straddle WebSocket messages anywhere, and share them', async (t) => {
  const { rig, listener } = await web();
  const { socket, stream } = await upgrade(listener, `/websocket?token=${listener.token}`);
  const client = new RfbTestClient(stream!);
  const bytes = Buffer.concat([
    Buffer.from('RFB 003.008\n'),
    Buffer.from([1, 1]),
    Buffer.from('0000000020180001' + '00ff00ff00ff00081000' + '0000', 'hex'),
    Buffer.from('0200000100000010', 'hex'),
    Buffer.from('03000000000001400' + '0c8', 'hex'),
  ]);
  for (const byte of bytes) socket!.send(Uint8Array.of(byte));
  t.is((await client.reader.read(12)).toString(), 'RFB 003.008\n');
  await client.reader.read(2 + 4);
  await client.readServerInit();
  await client.update();
  t.true(rig.matches(client));
  rig.console.close();
  await listener.close();
});

const misuse: readonly (readonly [string, (socket: WebSocket) => void])[] = [
  ['a text message', (socket) => socket.send('RFB 003.008\n')],
  ['a message of 1 MiB', (socket) => socket.send(Buffer.alloc(1 << 20))],
  [
    'a message in a thousand fragments',
    (socket) => {
      for (let i = 0; i < 1000; i++) socket.send(Buffer.of(0), { fin: false });
    },
  ],
  ['garbage for a version', (socket) => socket.send(Buffer.from('GET / HTTP/1'))],
];
for (const [name, misbehave] of misuse) {
  test(`T2 ${name} closes that WebSocket and no other`, async (t) => {
    const { rig, listener } = await web();
    const path = `/websocket?token=${listener.token}`;
    const good = await upgrade(listener, path);
    const client = await new RfbTestClient(good.stream!).open();
    const bad = await upgrade(listener, path);
    bad.socket!.on('error', () => {});
    misbehave(bad.socket!);
    await until('it is closed', () => bad.socket!.readyState === WebSocket.CLOSED);
    client.setPixelFormat();
    client.setEncodings(16);
    client.request(false);
    await client.update();
    t.true(rig.matches(client));
    rig.console.close();
    await listener.close();
  });
}

test('a ping flood of a client that does not read makes no queue of pongs', async (t) => {
  const { rig, listener } = await web();
  const { socket } = await upgrade(listener, `/websocket?token=${listener.token}`);
  let pongs = 0;
  socket!.on('pong', () => pongs++);
  socket!.on('error', () => {});
  for (let i = 0; i < 5000; i++) socket!.ping(Buffer.alloc(125));
  await until('some answers or the end', () => pongs > 0 || socket!.readyState !== WebSocket.OPEN);
  const client = await upgrade(listener, `/websocket?token=${listener.token}`);
  t.is(client.status, 101);
  client.socket!.terminate();
  socket!.terminate();
  rig.console.close();
  await listener.close();
});

const raw: readonly (readonly [string, string])[] = [
  ['an endless header', `GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ${'x'.repeat(20_000)}`],
  ['no Host', 'GET / HTTP/1.1\r\n\r\n'],
  [
    'a WebSocket without a key',
    'GET /websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
  ],
  ['CONNECT', 'CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'],
  ['an absolute target', 'GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n'],
  ['RFB where HTTP is spoken', 'RFB 003.008\n\n\n'],
];
for (const [name, bytes] of raw) {
  test(`${name} is refused and closed`, async (t) => {
    const { listener } = await web();
    const answer = await new Promise<string>((resolve) => {
      const socket = connect(listener.bound.port!, '127.0.0.1', () => socket.write(bytes));
      let text = '';
      socket.on('data', (chunk) => {
        text += chunk;
      });
      socket.on('error', () => resolve(text));
      socket.on('close', () => resolve(text));
    });
    t.notRegex(answer, /^HTTP\/1\.1 (1|2)/);
    t.is((await get(listener, '/page.css')).status, 200);
    await listener.close();
  });
}
