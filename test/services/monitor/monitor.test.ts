import { once } from 'node:events';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { duplexPair } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { formatJson, introspect } from '../../../protocols/qmp/mod.ts';
import { monitorRole } from '../../../services/monitor/mod.ts';
import { QmpClient, RpcPeer } from '../../../services/shared/mod.ts';

interface Monitor {
  readonly path: string;
  readonly supervisor: RpcPeer;
  /** What the monitor asked of the supervisor */
  readonly calls: [method: string, params: unknown][];
  readonly answers: Map<string, unknown>;
  readonly ended: Promise<void>;
}

async function startMonitor(t: ExecutionContext): Promise<Monitor> {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-qmp-'));
  const path = join(folder, 'qmp.sock');
  const [near, far] = duplexPair();
  const supervisor = new RpcPeer(near, { name: 'monitor' });
  const calls: [string, unknown][] = [];
  const answers = new Map<string, unknown>([
    ['query-status', { status: 'running', running: true }],
    ['query-block', [{ id: 'hd0', file: '/d', format: 'raw', readOnly: false, image: { sizeBytes: 512 } }]],
    ['query-vnc', { enabled: false }],
    ['query-cpus', [{ 'cpu-index': 0 }, { 'cpu-index': 1 }]],
    ['query-stats', [{ 'cpu-index': 0, stats: [{ name: 'instructions', value: 5 }] }]],
    ['query-exports', []],
    ['query-migrate', {}],
    ['query-migrate-parameters', { 'downtime-limit': 300 }],
    ['console', { url: 'http://127.0.0.1:1/', port: 1 }],
  ]);
  const methods = [
    ...answers.keys(),
    ...['stop', 'cont', 'quit', 'reset', 'powerdown', 'nbd-server-start', 'nbd-server-add', 'nbd-server-remove'],
    ...['nbd-server-stop', 'screendump', 'migrate', 'migrate-incoming', 'migrate-cancel', 'migrate-reclaim'],
    'migrate-set-parameters',
  ];
  for (const method of methods) {
    supervisor.handle(method, async (params) => {
      calls.push([method, params]);
      const answer = answers.get(method) ?? {};
      if (answer instanceof Error) throw answer;
      return answer;
    });
  }
  const ended = monitorRole({ control: far }, { name: 'guest one', uuid: '1-2', paths: [path] });
  await supervisor.call('listen');
  t.teardown(async () => {
    supervisor.close();
    await ended;
    await rm(folder, { recursive: true, force: true });
  });
  return { path, supervisor, calls, answers, ended };
}

/** A client that sends what it likes: gives the lines that came. */
class RawClient {
  readonly lines: string[] = [];
  readonly socket: Socket;
  #rest = '';

  constructor(path: string) {
    this.socket = connect({ path, allowHalfOpen: true });
    this.socket.on('error', () => {});
    this.socket.on('end', () => this.socket.end());
    this.socket.on('data', (chunk: Buffer) => {
      const parts = (this.#rest + chunk.toString('latin1')).split('\r\n');
      this.#rest = parts.pop()!;
      this.lines.push(...parts);
    });
  }

  static async open(path: string, negotiate = true): Promise<RawClient> {
    const client = new RawClient(path);
    await client.line();
    if (negotiate) await client.ask('{"execute":"qmp_capabilities"}');
    return client;
  }

  async line(): Promise<string> {
    for (let i = 0; i < 500; i++) {
      const line = this.lines.shift();
      if (line !== undefined) return line;
      await sleep(10);
    }
    throw new Error('no line came');
  }

  async ask(text: string | Uint8Array): Promise<string> {
    this.socket.write(text);
    return this.line();
  }

  async error(text: string | Uint8Array): Promise<string> {
    const answer = JSON.parse(await this.ask(text));
    return `${answer.error.class}: ${answer.error.desc}`;
  }
}

test('a client gets the greeting, negotiates, and its id back', async (t) => {
  const { path } = await startMonitor(t);
  const client = new RawClient(path);
  t.deepEqual(JSON.parse(await client.line()), {
    QMP: { version: { qemu: { major: 7, minor: 2, micro: 0 }, package: 'caisson-0.1.0' }, capabilities: [] },
  });
  t.is(
    await client.error('{"execute":"query-status"}'),
    "CommandNotFound: Expecting capabilities negotiation with 'qmp_capabilities'",
  );
  t.is(
    await client.ask('{"execute":"qmp_capabilities","id":{"a":[1,"é",null]}}'),
    '{"return": {}, "id": {"a": [1, "\\u00E9", null]}}',
  );
  t.is(
    await client.error('{"execute":"qmp_capabilities"}'),
    'CommandNotFound: Capabilities negotiation is already complete, command ignored',
  );
  t.is(
    await client.ask('{"execute":"query-status"}'),
    '{"return": {"running": true, "singlestep": false, "status": "running"}}',
  );
});

test('qmp_capabilities refuses oob', async (t) => {
  const { path } = await startMonitor(t);
  const client = await RawClient.open(path, false);
  t.is(
    await client.error('{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}'),
    'GenericError: This monitor does not support oob',
  );
});

test('every command of the schema is answered', async (t) => {
  const { path } = await startMonitor(t);
  await using client = await QmpClient.connect(path);
  const given: Record<string, object> = {
    migrate: { uri: 'unix:/a' },
    'migrate-incoming': { uri: 'unix:/a' },
    'nbd-server-start': { addr: { type: 'inet', data: { host: '127.0.0.1', port: '0' } } },
    'nbd-server-add': { device: 'hd0' },
    'nbd-server-remove': { name: 'hd0' },
    'block-export-add': { type: 'nbd', id: 'e', 'node-name': 'hd0' },
    'block-export-del': { id: 'e' },
    screendump: { filename: '/a.ppm' },
    'query-stats': { target: 'vcpu' },
    'migrate-set-parameters': { 'downtime-limit': 5 },
  };
  for (const { name } of (await client.execute('query-commands')) as { name: string }[]) {
    if (name !== 'qmp_capabilities') await t.notThrowsAsync(client.request(name, given[name]), name);
  }
  t.is(((await client.request('query-qmp-schema')) as unknown[]).length, introspect().length);
  t.deepEqual(await client.execute('query-name'), Object.assign(Object.create(null), { name: 'guest one' }));
});

test('commands become fixed calls to the supervisor', async (t) => {
  const { path, calls } = await startMonitor(t);
  await using client = await QmpClient.connect(path);
  await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: '/tmp/n' } } });
  await client.execute('block-export-add', { type: 'nbd', id: 'e1', 'node-name': 'hd0', writable: true });
  await client.execute('screendump', { filename: '/tmp/a.png', format: 'png' });
  await client.execute('migrate', { uri: 'tcp:127.0.0.1:1' });
  t.deepEqual(calls, [
    ['nbd-server-start', { path: '/tmp/n' }],
    ['nbd-server-add', { id: 'e1', device: 'hd0', name: 'hd0', writable: true }],
    ['screendump', { path: '/tmp/a.png', format: 'png' }],
    ['migrate', { uri: 'tcp:127.0.0.1:1' }],
  ] as never);
});

test('errors of roles reach the client with their text', async (t) => {
  const { path, answers } = await startMonitor(t);
  answers.set('migrate', Object.assign(new Error('Cannot migrate: no'), { code: 'ERR_X' }));
  const client = await RawClient.open(path);
  t.is(await client.error('{"execute":"migrate","arguments":{"uri":"tcp:a:1"}}'), 'GenericError: Cannot migrate: no');
});

test('answers of a role that was taken over do not reach the client', async (t) => {
  const { path, answers } = await startMonitor(t);
  answers.set('query-status', { status: '<b>', running: 'yes', extra: 'x'.repeat(1000) });
  answers.set('query-migrate', { status: 'active', __secret: 1, 'error-desc': 'ok' });
  await using client = await QmpClient.connect(path);
  t.is(
    formatJson(await client.execute('query-status')),
    '{"running": false, "singlestep": false, "status": "internal-error"}',
  );
  t.is(formatJson(await client.execute('query-migrate')), '{"status": "active", "error-desc": "ok"}');
});

test('events come with a timestamp, to all who have negotiated, and to no other', async (t) => {
  const { path, supervisor } = await startMonitor(t);
  const [one, two, waiting] = [
    await RawClient.open(path),
    await RawClient.open(path),
    await RawClient.open(path, false),
  ];
  supervisor.emit('event', { event: 'SHUTDOWN', data: { guest: true, reason: 'guest-shutdown' } });
  for (const client of [one, two]) {
    const { event, data, timestamp } = JSON.parse(await client.line());
    t.is(event, 'SHUTDOWN');
    t.deepEqual(data, { guest: true, reason: 'guest-shutdown' });
    t.true(Math.abs(timestamp.seconds - Date.now() / 1000) < 10);
    t.true(timestamp.microseconds >= 0 && timestamp.microseconds < 1e6);
  }
  supervisor.emit('event', { event: 'STOP', data: {} });
  t.deepEqual(Object.keys(JSON.parse(await one.line())), ['timestamp', 'event']);
  t.deepEqual(waiting.lines, []);
});

test('an event that the schema does not have is not passed on', async (t) => {
  const { path, supervisor } = await startMonitor(t);
  const client = await RawClient.open(path);
  supervisor.emit('event', { event: 'EVIL', data: {} });
  supervisor.emit('event', 7);
  supervisor.emit('event', { event: 'STOP', data: {} });
  t.is(JSON.parse(await client.line()).event, 'STOP');
});

test('the socket is for its owner only, and goes with the monitor', async (t) => {
  const { path, supervisor, ended } = await startMonitor(t);
  t.is((await stat(path)).mode & 0o777, 0o600);
  supervisor.close();
  await ended;
  await t.throwsAsync(stat(path), { code: 'ENOENT' });
});

test('a file that is not a socket stays where it is', async (t) => {
  const { path, supervisor, ended } = await startMonitor(t);
  supervisor.close();
  await ended;
  await writeFile(path, 'mine');
  const [near, far] = duplexPair();
  const other = new RpcPeer(near, { name: 'monitor' });
  const role = monitorRole({ control: far }, { name: 'x', uuid: 'y', paths: [path] });
  await t.throwsAsync(other.call('listen'), { message: /not a socket/ });
  other.close();
  await role;
  t.true((await stat(path)).isFile());
});

test('a second monitor does not take the socket of the first', async (t) => {
  const { path } = await startMonitor(t);
  const [near, far] = duplexPair();
  const other = new RpcPeer(near, { name: 'monitor' });
  const role = monitorRole({ control: far }, { name: 'x', uuid: 'y', paths: [path] });
  await t.throwsAsync(other.call('listen'), { message: /another program does/ });
  other.close();
  await role;
  t.regex(await (await RawClient.open(path)).ask('{"execute":"query-name"}'), /guest one/);
});

// ---- hostile clients ------------------------------------------------------------------------------------------

test('hostile client: a line of 64 MiB gets one error and the session goes on', async (t) => {
  const { path } = await startMonitor(t);
  const client = await RawClient.open(path);
  const chunk = Buffer.alloc(1 << 20, 'a');
  for (let i = 0; i < 64; i++) if (!client.socket.write(chunk)) await once(client.socket, 'drain');
  t.is(await client.error('\n'), 'GenericError: JSON token size limit exceeded');
  t.regex(await client.ask('{"execute":"query-name"}'), /guest one/);
  t.deepEqual(client.lines, []);
});

test('hostile client: depth 10^6, then a command', async (t) => {
  const { path } = await startMonitor(t);
  const client = await RawClient.open(path);
  t.is(await client.error(`${'{"a":'.repeat(200_000)}\n`), 'GenericError: JSON nesting depth limit exceeded');
  t.regex(await client.ask('{"execute":"query-name"}'), /guest one/);
});

for (const [what, text, desc] of [
  ['invalid UTF-8', Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d, 0x0a), 'JSON parse error, invalid UTF-8'],
  [
    'a lone surrogate',
    '{"execute":"query-name","id":"\\ud800"}\n',
    'JSON parse error, \\ud800 is not a valid Unicode character',
  ],
  ['duplicate keys', '{"execute":"stop","execute":"query-name"}\n', 'JSON parse error, duplicate key'],
  ['NaN', '{"execute":NaN}\n', "JSON parse error, stray 'N'"],
  ['1e400', '{"execute":"query-name","id":1e400}\n', 'JSON parse error, number out of range'],
  ['execute that is an object', '{"execute":{}}\n', "QMP input member 'execute' must be a string"],
  [
    'an id of 1 MB',
    `{"execute":"query-name","id":{"a":"${'x'.repeat(1_000_000)}"}}\n`,
    "QMP input member 'id' is too long: limit is 4096 bytes",
  ],
  ['exec-oob', '{"exec-oob":"query-name"}\n', "QMP input member 'exec-oob' is unexpected"],
  [
    'an HMP line in a name',
    '{"execute":"screendump","arguments":{"filename":"/a\\ninfo status"}}\n',
    "Parameter 'filename' has a control character",
  ],
] as const) {
  test(`hostile client: ${what}`, async (t) => {
    const { path, calls } = await startMonitor(t);
    const client = await RawClient.open(path);
    t.is(await client.error(text), `GenericError: ${desc}`);
    t.regex(await client.ask('{"execute":"query-name"}'), /guest one/);
    t.deepEqual(calls, []);
  });
}

test('hostile client: -0 as id', async (t) => {
  const { path } = await startMonitor(t);
  const client = await RawClient.open(path);
  t.is(await client.ask('{"execute":"query-name","id":-0}'), '{"return": {"name": "guest one"}, "id": 0}');
});

test('hostile client: 10^5 commands without reading answers stops being read, and others are served', async (t) => {
  const { path, calls } = await startMonitor(t);
  const client = await RawClient.open(path);
  client.socket.pause();
  const batch = '{"execute":"query-qmp-schema"}{"execute":"query-status"}'.repeat(50_000);
  client.socket.write(batch);
  const other = await RawClient.open(path);
  t.regex(await other.ask('{"execute":"query-name"}'), /guest one/);
  await sleep(300);
  t.true(calls.length < 2000, `${calls.length} commands ran`);
  t.true(client.socket.writableLength > 0, 'the monitor has read everything');
  client.socket.destroy();
});

test('hostile client: one that never reads is disconnected by events', async (t) => {
  const { path, supervisor } = await startMonitor(t);
  const client = await RawClient.open(path);
  const other = await RawClient.open(path);
  client.socket.pause();
  for (let i = 0; i < 400; i++) {
    for (let j = 0; j < 200; j++) supervisor.emit('event', { event: 'MIGRATION_PASS', data: { pass: j } });
    await sleep(1); // the one that reads gets its turn
  }
  client.socket.resume();
  await once(client.socket, 'close');
  for (let i = 0; i < 500 && other.lines.length < 80_000; i++) await sleep(10);
  t.is(other.lines.length, 80_000);
});

test('hostile client: 17 connections, the last is closed', async (t) => {
  const { path } = await startMonitor(t);
  const clients = await Promise.all(Array.from({ length: 16 }, () => RawClient.open(path)));
  const last = new RawClient(path);
  await once(last.socket, 'close');
  t.deepEqual(last.lines, []);
  clients[0]!.socket.destroy();
  await sleep(50);
  t.regex(await (await RawClient.open(path)).ask('{"execute":"query-name"}'), /guest one/);
});

test('hostile client: disconnects while its command runs', async (t) => {
  const { path, answers } = await startMonitor(t);
  answers.set('stop', sleep(100));
  const client = await RawClient.open(path);
  client.socket.write('{"execute":"stop"}');
  client.socket.destroy();
  await sleep(200);
  t.regex(await (await RawClient.open(path)).ask('{"execute":"query-name"}'), /guest one/);
});

test('a client that ends its side gets all its answers first', async (t) => {
  const { path } = await startMonitor(t);
  const client = await RawClient.open(path);
  client.socket.end('{"execute":"query-name","id":1}{"execute":"query-name","id":2}{"execute":"query-name","id":3}');
  await once(client.socket, 'end');
  t.deepEqual(
    client.lines.map((line) => JSON.parse(line).id),
    [1, 2, 3],
  );
});

test('two monitors race migrate and cancel: each gets its own answer', async (t) => {
  const { path, calls } = await startMonitor(t);
  await using one = await QmpClient.connect(path);
  await using two = await QmpClient.connect(path);
  await Promise.all(
    Array.from({ length: 50 }, () => [
      one.execute('migrate', { uri: 'unix:/a' }),
      two.execute('migrate_cancel'),
    ]).flat(),
  );
  t.is(calls.filter(([method]) => method === 'migrate').length, 50);
  t.is(calls.filter(([method]) => method === 'migrate-cancel').length, 50);
});
