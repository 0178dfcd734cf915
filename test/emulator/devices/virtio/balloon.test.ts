import test from 'ava';
import { VirtioBalloon } from '../../../../emulator/devices/virtio/mod.ts';
import { RAM_BASE } from '../../../../emulator/memory/guest_memory.ts';
import { StateError } from '../../../../emulator/state/state.ts';
import { encodeVirtioBalloonStats, type VirtioBalloonStat } from '../../../../protocols/virtio/mod.ts';
import { Driver, type DriverQueue, makeMemory, PciRegisters } from './driver.ts';

const [INFLATE, DEFLATE, STATS] = [0, 1, 2];
const PAGE = 4096;
const SOME = RAM_BASE + 0x38_0000;

function start(memory = makeMemory(1024)) {
  const problems: string[] = [];
  const device = new VirtioBalloon({ memory, id: 'virtio-balloon0', onProblem: (text) => problems.push(text) });
  const registers = new PciRegisters(device);
  const driver = new Driver(memory, registers).start();
  const seen: (readonly VirtioBalloonStat[])[] = [];
  device.stats.subscribe((stats) => seen.push(stats));
  const queue = (index: number): DriverQueue => driver.queues[index]!;
  return { memory, device, registers, driver, seen, problems, queue };
}

function pageNumbers(...addresses: number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(addresses, (address) => address / PAGE).buffer);
}

test('VirtioBalloon tells its target by the configuration, and reads back what the driver says', (t) => {
  const { device, registers } = start();
  registers.takeInterrupt();
  device.setTargetBytes(10 * PAGE + 5);
  t.is(registers.config(0, 4), 10);
  t.is(registers.takeInterrupt(), 2);
  registers.setConfig(4, 4, 7);
  t.is(device.actualBytes, 7 * PAGE);
  t.is(registers.config(4, 4), 7);
  registers.setConfig(0, 4, 99);
  registers.setConfig(5, 1, 1);
  t.is(registers.config(0, 4), 10, 'the target is not the driver’s');
  t.is(registers.config(4, 4), 7);
  device.setTargetBytes(10 * PAGE);
  t.is(registers.takeInterrupt(), 0, 'the same target is no news');
});

test('VirtioBalloon refuses a target that is no size or above RAM, and caps what a driver claims', (t) => {
  const { device, registers } = start();
  for (const bytes of [-1, Number.NaN, Number.POSITIVE_INFINITY, 1025 * PAGE]) {
    t.throws(() => device.setTargetBytes(bytes), { instanceOf: RangeError });
  }
  registers.setConfig(4, 4, 0xffff_ffff);
  t.is(device.actualBytes, 1024 * PAGE);
});

test('VirtioBalloon clears the pages that the guest gives up, and no others', (t) => {
  const { memory, queue } = start();
  memory.fill(SOME, 4 * PAGE, 0x77);
  queue(INFLATE).submit([pageNumbers(SOME, SOME + 2 * PAGE)]);
  t.is(queue(INFLATE).takeUsed().length, 1);
  const filled = [0, 1, 2, 3].map((page) => memory.read(SOME + page * PAGE, PAGE).every((byte) => byte === 0));
  t.deepEqual(filled, [true, false, true, false]);
  queue(DEFLATE).submit([pageNumbers(SOME + PAGE)]);
  t.is(queue(DEFLATE).takeUsed().length, 1);
  t.is(memory.u8(SOME + PAGE), 0x77, 'taking a page back changes nothing');
});

test('VirtioBalloon ignores page numbers that are not RAM', (t) => {
  const { memory, queue, driver } = start();
  memory.fill(SOME, PAGE, 0x77);
  const words = [0, 0x1_0000, RAM_BASE / PAGE - 1, RAM_BASE / PAGE + 1024, 0x7fff_ffff, 0xffff_ffff];
  queue(INFLATE).submit([new Uint8Array(Uint32Array.from(words).buffer)]);
  t.is(queue(INFLATE).takeUsed().length, 1);
  t.is(memory.u8(SOME), 0x77);
  t.false(driver.broken);
});

test('VirtioBalloon refuses half a page number and too many of them', (t) => {
  for (const bytes of [1, 6, 4097]) {
    const { queue, driver, problems } = start();
    queue(INFLATE).submit([new Uint8Array(bytes)]);
    t.true(driver.broken, `${bytes}`);
    t.is(problems.length, 1);
    t.is(driver.start().queues[INFLATE]!.usedIndex, 0);
  }
});

test('VirtioBalloon reads statistics when they come, and returns the buffer only for the next question', (t) => {
  const { queue, device, seen, registers } = start();
  const first = [
    { tag: 4, value: 123_456n },
    { tag: 0xfff0, value: (1n << 64n) - 1n },
  ];
  device.requestStats();
  queue(STATS).submit([encodeVirtioBalloonStats(first)]);
  t.deepEqual(seen, [first]);
  t.is(queue(STATS).usedIndex, 0);
  registers.takeInterrupt();
  device.requestStats();
  t.is(queue(STATS).usedIndex, 1);
  t.is(registers.takeInterrupt(), 1);
  device.requestStats();
  t.is(queue(STATS).usedIndex, 1, 'there is no buffer to return a second time');
  queue(STATS).submit([encodeVirtioBalloonStats([{ tag: 5, value: 1n }])]);
  t.deepEqual(seen.at(-1), [{ tag: 5, value: 1n }]);
});

test('VirtioBalloon.requestStats() asks to be told of the answer: the event index is behind the returned buffer', (t) => {
  const { queue, device } = start();
  for (let round = 0; round < 3; round++) {
    queue(STATS).submit([encodeVirtioBalloonStats([{ tag: 0, value: 1n }])]);
    device.requestStats();
    t.is(queue(STATS).availEvent, round + 1);
  }
});

test('VirtioBalloon refuses statistics of broken length or more than 64 of them', (t) => {
  for (const bytes of [1, 11, 650]) {
    const { queue, driver, seen } = start();
    queue(STATS).submit([new Uint8Array(bytes)]);
    t.true(driver.broken, `${bytes}`);
    t.deepEqual(seen, []);
  }
});

test('VirtioBalloon.requestStats() after a reset has nothing to return', (t) => {
  const { queue, device, driver } = start();
  queue(STATS).submit([new Uint8Array(10)]);
  driver.start();
  device.requestStats();
  t.is(driver.queues[STATS]!.usedIndex, 0);
  t.false(driver.broken);
});

test('VirtioBalloon state: the statistics buffer survives a move, and the target too', (t) => {
  const { memory, device, registers, driver, queue } = start();
  device.setTargetBytes(5 * PAGE);
  registers.setConfig(4, 4, 3);
  queue(STATS).submit([encodeVirtioBalloonStats([{ tag: 1, value: 2n }])]);
  const copy = new VirtioBalloon({ memory, id: 'virtio-balloon0' });
  const copied = new PciRegisters(copy);
  copy.hold();
  const seen: unknown[] = [];
  copy.stats.subscribe((stats) => seen.push(stats));
  const commits = [
    copied.host.prepareState(registers.host.saveState(), 1),
    copy.prepareState(device.saveState(), 1),
    copied.transport.prepareState(registers.transport.saveState(), 1),
  ];
  for (const commit of commits) commit();
  t.deepEqual(copy.saveState(), device.saveState());
  t.is(copy.actualBytes, 3 * PAGE);
  copy.release();
  t.deepEqual(seen, [[{ tag: 1, value: 2n }]], 'read again where the machine goes on');
  copy.requestStats();
  t.is(driver.queues[STATS]!.usedIndex, 1);
});

test('VirtioBalloon state refuses pages beyond RAM', (t) => {
  const { device } = start();
  const good = device.saveState() as { model: object };
  for (const change of [{ target: 1025 }, { target: -1 }, { actual: 1025 }, { actual: 0.5 }, { actual: 'x' }]) {
    const state = { ...good, model: { ...good.model, ...change } };
    t.throws(() => device.prepareState(state, 1), { instanceOf: StateError });
  }
});
