import test from 'ava';
import { VirtioNet } from '../../../../emulator/devices/virtio/mod.ts';
import { StateError } from '../../../../emulator/state/state.ts';
import { encodeVirtioNetHeader, type VirtioNetHeader } from '../../../../protocols/virtio/mod.ts';
import { Driver, type DriverQueue, makeMemory, PciRegisters } from './driver.ts';
import { RacingMemory } from './racing_memory.ts';

const MAC = Uint8Array.of(0x52, 0x54, 0, 1, 2, 3);
const [RX, TX] = [0, 1];
const PLAIN = { flags: 0, gsoType: 0, headerLength: 0, gsoSize: 0, checksumStart: 0, checksumOffset: 0, buffers: 0 };

function start(memory = makeMemory(1024)) {
  const sent: Uint8Array[] = [];
  const device = new VirtioNet({ memory, id: 'virtio-net0', mac: MAC, sink: (frame) => sent.push(frame) });
  const registers = new PciRegisters(device);
  const driver = new Driver(memory, registers).start();
  const queue = (index: number): DriverQueue => driver.queues[index]!;
  return { memory, device, registers, driver, sent, queue };
}

function header(change: Partial<VirtioNetHeader> = {}): Uint8Array {
  return encodeVirtioNetHeader({ ...PLAIN, ...change });
}

function frame(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (index * 5 + seed) & 0xff);
}

test('VirtioNet tells its MAC, link and MTU', (t) => {
  const { registers, device } = start();
  t.deepEqual(
    Uint8Array.from({ length: 6 }, (_, index) => registers.config(index, 1)),
    MAC,
  );
  t.deepEqual([registers.config(6, 2), registers.config(10, 2)], [1, 1500]);
  registers.takeInterrupt();
  device.setLink(false);
  t.is(registers.config(6, 2), 0);
  t.is(registers.takeInterrupt(), 2);
  device.setLink(false);
  t.is(registers.takeInterrupt(), 0, 'no news');
  t.throws(() => new VirtioNet({ memory: makeMemory(), id: 'x', mac: new Uint8Array(5) }), { instanceOf: RangeError });
});

test('VirtioNet gives each sent frame to the sink as a private copy, and counts it', (t) => {
  const { queue, sent, device, memory } = start();
  const bytes = frame(60);
  queue(TX).submit([header(), bytes.subarray(0, 14), bytes.subarray(14)]);
  queue(TX).submit([Uint8Array.from([...header(), ...frame(1514, 9)])], { indirect: true });
  t.deepEqual(sent, [bytes, frame(1514, 9)]);
  memory.fill(queue(TX).used + 4096, 4096, 0);
  t.deepEqual(sent[0], bytes);
  t.is(queue(TX).takeUsed().length, 2);
  t.deepEqual([device.counters.sent, device.counters.sentBytes], [2, 1574]);
});

test('VirtioNet drops what it cannot send: too short, too long, offloads, no cable; the device lives', (t) => {
  const { queue, sent, device, driver } = start();
  const submit = (...parts: Uint8Array[]): number => queue(TX).submit(parts);
  submit(new Uint8Array(1));
  submit(header());
  submit(header(), frame(13));
  submit(header(), frame(1519));
  submit(header(), frame(100_000));
  submit(header({ flags: 1 }), frame(60));
  submit(header({ gsoType: 1 }), frame(60));
  queue(TX).submit([{ writable: 100 }]);
  device.setLink(false);
  submit(header(), frame(60));
  t.deepEqual(sent, []);
  t.is(device.counters.sentDropped, 9);
  t.is(queue(TX).usedIndex, 9);
  t.false(driver.broken);
});

test('VirtioNet.receive() writes header and frame into one buffer, at once or when there is one', (t) => {
  const { queue, device, registers } = start();
  queue(RX).submit([{ writable: 1526 }]);
  t.true(device.receive(frame(64)));
  const first = queue(RX).takeUsed()[0]!;
  t.is(first.length, 76);
  t.deepEqual([...first.written.subarray(0, 12)], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], 'num_buffers is 1');
  t.deepEqual(first.written.slice(12, 76), frame(64));
  t.is(registers.takeInterrupt(), 1);
  t.true(device.receive(frame(1514, 7)));
  t.is(queue(RX).takeUsed().length, 0);
  queue(RX).submit([{ writable: 12 }, { writable: 1514 }]);
  t.deepEqual(queue(RX).takeUsed()[0]!.written.slice(12), frame(1514, 7));
  t.deepEqual([device.counters.received, device.counters.receivedBytes], [2, 1578]);
});

test('VirtioNet.receive() keeps a private copy of a frame that waits', (t) => {
  const { queue, device } = start();
  const bytes = frame(60);
  device.receive(bytes);
  bytes.fill(0);
  queue(RX).submit([{ writable: 1526 }]);
  t.deepEqual(queue(RX).takeUsed()[0]!.written.slice(12, 72), frame(60));
});

test('VirtioNet.receive() is bounded: a guest without buffers loses frames, not our memory', (t) => {
  const { queue, device } = start();
  let taken = 0;
  for (let count = 0; count < 2000; count++) if (device.receive(frame(1514))) taken++;
  t.is(taken, 256);
  t.is(device.counters.receivedDropped, 2000 - 256);
  queue(RX).submit([{ writable: 1526 }]);
  t.true(device.receive(frame(60)), 'room again');
});

test('VirtioNet.receive() drops frames of impossible size, without driver and without link', (t) => {
  const { device, driver, registers } = start();
  for (const length of [0, 13, 1519, 65536]) t.false(device.receive(frame(length)));
  device.setLink(false);
  t.false(device.receive(frame(60)));
  device.setLink(true);
  registers.status = 0;
  t.false(device.receive(frame(60)));
  driver.start();
  t.true(device.receive(frame(60)));
});

test('VirtioNet gives a receive buffer that is too small back empty', (t) => {
  const { queue, device, driver } = start();
  queue(RX).submit([{ writable: 71 }]);
  queue(RX).submit([new Uint8Array(64)]);
  device.receive(frame(60));
  device.receive(frame(60));
  t.deepEqual(
    queue(RX)
      .takeUsed()
      .map(({ length }) => length),
    [0, 0],
  );
  t.is(device.counters.receivedDropped, 2);
  t.false(driver.broken);
});

test('VirtioNet takes each chain once: a guest that shrinks a buffer meanwhile changes nothing', (t) => {
  const memory = RacingMemory.make();
  const { queue, device, sent, driver, registers } = start(memory);
  queue(RX).add([{ writable: 1526 }]);
  queue(RX).publish();
  queue(TX).add([header(), frame(60)]);
  queue(TX).publish();
  memory.racing = true;
  device.receive(frame(100));
  registers.notify(TX);
  memory.racing = false;
  t.deepEqual(sent, [frame(60)]);
  t.is(queue(RX).takeUsed()[0]?.length, 112);
  t.false(driver.broken);
});

test('VirtioNet state: waiting frames and the MAC move; impossible frames are refused', (t) => {
  const { device, memory } = start();
  device.receive(frame(60));
  device.setLink(true);
  const state = device.saveState() as { model: { [key: string]: unknown } };
  const copy = new VirtioNet({ memory, id: 'virtio-net0', mac: Uint8Array.of(2, 0, 0, 0, 0, 9) });
  copy.prepareState(state, 1)();
  t.deepEqual(copy.saveState(), device.saveState());
  const before = device.saveState();
  for (const change of [
    { mac: new Uint8Array(5) },
    { mac: 'x' },
    { linkUp: 1 },
    { waiting: [new Uint8Array(13)] },
    { waiting: [new Uint8Array(1519)] },
    { waiting: [null] },
    { waiting: Array.from({ length: 257 }, () => frame(60)) },
  ]) {
    const wrong = { ...state, model: { ...state.model, ...change } };
    t.throws(() => device.prepareState(wrong, 1), { instanceOf: StateError });
  }
  t.deepEqual(device.saveState(), before);
});
