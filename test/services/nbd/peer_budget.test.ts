import { duplexPair } from 'node:stream';
import test from 'ava';
import { CMD } from '../../../protocols/nbd/mod.ts';
import { newCounters } from '../../../services/nbd/command_runner.ts';
import { PeerTotals, peerName } from '../../../services/nbd/metrics.ts';
import { ExportSet, MemoryImage, SessionPool } from '../../../services/nbd/mod.ts';
import { PeerBudget } from '../../../services/nbd/peer_budget.ts';
import type { NbdLiveSession } from '../../../services/nbd/server.ts';
import { ByteClient, requestBytes, twoDisks } from './harness.ts';

test('PeerBudget: one request always fits, others wait until it has gone', (t) => {
  const budget = new PeerBudget(100);
  let woken = 0;
  const retry = (): void => void woken++;
  t.true(budget.take(1000, retry), 'one may be larger than the limit');
  t.false(budget.take(1, retry));
  t.false(budget.take(1, retry));
  budget.give(1000);
  t.is(woken, 1, 'once for each that waits');
  t.true(budget.take(60, retry));
  t.true(budget.take(40, retry));
  t.false(budget.take(1, retry));
  budget.forget(retry);
  budget.give(60);
  t.is(woken, 1);
  budget.give(40);
  t.is(budget.usedBytes, 0);
});

const announced = 8 << 20;
const write = (): Uint8Array => requestBytes({ type: CMD.WRITE, length: announced });

test('T17: a peer with many connections gets no more memory for its payloads than one with few', async (t) => {
  const image = new MemoryImage(64 << 20);
  const exports = new ExportSet();
  exports.add({ name: '', image, writable: true });
  const budget = new PeerBudget(2 * announced);
  const clients: ByteClient[] = [];
  for (let count = 0; count < 8; count++) clients.push(await new ByteClient(exports, { budget }).go());
  const half = new Uint8Array(announced / 2).fill(1);
  for (const client of clients) client.send(write(), half);
  await settles(() => budget.usedBytes === 2 * announced);
  await new Promise((resolve) => setTimeout(resolve, 50));
  t.is(budget.usedBytes, 2 * announced, 'the others are not read');
  for (const client of clients) client.send(half);
  for (const client of clients) t.is((await client.reply())?.error, 0);
  t.is(budget.usedBytes, 0);
  for (const client of clients) client.stream.destroy();
});

test('T17: a peer with many connections gets no more memory for replies that it does not read', async (t) => {
  const exports = twoBig();
  const budget = new PeerBudget(2 * announced);
  const read = (): Uint8Array => requestBytes({ type: CMD.READ, length: announced });
  const sessions: NbdLiveSession[] = [];
  const clients: ByteClient[] = [];
  for (let count = 0; count < 8; count++) {
    const options = { budget, onTransmission: (_name: string, live: NbdLiveSession) => void sessions.push(live) };
    const client = await new ByteClient(exports, options).go();
    client.stream.pause();
    clients.push(client);
  }
  const held = (): number => sessions.reduce((sum, { heldBytes }) => sum + heldBytes, 0);
  for (const client of clients) client.send(read());
  await settles(() => held() >= announced);
  await new Promise((resolve) => setTimeout(resolve, 200));
  t.true(held() >= announced && held() <= 2.5 * announced, `${held()} bytes`);
  // Who reads gets everything, and so does who comes after one that left.
  clients.pop()!.stream.destroy();
  for (const client of clients) client.stream.resume();
  for (const client of clients) t.is((await client.reply(announced))?.data.length, announced);
  for (const client of clients) client.stream.destroy();
  await Promise.all(clients.map((client) => client.summary));
});

test('T20: a client that leaves in the middle of its payload gives back what was kept for it', async (t) => {
  const budget = new PeerBudget(announced);
  const client = await new ByteClient(twoBig(), { budget }).go();
  client.send(write(), new Uint8Array(announced / 2));
  await settles(() => budget.usedBytes === announced);
  const waiting = await new ByteClient(twoBig(), { budget }).go();
  waiting.send(write(), new Uint8Array(announced));
  client.stream.destroy();
  t.is((await waiting.reply())?.error, 0);
  waiting.stream.destroy();
  await Promise.all([client.summary, waiting.summary]);
  t.is(budget.usedBytes, 0);
});

test('T20: a client that leaves while its write is worked on gives back what was kept for it', async (t) => {
  const image = new MemoryImage(64 << 20);
  image.writeNow = () => false;
  const finish = Promise.withResolvers<void>();
  image.write = () => finish.promise;
  const exports = new ExportSet();
  exports.add({ name: '', image, writable: true });
  const budget = new PeerBudget(announced);
  const client = await new ByteClient(exports, { budget }).go();
  client.send(write(), new Uint8Array(announced / 2), new Uint8Array(announced / 2));
  await settles(() => budget.usedBytes === announced);
  await new Promise((resolve) => setTimeout(resolve, 50));
  client.stream.destroy();
  finish.resolve();
  await client.summary;
  t.is(budget.usedBytes, 0);
});

test('T17: a write that is begun has to be whole in time, a pause between two requests is free', async (t) => {
  const client = await new ByteClient(twoBig(), { limits: { payloadMs: 200 } }).go();
  await new Promise((resolve) => setTimeout(resolve, 500));
  client.send(requestBytes({ type: CMD.WRITE, length: 4 }), Uint8Array.of(1, 2));
  t.is(await client.reply(), undefined);
  t.like(await client.summary, { error: { code: 'ERR_WIRE_TIMEOUT' } });
  const slow = await new ByteClient(twoBig(), { limits: { payloadMs: 2000 } }).go();
  for (let count = 0; count < 4; count++) {
    slow.send(requestBytes({ type: CMD.WRITE, length: 4 }), Uint8Array.of(1, 2));
    await new Promise((resolve) => setTimeout(resolve, 600));
    slow.send(Uint8Array.of(3, 4));
    t.is((await slow.reply())?.error, 0, 'each request has its own time');
  }
  slow.stream.destroy();
});

test('metrics: running and ended sessions count for their peer, peers without end do not', async (t) => {
  const pool = new SessionPool(twoDisks().exports);
  const [near, far] = duplexPair();
  t.true(pool.admits('10.0.0.7'));
  pool.add(far, '10.0.0.7');
  await new Promise((resolve) => setTimeout(resolve, 10));
  t.like(pool.metrics().sessions[0], { peer: '10.0.0.7', phase: 'handshake', inFlight: 0 });
  near.destroy();
  await pool.close();
  t.is(pool.metrics().peers['10.0.0.7']?.sessions, 1);
  t.deepEqual(pool.metrics().sessions, []);
  const totals = new PeerTotals();
  for (let peer = 0; peer < 1500; peer++) totals.add(`peer ${peer}`, { ...newCounters(), requests: 1 }, undefined);
  const names = Object.keys(totals.toJSON());
  t.is(names.length, 1001);
  t.is(totals.toJSON().others?.requests, 500);
});

test('peerName() is who somebody has proven to be, or the address', (t) => {
  t.is(peerName(undefined, ''), 'unix');
  t.is(peerName(undefined, '::1'), '::1');
  t.is(peerName({ kind: 'psk', user: 'alice' }, '::1'), 'alice');
  t.is(peerName({ kind: 'x509', subject: 'CN=a', altNames: [], fingerprint: '' }, '::1'), 'CN=a');
  t.is(peerName({ kind: 'anonymous' }, '::1'), '::1');
});

function twoBig(): ExportSet {
  const exports = new ExportSet();
  exports.add({ name: '', image: new MemoryImage(64 << 20), writable: true });
  return exports;
}

async function settles(condition: () => boolean): Promise<void> {
  for (let tries = 0; tries < 3000 && !condition(); tries++) await new Promise((resolve) => setTimeout(resolve, 10));
}
