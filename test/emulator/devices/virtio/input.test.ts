import test from 'ava';
import fc from 'fast-check';
import { VirtioKeyboard, VirtioTablet } from '../../../../emulator/devices/virtio/mod.ts';
import { StateError } from '../../../../emulator/state/state.ts';
import { decodeVirtioInputEvent, encodeVirtioInputEvent } from '../../../../protocols/virtio/mod.ts';
import { Driver, type DriverQueue, makeMemory, PciRegisters } from './driver.ts';

const [EVENTS, STATUS] = [0, 1];
const [SYN, KEY, REL, ABS, LED] = [0, 1, 2, 3, 0x11];
const END = [SYN, 0, 0];

function rig<D extends VirtioKeyboard | VirtioTablet>(make: (memory: ReturnType<typeof makeMemory>) => D) {
  const memory = makeMemory(1024);
  const device = make(memory);
  const registers = new PciRegisters(device);
  const driver = new Driver(memory, registers).start({ queueSize: 64 });
  const queue = (index: number): DriverQueue => driver.queues[index]!;
  const offer = (count: number, bytes = 8): void => {
    for (let index = 0; index < count; index++) queue(EVENTS).submit([{ writable: bytes }]);
  };
  const taken = (): number[][] =>
    queue(EVENTS)
      .takeUsed()
      .map(({ written }) => {
        const { type, code, value } = decodeVirtioInputEvent(written.subarray(0, 8));
        return [type, code, value];
      });
  return { memory, device, registers, driver, queue, offer, taken };
}

const keyboard = () => rig((memory) => new VirtioKeyboard({ memory, id: 'virtio-keyboard0' }));
const tablet = () => rig((memory) => new VirtioTablet({ memory, id: 'virtio-tablet0' }));

function selected(registers: PciRegisters, select: number, subsel: number): Uint8Array {
  registers.setConfig(0, 1, select);
  registers.setConfig(1, 1, subsel);
  return Uint8Array.from({ length: registers.config(2, 1) }, (_, index) => registers.config(8 + index, 1));
}

test('VirtioKeyboard sends a key and its sync, in order, as buffers come', (t) => {
  const { device, offer, taken, registers } = keyboard();
  device.key(30, true);
  device.key(30, false);
  t.deepEqual(taken(), []);
  offer(3);
  t.deepEqual(taken(), [[KEY, 30, 1], END, [KEY, 30, 0]]);
  offer(2);
  t.deepEqual(taken(), [END]);
  t.is(registers.takeInterrupt(), 1);
});

test('VirtioKeyboard ignores key codes out of range', (t) => {
  const { device, offer, taken } = keyboard();
  offer(8);
  for (const code of [0, -1, 256, 0x110, 65536, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) device.key(code, true);
  t.deepEqual(taken(), []);
  device.key(255, true);
  t.deepEqual(taken(), [[KEY, 255, 1], END]);
});

test('VirtioKeyboard forgets what is typed while there is no driver', (t) => {
  const { device, registers } = keyboard();
  const waiting = (): unknown => (device.saveState() as { model: { waiting: unknown } }).model.waiting;
  for (const status of [0, 1, 3, 11]) {
    registers.status = status;
    device.key(30, true);
    t.deepEqual(waiting(), []);
  }
});

test('VirtioKeyboard: a flood without buffers is bounded, and ends in the keys’ true state', (t) => {
  const { device, offer, taken } = keyboard();
  for (let round = 0; round < 20_000; round++) device.key(1 + (round % 200), round % 3 !== 0);
  device.key(42, true);
  device.key(42, false);
  const { waiting } = (device.saveState() as { model: { waiting: unknown[] } }).model;
  t.true(waiting.length <= 1024);
  const last = new Map<number, number>();
  for (let round = 0; round < 40; round++) {
    offer(32);
    for (const [type, code, value] of taken()) if (type === KEY) last.set(code!, value!);
  }
  const expected = new Map<number, number>();
  for (let round = 0; round < 20_000; round++) expected.set(1 + (round % 200), round % 3 !== 0 ? 1 : 0);
  expected.set(42, 0);
  t.deepEqual([...last].sort(), [...expected].sort());
});

test('VirtioTablet: a flood without buffers keeps the last place and the last buttons', (t) => {
  const { device, offer, taken } = tablet();
  for (let round = 0; round < 5000; round++) {
    device.pointer(round, round + 1, round & 1);
    device.wheel(1, -1);
  }
  const { waiting } = (device.saveState() as { model: { waiting: unknown[] } }).model;
  t.true(waiting.length <= 1024);
  const last = new Map<string, number>();
  for (let round = 0; round < 40; round++) {
    offer(32);
    for (const [type, code, value] of taken()) last.set(`${type}.${code}`, value!);
  }
  t.deepEqual([last.get(`${ABS}.0`), last.get(`${ABS}.1`), last.get(`${KEY}.${0x110}`)], [4999, 5000, 1]);
});

test('VirtioTablet tells changed buttons only, clamps coordinates, and turns the wheel as evdev does', (t) => {
  const { device, offer, taken } = tablet();
  offer(40);
  device.pointer(-5, 1e9, 0b10001);
  t.deepEqual(taken(), [[ABS, 0, 0], [ABS, 1, 32767], [KEY, 0x110, 1], [KEY, 0x114, 1], END]);
  device.pointer(Number.NaN, 7.9, 0b10010);
  t.deepEqual(taken(), [[ABS, 0, 0], [ABS, 1, 7], [KEY, 0x110, 0], [KEY, 0x112, 1], END]);
  device.pointer(1, 1, 0xffff_ff12);
  t.deepEqual(taken(), [[ABS, 0, 1], [ABS, 1, 1], END], 'there are five buttons');
  device.wheel(2, 0);
  device.wheel(-1, 3);
  t.deepEqual(taken(), [[REL, 8, -2], END, [REL, 8, 1], [REL, 6, 3], END]);
  device.wheel(0, 0);
  device.wheel(Number.NaN, 0.4);
  t.deepEqual(taken(), []);
});

test('VirtioKeyboard refuses an event buffer that is too small', (t) => {
  for (const bytes of [1, 7]) {
    const { device, offer, driver, taken, registers } = keyboard();
    offer(1, bytes);
    device.key(30, true);
    t.true(driver.broken);
    t.is(driver.queues[EVENTS]!.usedIndex, 0);
    t.is(registers.takeInterrupt() & 2, 2);
    driver.start({ queueSize: 64 });
    offer(2);
    device.key(31, true);
    t.deepEqual(taken(), [[KEY, 31, 1], END], 'the reset forgot the rest');
  }
  const { device, queue, driver } = keyboard();
  queue(EVENTS).submit([new Uint8Array(8)]);
  device.key(30, true);
  t.true(driver.broken, 'a buffer that cannot be written at all');
});

test('VirtioKeyboard shows lamps that the guest sets, in RFB’s order, and ignores what it does not know', (t) => {
  const { device, queue, driver } = keyboard();
  const seen: number[] = [];
  device.leds.subscribe((leds) => seen.push(leds));
  const set = (type: number, code: number, value: number): number =>
    queue(STATUS).submit([encodeVirtioInputEvent({ type, code, value })]);
  set(LED, 1, 1);
  set(LED, 1, 1);
  set(LED, 0, 1);
  set(LED, 2, -1);
  set(LED, 3, 1);
  set(LED, 0xffff, 1);
  set(0x14, 0, 250);
  set(KEY, 1, 1);
  set(LED, 1, 0);
  queue(STATUS).submit([new Uint8Array(7)]);
  queue(STATUS).submit([{ writable: 8 }]);
  t.deepEqual(seen, [0, 4, 6, 7, 3]);
  t.is(queue(STATUS).usedIndex, 11);
  t.false(driver.broken);
  driver.registers.status = 0;
  t.is(seen.at(-1), 0);
});

test('VirtioKeyboard configuration: name, serial, ids, keys, lamps and repeat', (t) => {
  const { registers } = keyboard();
  const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
  t.is(text(selected(registers, 1, 0)), 'Caisson virtio-keyboard');
  t.is(text(selected(registers, 2, 0)), 'virtio-keyboard0');
  t.deepEqual([...selected(registers, 3, 0)], [6, 0, 0x27, 6, 1, 0, 1, 0]);
  const keys = selected(registers, 0x11, KEY);
  t.is(keys.length, 32);
  t.deepEqual([keys[0], keys[31]], [0xfe, 0xff]);
  t.deepEqual([...selected(registers, 0x11, LED)], [7]);
  t.deepEqual([...selected(registers, 0x11, 0x14)], [3]);
  t.deepEqual([...selected(registers, 0x11, ABS)], []);
  t.deepEqual([...selected(registers, 0x12, 0)], []);
});

test('VirtioTablet configuration: buttons, wheels, and the range of both axes', (t) => {
  const { registers } = tablet();
  const buttons = selected(registers, 0x11, KEY);
  t.deepEqual([buttons[34], buttons.length], [0x1f, 35]);
  t.deepEqual([...selected(registers, 0x11, REL)], [0x40, 0x01]);
  t.deepEqual([...selected(registers, 0x11, ABS)], [3]);
  for (const axis of [0, 1]) {
    const info = selected(registers, 0x12, axis);
    t.deepEqual([info.length, info[4], info[5]], [20, 0xff, 0x7f]);
  }
  t.deepEqual([...selected(registers, 0x12, 2)], []);
});

test('VirtioKeyboard: the selectors in any order and width give sizes that fit, and no exception', (t) => {
  const { registers } = keyboard();
  const write = fc.record({
    offset: fc.nat(140),
    size: fc.constantFrom(1 as const, 2 as const, 4 as const),
    value: fc.oneof(fc.nat(0x20), fc.nat(0xffff), fc.constantFrom(0x0111, 0xffff_ffff)),
  });
  fc.assert(
    fc.property(fc.array(write, { maxLength: 20 }), (writes) => {
      for (const { offset, size, value } of writes) registers.setConfig(offset - (offset % size), size, value);
      const size = registers.config(2, 1);
      for (let at = 0; at < 144; at += 4) registers.config(at, 4);
      return size <= 128;
    }),
    { numRuns: 200 },
  );
  t.pass();
});

test('VirtioKeyboard takes both selectors in one write', (t) => {
  const { registers } = keyboard();
  registers.setConfig(0, 2, (LED << 8) | 0x11);
  t.deepEqual([registers.config(2, 1), registers.config(8, 1)], [1, 7]);
});

test('VirtioKeyboard and VirtioTablet state: events that wait, lamps and buttons move', (t) => {
  const from = keyboard();
  from.device.key(30, true);
  from.offer(1);
  from.taken();
  from.queue(STATUS).submit([encodeVirtioInputEvent({ type: LED, code: 1, value: 1 })]);
  from.registers.setConfig(0, 1, 3);
  const copy = new VirtioKeyboard({ memory: from.memory, id: 'virtio-keyboard0' });
  const seen: number[] = [];
  copy.leds.subscribe((leds) => seen.push(leds));
  const registers = new PciRegisters(copy);
  copy.prepareState(from.device.saveState(), 1)();
  t.deepEqual(copy.saveState(), from.device.saveState());
  t.is(seen.at(-1), 4);
  from.queue(EVENTS).add([{ writable: 8 }]);
  from.queue(EVENTS).publish();
  registers.notify(EVENTS);
  t.deepEqual(from.taken(), [END], 'the rest of the report comes from the new device');

  const pen = tablet();
  pen.device.pointer(1, 2, 1);
  const moved = tablet();
  moved.device.prepareState(pen.device.saveState(), 1)();
  t.deepEqual(moved.device.saveState(), pen.device.saveState());
});

test('VirtioKeyboard and VirtioTablet state refuse events, selectors, lamps and buttons that cannot be', (t) => {
  const wrong: { [key: string]: unknown }[] = [
    { waiting: Array.from({ length: 1025 }, () => ({ type: 0, code: 0, value: 0 })) },
    { waiting: [[1, 2, 3]] },
    { waiting: [{ type: 1, code: 2 }] },
    { waiting: [{ type: 0x1_0000, code: 2, value: 0 }] },
    { waiting: [{ type: 1, code: -1, value: 0 }] },
    { waiting: [{ type: 1, code: 1, value: 0x8000_0000 }] },
    { waiting: [null] },
    { select: 256 },
    { subsel: -1 },
    { leds: 8 },
    { buttons: 0x20 },
  ];
  const devices = [keyboard().device, tablet().device] as const;
  for (const change of wrong) {
    const refused = devices.filter((device) => {
      const good = device.saveState() as { model: { [key: string]: unknown } };
      // Each device has its own controls: the other's are not in its state
      if (!Object.keys(change).every((key) => key in good.model)) return true;
      try {
        device.prepareState({ ...good, model: { ...good.model, ...change } }, 1);
        return false;
      } catch (error) {
        return error instanceof StateError;
      }
    });
    t.is(refused.length, 2, JSON.stringify(change));
  }
});
