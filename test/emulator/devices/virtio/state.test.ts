import test from 'ava';
import fc from 'fast-check';
import {
  VirtioBalloon,
  VirtioBlk,
  VirtioConsole,
  type VirtioDevice,
  VirtioGpu,
  VirtioKeyboard,
  VirtioNet,
  VirtioRng,
  VirtioTablet,
} from '../../../../emulator/devices/virtio/mod.ts';
import type { GuestMemory } from '../../../../emulator/memory/guest_memory.ts';
import { StateError } from '../../../../emulator/state/state.ts';
import { Driver, makeMemory, PciRegisters, settle } from './driver.ts';
import { MemoryBackend } from './memory_backend.ts';

const MAKERS: { readonly [name: string]: (memory: GuestMemory) => VirtioDevice } = {
  blk: (memory) => new VirtioBlk({ memory, id: 'blk', backend: new MemoryBackend(0x1_0000) }),
  rng: (memory) => new VirtioRng({ memory, id: 'rng', fillRandom: (bytes) => bytes.fill(7) }),
  console: (memory) => new VirtioConsole({ memory, id: 'console' }),
  gpu: (memory) => new VirtioGpu({ memory, id: 'gpu' }),
  keyboard: (memory) => new VirtioKeyboard({ memory, id: 'keyboard' }),
  tablet: (memory) => new VirtioTablet({ memory, id: 'tablet' }),
  balloon: (memory) => new VirtioBalloon({ memory, id: 'balloon' }),
  net: (memory) => new VirtioNet({ memory, id: 'net', mac: Uint8Array.of(2, 0, 0, 0, 0, 1) }),
};

interface Rig {
  readonly device: VirtioDevice;
  readonly registers: PciRegisters;
  readonly driver: Driver;
}

/** In the middle: one chain of each queue was served, the machine is held, and more chains wait in the rings. */
async function midway(make: (memory: GuestMemory) => VirtioDevice): Promise<Rig> {
  const memory = makeMemory(1024);
  const device = make(memory);
  const registers = new PciRegisters(device);
  const driver = new Driver(memory, registers).start();
  const chain = [new Uint8Array(40), { writable: 64 }];
  for (const queue of driver.queues) queue.submit(chain, { indirect: queue.index === 0 });
  await settle();
  device.hold();
  await device.quiesce();
  for (const queue of driver.queues) {
    queue.submit(chain);
    queue.submit(chain, { indirect: true });
  }
  return { device, registers, driver };
}

function commitTo(device: VirtioDevice, registers: PciRegisters, from: Rig): void {
  const commits = [
    registers.host.prepareState(from.registers.host.saveState(), 1),
    device.prepareState(from.device.saveState(), 1),
    registers.transport.prepareState(from.registers.transport.saveState(), 1),
  ];
  for (const commit of commits) commit();
}

for (const [name, make] of Object.entries(MAKERS)) {
  test(`${name}: saved in the middle, prepared, committed and saved again it is the same, and the rest is served`, async (t) => {
    const from = await midway(make);
    const device = make(from.driver.memory);
    const registers = new PciRegisters(device);
    const fresh = JSON.stringify(device.saveState(), plain);
    device.hold();
    device.prepareState(from.device.saveState(), 1);
    t.is(JSON.stringify(device.saveState(), plain), fresh, 'preparing changes nothing');
    commitTo(device, registers, from);
    t.deepEqual(device.saveState(), from.device.saveState());
    t.deepEqual(registers.transport.saveState(), from.registers.transport.saveState());
    t.deepEqual(registers.host.saveState(), from.registers.host.saveState());
    t.is(registers.line.level, from.registers.line.level);
    const used = (): number[] => from.driver.queues.map((queue) => queue.usedIndex);
    const before = used();
    device.release();
    await settle();
    const here = used();
    // The same driver's rings, now served by the device that the state came from
    for (const [index, queue] of from.driver.queues.entries()) {
      from.driver.memory.setU16(queue.used + 2, before[index]!);
    }
    from.device.release();
    await settle();
    t.deepEqual(used(), here, 'both serve the same chains');
    t.is(JSON.stringify(device.saveState(), plain), JSON.stringify(from.device.saveState(), plain));
  });

  test(`${name}: a broken device stays broken when it moves, and a reset mends it`, async (t) => {
    const from = await midway(make);
    for (const { avail } of from.driver.queues) from.driver.memory.setU16(avail + 2, 0x8000);
    from.device.release();
    t.true(from.driver.broken);
    const device = make(from.driver.memory);
    const registers = new PciRegisters(device);
    commitTo(device, registers, from);
    t.is(registers.status & 64, 64);
    t.deepEqual(device.saveState(), from.device.saveState());
    const again = new Driver(from.driver.memory, registers).start();
    t.false(again.broken);
  });

  test(`${name}: whatever change of a state is accepted loads into a device that lives and saves it again`, async (t) => {
    const from = await midway(make);
    const good = from.device.saveState();
    const paths = leaves(good);
    const value = fc.constantFrom<unknown>(
      ...[0, 1, -1, 2, 3, 0x40, 0xff, 0xffff, 0x1_0000, 0xffff_ffff, 2 ** 53, 1.5, Number.NaN, 0n, 1n << 63n, -1n],
      ...[
        '',
        'x',
        true,
        false,
        null,
        undefined,
        [],
        {},
        new Uint8Array(0),
        new Uint8Array(9),
        [[]],
        [null],
        Symbol.iterator,
      ],
    );
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...paths), value, fc.constantFrom(...paths), value, async (a, x, b, y) => {
        const state = replace(replace(good, a, x), b, y);
        const device = make(from.driver.memory);
        const registers = new PciRegisters(device);
        registers.setPciConfig(4, 2, 6);
        let commit: () => void;
        try {
          commit = device.prepareState(state, 1);
        } catch (error) {
          if (error instanceof StateError) return true;
          throw error;
        }
        commit();
        for (const queue of device.queues) registers.notify(queue.index);
        device.hold();
        await device.quiesce();
        device.prepareState(device.saveState(), 1);
        return true;
      }),
      { numRuns: 300 },
    );
    t.pass();
  });

  test(`${name}: refuses the state of another version, and no map at all`, async (t) => {
    const { device } = await midway(make);
    t.throws(() => device.prepareState(device.saveState(), 2), { instanceOf: StateError });
    for (const value of [undefined, null, 0, 'x', [], new Uint8Array(4)]) {
      t.throws(() => device.prepareState(value, 1), { instanceOf: StateError });
    }
  });
}

function plain(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? `${value}n` : value instanceof Uint8Array ? [...value] : value;
}

/** Paths to every value of a state, inner ones too. */
function leaves(value: unknown, path: readonly string[] = []): (readonly string[])[] {
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return [path];
  return [
    ...(path.length === 0 ? [] : [path]),
    ...Object.entries(value).flatMap(([key, inner]) => leaves(inner, [...path, key])),
  ];
}

function replace(value: unknown, path: readonly string[], by: unknown): unknown {
  const [key, ...rest] = path;
  if (key === undefined) return by;
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return value;
  const copy: { [key: string]: unknown } = Array.isArray(value) ? ([...value] as never) : { ...value };
  copy[key] = replace(copy[key], rest, by);
  return copy;
}
