import test from 'ava';
import fc from 'fast-check';
import { VirtioGpu } from '../../../../emulator/devices/virtio/mod.ts';
import { RAM_BASE } from '../../../../emulator/memory/guest_memory.ts';
import { StateError } from '../../../../emulator/state/state.ts';
import { EDID_MAX_SIDE, GPU_COMMAND, GPU_RESPONSE } from '../../../../protocols/virtio/mod.ts';
import { makeMemory, PciRegisters } from './driver.ts';
import {
  attach,
  create,
  cursor,
  flush,
  type GpuRig,
  gpuCommand,
  PICTURES,
  setScanout,
  show,
  startGpu,
  transfer,
  words,
} from './gpu_driver.ts';
import { RacingMemory } from './racing_memory.ts';

const DISPLAY_INFO_BYTES = 24 + 16 * 24;
const EDID_RESPONSE_BYTES = 24 + 8 + 1024;
type Fields = { [key: string]: unknown };

function displayInfo(rig: GpuRig): number[] {
  const view = new DataView(rig.respond(GPU_COMMAND.getDisplayInfo, words(), DISPLAY_INFO_BYTES).buffer);
  return Array.from({ length: 5 }, (_, index) => view.getUint32(24 + 4 * index, true));
}

test('VirtioGpu tells one enabled scanout and its size', (t) => {
  const rig = startGpu();
  t.deepEqual(displayInfo(rig), [0, 0, 1280, 800, 1]);
  const whole = rig.respond(GPU_COMMAND.getDisplayInfo, words(), DISPLAY_INFO_BYTES);
  t.true(
    whole.subarray(48).every((byte) => byte === 0),
    'the other fifteen are off',
  );
  t.deepEqual([rig.registers.config(8, 4), rig.registers.config(12, 4)], [1, 0], 'num_scanouts, num_capsets');
});

test('VirtioGpu.requestSize() raises a display event that the driver reads, clears and follows', (t) => {
  const rig = startGpu();
  rig.registers.takeInterrupt();
  const generation = rig.registers.configGeneration();
  rig.device.requestSize(1029, 600.9);
  t.is(rig.registers.takeInterrupt(), 2);
  t.not(rig.registers.configGeneration(), generation);
  t.is(rig.registers.config(0, 4), 1);
  rig.registers.setConfig(0, 4, 0);
  rig.registers.setConfig(4, 1, 1);
  t.is(rig.registers.config(0, 4), 1, 'only events_clear clears, and whole');
  rig.registers.setConfig(4, 4, 0xffff_ffff);
  t.is(rig.registers.config(0, 4), 0);
  t.deepEqual(displayInfo(rig).slice(2, 4), [1024, 600]);
  rig.registers.takeInterrupt();
  rig.device.requestSize(1024, 600);
  t.is(rig.registers.takeInterrupt(), 0, 'the same size is no news');
});

test('VirtioGpu.requestSize() keeps absurd sizes within what a mode can say', (t) => {
  const rig = startGpu();
  rig.device.requestSize(Number.NaN, 600);
  rig.device.requestSize(Number.POSITIVE_INFINITY, 600);
  t.deepEqual(displayInfo(rig).slice(2, 4), [1280, 800]);
  rig.device.requestSize(-5, 0);
  t.deepEqual(displayInfo(rig).slice(2, 4), [64, 64]);
  rig.device.requestSize(1e9, 65535);
  t.deepEqual(displayInfo(rig).slice(2, 4), [EDID_MAX_SIDE & ~7, EDID_MAX_SIDE]);
});

test('VirtioGpu gives an EDID of the size that it prefers; another scanout has none', (t) => {
  const rig = startGpu();
  rig.device.requestSize(1920, 1080);
  const response = rig.respond(GPU_COMMAND.getEdid, words(0, 0), EDID_RESPONSE_BYTES);
  const view = new DataView(response.buffer);
  t.is(view.getUint32(0, true), GPU_RESPONSE.okEdid);
  t.is(view.getUint32(24, true), 128);
  const edid = response.subarray(32, 160);
  t.is(edid.reduce((sum, byte) => sum + byte, 0) & 0xff, 0);
  t.is(edid[56]! | ((edid[58]! & 0xf0) << 4), 1920);
  t.is(edid[59]! | ((edid[61]! & 0xf0) << 4), 1080);
  t.is(rig.run(GPU_COMMAND.getEdid, words(1, 0)), GPU_RESPONSE.errInvalidScanoutId);
});

/** A guest in the middle of things: shown, backed, a cursor, an event that nobody has read. */
function busy(): GpuRig {
  const rig = startGpu();
  const whole = show(rig, 3, 64, 32, 67);
  rig.memory.fill(PICTURES, 64 * 32 * 4, 0x42);
  transfer(rig, 3, whole);
  create(rig, 4, 64, 64);
  attach(rig, 4, []);
  cursor(rig, 4, { x: 1, y: 2, hotX: 7 });
  rig.device.requestSize(800, 600);
  return rig;
}

test('VirtioGpu state: saved, prepared and committed elsewhere it is the same, and goes on', (t) => {
  const rig = busy();
  const state = rig.device.saveState();
  const transport = rig.registers.transport.saveState();
  const pci = rig.registers.host.saveState();
  const device = new VirtioGpu({ memory: rig.memory, id: 'virtio-gpu0' });
  const registers = new PciRegisters(device);
  const events: string[] = [];
  device.events.subscribe(({ kind }) => events.push(kind));
  const commits = [
    registers.host.prepareState(pci, 1),
    device.prepareState(state, 1),
    registers.transport.prepareState(transport, 1),
  ];
  t.is(device.surface, undefined, 'preparing changes nothing');
  for (const commit of commits) commit();
  t.deepEqual(device.saveState(), state);
  t.deepEqual(registers.transport.saveState(), transport);
  t.deepEqual(registers.host.saveState(), pci);
  t.deepEqual(device.surface, rig.device.surface);
  t.deepEqual(device.cursor, rig.device.cursor);
  t.true(events.includes('surface') && events.includes('cursor'));
  // The driver does not notice: its next command runs on the new device
  const [queue] = rig.driver.queues;
  queue!.add([gpuCommand(GPU_COMMAND.getDisplayInfo, words()), { writable: 24 }]);
  queue!.publish();
  registers.notify(0);
  t.is(queue!.takeUsed().at(-1)?.written[0], GPU_RESPONSE.okDisplayInfo & 0xff);
});

test('VirtioGpu state: what was saved does not change when the guest goes on', (t) => {
  const rig = busy();
  const before = JSON.stringify(rig.device.saveState(), plain);
  const state = rig.device.saveState();
  rig.memory.fill(PICTURES, 64 * 32 * 4, 0x99);
  transfer(rig, 3, { x: 0, y: 0, width: 64, height: 32 });
  t.is(JSON.stringify(state, plain), before);
});

function plain(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? `${value}` : value instanceof Uint8Array ? [...value] : value;
}

test('VirtioGpu state refuses impossible resources, backing outside of RAM, scanouts and cursors', (t) => {
  const rig = busy();
  const good = rig.device.saveState() as Fields;
  const model = good.model as Fields;
  const [first, second] = model.resources as Fields[];
  const withResource = (change: Fields): Fields => ({ resources: [{ ...first, ...change }, second] });
  const scanout = (model.scanouts as Fields[])[0]!;
  const pointer = (model.cursors as Fields[])[0]!;
  const wrong: Fields[] = [
    withResource({ id: 0 }),
    withResource({ id: 4 }),
    withResource({ width: 0 }),
    withResource({ width: 65535 }),
    withResource({ height: 31 }),
    withResource({ format: 5 }),
    withResource({ pixels: new Uint8Array(3) }),
    withResource({ pixels: 'x' }),
    withResource({ width: 8192, height: 8192, pixels: new Uint8Array(1) }),
    withResource({ backings: [[[0, 16]]] }),
    withResource({ backings: [[[RAM_BASE - 4, 16]]] }),
    withResource({ backings: [[[RAM_BASE, -1]]] }),
    withResource({ backings: [[[RAM_BASE, Number.NaN]]] }),
    withResource({ backings: [[['x', 16]]] }),
    withResource({ backings: [[null]] }),
    withResource({ backings: [[[RAM_BASE + 0.5, 16]]] }),
    withResource({ backings: [[], []] }),
    withResource({ backings: [Array.from({ length: 16385 }, () => [RAM_BASE, 1])] }),
    { resources: Array.from({ length: 257 }, () => second) },
    { resources: [] },
    { scanouts: [{ ...scanout, width: 65 }] },
    { scanouts: [{ ...scanout, x: 1 }] },
    { scanouts: [{ ...scanout, resource: 9 }] },
    { scanouts: [{ ...scanout, y: -1 }] },
    { scanouts: [scanout, scanout] },
    { cursors: [{ ...pointer, width: 63 }] },
    { cursors: [{ ...pointer, hotX: 64 }] },
    { cursors: [{ ...pointer, pixels: new Uint8Array(5) }] },
    { preferred: { width: 0, height: 600 } },
    { preferred: { width: 800, height: 4096 } },
    { pendingEvents: 2 },
  ];
  const before = JSON.stringify(good, plain);
  for (const [index, change] of wrong.entries()) {
    const state = { ...good, model: { ...model, ...change } };
    t.throws(() => rig.device.prepareState(state, 1), { instanceOf: StateError }, `${index}`);
  }
  t.is(JSON.stringify(rig.device.saveState(), plain), before, 'a refused state changes nothing');
});

test('VirtioGpu: any commands in any order leave the surface inside its resource, and no exception', (t) => {
  const small = fc.oneof(fc.nat(70), fc.constantFrom(0xffff_ffff, 0x8000_0000, 8192, 65535));
  const rectangle = fc.record({ x: small, y: small, width: small, height: small });
  const id = fc.nat(4);
  const step = fc.oneof(
    fc.tuple(id, small, small).map(
      ([a, w, h]) =>
        (rig: GpuRig) =>
          create(rig, a, w, h, 1 + (w % 4)),
    ),
    fc.tuple(id, fc.nat(5000)).map(
      ([a, n]) =>
        (rig: GpuRig) =>
          attach(rig, a, [
            [PICTURES, n],
            [PICTURES + n, 99],
          ]),
    ),
    fc.tuple(id, rectangle, small).map(
      ([a, r, o]) =>
        (rig: GpuRig) =>
          transfer(rig, a, r, o),
    ),
    fc.tuple(id, rectangle).map(
      ([a, r]) =>
        (rig: GpuRig) =>
          setScanout(rig, a, r),
    ),
    fc.tuple(id, rectangle).map(
      ([a, r]) =>
        (rig: GpuRig) =>
          flush(rig, a, r),
    ),
    fc.tuple(id, small).map(
      ([a, x]) =>
        (rig: GpuRig) =>
          cursor(rig, a, { x, y: x, hotX: x }),
    ),
    id.map((a) => (rig: GpuRig) => rig.run(GPU_COMMAND.resourceUnref, words(a, 0))),
    id.map((a) => (rig: GpuRig) => rig.run(GPU_COMMAND.resourceDetachBacking, words(a, 0))),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 25 }), (steps) => {
      const rig = startGpu(makeMemory(1024));
      for (const run of steps) run(rig);
      for (const event of rig.events) {
        if (event.kind === 'surface') {
          const { width, height, strideBytes, pixels } = event.surface;
          if (width < 1 || pixels.length !== (height - 1) * strideBytes + width * 4) return false;
        }
      }
      const state = rig.device.saveState();
      const copy = new VirtioGpu({ memory: rig.memory, id: 'virtio-gpu0' });
      copy.prepareState(state, 1)();
      return !rig.driver.broken && JSON.stringify(copy.saveState(), plain) === JSON.stringify(state, plain);
    }),
    { numRuns: 40 },
  );
  t.pass();
});

test('VirtioGpu breaks, and lives again after a reset, when a command is larger than any', (t) => {
  const rig = startGpu(makeMemory(2048));
  rig.driver.queues[0]!.submit([new Uint8Array(512 * 1024), { writable: 24 }]);
  t.true(rig.driver.broken);
  rig.driver.start();
  t.is(create(rig, 1, 16, 16), GPU_RESPONSE.okNodata);
});

test('VirtioGpu fetches a command once: a guest that rewrites it meanwhile changes nothing', (t) => {
  const memory = RacingMemory.make(2048);
  const rig = startGpu(memory);
  const queue = rig.driver.queues[0]!;
  queue.add([gpuCommand(GPU_COMMAND.resourceCreate2d, words(4, 2, 64, 64)), { writable: 24 }]);
  queue.publish();
  memory.racing = true;
  rig.registers.notify(0);
  memory.racing = false;
  const { written } = queue.takeUsed()[0]!;
  t.is(new DataView(written.buffer).getUint32(0, true), GPU_RESPONSE.okNodata);
  t.is(create(rig, 4, 16, 16), GPU_RESPONSE.errInvalidResourceId, 'the resource is there, as the guest first asked');
});
