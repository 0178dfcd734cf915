import { createCipheriv } from 'node:crypto';
import test from 'ava';
import { Subject } from 'rxjs';
import { AutoShift } from '../../../emulator/icount/adjust.ts';
import { InstructionClock } from '../../../emulator/icount/clock.ts';
import { Inputs } from '../../../emulator/icount/inputs.ts';
import { SeededRandom } from '../../../emulator/icount/random.ts';
import { ReplayLog } from '../../../emulator/icount/replay_log.ts';
import { StateError } from '../../../emulator/state/state.ts';
import { encodeReplayHeader, ReplayDecoder } from '../../../protocols/replay/mod.ts';

test('SeededRandom is ChaCha20, and goes on from any position', (t) => {
  const seed = Uint8Array.from({ length: 32 }, (_, index) => index * 7);
  // Node's IV is the block counter and the nonce
  const expected = createCipheriv('chacha20', seed, Buffer.alloc(16)).update(Buffer.alloc(300));
  const random = new SeededRandom(seed);
  const bytes = new Uint8Array(300);
  random.fill(bytes.subarray(0, 5));
  random.fill(bytes.subarray(5));
  t.deepEqual([...bytes], [...expected]);
  t.is(random.position, 300);
  for (const position of [0, 1, 63, 64, 65, 200]) {
    const other = new SeededRandom(seed);
    other.position = position;
    t.is(other.position, position);
    const rest = new Uint8Array(40);
    other.fill(rest);
    t.deepEqual([...rest], [...expected.subarray(position, position + 40)], String(position));
  }
  t.throws(() => new SeededRandom(new Uint8Array(31)), { instanceOf: RangeError });
});

test('InstructionClock counts 2^shift ns for each instruction, and moves on where it is told', (t) => {
  const clock = new InstructionClock(3, 1_000_000_000n);
  clock.count(100);
  t.is(clock.ns, 800);
  t.is(clock.ticks(), 8);
  t.is(clock.ticksAfter(12), 8);
  t.is(clock.ticksAfter(13), 9);
  t.is(clock.wallNs(), 1_000_000_800n);
  t.is(clock.instructionsUntil(801), 1);
  t.is(clock.instructionsUntil(808), 1);
  t.is(clock.instructionsUntil(809), 2);
  t.is(clock.instructionsUntil(10), 0);
  clock.advanceTo(5000);
  clock.advanceTo(10);
  t.is(clock.ns, 5000, 'never back');
  clock.setShift(0);
  clock.count(7);
  t.is(clock.ns, 5007);
  const other = new InstructionClock(0, 0n);
  other.prepareState(clock.saveState(), 1)();
  t.deepEqual([other.ns, other.instructions], [5007, 107]);
  t.throws(() => other.prepareState({ instructions: -1, ns: 0 }, 1), { instanceOf: StateError });
  t.throws(() => other.prepareState({}, 2), { instanceOf: StateError });
});

/** A port that takes two bytes at a time */
function smallPort() {
  const taken: number[] = [];
  const ready = new Subject<void>();
  return {
    taken,
    ready,
    port: {
      output: new Subject<Uint8Array>(),
      ready,
      write: (bytes: Uint8Array): number => {
        taken.push(...bytes.subarray(0, 2));
        return Math.min(2, bytes.length);
      },
      holdOutput: () => {
        throw new Error('a device that refuses output depends on the host');
      },
    },
  };
}

test('Inputs hold bytes back until the moment for them, and write down what was taken', (t) => {
  const chunks: Uint8Array[] = [];
  const log = new ReplayLog({ mode: 'record', write: (bytes) => chunks.push(bytes) });
  const inputs = new Inputs(log, (task) => task());
  const { port, taken, ready } = smallPort();
  const gated = inputs.port('serial', port);
  t.is(gated.write(Uint8Array.of(1, 2, 3)), 3);
  t.deepEqual(taken, []);
  t.true(inputs.waiting);
  inputs.deliver(4, 100);
  t.deepEqual(taken, [1, 2]);
  t.false(inputs.waiting, 'there is no room');
  inputs.deliver(5, 200);
  t.deepEqual(taken, [1, 2]);
  ready.next();
  inputs.deliver(6, 300);
  t.deepEqual(taken, [1, 2, 3]);
  const decoder = new ReplayDecoder();
  decoder.push(encodeReplayHeader({ shift: 0, harts: 1, ramBytes: 0, wallNs: 0n, seed: new Uint8Array(32), guest: 0 }));
  for (const chunk of chunks) decoder.push(chunk);
  t.deepEqual(decoder.next(), { kind: 'serial', round: 4, ns: 100, bytes: Uint8Array.of(1, 2) });
  t.deepEqual(decoder.next(), { kind: 'serial', round: 6, ns: 300, bytes: Uint8Array.of(3) });
});

test('Inputs end requests of disks in the order in which they began, whichever is done first', async (t) => {
  const inputs = new Inputs(new ReplayLog(undefined), (task) => setImmediate(task));
  const doneFirst = Promise.withResolvers<void>();
  const disk = inputs.disk(0, {
    sizeBytes: 4096,
    readOnly: false,
    blockBytes: 512,
    read: (offset) => (offset === 0 ? doneFirst.promise : Promise.resolve()),
    write: () => Promise.reject(new Error('broken')),
    flush: () => Promise.resolve(),
  });
  const order: string[] = [];
  void disk.read(0, new Uint8Array(512)).then(() => order.push('slow'));
  void disk.read(512, new Uint8Array(512)).then(() => order.push('fast'));
  void disk.write(0, new Uint8Array(512)).catch((error: { code: string }) => order.push(error.code));
  await new Promise((resolve) => setImmediate(resolve));
  t.deepEqual(order, [], 'nothing ends by itself');
  setTimeout(() => doneFirst.resolve(), 5);
  await inputs.settle(1, 0);
  t.deepEqual(order, ['slow', 'fast', 'EIO']);
  t.false(inputs.busy);
});

test('ReplayLog says of a file that is no recording that it is none', (t) => {
  for (const bytes of [new Uint8Array(64), new Uint8Array(64).fill(0x7f)]) {
    const log = new ReplayLog({ mode: 'replay', read: () => bytes });
    t.throws(() => log.readHeader(), { code: 'ERR_REPLAY', message: /rrfile= is no recording/ });
  }
  const empty = new ReplayLog({ mode: 'replay', read: () => undefined });
  t.throws(() => empty.readHeader(), { code: 'ERR_REPLAY', message: /has no header/ });
});

test('AutoShift makes instructions longer while guest time is late', async (t) => {
  const clock = new InstructionClock(3, 0n);
  const auto = new AutoShift();
  auto.look(clock);
  // 1000 instructions in some 130 ms are 8 µs of guest time
  for (let turn = 0; turn < 3; turn++) {
    await new Promise((resolve) => setTimeout(resolve, 130));
    clock.count(1000);
    auto.look(clock);
  }
  const before = clock.ns;
  clock.count(1000);
  t.true(clock.ns - before > 8000, `${clock.ns - before} ns`);
});
