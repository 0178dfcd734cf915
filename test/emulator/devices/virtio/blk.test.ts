import test from 'ava';
import { BlockError } from '../../../../emulator/devices/backends.ts';
import { VirtioBlk } from '../../../../emulator/devices/virtio/mod.ts';
import {
  decodeVirtioBlkConfig,
  encodeVirtioBlkRequest,
  encodeVirtioBlkSegments,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from '../../../../protocols/virtio/mod.ts';
import {
  Driver,
  EVENT_IDX,
  MmioRegisters,
  makeMemory,
  PciRegisters,
  type Registers,
  settle,
  VERSION_1,
} from './driver.ts';
import { MemoryBackend } from './memory_backend.ts';

const OK = 0;
const IOERR = 1;
const UNSUPP = 2;

function make(
  kind: 'mmio' | 'pci' = 'pci',
  backend = new MemoryBackend(1024 * 1024),
): { backend: MemoryBackend; device: VirtioBlk; driver: Driver; registers: Registers; problems: string[] } {
  const memory = makeMemory();
  const problems: string[] = [];
  const device = new VirtioBlk({ memory, id: 'virtio-disk0', backend, onProblem: (text) => problems.push(text) });
  const registers = kind === 'pci' ? new PciRegisters(device) : new MmioRegisters(device);
  return { backend, device, driver: new Driver(memory, registers), registers, problems };
}

function header(type: number, sector: number | bigint): Uint8Array {
  return encodeVirtioBlkRequest({ type, priority: 0, sector: BigInt(sector) });
}

function pattern(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (index * 7 + seed) & 0xff);
}

for (const kind of ['mmio', 'pci'] as const) {
  for (const indirect of [false, true]) {
    test(`VirtioBlk writes and reads back over ${kind}, indirect ${indirect}`, async (t) => {
      const { driver, backend, registers } = make(kind);
      const queue = driver.start().queues[0]!;
      const data = pattern(1536, 3);
      queue.submit([header(VIRTIO_BLK_T_OUT, 5), data.subarray(0, 512), data.subarray(512), { writable: 1 }], {
        indirect,
      });
      await settle();
      t.deepEqual([...queue.takeUsed()[0]!.written], [OK]);
      t.deepEqual(backend.data.slice(5 * 512, 8 * 512), data);
      t.true(registers.line.level);
      t.is(registers.takeInterrupt(), 1);
      t.false(registers.line.level);
      queue.submit([header(VIRTIO_BLK_T_IN, 5), { writable: 1000 }, { writable: 536 }, { writable: 1 }], { indirect });
      await settle();
      const used = queue.takeUsed()[0]!;
      t.is(used.length, 1537);
      t.deepEqual(used.written, Uint8Array.from([...data, OK]));
      t.false(driver.broken);
    });
  }
}

test('VirtioBlk configuration tells size, limits and what the backend can do', (t) => {
  const { registers } = make('mmio', new MemoryBackend(1024 * 1024, { blockBytes: 4096 }));
  const bytes = Uint8Array.from({ length: 60 }, (_, offset) => registers.config(offset, 1));
  const config = decodeVirtioBlkConfig(bytes);
  t.is(config.capacity, 2048n);
  t.is(config.blkSize, 4096);
  t.is(config.segMax, 254);
  t.is(config.discardSectorAlignment, 8);
  t.true(config.maxDiscardSectors > 0 && config.maxWriteZeroesSectors > 0);
  t.is(registers.config(0, 4), 2048);
  t.is(registers.config(60, 4), 0);
});

test('VirtioBlk gives its serial, flushes, discards and writes zeroes', async (t) => {
  const { driver, backend } = make();
  backend.data.fill(0xff);
  const queue = driver.start().queues[0]!;
  queue.submit([header(VIRTIO_BLK_T_GET_ID, 0), { writable: 20 }, { writable: 1 }]);
  queue.submit([header(VIRTIO_BLK_T_FLUSH, 0), { writable: 1 }]);
  const range = (flags: number): Uint8Array => encodeVirtioBlkSegments([{ sector: 8n, sectors: 8, flags }]);
  queue.submit([header(VIRTIO_BLK_T_DISCARD, 0), range(0), { writable: 1 }]);
  queue.submit([header(VIRTIO_BLK_T_WRITE_ZEROES, 0), range(1), { writable: 1 }]);
  await settle();
  const used = queue.takeUsed();
  const serial = used.find((entry) => entry.written.length === 21)!.written;
  t.is(new TextDecoder().decode(serial.subarray(0, 12)), 'virtio-disk0');
  t.deepEqual(
    used.map((entry) => entry.written.at(-1)),
    [OK, OK, OK, OK],
  );
  t.deepEqual(backend.log, ['flush', 'discard 4096+4096', 'zeroes 4096+4096 unmap']);
  t.true(backend.data.subarray(4096, 8192).every((byte) => byte === 0));
});

test('VirtioBlk writes through for a driver without FLUSH', async (t) => {
  const { driver, backend } = make();
  const queue = driver.start({ features: VERSION_1 }).queues[0]!;
  queue.submit([header(VIRTIO_BLK_T_OUT, 0), pattern(512, 1), { writable: 1 }]);
  await settle();
  t.deepEqual(backend.log, ['write 0+512 fua']);
});

test('VirtioBlk refuses what lies beyond the disk, is not whole blocks, or wraps 2^64', async (t) => {
  const { driver, backend } = make('pci', new MemoryBackend(64 * 1024, { blockBytes: 4096 }));
  const queue = driver.start().queues[0]!;
  for (const [sector, length] of [
    [128n, 4096],
    [127n, 4096],
    [120n, 8192],
    [(1n << 64n) - 8n, 4096],
    [(1n << 55n) - 1n, 4096],
    [0n, 512],
    [1n, 4096],
    [0n, 100],
  ] as const) {
    for (const type of [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT]) {
      const data = type === VIRTIO_BLK_T_IN ? { writable: length } : pattern(length, 0);
      queue.submit([header(type, sector), data, { writable: 1 }]);
      await settle();
      t.is(queue.takeUsed()[0]!.written.at(-1), IOERR, `${type} ${sector}+${length}`);
    }
  }
  t.deepEqual(backend.log, []);
  t.false(driver.broken);
});

test('VirtioBlk answers an unknown request with UNSUPP and an unwritable disk with IOERR', async (t) => {
  const { driver, backend, registers } = make('mmio', new MemoryBackend(65536, { readOnly: true }));
  t.is(registers.features() & (1n << 5n), 1n << 5n);
  const queue = driver.start().queues[0]!;
  queue.submit([header(99, 0), { writable: 1 }]);
  queue.submit([header(VIRTIO_BLK_T_OUT, 0), pattern(512, 0), { writable: 1 }]);
  queue.submit([header(VIRTIO_BLK_T_DISCARD, 0), new Uint8Array(16), { writable: 1 }]);
  await settle();
  const byHead = queue.takeUsed().sort((a, b) => a.head - b.head);
  t.deepEqual(
    byHead.map((entry) => entry.written[0]),
    [UNSUPP, IOERR, UNSUPP],
  );
  t.deepEqual(backend.log, []);
});

test('VirtioBlk refuses discard with the unmap flag, unknown flags, broken and too many segments', async (t) => {
  const { driver, backend } = make();
  const queue = driver.start().queues[0]!;
  const segment = (flags: number, sectors = 8): Uint8Array => encodeVirtioBlkSegments([{ sector: 0n, sectors, flags }]);
  const many = encodeVirtioBlkSegments(Array.from({ length: 17 }, () => ({ sector: 0n, sectors: 8, flags: 0 })));
  const cases: [number, Uint8Array, number][] = [
    [VIRTIO_BLK_T_DISCARD, segment(1), UNSUPP],
    [VIRTIO_BLK_T_WRITE_ZEROES, segment(2), UNSUPP],
    [VIRTIO_BLK_T_WRITE_ZEROES, segment(0).subarray(0, 15), IOERR],
    [VIRTIO_BLK_T_WRITE_ZEROES, many, IOERR],
    [VIRTIO_BLK_T_WRITE_ZEROES, segment(0, 0xffff_ffff), IOERR],
    [VIRTIO_BLK_T_DISCARD, segment(0, 4096), IOERR],
  ];
  for (const [type, payload, expected] of cases) {
    queue.submit([header(type, 0), payload, { writable: 1 }]);
    await settle();
    t.is(queue.takeUsed()[0]!.written.at(-1), expected);
  }
  t.deepEqual(backend.log, []);
});

test('VirtioBlk turns a backend failure into IOERR and zeroes, also one that it does not know', async (t) => {
  for (const failing of [new BlockError('ENOSPC', 'full'), new Error('surprise')]) {
    const { driver, backend, problems } = make();
    backend.failing = failing;
    const queue = driver.start().queues[0]!;
    queue.submit([header(VIRTIO_BLK_T_IN, 0), { writable: 512 }, { writable: 1 }]);
    await settle();
    const { written } = queue.takeUsed()[0]!;
    t.is(written.at(-1), IOERR);
    t.true(written.subarray(0, 512).every((byte) => byte === 0));
    t.false(driver.broken);
    t.is(problems.length, failing instanceof BlockError ? 0 : 1);
  }
});

test('VirtioBlk: each request in flight has a buffer of its own; a failed one keeps it', async (t) => {
  const { driver, backend } = make();
  const buffers: ArrayBufferLike[] = [];
  const read = backend.read.bind(backend);
  backend.read = (offset, into) => {
    buffers.push(into.buffer);
    return read(offset, into);
  };
  let open = (): void => {};
  backend.gate = new Promise((resolve) => {
    open = resolve;
  });
  backend.data.fill(0xaa, 0, 512);
  backend.data.fill(0xbb, 512, 1024);
  const queue = driver.start().queues[0]!;
  const ask = (sector: number) => queue.submit([header(VIRTIO_BLK_T_IN, sector), { writable: 512 }, { writable: 1 }]);
  ask(0);
  ask(1);
  open();
  await settle();
  t.not(buffers[0], buffers[1]);
  t.deepEqual(
    queue.takeUsed().map(({ written }) => written[0]),
    [0xaa, 0xbb],
  );
  backend.failing = new BlockError('EIO', 'no');
  ask(0);
  await settle();
  t.true(buffers.slice(0, 2).includes(buffers[2]!), 'one of those that are done is used again');
  backend.failing = undefined;
  ask(0);
  ask(1);
  await settle();
  t.false(buffers.slice(3).includes(buffers[2]!), 'not that of the failed one');
});

test('VirtioBlk without room for header or status is broken, not the machine', (t) => {
  for (const parts of [[new Uint8Array(8), { writable: 1 }], [header(0, 0)], [{ writable: 64 }]]) {
    const { driver, problems, registers } = make();
    driver.start().queues[0]!.submit(parts);
    t.true(driver.broken);
    t.is(problems.length, 1);
    t.is(registers.takeInterrupt() & 2, 2);
  }
});

test('VirtioBlk completes out of order and runs many requests side by side, bounded', async (t) => {
  const { driver, backend } = make();
  let open = (): void => {};
  backend.gate = new Promise((resolve) => {
    open = resolve;
  });
  const queue = driver.start({ queueSize: 256 }).queues[0]!;
  for (let index = 0; index < 80; index++) {
    queue.add([header(VIRTIO_BLK_T_OUT, index), pattern(512, index), { writable: 1 }]);
  }
  queue.publish();
  driver.registers.notify(0);
  await settle();
  t.is(backend.mostRunning, 64);
  open();
  await settle();
  await settle();
  t.is(queue.takeUsed().length, 80);
  for (let index = 0; index < 80; index++) t.is(backend.data[index * 512], index);
});

test('VirtioBlk reset with requests in flight: late completions touch neither rings nor buffers', async (t) => {
  const { driver, backend, registers, device } = make();
  let open = (): void => {};
  backend.gate = new Promise((resolve) => {
    open = resolve;
  });
  backend.data.fill(0xaa);
  const queue = driver.start().queues[0]!;
  queue.submit([header(VIRTIO_BLK_T_IN, 0), { writable: 512 }, { writable: 1 }]);
  registers.status = 0;
  const before = driver.memory.read(0x8000_0000, 0x10_0000);
  open();
  await device.quiesce();
  // Not deepEqual: a diff of a megabyte takes seconds
  t.true(driver.memory.read(0x8000_0000, 0x10_0000).every((byte, index) => byte === before[index]));
  t.false(registers.line.level);
  // The same descriptor numbers work again in the next life
  const next = driver.start().queues[0]!;
  next.submit([header(VIRTIO_BLK_T_IN, 0), { writable: 512 }, { writable: 1 }]);
  await settle();
  t.is(next.takeUsed()[0]!.written[0], 0xaa);
});

test('VirtioBlk hold() starts nothing, quiesce() waits for what runs, release() goes on', async (t) => {
  const { driver, backend, device } = make();
  let open = (): void => {};
  backend.gate = new Promise((resolve) => {
    open = resolve;
  });
  const queue = driver.start().queues[0]!;
  queue.submit([header(VIRTIO_BLK_T_OUT, 0), pattern(512, 1), { writable: 1 }]);
  device.hold();
  queue.submit([header(VIRTIO_BLK_T_OUT, 1), pattern(512, 2), { writable: 1 }]);
  let idle = false;
  const waiting = device.quiesce().then(() => {
    idle = true;
  });
  await settle();
  t.false(idle);
  t.is(backend.log.length, 1);
  open();
  await waiting;
  t.is(queue.takeUsed().length, 1);
  t.is(backend.log.length, 1);
  device.release();
  await settle();
  t.is(queue.takeUsed().length, 1);
});

test('VirtioBlk state moves to a second device, which goes on where the first stood', async (t) => {
  const first = make('pci');
  const queue = first.driver.start({ features: ~EVENT_IDX }).queues[0]!;
  for (let index = 0; index < 5; index++) {
    queue.submit([header(VIRTIO_BLK_T_OUT, index), pattern(512, index), { writable: 1 }]);
    await settle();
  }
  first.device.hold();
  await first.device.quiesce();
  const memory = first.driver.memory;
  const second = new VirtioBlk({ memory, id: 'virtio-disk0', backend: first.backend });
  const registers = new PciRegisters(second);
  const from = first.registers as PciRegisters;
  second.hold();
  const commits = [
    second.prepareState(structuredClone(first.device.saveState()), 1),
    registers.transport.prepareState(structuredClone(from.transport.saveState()), 1),
    registers.host.prepareState(structuredClone(from.host.saveState()), 1),
  ];
  for (const commit of commits) commit();
  t.is(registers.status, 15);
  t.true(registers.line.level);
  second.release();
  queue.takeUsed();
  queue.add([header(VIRTIO_BLK_T_IN, 4), { writable: 512 }, { writable: 1 }]);
  queue.publish();
  registers.notify(0);
  await settle();
  t.deepEqual(queue.takeUsed()[0]!.written.subarray(0, 512), pattern(512, 4));
});
