import test from 'ava';
import fc from 'fast-check';
import type { AccessSize } from '../../../../emulator/devices/device.ts';
import { PciHost, PciShared } from '../../../../emulator/devices/pci/mod.ts';
import { VirtioPciTransport, VirtioRng } from '../../../../emulator/devices/virtio/mod.ts';
import { RecordedLine, sharedWords } from '../../../macros/platform.ts';
import { makeMemory } from '../virtio/driver.ts';

const WINDOWS = ['mmio32', 'mmio64', 'pio'] as const;

function make(): {
  host: PciHost;
  hart: PciShared['config'];
  lines: RecordedLine[];
  functions: VirtioPciTransport[];
  devices: VirtioRng[];
} {
  const lines = [0, 1, 2, 3].map(() => new RecordedLine());
  const words = sharedWords(PciShared.WORDS);
  const host = new PciHost({ shared: new PciShared(words, lines) });
  const memory = makeMemory(16);
  const devices = [1, 2].map(
    (slot) => new VirtioRng({ memory, id: `virtio-rng${slot}`, fillRandom: (bytes) => bytes.fill(1), defer: () => {} }),
  );
  const functions = devices.map((device) => new VirtioPciTransport(device));
  for (const [index, pciFunction] of functions.entries()) host.add(index + 1, pciFunction);
  const hart = new PciShared(words, lines).config;
  return { host, hart, lines, functions, devices };
}

const access = fc.record({
  slot: fc.nat(3),
  register: fc.oneof(fc.nat(0xff), fc.constantFrom(0x04, 0x06, 0x10, 0x20, 0x24, 0x3c, 0x34), fc.nat(0xfff)),
  size: fc.constantFrom<AccessSize>(1, 2, 4),
  value: fc.oneof(
    fc.constantFrom(0, 1, 2, 6, 7, 0x406, 0xffff_ffff, 0x4000_0000, 0x4000_4000, 0x8000_0000, 4, 0x1f_ffff),
    fc.integer({ min: 0, max: 0xffff_ffff }),
  ),
});
const touch = fc.record({
  window: fc.constantFrom(...WINDOWS),
  offset: fc.oneof(fc.nat(0x7fff), fc.nat(0xffff_fff)),
  size: fc.constantFrom<AccessSize>(1, 2, 4),
  value: fc.nat(0xff),
});

test('PciHost: configuration writes of all widths to all registers, and any access behind, never throw', (t) => {
  fc.assert(
    fc.property(fc.array(fc.tuple(access, touch), { maxLength: 60 }), (steps) => {
      const { host, hart, functions } = make();
      for (const [config, window] of steps) {
        if (window.value < 100) functions[window.value % 2]!.raise(1 + (window.value & 1));
        const { slot, size, value } = config;
        const at = (slot << 15) + config.register - (config.register % size);
        host.ecam.write(at, size, size === 4 ? value : value % 2 ** (8 * size));
        const found = host.ecam.read(at, size);
        if (!Number.isInteger(found) || found < 0 || found >= 2 ** (8 * size)) return false;
        const byHart = hart.read(at, size);
        if (byHart !== found && byHart !== -1) return false;
        const offset = window.offset - (window.offset % window.size);
        host[window.window].write(offset, window.size, window.value);
        const read = host[window.window].read(offset, window.size);
        if (!Number.isInteger(read) || read < 0 || read >= 2 ** (8 * window.size)) return false;
      }
      return true;
    }),
    { numRuns: 150 },
  );
  t.pass();
});

test('PciHost: after any configuration writes identity, class, pin and capabilities are what they were', (t) => {
  const fixed = [0x00, 0x08, 0x2c, 0x34];
  fc.assert(
    fc.property(fc.array(access, { maxLength: 80 }), (steps) => {
      const { host } = make();
      const identity = (): number[] => {
        const words = fixed.map((register) => host.ecam.read((1 << 15) + register, 4));
        for (let at = host.ecam.read((1 << 15) + 0x34, 1), guard = 0; at !== 0 && guard < 48; guard++) {
          words.push(at, host.ecam.read((1 << 15) + at, 4));
          at = host.ecam.read((1 << 15) + at + 1, 1);
        }
        return [...words, host.ecam.read((1 << 15) + 0x3d, 1)];
      };
      const before = identity();
      for (const { register, size, value } of steps) {
        host.ecam.write((1 << 15) + register - (register % size), size, value);
      }
      // Bytes 4..7 of a capability may be its writable window
      return identity().every((word, index) => word === before[index]);
    }),
    { numRuns: 150 },
  );
  t.pass();
});

test('PciHost: any configuration that a guest can write is a state that loads and saves the same', (t) => {
  fc.assert(
    fc.property(fc.array(access, { maxLength: 60 }), (steps) => {
      const { host } = make();
      for (const { slot, register, size, value } of steps) {
        host.ecam.write(
          (slot << 15) + register - (register % size),
          size,
          size === 4 ? value : value % 2 ** (8 * size),
        );
      }
      const state = host.saveState();
      const other = make().host;
      other.prepareState(state, 1)();
      return JSON.stringify(other.saveState()) === JSON.stringify(state);
    }),
    { numRuns: 150 },
  );
  t.pass();
});

test('PciHost: every line is the OR of the functions that are wired to it and not masked', (t) => {
  const { host, lines, functions } = make();
  const more = new VirtioRng({ memory: makeMemory(16), id: 'rng5', fillRandom: () => {} });
  const shared = new VirtioPciTransport(more);
  host.add(5, shared);
  functions[0]!.raise(1);
  shared.raise(2);
  t.deepEqual(
    lines.map(({ level }) => level),
    [false, true, false, false],
    'slots 1 and 5 share line 1',
  );
  functions[0]!.deviceReset();
  t.true(lines[1]!.level);
  host.ecam.write((5 << 15) + 4, 2, 0x400);
  t.false(lines[1]!.level, 'INTx disable');
  t.is(host.ecam.read((5 << 15) + 6, 2) & 8, 8, 'the status bit says that it would');
  host.ecam.write((5 << 15) + 4, 2, 0);
  t.true(lines[1]!.level);
  host.reset();
  t.false(lines[1]!.level);
});
