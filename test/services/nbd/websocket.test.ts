import { once } from 'node:events';
import { request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import test from 'ava';
import { WebSocket } from 'ws';
import { connectNbdWebSocket, NbdClient, NbdWebListener, SessionPool } from '../../../services/nbd/mod.ts';
import { twoDisks } from './harness.ts';

async function listening(options: { origins?: string[]; connections?: number } = {}) {
  const { connections = 100 } = options;
  const pool = new SessionPool(twoDisks().exports, { limits: { connections } });
  const web = await NbdWebListener.listen(
    { host: '127.0.0.1', port: 0 },
    { pool, metrics: () => pool.metrics(), ...(options.origins === undefined ? {} : { origins: options.origins }) },
  );
  const close = async (): Promise<void> => {
    await pool.close();
    await web.close();
  };
  return { pool, web, close };
}

test('NBD over WebSocket: reads and writes of any size, and block status', async (t) => {
  const { web, close, pool } = await listening();
  const client = await NbdClient.connect(await connectNbdWebSocket(`${web.url('ws')}/`), { exportName: 'disk' });
  const data = Uint8Array.from({ length: 700_001 }, (_, index) => (index * 31) & 0xff);
  await client.write(77, data, { fua: true });
  const into = new Uint8Array(data.length);
  await client.read(77, into);
  // Not deepEqual(): with so many it takes seconds, in which deadlines of the tests beside this one pass
  t.true(Buffer.from(into).equals(data));
  t.true((await client.blockStatus(0, 1 << 20)).length > 0);
  t.is(pool.metrics().sessions.length, 1);
  await client.close();
  await close();
  t.is(pool.connections, 0);
});

/** The status that an upgrade gets; 101 where it is let in. */
async function upgrade(url: string, protocols: string[], headers: Record<string, string> = {}): Promise<number> {
  const socket = new WebSocket(url, protocols, { headers });
  const status = await new Promise<number>((resolve) => {
    socket.once('open', () => resolve(101));
    socket.once('unexpected-response', (_request, response) => resolve(response.statusCode ?? 0));
    socket.once('error', () => resolve(-1));
  });
  socket.on('error', () => {});
  socket.terminate();
  return status;
}

test('NBD over WebSocket: a page of another site, another path and another subprotocol are refused', async (t) => {
  const { web, close } = await listening({ origins: ['https://good.example'] });
  const url = `${web.url('ws')}/`;
  t.is(await upgrade(url, ['nbd']), 101);
  t.is(await upgrade(url, ['nbd'], { Origin: 'https://good.example' }), 101);
  t.is(await upgrade(url, ['nbd'], { Origin: 'https://evil.example' }), 403);
  t.is(await upgrade(url, ['nbd'], { Origin: 'null' }), 403);
  t.is(await upgrade(url, ['nbd'], { Origin: web.url() }), 403);
  t.is(await upgrade(`${url}other`, ['nbd']), 404);
  t.is(await upgrade(url, ['binary']), 400);
  t.is(await upgrade(url, []), 400);
  await close();
});

test('NBD over WebSocket: a text message ends the session, and so does one that is too large', async (t) => {
  const { web, close } = await listening();
  for (const message of ['text', Buffer.alloc((4 << 20) + 1)]) {
    const socket = new WebSocket(`${web.url('ws')}/`, ['nbd']);
    socket.on('error', () => {});
    await once(socket, 'open');
    socket.send(message);
    await once(socket, 'close');
  }
  t.pass();
  await close();
});

test('H14: WebSockets count against the same limits', async (t) => {
  const { web, close, pool } = await listening({ connections: 1 });
  const first = await connectNbdWebSocket(`${web.url('ws')}/`);
  t.is(await upgrade(`${web.url('ws')}/`, ['nbd']), 503);
  t.is(pool.refused, 1);
  first.destroy();
  await close();
});

test('a client of something that is no NBD over WebSocket is told so', async (t) => {
  const { web, close } = await listening();
  await t.throwsAsync(connectNbdWebSocket(`${web.url('ws')}/nothing`), { code: 'ERR_WIRE_STATE' });
  await close();
  await t.throwsAsync(connectNbdWebSocket('ws://127.0.0.1:1/'), { code: 'ERR_WIRE_STATE' });
});

function get(url: string, headers: Record<string, string> = {}): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(url, { headers }, (response) => {
      let text = '';
      response.on('data', (chunk: Buffer) => {
        text += chunk.toString();
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text }));
    });
    request.on('error', reject);
    request.end();
  });
}

test('metrics: counters by peer and export, as text that Prometheus reads', async (t) => {
  const { web, close } = await listening();
  const client = await NbdClient.connect(await connectNbdWebSocket(`${web.url('ws')}/`), { exportName: 'disk' });
  await client.write(0, new Uint8Array(1000));
  await client.read(0, new Uint8Array(500));
  const { status, text } = await get(`${web.url()}/metrics`);
  t.is(status, 200);
  t.regex(text, /^caisson_nbd_written_bytes_total\{peer="127\.0\.0\.1"\} 1000$/m);
  t.regex(text, /^caisson_nbd_read_bytes_total\{peer="127\.0\.0\.1"\} 500$/m);
  t.regex(text, /^caisson_nbd_session_in_flight\{session="1",peer="127\.0\.0\.1",export="disk"\} 0$/m);
  for (const line of text.trimEnd().split('\n')) {
    t.regex(line, /^(?:# (?:HELP|TYPE) caisson_nbd_\w+ .+|caisson_nbd_\w+(?:\{.*\})? [0-9.]+)$/);
  }
  t.is((await get(`${web.url()}/metrics`, { Host: 'evil.example' })).status, 404, 'not for rebound names');
  t.is((await get(`${web.url()}/`)).status, 404);
  await client.close();
  await close();
});

test.serial(
  'NBD over WebSocket: connections that say nothing are bounded, so that descriptors are left for others',
  async (t) => {
    const { web: listener, close } = await listening();
    const { port } = new URL(listener.url());
    const sockets = Array.from({ length: 300 }, () => connect(Number(port), '127.0.0.1').on('error', () => {}));
    let closed = 0;
    for (const socket of sockets) socket.once('close', () => closed++);
    for (let tries = 0; tries < 200 && closed < 44; tries++) await new Promise((resolve) => setTimeout(resolve, 20));
    t.is(closed, 44, '256 stay');
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => setTimeout(resolve, 100));
    t.is((await fetch(`${listener.url()}/metrics`)).status, 200, 'and it serves on');
    await close();
  },
);
