import { createHash } from 'node:crypto';
import { statSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inflateSync } from 'node:zlib';
import test from 'ava';
import { ConsoleRig } from '../../fixtures/console_rig.ts';
import { cardColour, TestCard } from '../../fixtures/display.ts';
import { RfbTestClient } from '../../fixtures/rfb_client.ts';
import { until } from './rig.ts';

async function viewer(port: number): Promise<RfbTestClient> {
  const client = await new RfbTestClient(connect(port, '127.0.0.1')).open();
  client.setPixelFormat();
  return client;
}

const matches = (client: RfbTestClient, card: TestCard, frame: number) =>
  client.pixels.every(
    (colour, i) =>
      colour ===
      cardColour(i % client.width, Math.floor(i / client.width), card.surface!.width, card.surface!.height, frame),
  );

test('T1 a display, its link, the role and a viewer over TCP: every pixel, then keys back', async (t) => {
  await using rig = new ConsoleRig(new TestCard(333, 222), { name: 'vm one' });
  const { port } = await rig.listen({ transport: 'rfb' });
  const client = await viewer(port);
  t.is(client.name, 'vm one');
  client.setEncodings(16, -308);
  client.request(false);
  for (let i = 0; i < 10 && !matches(client, rig.card, 0); i++) {
    await client.update();
    client.request(true);
  }
  t.true(matches(client, rig.card, 0));
  rig.card.drawCard(3);
  for (let i = 0; i < 10 && !matches(client, rig.card, 3); i++) {
    await client.update();
    client.request(true);
  }
  t.true(matches(client, rig.card, 3));
  client.key(true, 0x61);
  client.pointer(332, 0, 4);
  await until('input', () => rig.tablet.events.length > 0);
  t.deepEqual([rig.keyboard.keys, rig.tablet.events], [['30+'], ['32767,0,4']]);
  client.stream.destroy();
  await until('release', () => rig.keyboard.keys.includes('30-'));
  t.is(rig.tablet.events.at(-1), '32767,0,0');
});

test("T1 a UNIX socket is its owner's alone", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-vnc-'));
  try {
    await using rig = new ConsoleRig();
    const path = join(folder, 'vnc.sock');
    const listening = await rig.listen({ transport: 'rfb', path });
    t.is((listening as unknown as { family: string }).family, 'unix');
    t.is(statSync(path).mode & 0o777, 0o600);
    const client = await new RfbTestClient(connect(path)).open();
    t.is(client.width, 640);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('T8 query-vnc, events and disconnect', async (t) => {
  await using rig = new ConsoleRig();
  const events: string[] = [];
  for (const name of ['VNC_CONNECTED', 'VNC_INITIALIZED', 'VNC_DISCONNECTED'])
    rig.control.on(name, () => events.push(name));
  t.deepEqual(await rig.control.call('query-vnc'), { enabled: false, clients: [] });
  const { port } = await rig.listen({ transport: 'rfb' });
  const client = await viewer(port);
  const info = (await rig.control.call('query-vnc')) as {
    service: string;
    clients: { id: number; websocket: boolean }[];
  };
  t.is(info.service, String(port));
  t.is(info.clients.length, 1);
  t.true(await rig.control.call('disconnect', { id: info.clients[0]!.id }));
  await client.reader.end();
  await until('events', () => events.length === 3);
  t.deepEqual(events, ['VNC_CONNECTED', 'VNC_INITIALIZED', 'VNC_DISCONNECTED']);
  t.false(await rig.control.call('disconnect', { id: 12345 }));
});

test('D7 screendump gives the exact picture, though nobody watches', async (t) => {
  await using rig = new ConsoleRig(new TestCard(100, 50));
  rig.card.drawCard(5);
  const ppm = Buffer.from((await rig.control.call('screendump', { format: 'ppm' })) as Uint8Array);
  t.is(ppm.subarray(0, 14).toString('latin1'), 'P6\n100 50\n255\n');
  const png = Buffer.from((await rig.control.call('screendump')) as Uint8Array);
  t.is(png.subarray(1, 4).toString('latin1'), 'PNG');
  t.deepEqual([png.readUInt32BE(16), png.readUInt32BE(20)], [100, 50]);
  const rgb = Buffer.alloc(100 * 50 * 3);
  const rows = inflateSync(png.subarray(41, 41 + png.readUInt32BE(33)));
  for (let y = 0; y < 50; y++) {
    t.is(rows[y * 301], 1);
    for (let i = 0; i < 300; i++) {
      rgb[y * 300 + i] = rows[y * 301 + 1 + i]! + (i >= 3 ? rgb[y * 300 + i - 3]! : 0);
    }
  }
  const hash = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
  t.is(hash(rgb), hash(ppm.subarray(14)));
  const card = Buffer.alloc(100 * 50 * 3);
  for (let i = 0; i < 5000; i++) card.writeUIntBE(cardColour(i % 100, Math.floor(i / 100), 100, 50, 5), i * 3, 3);
  t.is(hash(rgb), hash(card));
});

test('screendump before the guest has a surface gives the placeholder', async (t) => {
  await using rig = new ConsoleRig(new TestCard(0, 0));
  const ppm = Buffer.from((await rig.control.call('screendump', { format: 'ppm' })) as Uint8Array);
  t.is(ppm.subarray(0, 15).toString('latin1'), 'P6\n640 480\n255\n');
});

for (const [name, params, reason] of [
  ['0.0.0.0 without allowRemote', { host: '0.0.0.0' }, /allowRemote is not set/],
  ['a host name without allowRemote', { host: 'example.org' }, /allowRemote is not set/],
  ['type None beyond loopback', { transport: 'rfb', host: '0.0.0.0', allowRemote: true }, /set a password/],
  ['an unknown transport', { transport: 'spice' }, /expected web or rfb/],
  ['port 65536', { port: 65536 }, /0\.\.65535/],
  ['port "1"', { port: '1' }, /whole number/],
  ['an empty password', { transport: 'rfb', password: '' }, /empty password/],
  ['a path with NUL', { transport: 'rfb', path: 'a\0b' }, /not a text/],
  ['hosts that are no list', { allowedHosts: 'evil' }, /not a list/],
  ['a list for parameters', [1], /not an object/],
] as const) {
  test(`listen refuses ${name}`, async (t) => {
    await using rig = new ConsoleRig();
    const error = await t.throwsAsync(rig.control.call('listen', params), { message: reason });
    t.is((error as Error & { code: string }).code, 'ERR_PARAMETER');
  });
}

test('an address in use is an error with its code, and the role lives', async (t) => {
  await using rig = new ConsoleRig();
  const { port } = await rig.listen();
  const error = await t.throwsAsync(rig.control.call('listen', { port }));
  t.is((error as Error & { code: string }).code, 'EADDRINUSE');
  t.like(await rig.control.call('query-vnc'), { enabled: true });
});

test('T8 a password of one listener can be changed and taken away', async (t) => {
  await using rig = new ConsoleRig();
  const { port } = await rig.listen({ transport: 'rfb', password: 'one' });
  const offered = async () => {
    const client = new RfbTestClient(connect(port, '127.0.0.1'));
    await client.reader.read(12);
    client.stream.write('RFB 003.008\n');
    const types = await client.reader.read(2);
    client.stream.destroy();
    return types.toString('hex');
  };
  t.is(await offered(), '0102');
  await rig.control.call('set-password', { password: '' });
  t.is(await offered(), '0102', 'never None');
});

test('a display link that lies is closed; the console says so and lets its viewers go', async (t) => {
  await using rig = new ConsoleRig();
  const { port } = await rig.listen({ transport: 'rfb' });
  const client = await viewer(port);
  let told = '';
  rig.control.on('display-error', (data) => {
    told = (data as { message: string }).message;
  });
  // A tile outside the surface
  rig.machineChannel.send(2, Uint8Array.of(0xff, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4));
  await client.reader.end();
  await until('the report', () => told !== '');
  t.like(await rig.control.call('query-vnc'), { clients: [] });
});
