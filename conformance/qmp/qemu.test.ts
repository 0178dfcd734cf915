import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { introspect } from '../../protocols/qmp/mod.ts';
import { QmpClient } from '../../services/shared/mod.ts';

const MAIN = fileURLToPath(new URL('../../cli/main.ts', import.meta.url));

function has(program: string): boolean {
  return spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;
}

function skip(t: ExecutionContext, why: string): void {
  t.log(why);
  t.pass();
}

async function folderOf(t: ExecutionContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-qmp-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** A path can be there before anybody listens on it. */
async function untilSocket(path: string, child: ChildProcess): Promise<void> {
  for (let i = 0; i < 600 && child.exitCode === null; i++) {
    const probe = connect(path);
    const connected = await once(probe, 'connect').then(
      () => true,
      () => false,
    );
    probe.destroy();
    if (connected) return;
    await sleep(50);
  }
  throw new Error(`No monitor at ${path}`);
}

/** The same words for both: that is the point. */
const MACHINE = ['-M', 'virt', '-m', '64', '-S', '-display', 'none', '-bios', 'none', '-name', 'guest'];

async function startQemu(t: ExecutionContext): Promise<string> {
  const path = join(await folderOf(t), 'q');
  const args = [...MACHINE, '-nodefaults', '-qmp', `unix:${path},server=on,wait=off`];
  const child = spawn('qemu-system-riscv64', args, { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  await untilSocket(path, child);
  return path;
}

async function startCaisson(t: ExecutionContext): Promise<string> {
  const folder = await folderOf(t);
  const path = join(folder, 'q');
  const args = [
    ...MACHINE,
    '-kernel',
    'builtin:firmware',
    '-serial',
    'none',
    '-qmp',
    `unix:${path},server=on,wait=off`,
  ];
  const child = spawn(process.execPath, [MAIN, 'run', ...args], {
    stdio: 'ignore',
    env: { ...process.env, XDG_RUNTIME_DIR: folder },
  });
  t.teardown(async () => {
    child.kill('SIGTERM');
    if (child.exitCode === null) await once(child, 'exit');
  });
  await untilSocket(path, child);
  return path;
}

class Wire {
  readonly #socket: Socket;
  readonly #lines: string[] = [];
  #rest = '';
  constructor(path: string) {
    this.#socket = connect(path);
    this.#socket.on('data', (chunk) => {
      const parts = (this.#rest + chunk.toString('latin1')).split('\r\n');
      this.#rest = parts.pop()!;
      this.#lines.push(...parts);
    });
    this.#socket.on('error', () => {});
  }
  async line(after = 'connecting'): Promise<unknown> {
    for (let i = 0; i < 6000; i++) {
      const line = this.#lines.shift();
      if (line !== undefined) return JSON.parse(line);
      await sleep(10);
    }
    throw new Error(`No answer came to ${after}`);
  }
  send(text: string): void {
    this.#socket.write(text);
  }
  close(): void {
    this.#socket.destroy();
  }
}

/** Sent in this order; each has exactly one answer, and maybe events before it. */
const SCRIPT = [
  '{"execute":"query-status"}',
  '{"execute":"qmp_capabilities","id":1}',
  '{"execute":"qmp_capabilities"}',
  '{"execute":"nope"}',
  '{"execute":"query-status","id":{"a":[1,1.5,"\\u00e9x",18446744073709551615,1e5,null,true]}}',
  "{'execute':'query-status','id':'it\\'s'}",
  '{"execute":"query-status","arguments":{"x":1}}',
  '{"execute":"migrate"}',
  '{"execute":"migrate","arguments":{"uri":1}}',
  '{"execute":"stop","foo":1}',
  '{"execute":{}}',
  '{"execute":"stop","arguments":[]}',
  '{}',
  '[]',
  '"x"\n',
  'foo\n',
  '{"a":1,"a":2}',
  '{"execute":"query-status","id":"\\ud800"}',
  '{"exec-oob":"query-status"}',
  '{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":{"path":"/tmp/x","y":1}}}}',
  '{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":{}}}}',
  '{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":[]}}}',
  '{"execute":"migrate-incoming","arguments":{"uri":"tcp:127.0.0.1:1"}}',
  '{"execute":"migrate_cancel"}',
  '{"execute":"query-migrate"}',
  '{"execute":"query-name"}',
  '{"execute":"query-block"}',
  '{"execute":"query-vnc"}',
  '{"execute":"query-kvm"}',
  '{"execute":"query-target"}',
  '{"execute":"cont"}',
  '{"execute":"query-status"}',
  '{"execute":"stop"}',
  '{"execute":"stop"}',
  '{"execute":"query-status"}',
  '{"execute":"system_reset"}',
  '{"execute":"query-version"}{"execute":"query-name"}',
  '{"execute":"query-block-exports"}',
];

/** What may differ: versions, times. */
function normalise(message: unknown): unknown {
  const copy = structuredClone(message) as Record<string, unknown>;
  delete copy.timestamp;
  const value = copy.return as Record<string, unknown> | undefined;
  if (value !== undefined && 'package' in value) copy.return = Object.keys(value).sort();
  return copy;
}

async function transcript(path: string): Promise<string[]> {
  const wire = new Wire(path);
  const greeting = (await wire.line()) as {
    QMP: { version: { qemu: object; package: unknown }; capabilities: unknown };
  };
  const lines = [`greeting ${Object.keys(greeting.QMP).sort()} ${Object.keys(greeting.QMP.version.qemu).sort()}`];
  for (const text of SCRIPT) {
    wire.send(text);
    let expected = text.includes('}{"execute"') ? 2 : 1;
    while (expected > 0) {
      const message = (await wire.line(text)) as Record<string, unknown>;
      if (!('event' in message)) expected--;
      lines.push(`${text.trim()} => ${JSON.stringify(sorted(normalise(message)))}`);
    }
  }
  wire.close();
  return lines;
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, field]) => [key, sorted(field)]),
  );
}

test('the same script gives the same answers and events as from qemu-system-riscv64', async (t) => {
  if (!has('qemu-system-riscv64')) return skip(t, 'SKIPPED: qemu-system-riscv64 is missing (apt: qemu-system-misc)');
  const [qemu, caisson] = await Promise.all([startQemu(t).then(transcript), startCaisson(t).then(transcript)]);
  t.deepEqual(caisson, qemu);
});

/**
 * `migrate-set-parameters` has our own beside QEMU's. QEMU's `blockdev-add` takes another shape for each driver, and a
 * bitmap to merge as a name or as node and name: of both we take one shape.
 */
const SHAPED_OTHERWISE = new Set(['migrate-set-parameters', 'blockdev-add', 'block-dirty-bitmap-merge']);

test('what our schema says of a command, QEMU’s says too', async (t) => {
  if (!has('qemu-system-riscv64')) return skip(t, 'SKIPPED: qemu-system-riscv64 is missing (apt: qemu-system-misc)');
  const path = await startQemu(t);
  await using client = await QmpClient.connect(path);
  const theirs = new Map(
    ((await client.request('query-qmp-schema')) as unknown as Info[]).map((info) => [info.name, info]),
  );
  const ours = new Map((introspect() as unknown as Info[]).map((info) => [info.name, info]));
  for (const info of ours.values()) {
    if (info['meta-type'] !== 'command' && info['meta-type'] !== 'event') continue;
    if (info.name.startsWith('__caisson')) continue;
    const peer = theirs.get(info.name);
    t.truthy(peer, `${info.name} is QEMU's`);
    // Parameters that a client may set: ours are a subset, required ones are the same, types agree.
    if (SHAPED_OTHERWISE.has(info.name)) continue;
    const left = shapeOf(ours, info['arg-type']!, 0);
    const right = shapeOf(theirs, peer!['arg-type']!, 0);
    t.deepEqual(difference(left, right), [], info.name);
  }
});

interface Info {
  readonly name: string;
  readonly 'meta-type': string;
  readonly 'arg-type'?: string;
  readonly 'json-type'?: string;
  readonly 'element-type'?: string;
  readonly members?: readonly { name: string; type: string; default?: null }[];
  readonly values?: readonly string[];
  readonly variants?: readonly { case: string; type: string }[];
}
type Shape = { [path: string]: string };

/** Flat: path → type, `?` for optional members */
function shapeOf(infos: ReadonlyMap<string, Info>, type: string, depth: number): Shape {
  const info = infos.get(type)!;
  if (depth > 5 || info['meta-type'] === 'builtin') return { '': info['json-type'] ?? 'deep' };
  if (info['meta-type'] === 'enum') return { '': 'string' };
  if (info['meta-type'] === 'array') return prefix('[]', shapeOf(infos, info['element-type']!, depth + 1));
  const shape: Shape = {};
  for (const member of info.members ?? []) {
    const name = `${member.name}${'default' in member ? '?' : ''}`;
    Object.assign(shape, prefix(name, shapeOf(infos, member.type, depth + 1)));
  }
  for (const variant of info.variants ?? []) {
    Object.assign(shape, prefix(`<${variant.case}>`, shapeOf(infos, variant.type, depth + 1)));
  }
  return shape;
}

function prefix(name: string, shape: Shape): Shape {
  return Object.fromEntries(
    Object.entries(shape).map(([path, type]) => [path === '' ? name : `${name}.${path}`, type]),
  );
}

/** Of ours what QEMU has not, and of QEMU's required members what we have not (variants that we lack aside) */
function difference(ours: Shape, theirs: Shape): string[] {
  const wrong = Object.entries(ours).filter(([path, type]) => theirs[path] !== type);
  const cases = new Set(Object.keys(ours).flatMap((path) => path.match(/<[^>]+>/)?.[0] ?? []));
  const missing = Object.keys(theirs).filter((path) => {
    const variant = path.match(/<[^>]+>/)?.[0];
    return !path.includes('?') && !(path in ours) && (variant === undefined || cases.has(variant));
  });
  return [
    ...wrong.map(([path, type]) => `${path}: ${type}, QEMU has ${theirs[path]}`),
    ...missing.map((path) => `lacks ${path}`),
  ];
}

test('our client drives qemu-system-riscv64', async (t) => {
  if (!has('qemu-system-riscv64')) return skip(t, 'SKIPPED: qemu-system-riscv64 is missing (apt: qemu-system-misc)');
  await using client = await QmpClient.connect(await startQemu(t));
  const events: string[] = [];
  client.onEvent(({ event }) => events.push(event));
  t.is((await client.execute('query-status')).status, 'prelaunch');
  await client.execute('cont');
  await client.execute('stop');
  await t.throwsAsync(client.request('nope'), { message: 'The command nope has not been found' });
  await client.execute('quit');
  await client.closed;
  t.deepEqual(events, ['RESUME', 'STOP', 'SHUTDOWN']);
});

test('socat talks to our monitor', async (t) => {
  if (!has('socat')) return skip(t, 'SKIPPED: socat is missing (apt: socat)');
  const path = await startCaisson(t);
  const ran = spawnSync('socat', ['-t', '10', '-', `UNIX-CONNECT:${path}`], {
    input: '{"execute":"qmp_capabilities"}\n{"execute":"query-name"}\n{"execute":"query-status"}\n',
    encoding: 'utf8',
    timeout: 20_000,
  });
  t.is(ran.status, 0, ran.stderr);
  const lines = ran.stdout
    .split('\r\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line));
  t.deepEqual(lines.slice(1), [
    { return: {} },
    { return: { name: 'guest' } },
    { return: { running: false, singlestep: false, status: 'prelaunch' } },
  ]);
});

test('a Python client, standard library only, runs a session', async (t) => {
  if (!has('python3')) return skip(t, 'SKIPPED: python3 is missing (apt: python3)');
  const path = await startCaisson(t);
  const program = `
import json, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); f = s.makefile('rw', newline='')
assert 'QMP' in json.loads(f.readline())
def run(command, **arguments):
    f.write(json.dumps({'execute': command, 'arguments': arguments, 'id': command})); f.flush()
    while True:
        m = json.loads(f.readline())
        if 'event' in m: print('event', m['event']); continue
        assert m['id'] == command, m
        print(command, json.dumps(m.get('return', m.get('error')), sort_keys=True))
        return
run('qmp_capabilities'); run('query-status'); run('cont'); run('query-status'); run('quit')
while (line := f.readline()):
    print('event', json.loads(line)['event'])
`;
  const ran = spawnSync('python3', ['-c', program, path], { encoding: 'utf8', timeout: 30_000 });
  t.is(ran.status, 0, ran.stderr);
  t.deepEqual(ran.stdout.trim().split('\n'), [
    'qmp_capabilities {}',
    'query-status {"running": false, "singlestep": false, "status": "prelaunch"}',
    'event RESUME',
    'cont {}',
    'query-status {"running": true, "singlestep": false, "status": "running"}',
    'quit {}',
    'event SHUTDOWN',
  ]);
});
