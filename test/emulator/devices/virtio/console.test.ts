import test from 'ava';
import { VirtioConsole, VirtioRng } from '../../../../emulator/devices/virtio/mod.ts';
import { RAM_BASE } from '../../../../emulator/memory/guest_memory.ts';
import { Driver, MmioRegisters, makeMemory, PciRegisters } from './driver.ts';

function make() {
  const memory = makeMemory();
  const device = new VirtioConsole({ memory, id: 'virtio-console0' });
  const registers = new PciRegisters(device);
  const driver = new Driver(memory, registers);
  const output: number[] = [];
  let ready = 0;
  device.output.subscribe((bytes) => output.push(...bytes));
  device.ready.subscribe(() => ready++);
  return { memory, device, registers, driver, output, readyCount: () => ready };
}

test('VirtioConsole carries output as it comes and input into the guest’s buffers', (t) => {
  const { driver, device, output, registers } = make();
  driver.start();
  const [receive, transmit] = driver.queues;
  transmit!.submit([Uint8Array.of(72, 101), Uint8Array.of(108)], { indirect: true });
  t.deepEqual(output, [72, 101, 108]);
  t.is(transmit!.takeUsed()[0]!.length, 0);
  receive!.submit([{ writable: 2 }]);
  receive!.submit([{ writable: 8 }]);
  registers.takeInterrupt();
  t.is(device.write(Uint8Array.of(1, 2, 3)), 3);
  t.is(registers.takeInterrupt(), 1);
  const used = receive!.takeUsed();
  t.deepEqual([...used[0]!.written], [1, 2]);
  t.is(used[1]!.length, 1);
  t.is(used[1]!.written[0], 3);
});

test('VirtioConsole bounds the input of a guest that takes none, and says when there is room', (t) => {
  const { driver, device, readyCount } = make();
  driver.start();
  t.is(device.write(new Uint8Array(5000)), 4096);
  t.is(device.write(Uint8Array.of(1)), 0);
  t.is(readyCount(), 0);
  driver.queues[0]!.submit([{ writable: 64 }]);
  t.is(driver.queues[0]!.takeUsed()[0]!.length, 64);
  t.is(readyCount(), 1);
  t.is(device.write(new Uint8Array(100)), 64);
});

test('VirtioConsole leaves buffers in their queue while nobody takes its output, and then takes all of them', (t) => {
  const { driver, device, output } = make();
  driver.start();
  const transmit = driver.queues[1]!;
  transmit.submit([Uint8Array.of(1)]);
  device.holdOutput(true);
  transmit.submit([Uint8Array.of(2)]);
  transmit.submit([Uint8Array.of(3, 4)]);
  t.deepEqual(output, [1]);
  t.is(transmit.takeUsed().length, 1);
  device.holdOutput(false);
  t.deepEqual(output, [1, 2, 3, 4]);
  t.is(transmit.takeUsed().length, 2);
});

test('VirtioConsole stops after the buffer that fills its taker', (t) => {
  const { driver, device, output } = make();
  device.output.subscribe(() => device.holdOutput(true));
  driver.start();
  const transmit = driver.queues[1]!;
  transmit.submit([Uint8Array.of(1)]);
  for (const byte of [2, 3]) transmit.submit([Uint8Array.of(byte)]);
  t.deepEqual(output, [1]);
  device.holdOutput(false);
  t.deepEqual(output, [1, 2]);
  // A guest that ends: its last words go out, and what comes after them waits again
  device.flush();
  t.deepEqual(output, [1, 2, 3]);
  transmit.submit([Uint8Array.of(4)]);
  t.deepEqual(output, [1, 2, 3]);
});

test('VirtioConsole output that waits for its taker is taken where the state goes', (t) => {
  const here = make();
  here.driver.start();
  here.device.holdOutput(true);
  here.driver.queues[1]!.submit([Uint8Array.of(5, 6)]);
  here.device.hold();
  const state = structuredClone(here.device.saveState());
  const there = make();
  there.device.hold();
  there.memory.write(RAM_BASE, here.memory.read(RAM_BASE, here.memory.sizeBytes));
  there.device.setDma(true);
  there.device.prepareState(state, 1)();
  there.device.release();
  t.deepEqual(there.output, [5, 6]);
  t.deepEqual(here.output, []);
});

test('VirtioConsole emergency write needs no queue and no driver', (t) => {
  const { registers, output } = make();
  registers.setConfig(8, 4, 0x141);
  t.deepEqual(output, [0x41]);
});

test('VirtioConsole input that waits comes along in the state, and is gone after a reset', (t) => {
  const { driver, device } = make();
  driver.start();
  device.write(Uint8Array.of(7, 8));
  const state = structuredClone(device.saveState());
  const next = make();
  next.device.hold();
  next.device.prepareState(state, 1)();
  t.deepEqual(next.device.saveState(), device.saveState());
  device.reset();
  driver.start().queues[0]!.submit([{ writable: 8 }]);
  t.is(driver.queues[0]!.usedIndex, 0);
});

test('VirtioConsole takes no input into a chain without room', (t) => {
  const { driver, device } = make();
  driver.start();
  driver.queues[0]!.submit([Uint8Array.of(1, 2, 3)]);
  device.write(Uint8Array.of(9));
  t.is(driver.queues[0]!.takeUsed()[0]!.length, 0);
  driver.queues[0]!.submit([{ writable: 1 }]);
  t.deepEqual([...driver.queues[0]!.takeUsed()[0]!.written], [9]);
});

test('VirtioRng fills a chain, and no more than 64 KiB of one', (t) => {
  const memory = makeMemory();
  const asked: number[] = [];
  const device = new VirtioRng({
    memory,
    id: 'virtio-rng0',
    fillRandom: (bytes) => {
      asked.push(bytes.length);
      bytes.fill(0xc3);
    },
  });
  const driver = new Driver(memory, new MmioRegisters(device)).start();
  const queue = driver.queues[0]!;
  queue.submit([{ writable: 10 }, { writable: 6 }]);
  const [first] = queue.takeUsed();
  t.is(first!.length, 16);
  t.true(first!.written.every((byte) => byte === 0xc3));
  queue.submit([{ writable: 100_000 }]);
  t.is(queue.takeUsed()[0]!.length, 65536);
  queue.submit([Uint8Array.of(1)]);
  t.is(queue.takeUsed()[0]!.length, 0);
  t.deepEqual(asked, [16, 65536, 0]);
});
