import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test from 'ava';
import { encodeClientFlags } from '../../../protocols/nbd/mod.ts';
import { NbdClient, NbdListener, type NbdSessionSummary } from '../../../services/nbd/mod.ts';
import { collectGarbage } from '../../fixtures/collect_garbage.ts';
import { goOption, requestBytes, twoDisks } from './harness.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-nbd-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
let count = 0;
const newPath = (): string => join(directory, `${count++}.sock`);

async function opened(path: string): Promise<Socket> {
  const socket = connect(path);
  socket.on('error', () => {});
  await once(socket, 'connect');
  return socket;
}
/** Also where it is so already: the server may have refused it in the meantime. */
const closed = (socket: Socket): Promise<void> => {
  socket.resume();
  if (socket.closed) return Promise.resolve();
  return new Promise((resolve) => socket.once('close', () => resolve()));
};
/** Sockets that are closed, and what is collected, are let go of in the next turns of the event loop. */
async function letGo(): Promise<void> {
  for (let turn = 0; turn < 4; turn++) {
    collectGarbage();
    await new Promise((resolve) => setImmediate(resolve));
  }
}
/** Memory that something still refers to, in `bytes`, of this thread only: test files share a process and its RSS */
async function heldBytes(): Promise<number> {
  await letGo();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}
/** UNIX sockets that this thread has open, whether anything still refers to them or not */
async function openPipes(): Promise<number> {
  await letGo();
  return process.getActiveResourcesInfo().filter((kind) => /^Pipe/.test(kind)).length;
}

test('listens on a UNIX socket that only its user can reach, and removes it', async (t) => {
  const path = newPath();
  const listener = await NbdListener.listen({ type: 'unix', path }, twoDisks().exports);
  t.is(statSync(path).mode & 0o777, 0o600);
  await using client = await NbdClient.connect(listener.uri);
  t.is(client.sizeBytes, 1 << 20);
  await listener.close();
  await client.closed;
  t.false(existsSync(path));
});

test('listens on 127.0.0.1 unless told otherwise', async (t) => {
  const listener = await NbdListener.listen({ type: 'inet', port: 0 }, twoDisks().exports);
  t.regex(listener.uri, /^nbd:\/\/127\.0\.0\.1:\d+\/$/);
  const client = await NbdClient.connect(listener.uriOf('locked'));
  t.true(client.readOnly);
  await client.close();
  await listener.close();
});

test('a stale socket file is replaced; a live one, and a file that is no socket, are not', async (t) => {
  const path = newPath();
  const first = createServer();
  await new Promise<void>((resolve) => first.listen(path, resolve));
  await t.throwsAsync(NbdListener.listen({ type: 'unix', path }, twoDisks().exports), { code: 'EADDRINUSE' });
  first.close();
  const file = newPath();
  writeFileSync(file, 'precious');
  await t.throwsAsync(NbdListener.listen({ type: 'unix', path: file }, twoDisks().exports), { code: 'EADDRINUSE' });
  t.true(existsSync(file));
});

test('H14: connections, handshakes and connections of one address are capped', async (t) => {
  for (const [limits, address] of [
    [{ connections: 2 }, { type: 'unix', path: newPath() }],
    [{ handshakes: 2 }, { type: 'unix', path: newPath() }],
    [{ connectionsPerAddress: 2 }, { type: 'inet', port: 0 }],
  ] as const) {
    const listener = await NbdListener.listen(address, twoDisks().exports, { limits });
    const target = new URL(listener.uri);
    const sockets = Array.from({ length: 5 }, () =>
      address.type === 'unix' ? connect(address.path) : connect(Number(target.port), '127.0.0.1'),
    );
    for (const socket of sockets) socket.on('error', () => {});
    await Promise.all(sockets.slice(2).map(closed));
    t.is(listener.connections, 2);
    t.is(listener.refused, 3);
    for (const socket of sockets) socket.destroy();
    await listener.close();
  }
});

test('with `shared`, later clients wait for their turn', async (t) => {
  const path = newPath();
  const listener = await NbdListener.listen({ type: 'unix', path }, twoDisks().exports, { shared: 1 });
  const first = await NbdClient.connect(listener.uri);
  const second = NbdClient.connect(listener.uri);
  const state = await Promise.race([second, new Promise((resolve) => setTimeout(resolve, 50, 'waiting'))]);
  t.is(state, 'waiting');
  await first.close();
  await (await second).close();
  await listener.close();
});

test('what a client says while it waits for its turn is not lost', async (t) => {
  const path = newPath();
  const listener = await NbdListener.listen({ type: 'unix', path }, twoDisks().exports, { shared: 1 });
  const first = await NbdClient.connect(listener.uri);
  const eager = await opened(path);
  let received = 0;
  eager.on('data', (chunk: Buffer) => {
    received += chunk.length;
  });
  eager.write(Buffer.concat([encodeClientFlags(3), goOption(), requestBytes({ length: 512 })]));
  await new Promise((resolve) => setTimeout(resolve, 100));
  t.is(received, 0);
  await first.close();
  // Greeting, information, acknowledgement, and the data it asked for.
  for (let tries = 0; tries < 3000 && received < 18 + 20 + 12 + 20 + 16 + 512; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  t.is(received, 18 + 20 + 12 + 20 + 16 + 512);
  eager.destroy();
  await listener.close();
});

test('CVE-2017-10664: client killed with requests in flight: it ends its own session only', async (t) => {
  const path = newPath();
  const sessions: NbdSessionSummary[] = [];
  const { exports } = twoDisks();
  const listener = await NbdListener.listen({ type: 'unix', path }, exports, { onSession: (it) => sessions.push(it) });
  for (let round = 0; round < 10; round++) {
    const socket = await opened(path);
    socket.write(Buffer.concat([encodeClientFlags(3), goOption()]));
    for (let request = 0; request < 50; request++) socket.write(requestBytes({ length: 1 << 20 }));
    await new Promise((resolve) => setTimeout(resolve, round));
    socket.destroy();
  }
  const client = await NbdClient.connect(listener.uri);
  await client.read(0, new Uint8Array(4096));
  await client.close();
  await listener.close();
  t.is(sessions.length, 11);
});

test('CVE-2017-9524, CVE-2013-7441: 1000 connections that say nothing leave nothing', async (t) => {
  const path = newPath();
  let sessions = 0;
  const listener = await NbdListener.listen({ type: 'unix', path }, twoDisks().exports, {
    onSession: () => sessions++,
  });
  for (let index = 0; index < 1000; index++) (await opened(path)).destroy();
  const client = await NbdClient.connect(listener.uri);
  await client.close();
  await listener.close();
  t.is(sessions + listener.refused, 1001);
  t.is(listener.connections, 0);
});

// What it counts is the whole thread's: no other test may run beside it.
test.serial('H14: 10 000 connections, fifty at a time, leave nothing, and others are served meanwhile', async (t) => {
  const path = newPath();
  const pipesBefore = await openPipes();
  let sessions = 0;
  const listener = await NbdListener.listen({ type: 'unix', path }, twoDisks().exports, {
    onSession: () => sessions++,
  });
  t.teardown(() => listener.close());
  const client = await NbdClient.connect(listener.uri);
  const before = await heldBytes();
  const pipesServing = await openPipes();
  for (let round = 0; round < 200; round++) {
    const sockets = await Promise.all(Array.from({ length: 50 }, () => opened(path)));
    // Some say nothing, some begin, some are half through an option when they leave.
    for (const [index, socket] of sockets.entries()) {
      if (index % 3 === 1) socket.write(encodeClientFlags(3));
      if (index % 3 === 2) socket.write(Buffer.concat([encodeClientFlags(3), goOption().subarray(0, 17)]));
    }
    await Promise.all(
      sockets.map((socket) => {
        const gone = closed(socket);
        socket.end();
        return gone;
      }),
    );
    if (round % 20 === 0) await client.read(0, new Uint8Array(512));
  }
  // Now, as what is kept with the listener goes with it. One connection has a receive buffer of 256 KiB.
  const grown = (await heldBytes()) - before;
  t.true(grown < 4 << 20, `${grown} bytes`);
  t.is(await openPipes(), pipesServing);
  await client.close();
  await listener.close();
  t.is(sessions + listener.refused, 10_001);
  t.is(listener.connections, 0);
  t.is(await openPipes(), pipesBefore);
});

test('of listeners that start at once on one path, one wins, and its socket stays', async (t) => {
  for (let round = 0; round < 10; round++) {
    const path = newPath();
    const tries = await Promise.allSettled(
      Array.from({ length: 4 }, () => NbdListener.listen({ type: 'unix', path }, twoDisks().exports)),
    );
    const won = tries.filter((result) => result.status === 'fulfilled').map((result) => result.value);
    t.is(won.length, 1, `${won.length} listen on one path`);
    const client = await NbdClient.connect(`nbd+unix:///?socket=${path}`);
    await client.read(0, new Uint8Array(512));
    await client.close();
    await Promise.all(won.map((listener) => listener.close()));
  }
});

test('CVE-2024-7409: closing the listener does not wait for silent clients', async (t) => {
  const path = newPath();
  // No other deadline would end them
  const limits = { drainMs: 200, handshakeMs: 0 };
  const listener = await NbdListener.listen({ type: 'unix', path }, twoDisks().exports, { limits });
  const sockets = await Promise.all(Array.from({ length: 20 }, () => opened(path)));
  await new Promise((resolve) => setTimeout(resolve, 20));
  await listener.close();
  t.is(listener.connections, 0);
  for (const socket of sockets) socket.destroy();
});
