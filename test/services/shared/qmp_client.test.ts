import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { QmpClient } from '../../../services/shared/mod.ts';

const GREETING =
  '{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}\r\n';

/** A server that answers what the test says to each line. */
async function serve(
  t: ExecutionContext,
  greet: string,
  answer: (line: string, socket: Socket) => void,
): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-qmp-client-'));
  const path = join(folder, 's');
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    socket.write(greet);
    let rest = '';
    socket.on('data', (chunk) => {
      const lines = (rest + chunk.toString()).split('\r\n');
      rest = lines.pop()!;
      for (const line of lines) answer(line, socket);
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
    await rm(folder, { recursive: true, force: true });
  });
  return path;
}

const idOf = (line: string) => JSON.parse(line).id as number;
const ok = (line: string, socket: Socket) => socket.write(`{"return": {}, "id": ${idOf(line)}}\r\n`);

test('QmpClient matches answers by id, also out of order, and passes on events', async (t) => {
  const waiting: number[] = [];
  const path = await serve(t, GREETING, (line, socket) => {
    if (line.includes('qmp_capabilities')) return void ok(line, socket);
    waiting.push(idOf(line));
    if (waiting.length < 2) return;
    socket.write('{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n');
    for (const id of waiting.reverse()) socket.write(`{"return": {"n": ${id}}, "id": ${id}}\r\n`);
  });
  await using client = await QmpClient.connect(path);
  const events: string[] = [];
  client.onEvent(({ event }) => events.push(event));
  const [first, second] = await Promise.all([client.request('a'), client.request('b')]);
  t.is((second as { n: number }).n - (first as { n: number }).n, 1);
  t.deepEqual(events, ['STOP']);
});

test('QmpClient gives up on a server that does not greet', async (t) => {
  const path = await serve(t, '', () => {});
  await t.throwsAsync(QmpClient.connect(path, { timeoutMs: 50 }), { message: /no greeting came/ });
});

test('QmpClient refuses a server that does not speak QMP', async (t) => {
  for (const greet of [
    'HTTP/1.1 200 OK\r\n',
    '{"hello": 1}\r\n',
    '[1]\r\n',
    `${'['.repeat(1000)}\r\n`,
    '{"QMP": 5}\r\n',
  ]) {
    const path = await serve(t, greet, () => {});
    await t.throwsAsync(QmpClient.connect(path), { code: 'ERR_QMP_CONNECTION' }, greet.slice(0, 20));
  }
});

test('QmpClient refuses a path where nobody listens', async (t) => {
  await t.throwsAsync(QmpClient.connect('/nonexistent/qmp.sock'), { code: 'ERR_QMP_CONNECTION', message: /ENOENT/ });
});

test('QmpClient rejects what waits when the server goes', async (t) => {
  const path = await serve(t, GREETING, (line, socket) => {
    if (line.includes('qmp_capabilities')) ok(line, socket);
    else socket.destroy();
  });
  await using client = await QmpClient.connect(path);
  await t.throwsAsync(client.request('x'), { code: 'ERR_QMP_CONNECTION' });
  await t.throwsAsync(client.request('y'), { code: 'ERR_QMP_CONNECTION' });
});

test('QmpClient ignores answers to nothing, and errors without id', async (t) => {
  const path = await serve(t, GREETING, (line, socket) => {
    socket.write(
      '{"return": 1, "id": 99}\r\n{"return": 1, "id": "x"}\r\n{"error": {"class": "GenericError", "desc": "?"}}\r\n',
    );
    ok(line, socket);
  });
  await using client = await QmpClient.connect(path);
  await t.notThrowsAsync(client.request('x'));
});
