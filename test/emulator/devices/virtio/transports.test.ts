import test from 'ava';
import fc from 'fast-check';
import type { AccessSize } from '../../../../emulator/devices/device.ts';
import { emptyVirtioMmio, VirtioBlk, VirtioConsole, VirtioRng } from '../../../../emulator/devices/virtio/mod.ts';
import { decodeVirtioPciCapability } from '../../../../protocols/virtio/mod.ts';
import {
  BAR_ADDRESS,
  Driver,
  MmioRegisters,
  makeMemory,
  PciRegisters,
  type Registers,
  SLOT,
  STATUS,
  VERSION_1,
} from './driver.ts';
import { MemoryBackend } from './memory_backend.ts';

const KINDS = ['mmio', 'pci'] as const;

function make(kind: (typeof KINDS)[number]): { registers: Registers; device: VirtioConsole; driver: Driver } {
  const memory = makeMemory();
  const device = new VirtioConsole({ memory, id: 'virtio-console0' });
  const registers = kind === 'pci' ? new PciRegisters(device) : new MmioRegisters(device);
  return { registers, device, driver: new Driver(memory, registers) };
}

for (const kind of KINDS) {
  test(`${kind}: FEATURES_OK does not stick without VERSION_1, nor with a feature never offered`, (t) => {
    const { registers } = make(kind);
    for (const features of [
      0n,
      1n << 28n,
      registers.features() & ~VERSION_1,
      VERSION_1 | (1n << 33n),
      (1n << 64n) - 1n,
    ]) {
      registers.status = 0;
      registers.status = STATUS.ack | STATUS.driver;
      registers.setFeatures(features);
      registers.status = STATUS.ack | STATUS.driver | STATUS.featuresOk;
      t.is(registers.status, STATUS.ack | STATUS.driver, features.toString(16));
      registers.status = 15;
      t.is(registers.status & STATUS.driverOk, 0, 'and DRIVER_OK not without it');
    }
  });

  test(`${kind}: features are fixed once FEATURES_OK is set`, (t) => {
    const { registers, device } = make(kind);
    registers.setFeatures(VERSION_1);
    registers.status = 11;
    registers.setFeatures(registers.features());
    t.is(device.driverFeatures, VERSION_1);
  });

  test(`${kind}: the driver neither sets nor clears DEVICE_NEEDS_RESET, and bits stay until a reset`, (t) => {
    const { registers, driver } = make(kind);
    registers.status = STATUS.ack | STATUS.needsReset;
    t.is(registers.status, STATUS.ack);
    driver.start();
    driver.queues[1]!.setAvailableIndex(0x4000);
    registers.notify(1);
    t.is(registers.status, 15 | STATUS.needsReset);
    registers.status = 15;
    t.is(registers.status, 15 | STATUS.needsReset);
    registers.status = STATUS.ack;
    t.is(registers.status, 15 | STATUS.needsReset);
    registers.status = 0;
    t.is(registers.status, 0);
    t.false(registers.line.level);
  });

  test(`${kind}: a broken device takes and gives nothing until it is reset`, (t) => {
    const { driver, device } = make(kind);
    const seen: number[] = [];
    device.output.subscribe((bytes) => seen.push(...bytes));
    driver.start();
    driver.queues[0]!.setAvailableIndex(0x4000);
    device.write(Uint8Array.of(1));
    t.true(driver.broken);
    driver.queues[1]!.submit([Uint8Array.of(65)]);
    t.deepEqual(seen, []);
    driver.start().queues[1]!.submit([Uint8Array.of(66)]);
    t.deepEqual(seen, [66]);
    t.false(driver.broken);
  });

  test(`${kind}: nothing is taken from a queue before DRIVER_OK, and what waits is taken then`, (t) => {
    const { registers, driver, device } = make(kind);
    const seen: number[] = [];
    device.output.subscribe((bytes) => seen.push(...bytes));
    driver.start();
    registers.status = 0;
    registers.status = 3;
    registers.setFeatures(registers.features());
    registers.status = 11;
    const queue = driver.queues[1]!;
    driver.memory.setU16(queue.used + 2, 0);
    queue.enable();
    queue.submit([Uint8Array.of(72, 105)]);
    t.deepEqual(seen, []);
    registers.status = 15;
    t.deepEqual(seen, [72, 105]);
  });

  test(`${kind}: a queue's size and addresses are fixed while it is enabled; a reset frees them`, (t) => {
    const { registers, driver, device } = make(kind);
    driver.start();
    const before = device.queues[0]!.descAddress;
    registers.setQueue(0, 4, 0n, 0n, 0n);
    t.is(device.queues[0]!.descAddress, before);
    t.is(device.queues[0]!.size, 16);
    registers.status = 0;
    t.false(registers.queueEnabled(0));
    t.is(registers.maxQueueSize(0), 128);
    t.is(device.queues[0]!.descAddress, 0n);
  });

  test(`${kind}: a queue that does not exist has size 0 and swallows every access`, (t) => {
    const { registers, driver } = make(kind);
    driver.start();
    for (const index of [2, 16, 0x7fff, 0xffff]) {
      t.is(registers.maxQueueSize(index), 0);
      registers.setQueue(index, 8, 0x8000_0000n, 0x8000_1000n, 0x8000_2000n);
      registers.enableQueue(index);
      t.false(registers.queueEnabled(index));
      registers.notify(index);
    }
    t.false(driver.broken);
  });

  test(`${kind}: a configuration change raises its interrupt and generation`, (t) => {
    const { registers, driver, device } = make(kind);
    device.resize(80, 24);
    t.false(registers.line.level, 'not before DRIVER_OK');
    driver.start();
    const generation = registers.configGeneration();
    device.resize(132, 50);
    t.not(registers.configGeneration(), generation);
    t.is(registers.takeInterrupt(), 2);
    t.is(registers.config(0, 2), 132);
    t.is(registers.config(2, 2), 50);
    t.is(registers.config(0, 4), (50 << 16) | 132);
    t.is(registers.config(0, 1), 132);
  });

  test(`${kind}: reset by the machine clears what the driver left`, (t) => {
    const { registers, driver, device } = make(kind);
    driver.start();
    device.resize(1, 1);
    t.true(registers.line.level);
    if (registers instanceof PciRegisters) {
      registers.host.reset();
      t.is(registers.pciConfig(4, 2), 0);
      t.is(registers.pciConfig(0x20, 4), 0xc);
    } else device.reset();
    t.false(registers.line.level);
    t.is(device.status, 0);
    t.false(device.queues[0]!.ready);
  });

  test(`${kind}: any accesses in any order leave a device that a proper driver can still start`, (t) => {
    const access = fc.record({
      offset: fc.oneof(fc.integer({ min: 0, max: 0x7f }), fc.integer({ min: 0, max: 0x3fff })),
      size: fc.constantFrom<AccessSize>(1, 2, 4),
      value: fc.oneof(fc.integer({ min: 0, max: 31 }), fc.constantFrom(0x8000_0000, 0x8000_1000), fc.nat(0xffff_ffff)),
      write: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(access, { maxLength: 60 }), (accesses) => {
        const { registers, driver, device } = make(kind);
        const seen: number[] = [];
        for (const { offset, size, value, write } of accesses) {
          const at = offset - (offset % size);
          const written = size === 4 ? value : value % (size === 2 ? 65536 : 256);
          if (registers instanceof PciRegisters) {
            if (write) registers.write(at, size, written);
            else checkUnsigned(registers.read(at, size), size);
          } else if (registers instanceof MmioRegisters) {
            if (write) registers.transport.write(at % 0x1000, size, written);
            else checkUnsigned(registers.transport.read(at % 0x1000, size), size);
          }
        }
        device.output.subscribe((bytes) => seen.push(...bytes));
        driver.start().queues[1]!.submit([Uint8Array.of(42)]);
        return seen.length === 1 && !driver.broken;
      }),
      { numRuns: 300 },
    );
    t.pass();
  });
}

function checkUnsigned(value: number, size: number): void {
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** (8 * size)) throw new Error(`read gave ${value}`);
}

test('mmio: identity registers are what Linux probes for', (t) => {
  const { transport } = new MmioRegisters(new VirtioRng({ memory: makeMemory(), id: 'r', fillRandom: () => {} }));
  t.is(transport.read(0, 4), 0x74726976);
  t.is(transport.read(4, 4), 2);
  t.is(transport.read(8, 4), 4);
  t.is(transport.read(0xc, 4), 0x554d4551);
  // Feature words above the second are 0; a shared memory region that is not there has a length of -1
  transport.write(0x14, 4, 2);
  t.is(transport.read(0x10, 4), 0);
  for (const register of [0xb0, 0xb4]) t.is(transport.read(register, 4), 0xffff_ffff);
  t.is(transport.read(0, 1), 0, 'registers are 32 bits wide');
  t.is(emptyVirtioMmio.read(0, 4), 0x74726976);
  t.is(emptyVirtioMmio.read(8, 4), 0);
});

test('mmio: QueueReady 0 takes a queue out of use and its chains with it', (t) => {
  const { registers, driver, device } = make('mmio');
  driver.start();
  const mmio = registers as MmioRegisters;
  mmio.write(0x30, 1);
  mmio.write(0x44, 0);
  t.is(mmio.read(0x44), 0);
  driver.queues[1]!.submit([Uint8Array.of(1)]);
  t.is(device.queues[1]!.inFlight, 0);
  t.is(driver.queues[1]!.usedIndex, 0);
});

test('pci: the capability list is what Linux walks, and each structure fits its BAR', (t) => {
  const registers = make('pci').registers as PciRegisters;
  t.is(registers.pciConfig(0, 4), 0x1043_1af4);
  t.is(registers.pciConfig(8, 1), 1, 'a modern device has revision 1 or more');
  t.is(registers.pciConfig(0x2c, 2), 0x1af4);
  t.is(registers.pciConfig(0x0e, 1), 0, 'header type 0, one function');
  t.is(registers.pciConfig(0x3d, 1), 1, 'INTA');
  t.is(registers.pciConfig(6, 2) & 0x10, 0x10);
  const found = new Map<number, ReturnType<typeof decodeVirtioPciCapability>>();
  for (let at = registers.pciConfig(0x34, 1), hops = 0; at !== 0 && hops < 10; hops++) {
    const length = registers.pciConfig(at + 2, 1);
    const capability = decodeVirtioPciCapability(
      Uint8Array.from({ length }, (_, index) => registers.pciConfig(at + index, 1)),
    );
    found.set(capability.type, capability);
    at = capability.next;
  }
  t.deepEqual([...found.keys()].sort(), [1, 2, 3, 4, 5]);
  for (const type of [1, 2, 3, 4]) {
    const { bar, offset, length } = found.get(type)!;
    t.is(bar, 4);
    t.true(offset % 4 === 0 && offset + length <= 0x4000);
  }
  t.true(found.get(1)!.length >= 56);
  t.is(found.get(2)!.tail, 4, 'notify_off_multiplier');
});

test('pci: ISR status reads once, and INTx follows it and the disable bit', (t) => {
  const { registers, driver, device } = make('pci');
  const pci = registers as PciRegisters;
  driver.start();
  device.resize(3, 3);
  const line = pci.lines[(SLOT + 1 - 1) % 4]!;
  t.true(line.level);
  t.is(pci.pciConfig(6, 2) & 8, 8, 'interrupt status');
  pci.setPciConfig(4, 2, 0x406);
  t.false(line.level, 'INTx disabled');
  t.is(pci.pciConfig(6, 2) & 8, 8);
  pci.setPciConfig(4, 2, 0x6);
  t.true(line.level);
  t.is(registers.takeInterrupt(), 2);
  t.is(registers.takeInterrupt(), 0);
  t.false(line.level);
});

test('pci: without bus mastering the device touches no memory, and goes on when it is back', (t) => {
  const { registers, driver, device } = make('pci');
  const seen: number[] = [];
  device.output.subscribe((bytes) => seen.push(...bytes));
  driver.start();
  const pci = registers as PciRegisters;
  pci.setPciConfig(4, 2, 0x2);
  driver.queues[1]!.submit([Uint8Array.of(9)]);
  t.deepEqual(seen, []);
  t.is(driver.queues[1]!.usedIndex, 0);
  pci.setPciConfig(4, 2, 0x6);
  t.deepEqual(seen, [9]);
});

test('pci: bus mastering switched off under a request breaks the device instead of writing memory', async (t) => {
  const memory = makeMemory();
  const backend = new MemoryBackend(4096);
  const device = new VirtioBlk({ memory, id: 'virtio-disk0', backend });
  const pci = new PciRegisters(device);
  const driver = new Driver(memory, pci).start();
  driver.queues[0]!.submit([new Uint8Array(16), { writable: 512 }, { writable: 1 }]);
  pci.setPciConfig(4, 2, 0x2);
  await device.quiesce();
  t.is(driver.queues[0]!.usedIndex, 0);
  t.true(driver.broken);
});

test('pci: the configuration window reads and writes the BAR, and refuses what is outside', (t) => {
  const pci = make('pci').registers as PciRegisters;
  let window = 0;
  for (let at = pci.pciConfig(0x34, 1); at !== 0; at = pci.pciConfig(at + 1, 1)) {
    if (pci.pciConfig(at + 3, 1) === 5) window = at;
  }
  const reach = (bar: number, offset: number, length: number): void => {
    pci.setPciConfig(window + 4, 1, bar);
    pci.setPciConfig(window + 8, 4, offset);
    pci.setPciConfig(window + 12, 4, length);
  };
  reach(4, 18, 2);
  t.is(pci.pciConfig(window + 16, 2), 2, 'num_queues');
  reach(4, 20, 1);
  pci.setPciConfig(window + 16, 1, 1);
  t.is(pci.status, 1);
  for (const [bar, offset, length] of [
    [4, 0x4000, 4],
    [4, 0xffff_fffc, 4],
    [4, 0x3fff, 4],
    [4, 2, 4],
    [0, 0, 4],
    [4, 0, 8],
    [4, 0, 0],
  ] as const) {
    reach(bar, offset, length);
    t.is(pci.pciConfig(window + 16, 4), 0);
    pci.setPciConfig(window + 16, 4, 0xffff_ffff);
  }
  t.is(pci.status, 1);
});

test('pci: wide and narrow accesses to the common configuration see the same fields', (t) => {
  const pci = make('pci').registers as PciRegisters;
  t.is(pci.read(16, 4), 0x0002_ffff, 'no vector, two queues');
  pci.write(20, 4, 0x0001_0001); // device_status 1, config_generation ignored, queue_select 1
  t.is(pci.status, 1);
  t.is(pci.read(22, 2), 1);
  t.is(pci.read(30, 2), 1);
  t.is(pci.read(24, 1), 128);
  pci.write(32, 2, 0xffff); // half of a 32-bit field
  t.is(pci.read(32, 4), 0);
  t.is(pci.read(56, 4), 0);
  t.is(pci.read(0xffc, 4), 0);
  t.is(BAR_ADDRESS % 0x4000, 0);
});

for (const kind of KINDS) {
  test(`${kind}: states with impossible values are refused and change nothing`, (t) => {
    const { registers, driver, device } = make(kind);
    driver.start();
    device.resize(80, 25);
    const transport = (registers as MmioRegisters | PciRegisters).transport;
    const good = device.saveState() as { [key: string]: unknown };
    const goodTransport = transport.saveState() as { [key: string]: unknown };
    const queue = (good.queues as { [key: string]: unknown }[])[0]!;
    const withQueue = (change: object): object => ({ ...good, queues: [{ ...queue, ...change }, queue] });
    const bad: readonly object[] = [
      { ...good, status: 256 },
      { ...good, status: -1 },
      { ...good, status: 7 },
      { ...good, status: Number.NaN },
      { ...good, driverFeatures: 0n },
      { ...good, driverFeatures: VERSION_1 | (1n << 40n) },
      { ...good, queues: [] },
      { ...good, queues: [queue, queue, queue] },
      { ...good, model: null },
      { ...good, model: { input: new Uint8Array(4097), cols: 0, rows: 0 } },
      { ...good, model: { input: 'text', cols: 0, rows: 0 } },
      withQueue({ size: 0 }),
      withQueue({ size: 3 }),
      withQueue({ size: 256 }),
      withQueue({ size: 65536 }),
      withQueue({ desc: 0n }),
      withQueue({ desc: 0x8000_0001n }),
      withQueue({ driver: 0x8040_0000n - 4n }),
      withQueue({ device: 1n << 64n }),
      withQueue({ device: (1n << 64n) - 4n }),
      withQueue({ lastAvail: 65536 }),
      withQueue({ lastAvail: 1 }),
      withQueue({ usedIdx: -1 }),
      withQueue({ signalledUsed: 1.5 }),
      withQueue({ availEvent: -2 }),
      withQueue({ ready: 1 }),
    ];
    for (const [index, state] of bad.entries()) {
      t.throws(() => device.prepareState(state, 1), { code: 'ERR_STATE' }, `case ${index}`);
    }
    t.throws(() => device.prepareState(good, 2), { code: 'ERR_STATE' });
    for (const change of [{ queueSel: -1 }, { queueSelect: 65536 }, { isr: 4 }, { interruptStatus: 4 }]) {
      const [field] = Object.keys(change);
      if (field! in goodTransport) {
        t.throws(() => transport.prepareState({ ...goodTransport, ...change }, 1), { code: 'ERR_STATE' });
      }
    }
    t.deepEqual(device.saveState(), good);
    device.prepareState(good, 1)();
    transport.prepareState(goodTransport, 1)();
    t.deepEqual(device.saveState(), good);
    t.true(registers.line.level, 'the interrupt that was pending is pending again');
  });
}
