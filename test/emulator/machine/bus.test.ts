import test from 'ava';
import type { MmioDevice } from '../../../emulator/devices/device.ts';
import { Bus } from '../../../emulator/machine/bus.ts';

class Recorded implements MmioDevice {
  readonly name: string;
  readonly accesses: (readonly number[])[] = [];

  constructor(name: string) {
    this.name = name;
  }

  read(offset: number, size: number): number {
    this.accesses.push([offset, size]);
    return 0xffff_ffff | 0;
  }

  write(offset: number, size: number, value: number): void {
    this.accesses.push([offset, size, value]);
  }
}

const a = new Recorded('a');
const b = new Recorded('b');
const at = (base: number, size: number, device: MmioDevice) => ({ range: { base, size }, device });

test('Bus refuses windows that overlap by one byte, in any order, and takes neighbours', (t) => {
  for (const windows of [
    [at(0x1000, 0x101, a), at(0x1100, 0x100, b)],
    [at(0x1100, 0x100, b), at(0x1000, 0x101, a)],
    [at(0x1000, 0x1000, a), at(0x1800, 4, b)],
    [at(0x1000, 0x100, a), at(0x1000, 0x100, b)],
  ]) {
    t.throws(() => new Bus(windows), { instanceOf: RangeError, message: /overlaps/ });
  }
  t.notThrows(() => new Bus([at(0x1000, 0x100, a), at(0x1100, 0x100, b)]));
});

test('Bus gives each access to its device by offset, and none that is not wholly inside a window', (t) => {
  const bus = new Bus([at(0x4_0000_0000, 0x100, b), at(0x1000, 0x100, a)]);
  t.is(bus.read(0x1004, 4), 0xffff_ffff, 'unsigned');
  t.true(bus.write(0x4_0000_00ff, 1, 7));
  t.deepEqual(a.accesses.splice(0), [[4, 4]]);
  t.deepEqual(b.accesses.splice(0), [[0xff, 1, 7]]);
  for (const [address, size] of [
    [0xfff, 1],
    [0x10fe, 4],
    [0x1100, 1],
    [0x4_0000_00fd, 4],
    [0x3_ffff_ffff, 1],
    [2 ** 56, 4],
    [0, 1],
  ] as const) {
    t.is(bus.read(address, size), -1);
    t.false(bus.write(address, size, 0));
    // Also right after a hit, which the bus remembers
    bus.read(0x10fc, 4);
    t.is(bus.read(address, size), -1);
  }
  t.true(a.accesses.every(([offset]) => offset === 0xfc));
  t.deepEqual(b.accesses, []);
});

test('A bus without windows answers nothing', (t) => {
  t.is(new Bus([]).read(0x1000, 4), -1);
});
