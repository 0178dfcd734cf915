import test, { type ExecutionContext } from 'ava';
import { FakeMachine } from '../../fixtures/fake_machine.ts';
import { EmbeddedSide, FakeDisks } from '../../fixtures/migration_pair.ts';
import { moveThrough, smallDestination } from '../../fixtures/migration_session.ts';

const CLEAN = smallDestination().digest();

type Moved = Awaited<ReturnType<typeof moveThrough>>;

/**
 * After whatever happened: one runner. Only where Commit was on its way may there be none at the source and an
 * unknown outcome, and then the source says so and stands.
 */
function runners(t: ExecutionContext, moved: Moved, what: string): 'source' | 'destination' | 'unknown' {
  const { from, to, fromDisks, toDisks } = moved;
  const here = from.status === 'running';
  const there = to.status === 'running';
  if (here && there) t.fail(`${what}: two runners`);
  if (fromDisks.owned && toDisks.owned) t.fail(`${what}: both have the disks`);
  if (here) {
    if (!fromDisks.owned) t.fail(`${what}: the guest runs at the source without its disks`);
    if (to.digest() !== CLEAN) t.fail(`${what}: the destination is not clean`);
    if (from.throttle !== 0) t.fail(`${what}: the guest stays throttled`);
    return 'source';
  }
  if (there && !toDisks.owned) t.fail(`${what}: the guest runs at the destination without its disks`);
  if (there && moved.source.status === 'completed') return 'destination';
  if (moved.source.error?.code !== 'ERR_MIGRATION_UNKNOWN_OUTCOME') {
    t.fail(`${what}: nobody runs, and the source says ${moved.source.status} ${moved.source.error?.message}`);
  }
  return 'unknown';
}

test('X7: a connection cut after any byte of the source leaves one runner', async (t) => {
  let total = 0;
  const whole = await moveThrough({ onSource: (chunk) => (total += chunk.length) });
  t.is(runners(t, whole, 'uncut'), 'destination');
  const seen = { source: 0, destination: 0, unknown: 0 };
  for (let cut = 1; cut <= total; cut += cut > 400 && cut < total - 400 ? 41 : 1) {
    seen[runners(t, await moveThrough({ cutSourceAfter: cut }), `cut after ${cut} of ${total}`)]++;
  }
  t.true(seen.source > 500, JSON.stringify(seen));
  // Only a cut right behind Commit leaves it open.
  t.true(seen.unknown <= 8, JSON.stringify(seen));
});

test('X7: a connection cut after any byte of the destination leaves one runner', async (t) => {
  const seen = { source: 0, destination: 0, unknown: 0 };
  for (let cut = 1; cut <= 60; cut++) {
    seen[runners(t, await moveThrough({ cutDestinationAfter: cut }), `cut after ${cut}`)]++;
  }
  t.true(seen.source > 30, JSON.stringify(seen));
  t.true(seen.unknown <= 8, JSON.stringify(seen));
});

test('M7: cancel in any turn of the small session leaves one runner', async (t) => {
  const seen = { source: 0, destination: 0, unknown: 0 };
  for (let turns = 0; turns < 400; turns++) {
    let refused = false;
    const moved = await moveThrough({
      started: (source) => {
        let left = turns;
        const later = () => {
          if (left-- > 0) {
            // Single rounds of ticks and promises are finer than turns of the event loop; some turns go by too.
            if (left % 40 === 0) setImmediate(later);
            else process.nextTick(() => queueMicrotask(later));
            return;
          }
          try {
            source.cancel();
          } catch {
            refused = true; // the guest was handed over
          }
        };
        later();
      },
    });
    const runner = runners(t, moved, `cancel in turn ${turns}`);
    if (moved.source.status === 'cancelled' && runner !== 'source') t.fail(`turn ${turns}: cancelled, yet ${runner}`);
    if (refused && runner === 'source') t.fail(`turn ${turns}: cancel was refused, yet the guest is here`);
    seen[runner]++;
  }
  t.true(seen.source > 5 && seen.destination > 5, JSON.stringify(seen));
  t.is(seen.unknown, 0);
});

test.serial(
  'M7: cancel at 50 random moments of a large session: the guest runs on, nothing stays behind',
  async (t) => {
    const from = new FakeMachine({ ramBytes: 8 << 20, storesMiBPerSecond: 50, workingSetPages: 512 });
    const to = new FakeMachine({ ramBytes: 8 << 20, status: 'inmigrate' });
    from.fillRandom(1024, 1000);
    const clean = to.digest();
    const source = new EmbeddedSide(from, new FakeDisks(true));
    const destination = new EmbeddedSide(to, new FakeDisks(false));
    t.teardown(() => Promise.all([source.close(), destination.close(), from.close()]).then(() => {}));
    const { uri } = (await destination.rpc.call('migrate-incoming', { uri: 'tcp:127.0.0.1:0' })) as { uri: string };
    let seed = 7;
    let cancelled = 0;
    const handles = () => process.getActiveResourcesInfo().filter((kind) => kind.startsWith('TCP')).length;
    const before = handles();
    // The limit keeps every session longer than the latest cancel.
    const parameters = { 'max-bandwidth': 8 << 20, 'downtime-limit': 0, 'auto-converge': false };
    for (let round = 0; round < 50; round++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      source.statuses.length = 0;
      destination.statuses.length = 0;
      await source.rpc.call('migrate', { uri, parameters });
      await new Promise((resolve) => setTimeout(resolve, seed % 40));
      await source.rpc.call('migrate-cancel');
      const status = await source.ended();
      if (status === 'cancelled') cancelled++;
      if (destination.statuses.length > 0) await destination.ended();
      if (from.status !== 'running') t.fail(`round ${round}: the guest is ${from.status}`);
      if (to.digest() !== clean) t.fail(`round ${round}: the destination is not clean`);
      // The destination takes the next source when it has put this one away.
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    // On a host that stalls, a session may be over before its cancel comes; nearly all must be cut short
    t.true(cancelled >= 40, `${cancelled} of 50 were cancelled`);
    t.is(from.guestProblem(), undefined);
    await new Promise((resolve) => setTimeout(resolve, 50));
    t.true(handles() <= before, `${handles()} sockets, ${before} before`);
    source.statuses.length = 0;
    await source.rpc.call('migrate', { uri });
    t.is(await source.ended(), 'completed', JSON.stringify(await source.query()));
  },
);

test('a lost answer to Commit: the source stands and says so; migrate-reclaim gives the guest back', async (t) => {
  const from = new FakeMachine({ ramBytes: 1 << 20 });
  const source = new EmbeddedSide(from, new FakeDisks(true));
  t.teardown(() => source.close());
  const { server, uri } = await silentAfterCommit();
  t.teardown(() => server.close());
  await source.rpc.call('migrate', { uri });
  t.is(await source.ended(), 'failed');
  const query = await source.query();
  t.regex(String(query['error-desc']), /handed over and no answer came/);
  t.is(from.status, 'paused');
  t.deepEqual(source.disks.calls, ['flush', 'release']);
  await t.throwsAsync(source.rpc.call('migrate', { uri }), { message: /outcome of the last is open/ });
  t.is(from.status, 'paused');
  await source.rpc.call('migrate-reclaim');
  t.is(from.status, 'running');
  t.deepEqual(source.disks.calls, ['flush', 'release', 'take']);
  await t.throwsAsync(source.rpc.call('migrate-reclaim'), { message: /Cannot reclaim/ });
});

/** A destination that agrees to all and closes instead of running. */
async function silentAfterCommit() {
  const { createServer } = await import('node:net');
  const { frameControl, MigrationFrames } = await import('../../../protocols/migration/mod.ts');
  const server = createServer((socket) => {
    const frames = new MigrationFrames();
    socket.on('error', () => {});
    socket.on('data', (chunk: Uint8Array) => {
      frames.push(chunk);
      for (let frame = frames.next(); frame !== undefined; frame = frames.next()) {
        if (frame.kind === 'record') continue;
        const { message } = frame;
        if (message.kind === 'hello') {
          socket.write(frameControl({ kind: 'helloAck', version: 1, sessionId: message.sessionId, features: [] }));
        } else if (message.kind === 'manifest') socket.write(frameControl({ kind: 'manifestAck' }));
        else if (message.kind === 'passEnd') socket.write(frameControl({ kind: 'passAck', pass: message.pass }));
        else if (message.kind === 'digest') socket.write(frameControl({ kind: 'ready' }));
        else if (message.kind === 'commit') socket.destroy();
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  return { server, uri: `tcp:127.0.0.1:${port}` };
}
