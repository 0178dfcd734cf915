import test from 'ava';
import type { AccessSize } from '../../../../emulator/devices/device.ts';
import { PciFunction, PciHost, PciShared, pciInterruptLine } from '../../../../emulator/devices/pci/mod.ts';
import { sharedWords } from '../../../macros/platform.ts';

class Line {
  level = false;
  set(level: boolean): void {
    this.level = level;
  }
}

class Scratch {
  readonly bytes = new Map<number, number>();
  read(offset: number, _size: AccessSize): number {
    return this.bytes.get(offset) ?? 0;
  }
  write(offset: number, _size: AccessSize, value: number): void {
    this.bytes.set(offset, value);
  }
}

function make() {
  const lines = [new Line(), new Line(), new Line(), new Line()];
  const host = new PciHost({ shared: new PciShared(sharedWords(PciShared.WORDS), lines) });
  const targets = { memory32: new Scratch(), memory64: new Scratch(), io: new Scratch() };
  const pciFunction = new PciFunction({
    name: 'test',
    vendor: 0x1234,
    device: 0x5678,
    classCode: 0x00_ff_00,
    interruptPin: 1,
    bars: [
      { index: 0, kind: 'memory32', sizeBytes: 0x1000, target: targets.memory32 },
      { index: 1, kind: 'io', sizeBytes: 32, target: targets.io },
      { index: 4, kind: 'memory64', prefetchable: true, sizeBytes: 0x4000, target: targets.memory64 },
    ],
  });
  host.add(5, pciFunction);
  const read = (register: number, size: AccessSize = 4, slot = 5): number =>
    host.ecam.read(slot * 0x8000 + register, size);
  const write = (register: number, value: number, size: AccessSize = 4): void =>
    host.ecam.write(5 * 0x8000 + register, size, value);
  return { host, lines, pciFunction, targets, read, write };
}

test('PciHost has the host bridge of QEMU at 00:00.0 and nothing where nothing is', (t) => {
  const { host, read } = make();
  t.is(read(0, 4, 0), 0x0008_1b36);
  t.is(read(8, 4, 0), 0x0600_0000);
  t.is(read(0x3d, 1, 0), 0);
  t.is(read(0, 4, 1), 0xffff_ffff);
  t.is(read(0, 2, 1), 0xffff);
  t.is(host.ecam.read(5 * 0x8000 + 0x1000, 4), 0xffff_ffff, 'function 1');
  t.is(host.ecam.read(0x10_0000 + 5 * 0x8000, 4), 0xffff_ffff, 'bus 1');
  t.is(host.ecam.read(0xfff_fffc, 4), 0xffff_ffff, 'bus 255');
  t.is(read(0x100), 0xffff_ffff, 'no extended configuration space');
});

test('PciFunction BARs size by writing ones, 32-bit, 64-bit and I/O, and keep an address', (t) => {
  const { read, write } = make();
  for (const register of [0x10, 0x14, 0x18, 0x20, 0x24, 0x30]) write(register, 0xffff_ffff);
  t.is(read(0x10), 0xffff_f000);
  t.is(read(0x14), 0xffff_ffe1);
  t.is(read(0x18), 0, 'no BAR');
  t.is(read(0x20), 0xffff_c00c);
  t.is(read(0x24), 0xffff_ffff);
  t.is(read(0x30), 0, 'no expansion ROM');
  write(0x10, 0x4000_1234);
  t.is(read(0x10), 0x4000_1000);
  write(0x11, 0x50, 1);
  t.is(read(0x10), 0x4000_5000 & ~0xfff);
});

test('PciFunction identity cannot be written', (t) => {
  const { read, write } = make();
  for (const register of [0, 8, 0x2c, 0x34]) {
    const before = read(register);
    write(register, ~before >>> 0);
    t.is(read(register), before);
  }
  write(0x3c, 0xffff_ffff);
  t.is(read(0x3c), 0x0000_01ff, 'the interrupt line is scratch, the pin is not');
  write(4, 0xffff_ffff);
  t.is(read(4, 2), 0x547);
  t.is(read(6, 2), 0);
});

test('PciHost decodes BARs where the guest puts them, only while the command register allows', (t) => {
  const { host, targets, write } = make();
  write(0x10, 0x4000_2000);
  write(0x14, 0x1000);
  write(0x20, 0x0000_8000);
  write(0x24, 0x4);
  host.mmio32.write(0x2004, 4, 7);
  t.is(targets.memory32.bytes.size, 0, 'memory space is off');
  t.is(host.mmio32.read(0x2004, 4), 0xffff_ffff);
  write(4, 2, 2);
  host.mmio32.write(0x2004, 4, 7);
  t.is(targets.memory32.bytes.get(4), 7);
  host.mmio64.write(0x8010, 4, 9);
  t.is(targets.memory64.bytes.get(0x10), 9);
  t.is(host.mmio64.read(0xc000, 2), 0xffff, 'just after the BAR');
  t.is(host.mmio64.read(0x7ffc, 4), 0xffff_ffff, 'just before it');
  host.pio.write(0x1008, 1, 3);
  t.is(targets.io.bytes.size, 0, 'I/O space is off');
  write(4, 3, 2);
  host.pio.write(0x1008, 1, 3);
  t.is(targets.io.bytes.get(8), 3);
  t.is(host.mmio32.read(0x1008, 1), 0xff, 'an I/O BAR is not in memory space');
  write(0x10, 0x4010_0000);
  t.is(host.mmio32.read(0x2004, 4), 0xffff_ffff, 'moved away');
  t.is(host.mmio32.read(0x10_0004, 4), 7);
});

test('PciHost survives BARs sized with decoding on, outside every window, and over each other', (t) => {
  const { host, targets, write } = make();
  write(4, 3, 2);
  for (const register of [0x10, 0x14, 0x20, 0x24]) write(register, 0xffff_ffff);
  t.is(host.mmio32.read(0x3fff_fffc, 4), 0xffff_ffff);
  t.is(host.mmio64.read(0x3_ffff_fffc, 4), 0xffff_ffff);
  // A 64-bit BAR in the low window, over the 32-bit one: the first answers
  write(0x10, 0x4000_4000);
  write(0x20, 0x4000_4000);
  write(0x24, 0);
  host.mmio32.write(0x4000, 4, 1);
  host.mmio32.write(0x5000, 4, 2);
  t.is(targets.memory32.bytes.get(0), 1);
  t.is(targets.memory64.bytes.get(0x1000), 2);
});

test('PciHost swizzles INTA of a slot as QEMU does, and lines are shared', (t) => {
  const { host, lines, pciFunction } = make();
  t.is(pciInterruptLine(5, 1), 1);
  t.is(pciInterruptLine(0, 4), 3);
  const other = new PciFunction({ name: 'other', vendor: 1, device: 1, classCode: 0, interruptPin: 1 });
  host.add(9, other);
  pciFunction.setInterrupt(true);
  other.setInterrupt(true);
  t.deepEqual(
    lines.map((line) => line.level),
    [false, true, false, false],
  );
  pciFunction.setInterrupt(false);
  t.true(lines[1]!.level);
  other.setInterrupt(false);
  t.false(lines[1]!.level);
  t.throws(() => host.add(9, other), { instanceOf: RangeError });
  t.throws(() => host.add(32, other), { instanceOf: RangeError });
});

test('PciHost state round trips, and a configuration that is not this function’s is refused', (t) => {
  const { host, read, write, targets } = make();
  write(0x10, 0x4000_2000);
  write(4, 0x6, 2);
  const state = host.saveState() as { functions: { slot: number; config: Uint8Array }[] };
  const saved = structuredClone(state);
  host.reset();
  t.is(read(0x10), 0);
  host.prepareState(saved, 1)();
  t.is(read(0x10), 0x4000_2000);
  host.mmio32.write(0x2000, 4, 5);
  t.is(targets.memory32.bytes.get(0), 5);
  const change = (at: number): unknown => {
    const copy = structuredClone(saved);
    copy.functions[1]!.config[at]! ^= 1;
    return copy;
  };
  for (const at of [0, 0x0e, 0x10, 0x11, 0x34, 0x3d, 0x40, 0xff]) {
    t.throws(() => host.prepareState(change(at), 1), { code: 'ERR_STATE' }, `byte ${at}`);
  }
  const [first, second] = saved.functions;
  for (const functions of [[first], [first, first], [first, { ...second, slot: 6 }], [first, second, second]]) {
    t.throws(() => host.prepareState({ functions }, 1), { code: 'ERR_STATE' });
  }
  t.throws(() => host.prepareState(saved, 2), { code: 'ERR_STATE' });
});
