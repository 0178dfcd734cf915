import { duplexPair } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { decodeMessagePack, encodeMessagePack } from '../../../services/shared/messagepack.ts';
import { RpcError, RpcPeer } from '../../../services/shared/rpc.ts';

function pair(): [RpcPeer, RpcPeer] {
  const [left, right] = duplexPair();
  return [new RpcPeer(left, { name: 'right' }), new RpcPeer(right, { name: 'left' })];
}

function frame(type: number, message: unknown): Buffer {
  const payload = encodeMessagePack(message);
  const header = Buffer.alloc(6);
  header.writeUInt32BE(payload.length, 0);
  header.writeUInt16BE(type, 4);
  return Buffer.concat([header, payload]);
}

/** One peer against raw bytes: gives the reason for which it closed. */
async function closedBy(bytes: Uint8Array): Promise<{ error: Error | undefined; peer: RpcPeer }> {
  const [left, right] = duplexPair();
  right.on('error', () => {});
  const peer = new RpcPeer(left, { name: 'hostile', maxPayloadBytes: 1 << 16 });
  const closed = new Promise<Error | undefined>((resolve) => peer.onClose(resolve));
  right.write(bytes);
  return { error: await closed, peer };
}

test('RpcPeer carries plain data, bigints and bytes both ways', async (t) => {
  const [left, right] = pair();
  right.handle('echo', (params) => params);
  left.handle('twice', async (params) => (params as number) * 2);
  const value = { a: [1, 1n << 60n, -5n, 'ü', null, true], bytes: Uint8Array.of(1, 2, 3) };
  t.deepEqual(await left.call('echo', value), value);
  t.is(await right.call('twice', 21), 42);
  t.is(await left.call('echo', null), null);
});

test('RpcPeer gives handler errors back with code and text', async (t) => {
  const [left, right] = pair();
  right.handle('fail', () => {
    throw Object.assign(new Error('Cannot do it'), { code: 'ERR_NO' });
  });
  right.handle('odd', () => Promise.reject('text only'));
  right.handle('function', () => () => 1);
  const error = await t.throwsAsync(left.call('fail'), { instanceOf: RpcError });
  t.is(error?.code, 'ERR_NO');
  t.is(error?.message, 'Cannot do it');
  t.is((await t.throwsAsync(left.call('odd')))?.message, 'text only');
  await t.throwsAsync(left.call('function'), { message: /not plain data/ });
  t.is((await t.throwsAsync<RpcError>(left.call('absent')))?.code, 'ERR_RPC_METHOD');
});

test('RpcPeer delivers events in order', async (t) => {
  const [left, right] = pair();
  const seen: unknown[] = [];
  right.on('tick', (data) => seen.push(data));
  right.handle('sync', () => null);
  for (let i = 0; i < 5; i++) left.emit('tick', { i });
  await left.call('sync');
  t.deepEqual(
    seen,
    [0, 1, 2, 3, 4].map((i) => ({ i })),
  );
});

test('RpcPeer.call() ends at its timeout and drops the late answer', async (t) => {
  const [left, right] = pair();
  right.handle('slow', () => sleep(60));
  t.is((await t.throwsAsync<RpcError>(left.call('slow', null, { timeoutMs: 10 })))?.code, 'ERR_RPC_TIMEOUT');
  await sleep(80);
  right.handle('ok', () => 1);
  t.is(await left.call('ok'), 1);
});

test('RpcPeer.call() ends at the abort signal', async (t) => {
  const [left, right] = pair();
  right.handle('never', () => new Promise(() => {}));
  const abort = new AbortController();
  const call = left.call('never', null, { signal: abort.signal });
  abort.abort(new Error('enough'));
  await t.throwsAsync(call, { message: 'enough' });
  await t.throwsAsync(left.call('never', null, { signal: abort.signal }), { message: 'enough' });
});

test('RpcPeer.call() ends when the link closes, before and after', async (t) => {
  const [left, right] = pair();
  right.handle('never', () => new Promise(() => {}));
  const call = left.call('never');
  right.close();
  t.is((await t.throwsAsync<RpcError>(call))?.code, 'ERR_RPC_CLOSED');
  t.is((await t.throwsAsync<RpcError>(left.call('never')))?.code, 'ERR_RPC_CLOSED');
});

test('RpcPeer.call() refuses the 1025th waiting call', async (t) => {
  const [left] = pair();
  const calls = Array.from({ length: 1024 }, () => left.call('none').catch((error: RpcError) => error.code));
  t.is((await t.throwsAsync<RpcError>(left.call('none')))?.code, 'ERR_RPC_BUSY');
  left.close();
  await Promise.all(calls);
});

test('RpcPeer answers busy to the 257th request that runs', async (t) => {
  const [left, right] = pair();
  const gate = Promise.withResolvers<void>();
  right.handle('wait', () => gate.promise);
  const calls = Array.from({ length: 257 }, () =>
    left.call('wait').then(
      () => 'done',
      (error: RpcError) => error.code,
    ),
  );
  t.is(await calls[256], 'ERR_RPC_BUSY');
  gate.resolve();
  t.is(await calls[0], 'done');
});

async function refused(t: ExecutionContext, bytes: Uint8Array, text: RegExp): Promise<void> {
  const { error, peer } = await closedBy(bytes);
  t.regex(String(error), text);
  t.true(peer.closed);
}

test('RpcPeer closes on a payload length above the limit', (t) =>
  refused(t, Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0, 1), /limit/));
test('RpcPeer closes on a message that is a list', (t) => refused(t, frame(1, [1]), /not a map/));
test('RpcPeer closes on an unknown message type', (t) => refused(t, frame(9, { id: 1 }), /type 9/));
test('RpcPeer closes on a request id of 0', (t) => refused(t, frame(1, { id: 0, method: 'x' }), /id/));
test('RpcPeer closes on a request id that is text', (t) => refused(t, frame(1, { id: '1', method: 'x' }), /id/));
test('RpcPeer closes on a method name of 65 characters', (t) =>
  refused(t, frame(1, { id: 1, method: 'x'.repeat(65) }), /method/));
test('RpcPeer closes on an event without a name', (t) => refused(t, frame(3, { data: 1 }), /event/));
test('RpcPeer closes on bytes that are not MessagePack', (t) =>
  refused(t, Uint8Array.of(0, 0, 0, 1, 0, 1, 0xc1), /not allowed/));

test('RpcPeer closes on a request id that is in use', async (t) => {
  const [left, right] = duplexPair();
  const peer = new RpcPeer(left, { name: 'hostile' });
  peer.handle('wait', () => new Promise(() => {}));
  const closed = new Promise((resolve) => peer.onClose(resolve));
  right.write(Buffer.concat([frame(1, { id: 4, method: 'wait' }), frame(1, { id: 4, method: 'wait' })]));
  t.regex(String(await closed), /id 4 is in use/);
});

test('RpcPeer ignores responses with unknown ids', async (t) => {
  const [left, right] = duplexPair();
  const peer = new RpcPeer(left, { name: 'hostile' });
  right.write(frame(2, { id: 99, result: 1 }));
  let got = Buffer.alloc(0);
  right.on('data', (chunk: Buffer) => {
    got = Buffer.concat([got, chunk]);
    if (got.length <= 6) return;
    const request = decodeMessagePack(got.subarray(6)) as { id: number };
    right.write(frame(2, { id: request.id, result: 5 }));
  });
  t.is(await peer.call('x'), 5);
});

test('RpcPeer closes when the other side does not read', async (t) => {
  const [left] = duplexPair();
  const peer = new RpcPeer(left, { name: 'deaf', maxPayloadBytes: 1 << 16, maxQueuedBytes: 1 << 18 });
  const closed = new Promise((resolve) => peer.onClose(resolve));
  for (let i = 0; i < 100 && !peer.closed; i++) peer.emit('bulk', new Uint8Array(60_000));
  t.regex(String(await closed), /does not read/);
});
