import test, { type ExecutionContext } from 'ava';
import { VirtQueue, VirtQueueError } from '../../../../emulator/devices/virtio/mod.ts';
import { type GuestMemory, RAM_BASE } from '../../../../emulator/memory/guest_memory.ts';
import { StateError } from '../../../../emulator/state/state.ts';
import { encodeVirtqDescriptor } from '../../../../protocols/virtio/mod.ts';
import { makeMemory } from './driver.ts';
import { RacingMemory } from './racing_memory.ts';

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;
const SIZE = 8;
const DESC = RAM_BASE + 0x1000;
const AVAIL = RAM_BASE + 0x2000;
const USED = RAM_BASE + 0x3000;
const DATA = RAM_BASE + 0x10000;
const TABLE = RAM_BASE + 0x8000;

interface Rig {
  readonly memory: GuestMemory;
  readonly queue: VirtQueue;
  desc(index: number, address: number | bigint, length: number, flags?: number, next?: number): void;
  publish(...heads: number[]): void;
}

function rig(memory: GuestMemory = makeMemory(256), maxChainBytes?: number): Rig {
  const queue = new VirtQueue(0, memory, { maxSize: 16, ...(maxChainBytes === undefined ? {} : { maxChainBytes }) });
  queue.negotiate({ eventIdx: false, indirect: true });
  queue.size = SIZE;
  queue.descAddress = BigInt(DESC);
  queue.driverAddress = BigInt(AVAIL);
  queue.deviceAddress = BigInt(USED);
  queue.enable();
  let idx = 0;
  return {
    memory,
    queue,
    desc: (index, address, length, flags = 0, next = 0) =>
      memory.write(DESC + 16 * index, encodeVirtqDescriptor({ address: BigInt(address), length, flags, next })),
    publish: (...heads) => {
      for (const head of heads) memory.setU16(AVAIL + 4 + 2 * (idx++ % SIZE), head);
      memory.setAtomicU16(AVAIL + 2, idx & 0xffff);
    },
  };
}

function refuses(t: ExecutionContext, { queue }: Rig, message: RegExp): void {
  t.throws(() => queue.pop(), { instanceOf: VirtQueueError, message });
}

test('VirtQueue refuses a loop in an indirect table', (t) => {
  const r = rig();
  for (const [index, next] of [1, 0].entries()) {
    r.memory.write(TABLE + 16 * index, encodeVirtqDescriptor({ address: BigInt(DATA), length: 1, flags: NEXT, next }));
  }
  r.desc(0, TABLE, 32, INDIRECT);
  r.publish(0);
  refuses(t, r, /a loop: more than 2 indirect/);
});

test('VirtQueue refuses a chain above its cap of bytes', (t) => {
  const r = rig(makeMemory(256), 1000);
  r.desc(0, DATA, 600, NEXT, 1);
  r.desc(1, DATA, 401);
  r.publish(0);
  refuses(t, r, /more than 1000 bytes/);
  const exact = rig(makeMemory(256), 1000);
  exact.desc(0, DATA, 600, NEXT, 1);
  exact.desc(1, DATA, 400);
  exact.publish(0);
  t.is(exact.queue.pop()?.readableBytes, 1000);
});

test('VirtQueue: without bus mastering a chain writes and completes nothing', (t) => {
  const r = rig();
  r.desc(0, DATA, 4, WRITE);
  r.publish(0);
  const chain = r.queue.pop()!;
  r.queue.setDma(false);
  chain.write(0, Uint8Array.of(1));
  t.false(r.queue.complete(chain, 1));
  t.deepEqual([r.memory.u8(DATA), r.memory.u16(USED + 2)], [0, 0]);
});

test('VirtQueue fetches each descriptor once: a guest that rewrites behind the read changes nothing', (t) => {
  const memory = RacingMemory.make(256);
  const r = rig(memory);
  memory.write(DATA, Uint8Array.of(5, 6, 7, 8));
  r.desc(0, DATA, 4, NEXT, 1);
  r.memory.write(TABLE, encodeVirtqDescriptor({ address: BigInt(DATA + 64), length: 4, flags: WRITE, next: 0 }));
  r.desc(1, TABLE, 16, INDIRECT);
  r.publish(0);
  memory.racing = true;
  const chain = r.queue.pop()!;
  t.deepEqual([...chain.read(0, 4)], [5, 6, 7, 8]);
  chain.write(0, Uint8Array.of(1, 2, 3, 4));
  memory.racing = false;
  t.deepEqual([...memory.read(DATA + 64, 4)], [1, 2, 3, 4]);
});

test('VirtQueue asks for a notification by the event index when it runs dry', (t) => {
  const r = rig();
  r.queue.negotiate({ eventIdx: true, indirect: false });
  r.desc(0, DATA, 1);
  r.publish(0);
  r.queue.complete(r.queue.pop()!, 0);
  t.is(r.queue.pop(), undefined);
  t.is(r.memory.u16(USED + 4 + 8 * SIZE), 1);
});

test('VirtQueue state: saved, prepared and committed it goes on where it was', (t) => {
  const r = rig();
  for (let index = 0; index < SIZE; index++) r.desc(index, DATA, 1);
  r.publish(0, 1, 2);
  r.queue.complete(r.queue.pop()!, 0);
  const state = r.queue.saveState();
  const other = new VirtQueue(0, r.memory, { maxSize: 16 });
  const commit = other.prepareState(state, 'q', false);
  t.false(other.ready, 'preparing changes nothing');
  commit();
  t.deepEqual(other.saveState(), state);
  t.is(other.pop()?.head, 1);
});

test('VirtQueue state refuses indices, sizes and rings that cannot be', (t) => {
  const r = rig();
  const good = r.queue.saveState() as Record<string, unknown>;
  const wrong: Record<string, unknown>[] = [
    { size: 3 },
    { size: 0x1_0000 },
    { size: -1 },
    { size: 32 },
    { lastAvail: 0x1_0000 },
    { lastAvail: 1 },
    { usedIdx: 7 },
    { usedIdx: 1.5 },
    { signalledUsed: -1 },
    { availEvent: -2 },
    { desc: 0n },
    { desc: -1n },
    { driver: BigInt(AVAIL) + 1n },
    { device: 1n << 64n },
    { device: BigInt(RAM_BASE + (1 << 20)) },
    { ready: 1 },
  ];
  for (const change of wrong) {
    t.throws(
      () => r.queue.prepareState({ ...good, ...change }, 'q', false),
      { instanceOf: StateError },
      Object.keys(change)[0],
    );
  }
  const { size: _, ...missing } = good;
  t.throws(() => r.queue.prepareState(missing, 'q', false), { instanceOf: StateError });
});
