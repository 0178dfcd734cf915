import test from 'ava';
import {
  MAX_RESOURCE_BYTES,
  MAX_TOTAL_BACKING,
  MAX_TOTAL_BYTES,
} from '../../../../emulator/devices/virtio/gpu_resources.ts';
import { RAM_BASE } from '../../../../emulator/memory/guest_memory.ts';
import { GPU_COMMAND, GPU_FORMATS, GPU_RESPONSE, MAX_BACKING_ENTRIES } from '../../../../protocols/virtio/mod.ts';
import { makeMemory } from './driver.ts';
import {
  attach,
  B8G8R8X8,
  create,
  cursor,
  flush,
  gpuCommand,
  lastCursor,
  PICTURES,
  RESPONSE_BYTES,
  setScanout,
  show,
  startGpu,
  transfer,
  words,
} from './gpu_driver.ts';

const { okNodata, errInvalidParameter, errInvalidResourceId, errInvalidScanoutId, errOutOfMemory, errUnspec } =
  GPU_RESPONSE;
const END = RAM_BASE + 2048 * 4096;

test('VirtioGpu shows a picture: create, attach, scanout, transfer, flush', (t) => {
  const rig = startGpu();
  const whole = show(rig, 7, 64, 32);
  rig.memory.fill(PICTURES, 64 * 32 * 4, 0x11);
  t.is(rig.device.surface?.pixels[0], 0, 'nothing is shown before the transfer');
  t.is(transfer(rig, 7, whole), okNodata);
  t.is(flush(rig, 7, whole), okNodata);
  t.true(rig.device.surface?.pixels.every((byte) => byte === 0x11));
  t.deepEqual(
    rig.events.map(({ kind }) => kind),
    ['surface', 'damage'],
  );
  t.deepEqual(rig.events[1], { kind: 'damage', rectangle: whole });
});

test('VirtioGpu transfers only the rectangle, from its offset, over pieces of backing that split rows', (t) => {
  const rig = startGpu();
  create(rig, 1, 32, 16);
  const bytes = Uint8Array.from({ length: 32 * 16 * 4 }, (_, index) => (index * 31 + (index >> 8)) & 0xff);
  rig.memory.write(PICTURES, bytes.subarray(0, 100));
  rig.memory.write(PICTURES + 0x1000, bytes.subarray(100, 101));
  rig.memory.write(PICTURES + 0x2000, bytes.subarray(101));
  const pieces = [
    [PICTURES, 100],
    [PICTURES + 0x9000, 0],
    [PICTURES + 0x1000, 1],
    [PICTURES + 0x2000, bytes.length],
  ];
  t.is(attach(rig, 1, pieces as [number, number][]), okNodata);
  t.is(setScanout(rig, 1, { x: 0, y: 0, width: 32, height: 16 }), okNodata);
  const rectangle = { x: 3, y: 2, width: 7, height: 5 };
  t.is(transfer(rig, 1, rectangle, (2 * 32 + 3) * 4), okNodata);
  const expected = new Uint8Array(bytes.length);
  for (let y = 2; y < 7; y++) {
    const row = (y * 32 + 3) * 4;
    expected.set(bytes.subarray(row, row + 28), row);
  }
  t.deepEqual(rig.device.surface?.pixels, expected);
});

test('VirtioGpu transfers rows that begin exactly where a piece of backing begins', (t) => {
  const rig = startGpu();
  create(rig, 1, 32, 16);
  const rows = Array.from({ length: 16 }, (_, row) => PICTURES + (15 - row) * 4096);
  for (const [row, at] of rows.entries()) rig.memory.fill(at, 128, row + 1);
  attach(
    rig,
    1,
    rows.map((at) => [at, 128] as const),
  );
  setScanout(rig, 1, { x: 0, y: 0, width: 32, height: 16 });
  t.is(transfer(rig, 1, { x: 0, y: 5, width: 32, height: 11 }, 5 * 128), okNodata);
  const shown = Array.from({ length: 16 }, (_, row) => rig.device.surface!.pixels[row * 128 + 7]);
  t.deepEqual(shown, [0, 0, 0, 0, 0, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
});

test('VirtioGpu leaves pixels alone that a short backing does not have', (t) => {
  const rig = startGpu();
  create(rig, 1, 16, 16);
  attach(rig, 1, [[PICTURES, 100]]);
  setScanout(rig, 1, { x: 0, y: 0, width: 16, height: 16 });
  rig.memory.fill(PICTURES, 4096, 9);
  t.is(transfer(rig, 1, { x: 0, y: 0, width: 16, height: 16 }), okNodata);
  t.deepEqual([rig.device.surface?.pixels[99], rig.device.surface?.pixels[100]], [9, 0]);
});

test('VirtioGpu.surface of a part of a resource starts at its corner; damage is clipped and relative to it', (t) => {
  const rig = startGpu();
  create(rig, 1, 64, 64);
  attach(rig, 1, [[PICTURES, 64 * 64 * 4]]);
  t.is(setScanout(rig, 1, { x: 16, y: 8, width: 32, height: 40 }), okNodata);
  rig.memory.write(PICTURES + (8 * 64 + 16) * 4, Uint8Array.of(1, 2, 3, 4));
  transfer(rig, 1, { x: 0, y: 0, width: 64, height: 64 });
  const { surface } = rig.device;
  t.deepEqual([surface?.width, surface?.height, surface?.strideBytes], [32, 40, 256]);
  t.deepEqual([...surface!.pixels.subarray(0, 4)], [1, 2, 3, 4]);
  t.is(surface!.pixels.length, 39 * 256 + 32 * 4);
  rig.events.length = 0;
  flush(rig, 1, { x: 0, y: 0, width: 20, height: 10 });
  flush(rig, 1, { x: 40, y: 40, width: 24, height: 24 });
  flush(rig, 1, { x: 0, y: 0, width: 16, height: 64 });
  flush(rig, 1, { x: 20, y: 20, width: 0, height: 5 });
  t.deepEqual(rig.events, [
    { kind: 'damage', rectangle: { x: 0, y: 0, width: 4, height: 2 } },
    { kind: 'damage', rectangle: { x: 24, y: 32, width: 8, height: 8 } },
  ]);
});

test('VirtioGpu converts each format to B G R X exactly', (t) => {
  for (const [format, { b, g, r }] of GPU_FORMATS) {
    const rig = startGpu();
    const whole = show(rig, 1, 16, 16, format);
    const pixel = new Uint8Array(4).fill(0xaa);
    [pixel[b], pixel[g], pixel[r]] = [10, 20, 30];
    rig.memory.write(PICTURES + 4, pixel);
    transfer(rig, 1, whole);
    t.deepEqual([...rig.device.surface!.pixels.subarray(4, 7)], [10, 20, 30], `format ${format}`);
  }
});

test('VirtioGpu refuses a resource id that is in use, and id 0; an id may come back after unref', (t) => {
  const rig = startGpu();
  t.is(create(rig, 5, 16, 16), okNodata);
  t.is(create(rig, 5, 16, 16), errInvalidResourceId);
  t.is(create(rig, 0, 16, 16), errInvalidResourceId);
  t.is(rig.run(GPU_COMMAND.resourceUnref, words(5, 0)), okNodata);
  t.is(rig.run(GPU_COMMAND.resourceUnref, words(5, 0)), errInvalidResourceId);
  t.is(create(rig, 5, 16, 16), okNodata);
});

test('VirtioGpu refuses sides of 0, 8193, 65535 and 2^32 - 1, and unknown formats', (t) => {
  const rig = startGpu();
  for (const side of [0, 8193, 65535, 0xffff_ffff]) {
    t.is(create(rig, 1, side, 16), errInvalidParameter);
    t.is(create(rig, 1, 16, side), errInvalidParameter);
  }
  for (const format of [0, 5, 66, 135, 0xffff_ffff]) t.is(create(rig, 1, 16, 16, format), errInvalidParameter);
});

test('VirtioGpu refuses resources above one’s size, above the total, and more than 256', (t) => {
  const rig = startGpu();
  t.is(create(rig, 1, 8192, 2049), errOutOfMemory);
  const each = MAX_RESOURCE_BYTES / (4 * 8192);
  for (let id = 1; id <= MAX_TOTAL_BYTES / MAX_RESOURCE_BYTES; id++) t.is(create(rig, id, 8192, each), okNodata);
  t.is(create(rig, 99, 1, 1), errOutOfMemory);
  t.is(rig.run(GPU_COMMAND.resourceUnref, words(1, 0)), okNodata);
  t.is(create(rig, 99, 1, 1), okNodata, 'unref gives the bytes back');
  const small = startGpu();
  for (let id = 1; id <= 256; id++) create(small, id, 1, 1);
  t.is(create(small, 257, 1, 1), errOutOfMemory);
});

test('VirtioGpu refuses backing outside of RAM, across its end, and addresses that wrap', (t) => {
  const rig = startGpu();
  create(rig, 1, 16, 16);
  for (const [address, length] of [
    [0, 16],
    [RAM_BASE - 1, 2],
    [END - 8, 16],
    [END, 1],
    [0x1000_0000, 256],
    [0xffff_ffff_ffff_f000n, 0x2000],
    [(1n << 53n) + 1n, 1],
    [BigInt(RAM_BASE) + (1n << 32n), 16],
    [RAM_BASE, 0xffff_ffff],
  ] as const) {
    t.is(
      attach(rig, 1, [
        [PICTURES, 16],
        [address, length],
      ]),
      errInvalidParameter,
      `${address}+${length}`,
    );
  }
  t.is(transfer(rig, 1, { x: 0, y: 0, width: 1, height: 1 }), errUnspec, 'nothing was attached');
  t.is(attach(rig, 1, [[END - 16, 16]]), okNodata);
  t.is(attach(rig, 1, [[END - 16, 16]]), errUnspec, 'a second backing');
  t.is(attach(rig, 9, [[END - 16, 16]]), errInvalidResourceId);
});

test('VirtioGpu refuses 16384 + 1 pieces of backing, a count beyond the message, and too many in all', (t) => {
  const rig = startGpu(makeMemory(8192));
  const pieces = (count: number): [number, number][] => Array.from({ length: count }, () => [RAM_BASE, 4096]);
  create(rig, 1, 16, 16);
  t.is(attach(rig, 1, pieces(MAX_BACKING_ENTRIES + 1)), errInvalidParameter);
  t.is(attach(rig, 1, pieces(2), 3), errInvalidParameter);
  t.is(attach(rig, 1, pieces(2), 0xffff_ffff), errInvalidParameter);
  t.is(attach(rig, 1, pieces(MAX_BACKING_ENTRIES)), okNodata);
  const full = startGpu(makeMemory(8192));
  const most = MAX_TOTAL_BACKING / MAX_BACKING_ENTRIES;
  for (let id = 1; id <= most; id++) {
    create(full, id, 1, 1);
    t.is(attach(full, id, pieces(MAX_BACKING_ENTRIES)), okNodata, `${id}`);
  }
  create(full, 99, 1, 1);
  t.is(attach(full, 99, pieces(1)), errOutOfMemory);
  t.is(full.run(GPU_COMMAND.resourceDetachBacking, words(1, 0)), okNodata);
  t.is(attach(full, 99, pieces(1)), okNodata, 'detach gives the pieces back');
});

test('VirtioGpu refuses transfers outside of the resource, and offsets that overflow', (t) => {
  const rig = startGpu();
  const whole = show(rig, 1, 64, 64);
  for (const rectangle of [
    { ...whole, width: 65 },
    { ...whole, height: 65 },
    { ...whole, x: 1 },
    { ...whole, y: 0xffff_ffff },
    { ...whole, x: 0xffff_ffff, width: 1 },
    { ...whole, x: 32, width: 0xffff_ffe1 },
    { ...whole, height: 0xffff_ffff },
  ]) {
    t.is(transfer(rig, 1, rectangle), errInvalidParameter, JSON.stringify(rectangle));
  }
  for (const offset of [64n * 64n * 4n + 1n, 1n << 32n, 1n << 63n, (1n << 64n) - 1n]) {
    t.is(transfer(rig, 1, whole, offset), errInvalidParameter);
  }
  t.is(transfer(rig, 1, whole, 64 * 64 * 4), okNodata, 'an offset at the end finds nothing');
  t.is(transfer(rig, 2, whole), errInvalidResourceId);
});

test('VirtioGpu refuses a scanout rectangle outside of its resource, too small, or of another scanout', (t) => {
  const rig = startGpu();
  create(rig, 1, 64, 64);
  for (const rectangle of [
    { x: 0, y: 0, width: 65, height: 64 },
    { x: 1, y: 0, width: 64, height: 64 },
    { x: 0, y: 0xffff_fff0, width: 16, height: 32 },
    { x: 0, y: 0, width: 15, height: 64 },
    { x: 0, y: 0, width: 64, height: 0 },
  ]) {
    t.is(setScanout(rig, 1, rectangle), errInvalidParameter);
  }
  const whole = { x: 0, y: 0, width: 64, height: 64 };
  for (const scanout of [1, 15, 16, 0xffff_ffff]) t.is(setScanout(rig, 1, whole, scanout), errInvalidScanoutId);
  t.is(setScanout(rig, 2, whole), errInvalidResourceId);
  t.is(rig.device.surface, undefined);
  t.deepEqual(rig.events, []);
});

test('VirtioGpu refuses a flush outside of its resource; one of a resource that is not shown does nothing', (t) => {
  const rig = startGpu();
  show(rig, 1, 64, 64);
  create(rig, 2, 64, 64);
  rig.events.length = 0;
  t.is(flush(rig, 1, { x: 60, y: 0, width: 5, height: 1 }), errInvalidParameter);
  t.is(flush(rig, 1, { x: 0xffff_ffff, y: 0, width: 2, height: 1 }), errInvalidParameter);
  t.is(flush(rig, 3, { x: 0, y: 0, width: 1, height: 1 }), errInvalidResourceId);
  t.is(flush(rig, 2, { x: 0, y: 0, width: 64, height: 64 }), okNodata);
  t.deepEqual(rig.events, []);
});

test('VirtioGpu: backing that is detached while shown leaves the picture, and the next transfer is refused', (t) => {
  const rig = startGpu();
  const whole = show(rig, 1, 16, 16);
  rig.memory.fill(PICTURES, 1024, 3);
  transfer(rig, 1, whole);
  t.is(rig.run(GPU_COMMAND.resourceDetachBacking, words(1, 0)), okNodata);
  rig.memory.fill(PICTURES, 1024, 4);
  t.is(transfer(rig, 1, whole), errUnspec);
  t.true(rig.device.surface?.pixels.every((byte) => byte === 3));
  t.is(rig.run(GPU_COMMAND.resourceDetachBacking, words(2, 0)), errInvalidResourceId);
});

test('VirtioGpu: unref of the shown resource shows black, and stale pixels are not reachable', (t) => {
  const rig = startGpu();
  const whole = show(rig, 1, 16, 16);
  rig.memory.fill(PICTURES, 1024, 3);
  transfer(rig, 1, whole);
  t.is(rig.run(GPU_COMMAND.resourceUnref, words(1, 0)), okNodata);
  t.true(rig.device.surface?.pixels.every((byte) => byte === 0));
  t.is(rig.events.at(-1)?.kind, 'surface');
  t.is(flush(rig, 1, whole), errInvalidResourceId);
  create(rig, 1, 16, 16);
  rig.events.length = 0;
  t.is(flush(rig, 1, whole), okNodata);
  t.deepEqual(rig.events, [], 'the new resource of that id is not shown');
});

test('VirtioGpu: a scanout of resource 0, and a reset, turn the screen black', (t) => {
  const rig = startGpu();
  show(rig, 1, 32, 16);
  t.is(setScanout(rig, 0, { x: 0, y: 0, width: 0, height: 0 }), okNodata);
  t.deepEqual([rig.device.surface?.width, rig.device.surface?.pixels.length], [32, 2048]);
  const other = startGpu();
  show(other, 1, 32, 16);
  other.registers.status = 0;
  t.true(other.device.surface?.pixels.every((byte) => byte === 0));
  other.driver.start();
  t.is(create(other, 1, 16, 16), okNodata, 'resources are gone with the reset');
});

test('VirtioGpu cursor: 64 × 64 only, opaque without alpha, hot spot and position inside, hidden by resource 0', (t) => {
  const rig = startGpu();
  for (const [id, width, height] of [
    [1, 63, 64],
    [2, 64, 65],
    [3, 16, 16],
  ] as const) {
    create(rig, id, width, height);
    t.is(cursor(rig, id, { x: 0, y: 0 }), errInvalidParameter);
  }
  t.is(lastCursor(rig), undefined);
  t.is(cursor(rig, 77, { x: 0, y: 0 }), errInvalidResourceId);
  t.is(cursor(rig, 0, { x: 0, y: 0, scanout: 1 }), errInvalidScanoutId);
  for (const [id, format, alpha] of [
    [10, 1, 0x55],
    [11, B8G8R8X8, 0xff],
    [12, 121, 0x55],
    [13, 68, 0xff],
  ] as const) {
    create(rig, id, 64, 64, format);
    attach(rig, id, [[PICTURES, 64 * 64 * 4]]);
    rig.memory.fill(PICTURES, 64 * 64 * 4, 0x55);
    transfer(rig, id, { x: 0, y: 0, width: 64, height: 64 });
    t.is(cursor(rig, id, { x: 5, y: 6, hotX: 3, hotY: 0xffff_ffff }), okNodata);
    const image = lastCursor(rig)!;
    t.deepEqual([image.width, image.hotX, image.hotY], [64, 3, 63]);
    t.deepEqual([...image.pixels.subarray(0, 4)], [0x55, 0x55, 0x55, alpha], `format ${format}`);
  }
  t.deepEqual(rig.events.at(-1), { kind: 'cursor-position', x: 5, y: 6 });
  cursor(rig, 10, { x: -7, y: 0x7fff_ffff, update: false });
  t.deepEqual(rig.events.at(-1), { kind: 'cursor-position', x: 0, y: 8192 });
  cursor(rig, 0, { x: 0, y: 0 });
  t.is(lastCursor(rig)?.width, 0);
});

test('VirtioGpu: a reset hides the cursor', (t) => {
  const rig = startGpu();
  create(rig, 1, 64, 64);
  cursor(rig, 1, { x: 0, y: 0 });
  rig.registers.status = 0;
  t.is(lastCursor(rig)?.width, 0);
  t.is(rig.device.cursor, undefined);
});

test('VirtioGpu refuses commands on the wrong queue, unknown ones, and ones cut short', (t) => {
  const rig = startGpu();
  t.is(rig.run(GPU_COMMAND.updateCursor, words(0, 0, 0, 0, 0, 0, 0, 0)), errUnspec);
  t.is(rig.run(GPU_COMMAND.resourceCreate2d, words(1, 2, 16, 16), { queue: 1 }), errUnspec);
  for (const type of [0, 0x0108, 0x0109, 0x0200, 0x1100, 0xffff_ffff])
    t.is(rig.run(type, words(0, 0, 0, 0)), errUnspec);
  t.is(rig.run(GPU_COMMAND.resourceCreate2d, words(1, 2, 16)), errInvalidParameter);
  const queue = rig.driver.queues[0]!;
  for (const length of [1, 23]) {
    queue.submit([new Uint8Array(length), { writable: RESPONSE_BYTES }]);
    t.is(queue.takeUsed()[0]!.written[1], errUnspec >> 8);
  }
  queue.submit([{ writable: RESPONSE_BYTES }]);
  t.is(queue.takeUsed()[0]!.length, RESPONSE_BYTES);
  t.false(rig.driver.broken, 'wrong commands are answered, the device lives');
});

test('VirtioGpu writes no more of a response than there is room for', (t) => {
  const rig = startGpu();
  const queue = rig.driver.queues[0]!;
  queue.submit([gpuCommand(GPU_COMMAND.getDisplayInfo, words()), { writable: 30 }]);
  const used = queue.takeUsed()[0]!;
  t.is(used.length, 30);
  queue.submit([gpuCommand(GPU_COMMAND.getDisplayInfo, words())]);
  t.is(queue.takeUsed()[0]!.length, 0);
  t.false(rig.driver.broken);
});

test('VirtioGpu answers a fence with its id and context, and without one with zeroes', (t) => {
  const rig = startGpu();
  const fenced = rig.respond(GPU_COMMAND.resourceUnref, words(1, 0), 24, {
    flags: 1,
    fence: 0x1234_5678_9abcn,
    context: 3,
  });
  const view = new DataView(fenced.buffer);
  t.deepEqual(
    [view.getUint32(4, true), view.getBigUint64(8, true), view.getUint32(16, true)],
    [1, 0x1234_5678_9abcn, 3],
  );
  const plain = rig.respond(GPU_COMMAND.resourceUnref, words(1, 0), 24, { fence: 9n, context: 3 });
  t.true(plain.subarray(4).every((byte) => byte === 0));
});
