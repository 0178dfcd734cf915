import test from 'ava';
import fc from 'fast-check';
import { VirtioConsole, VirtioRng } from '../../../../emulator/devices/virtio/mod.ts';
import { encodeVirtqDescriptor } from '../../../../protocols/virtio/mod.ts';
import {
  type Descriptor,
  Driver,
  type DriverQueue,
  EVENT_IDX,
  INDIRECT,
  MmioRegisters,
  makeMemory,
  settle,
} from './driver.ts';

// The entropy device is the smallest that takes chains; the console's second queue takes readable ones.

const NEXT = 1;
const WRITE = 2;
const TABLE = 4;

function start(options: { features?: bigint; queueSize?: number } = {}): {
  driver: Driver;
  queue: DriverQueue;
  registers: MmioRegisters;
  device: VirtioRng;
  problems: string[];
} {
  const memory = makeMemory();
  const problems: string[] = [];
  const device = new VirtioRng({
    memory,
    id: 'virtio-rng0',
    fillRandom: (bytes) => bytes.fill(0x5a),
    onProblem: (text) => problems.push(text),
  });
  const registers = new MmioRegisters(device);
  const driver = new Driver(memory, registers).start(options);
  return { driver, queue: driver.queues[0]!, registers, device, problems };
}

function offer(queue: DriverQueue, registers: MmioRegisters, head: number): void {
  queue.offer(head);
  queue.publish();
  registers.notify(queue.index);
}

/** Each: descriptors to lay, by index, and what the refusal must say. */
const HOSTILE: readonly (readonly [string, (at: number) => readonly Descriptor[], RegExp])[] = [
  ['a descriptor that is its own next', (at) => [{ address: at, length: 16, flags: NEXT | WRITE, next: 0 }], /loop/],
  [
    'a loop of two descriptors',
    (at) => [
      { address: at, length: 16, flags: NEXT | WRITE, next: 1 },
      { address: at, length: 16, flags: NEXT | WRITE, next: 0 },
    ],
    /loop/,
  ],
  ['a next beyond the ring', (at) => [{ address: at, length: 16, flags: NEXT | WRITE, next: 16 }], /next 16/],
  ['a next of 65535', (at) => [{ address: at, length: 16, flags: NEXT | WRITE, next: 0xffff }], /next 65535/],
  ['a length of zero', (at) => [{ address: at, length: 0, flags: WRITE, next: 0 }], /length 0/],
  ['a null descriptor', () => [{ address: 0, length: 0, flags: 0, next: 0 }], /length 0/],
  ['a length of 2^32 - 1', (at) => [{ address: at, length: 0xffff_ffff, flags: WRITE, next: 0 }], /not RAM/],
  ['an address of 2^64 - 1', () => [{ address: (1n << 64n) - 1n, length: 16, flags: WRITE, next: 0 }], /not RAM/],
  [
    'an address that is exact only as 64 bits',
    () => [{ address: (1n << 53n) + 1n, length: 1, flags: WRITE, next: 0 }],
    /not RAM/,
  ],
  [
    'a buffer in the device’s own registers',
    () => [{ address: 0x1000_1000, length: 16, flags: WRITE, next: 0 }],
    /not RAM/,
  ],
  ['a buffer that starts before RAM', () => [{ address: 0x7fff_fff8, length: 16, flags: WRITE, next: 0 }], /not RAM/],
  [
    'a buffer that ends one byte after RAM',
    () => [{ address: 0x8040_0000 - 15, length: 16, flags: WRITE, next: 0 }],
    /not RAM/,
  ],
  [
    'a readable part after a writable one',
    (at) => [
      { address: at, length: 16, flags: NEXT | WRITE, next: 1 },
      { address: at, length: 16, flags: 0, next: 0 },
    ],
    /readable descriptor after/,
  ],
  [
    'an indirect table with a next one',
    (at) => [{ address: at, length: 16, flags: TABLE | NEXT, next: 1 }],
    /with a next/,
  ],
  ['an indirect table of 15 bytes', (at) => [{ address: at, length: 15, flags: TABLE, next: 0 }], /table of 15/],
  ['an indirect table of no bytes', (at) => [{ address: at, length: 0, flags: TABLE, next: 0 }], /table of 0/],
  [
    'an indirect table of 2^32 - 16 bytes',
    (at) => [{ address: at, length: 0xffff_fff0, flags: TABLE, next: 0 }],
    /table of/,
  ],
  ['an indirect table outside RAM', () => [{ address: 0x1000, length: 16, flags: TABLE, next: 0 }], /not RAM/],
];

for (const [wrong, descriptors, message] of HOSTILE) {
  test(`VirtQueue refuses ${wrong}`, (t) => {
    const { driver, queue, registers, device, problems } = start();
    for (const [index, descriptor] of descriptors(queue.allocate(64)).entries()) queue.putDescriptor(index, descriptor);
    offer(queue, registers, 0);
    t.true(driver.broken);
    t.regex(device.problem!, message);
    t.is(queue.usedIndex, 0);
    // The driver hears of it by a configuration interrupt, and a reset mends it.
    t.is(registers.takeInterrupt(), 2);
    t.is(problems.length, 1);
    const again = driver.start().queues[0]!;
    again.submit([{ writable: 4 }]);
    t.is(again.takeUsed()[0]!.length, 4);
  });
}

const NESTED: readonly (readonly [string, (at: number) => readonly Descriptor[], RegExp])[] = [
  [
    'an indirect table in an indirect table',
    (at) => [{ address: at, length: 16, flags: TABLE, next: 0 }],
    /in another/,
  ],
  ['a loop in an indirect table', (at) => [{ address: at, length: 16, flags: NEXT | WRITE, next: 0 }], /loop/],
  ['a next beyond an indirect table', (at) => [{ address: at, length: 16, flags: NEXT | WRITE, next: 1 }], /next 1/],
  [
    'a buffer outside RAM in an indirect table',
    () => [{ address: 4096, length: 16, flags: WRITE, next: 0 }],
    /not RAM/,
  ],
];

for (const [wrong, descriptors, message] of NESTED) {
  test(`VirtQueue refuses ${wrong}`, (t) => {
    const { driver, queue, registers, device } = start();
    const table = queue.allocate(64);
    for (const [index, descriptor] of descriptors(queue.allocate(64)).entries()) {
      driver.memory.write(
        table + 16 * index,
        encodeVirtqDescriptor({ ...descriptor, address: BigInt(descriptor.address) }),
      );
    }
    queue.putDescriptor(0, { address: table, length: 16, flags: TABLE, next: 0 });
    offer(queue, registers, 0);
    t.true(driver.broken);
    t.regex(device.problem!, message);
  });
}

test('VirtQueue refuses an indirect table that was not negotiated', (t) => {
  const { driver, queue, device } = start({ features: ~INDIRECT });
  queue.submit([{ writable: 4 }], { indirect: true });
  t.true(driver.broken);
  t.regex(device.problem!, /not negotiated/);
});

test('VirtQueue refuses more segments than 1024 in one indirect chain', (t) => {
  const { driver, queue, registers, device } = start();
  const table = queue.allocate(16 * 1025);
  queue.putDescriptor(0, { address: table, length: 16 * 1025, flags: TABLE, next: 0 });
  offer(queue, registers, 0);
  t.true(driver.broken);
  t.regex(device.problem!, /table of 16400/);
});

test('VirtQueue takes a direct descriptor that leads to an indirect table', (t) => {
  const { driver, queue, registers } = start();
  const buffer = queue.allocate(16);
  const table = queue.allocate(16);
  driver.memory.write(table, encodeVirtqDescriptor({ address: BigInt(buffer + 8), length: 4, flags: WRITE, next: 0 }));
  queue.putDescriptor(0, { address: buffer, length: 4, flags: WRITE | NEXT, next: 7 });
  queue.putDescriptor(7, { address: table, length: 16, flags: TABLE, next: 0 });
  offer(queue, registers, 0);
  t.false(driver.broken);
  t.is(queue.takeUsed()[0]!.length, 8);
  t.deepEqual([...driver.memory.read(buffer + 8, 4)], [0x5a, 0x5a, 0x5a, 0x5a]);
});

test('VirtQueue refuses a head beyond the ring', (t) => {
  const { driver, queue, registers, device } = start();
  offer(queue, registers, 16);
  t.true(driver.broken);
  t.regex(device.problem!, /head 16/);
});

test('VirtQueue refuses an available index that jumps beyond the queue size, or runs back', (t) => {
  for (const jump of [17, 0x8000, 0xffff]) {
    const { driver, queue, registers, device } = start();
    queue.setAvailableIndex(jump);
    registers.notify(0);
    t.true(driver.broken, `${jump}`);
    t.regex(device.problem!, /ahead, queue size is 8/);
  }
});

test('VirtQueue takes a full ring, and wraps its indices past 65535', (t) => {
  const { driver, queue, registers } = start();
  let used = 0;
  for (let round = 0; round < 8200; round++) {
    for (let chain = 0; chain < 8; chain++)
      queue.putDescriptor(chain, { address: queue.desc + 0x8000, length: 1, flags: WRITE, next: 0 });
    for (let chain = 0; chain < 8; chain++) queue.offer(chain);
    queue.publish();
    // On a busy machine a turn can end early: what was left is served at the next notification.
    for (const wanted = used + 8; used < wanted && !driver.broken; ) {
      registers.notify(0);
      used += queue.takeUsed().length;
    }
  }
  t.is(used, 65600);
  t.false(driver.broken);
});

test('VirtQueue refuses the same head twice while it is in flight', (t) => {
  const memory = makeMemory();
  const device = new VirtioConsole({ memory, id: 'virtio-console0' });
  const registers = new MmioRegisters(device);
  const driver = new Driver(memory, registers).start();
  // Taken by hand: the device's own queues complete at once.
  const queue = device.queues[1]!;
  const rings = driver.queues[1]!;
  const at = rings.allocate(16);
  rings.putDescriptor(3, { address: at, length: 16, flags: 0, next: 0 });
  rings.offer(3);
  rings.offer(3);
  rings.publish();
  t.is(queue.pop()!.head, 3);
  t.throws(() => queue.pop(), { code: 'ERR_VIRTQUEUE', message: /in flight already/ });
});

test('VirtQueue.complete() is idempotent, and ignores chains of before a reset', (t) => {
  const { device, queue: rings, driver } = start();
  const queue = device.queues[0]!;
  rings.add([{ writable: 8 }]);
  rings.publish();
  const chain = queue.pop()!;
  t.is(queue.inFlight, 1);
  t.true(queue.complete(chain, 8));
  t.false(queue.complete(chain, 8));
  t.is(rings.usedIndex, 1);
  rings.add([{ writable: 8 }]);
  rings.publish();
  const stale = queue.pop()!;
  const buffer = stale.writable[0]!.address;
  queue.reset();
  stale.write(0, new Uint8Array(8).fill(0xee));
  t.false(queue.complete(stale, 8));
  t.deepEqual([...driver.memory.read(buffer, 8)], Array(8).fill(0));
});

test('Chain keeps the descriptors that it was taken with, whatever the guest writes after', (t) => {
  const { device, queue: rings, driver } = start();
  const queue = device.queues[0]!;
  const head = rings.add([{ writable: 8 }]);
  rings.publish();
  const chain = queue.pop()!;
  rings.putDescriptor(head, { address: 0x1000, length: 0xffff_ffff, flags: WRITE, next: 0 });
  t.is(chain.writableBytes, 8);
  chain.write(0, new Uint8Array(8).fill(1));
  t.throws(() => chain.write(0, new Uint8Array(9)), { instanceOf: RangeError });
  t.throws(() => chain.write(9, new Uint8Array(0)), { instanceOf: RangeError });
  t.throws(() => chain.read(0, 1), { instanceOf: RangeError });
  t.true(queue.complete(chain, 0xffff_ffff));
  t.is(rings.takeUsed()[0]!.length, 8, 'the length is never more than the chain has');
  t.false(driver.broken);
});

test('VirtQueue cannot be enabled with a ring outside RAM, misaligned, or of an impossible size', (t) => {
  const base = 0x8000_0000n;
  const cases: readonly (readonly [string, number, bigint, bigint, bigint])[] = [
    ['size 0', 0, base, base + 0x1000n, base + 0x2000n],
    ['size 3', 3, base, base + 0x1000n, base + 0x2000n],
    ['size above the limit', 16, base, base + 0x1000n, base + 0x2000n],
    ['size 65535', 0xffff, base, base + 0x1000n, base + 0x2000n],
    ['size 2^16 + 8, truncated to 8', 0x1_0008, base, base + 0x1000n, base + 0x2000n],
    ['descriptors at 0', 8, 0n, base + 0x1000n, base + 0x2000n],
    ['descriptors in the registers', 8, 0x1000_1000n, base + 0x1000n, base + 0x2000n],
    ['descriptors misaligned', 8, base + 8n, base + 0x1000n, base + 0x2000n],
    ['driver area misaligned', 8, base, base + 0x1001n, base + 0x2000n],
    ['device area misaligned', 8, base, base + 0x1000n, base + 0x2002n],
    ['driver area across the end of RAM', 8, base, base + 0x40_0000n - 20n, base + 0x2000n],
    ['device area across the end of RAM', 8, base, base + 0x1000n, base + 0x40_0000n - 68n],
    ['device area at 2^64 - 4', 8, base, base + 0x1000n, (1n << 64n) - 4n],
    ['descriptors 2^64 above RAM’s alias', 8, base + (1n << 63n), base + 0x1000n, base + 0x2000n],
  ];
  for (const [wrong, size, desc, driverArea, deviceArea] of cases) {
    const { driver, registers } = start();
    registers.status = 0;
    registers.status = 3;
    registers.setFeatures(registers.features());
    registers.status = 11;
    registers.setQueue(0, size, desc, driverArea, deviceArea);
    registers.enableQueue(0);
    t.false(registers.queueEnabled(0), wrong);
    t.true(driver.broken, wrong);
  }
});

test('VirtQueue with EVENT_IDX interrupts only where used_event says', async (t) => {
  const { queue, registers } = start();
  const submit = (): boolean => {
    queue.submit([{ writable: 4 }]);
    return registers.takeInterrupt() === 1;
  };
  t.true(submit());
  t.false(submit(), 'used_event is still 0');
  queue.usedEvent = 3;
  t.false(submit());
  t.true(submit());
  t.false(submit());
  // A turn that ended early on a busy machine goes on by itself.
  await settle();
  t.is(queue.availEvent, 5, 'the driver is asked to notify for the next chain');
});

test('VirtQueue without EVENT_IDX interrupts unless the driver says NO_INTERRUPT', (t) => {
  const { queue, registers } = start({ features: ~EVENT_IDX });
  queue.submit([{ writable: 4 }]);
  t.is(registers.takeInterrupt(), 1);
  queue.noInterrupt = true;
  queue.submit([{ writable: 4 }]);
  t.is(registers.takeInterrupt(), 0);
  t.is(queue.takeUsed().length, 2);
});

test('VirtQueue survives any memory in its rings: value, or a broken device, never another exception', (t) => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          address: fc.oneof(
            fc.integer({ min: 0x8000_0000, max: 0x8040_0010 }),
            fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
          ),
          length: fc.oneof(fc.integer({ min: 0, max: 64 }), fc.integer({ min: 0, max: 0xffff_ffff })),
          flags: fc.integer({ min: 0, max: 7 }),
          next: fc.oneof(fc.integer({ min: 0, max: 16 }), fc.integer({ min: 0, max: 0xffff })),
        }),
        { minLength: 16, maxLength: 16 },
      ),
      fc.array(fc.integer({ min: 0, max: 17 }), { minLength: 1, maxLength: 16 }),
      (descriptors, heads) => {
        const { driver, queue, registers, device } = start();
        for (const [index, descriptor] of descriptors.entries()) queue.putDescriptor(index, descriptor);
        for (const head of heads) queue.offer(head);
        queue.publish();
        registers.notify(0);
        // A hostile chain may lie over the rings themselves: what they say then is the driver's trouble.
        return driver.broken === (device.problem !== undefined);
      },
    ),
    { numRuns: 400 },
  );
  t.pass();
});
