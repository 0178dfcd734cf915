import test from 'ava';
import { Aclint, AclintSswi } from '../../../../emulator/devices/aclint/mod.ts';
import { StateError } from '../../../../emulator/state/state.ts';
import { FakeClock, RecordedSignals, sharedWords } from '../../../macros/platform.ts';

const MTIP = 7;
const MSIP = 3;

function make(harts = 2) {
  const words = sharedWords(Aclint.WORDS);
  const signals = new RecordedSignals(harts);
  const clock = new FakeClock();
  const aclint = new Aclint(words, signals, clock);
  aclint.reset();
  return { words, signals, clock, aclint };
}

test('Aclint: no timer is armed after reset', (t) => {
  const { signals, aclint } = make();
  t.is(aclint.mtimecmp(0), 0xffff_ffff_ffff_ffffn);
  t.false(signals.pending(0, MTIP));
  t.true(aclint.ticksUntilTimer(1) > 2 ** 63);
});

test('Aclint: mtimecmp in two halves arms the timer of its hart and kicks it', (t) => {
  const { signals, clock, aclint } = make();
  clock.now = 0x1_0000_0010;
  aclint.write(0x4008, 4, 0x20);
  aclint.write(0x400c, 4, 1);
  t.is(aclint.mtimecmp(1), 0x1_0000_0020n);
  t.is(aclint.read(0x4008, 4), 0x20);
  t.is(aclint.read(0x400c, 4), 1);
  t.is(aclint.ticksUntilTimer(1), 0x10);
  t.is(signals.pending(1, MTIP), false);
  t.true(signals.kicks[1]! >= 2);
  clock.now += 0x10;
  t.is(aclint.ticksUntilTimer(1), 0);
});

test('Aclint: a deadline in the past raises MTIP at once, one in the future takes it back at once', (t) => {
  const { signals, clock, aclint } = make();
  clock.now = 1000;
  aclint.setMtimecmp(0, 999n);
  t.true(signals.pending(0, MTIP));
  aclint.write(0x4000, 4, 2000);
  t.false(signals.pending(0, MTIP));
});

test('Aclint: comparison is unsigned over all 64 bits', (t) => {
  const { clock, aclint } = make();
  clock.now = 5;
  aclint.setMtimecmp(0, 0x8000_0000_0000_0000n);
  t.true(aclint.ticksUntilTimer(0) > 0);
  aclint.write(0xbffc, 4, 0x8000_0000);
  t.is(aclint.ticksUntilTimer(0), 0);
});

test('Aclint: a guest that writes mtime moves the time it reads, and expired timers tell', (t) => {
  const { signals, clock, aclint } = make();
  clock.now = 100;
  aclint.setMtimecmp(1, 5000n);
  aclint.write(0xbff8, 4, 6000);
  t.is(aclint.read(0xbff8, 4), 6000);
  t.true(signals.pending(1, MTIP));
  clock.now = 150;
  t.is(aclint.mtime(), 6050n);
  aclint.write(0xbff8, 4, 0);
  t.is(aclint.mtime(), 0n);
  clock.now = 151;
  t.is(aclint.mtime(), 1n);
});

test('Aclint: msip keeps one bit and raises MSIP of its hart only', (t) => {
  const { signals, aclint } = make();
  aclint.write(4, 4, 0xffff_ffff);
  t.is(aclint.read(4, 4), 1);
  t.is(aclint.read(0, 4), 0);
  t.true(signals.pending(1, MSIP));
  t.false(signals.pending(0, MSIP));
  aclint.write(4, 4, 0xffff_fffe);
  t.false(signals.pending(1, MSIP));
});

test('Aclint: a guest that addresses harts which do not exist changes nothing', (t) => {
  const { signals, aclint } = make();
  for (const offset of [0x8, 0x3ffc, 0x4010, 0x7ff8, 0xbff0, 0xc000, 0xfffc]) {
    aclint.write(offset, 4, 1);
    t.is(aclint.read(offset, 4), 0, offset.toString(16));
  }
  aclint.write(0, 1, 1);
  t.is(aclint.read(0, 4), 0, 'byte stores do not exist');
  t.deepEqual(signals.mip, [0, 0]);
});

test('AclintSswi: a store of bit 0 raises SSIP; other harts, bits and widths do nothing', (t) => {
  const signals = new RecordedSignals(2);
  const sswi = new AclintSswi(signals);
  sswi.write(0, 4, 2);
  sswi.write(8, 4, 1);
  sswi.write(4, 1, 1);
  t.deepEqual(signals.mip, [0, 0]);
  sswi.write(4, 4, 1);
  t.deepEqual(signals.mip, [0, 2]);
  t.is(sswi.read(), 0);
});

test('Aclint: state moves to another machine', (t) => {
  const a = make();
  a.clock.now = 10;
  a.aclint.write(0xbff8, 4, 500);
  a.aclint.setMtimecmp(0, 499n);
  a.aclint.write(4, 4, 1);
  const b = make();
  b.clock.now = 10;
  b.aclint.prepareState(a.aclint.saveState(), 1)();
  t.deepEqual(b.aclint.saveState(), a.aclint.saveState());
  t.is(b.aclint.mtime(), 500n);
  t.true(b.signals.pending(0, MTIP));
  t.true(b.signals.pending(1, MSIP));
  const good = a.aclint.saveState() as Record<string, unknown>;
  for (const wrong of [
    { ...good, mtimecmp: [1n] },
    { ...good, mtimecmp: [1n, -1n] },
    { ...good, msip: 4 },
    { ...good, offset: 'x' },
  ]) {
    t.throws(() => b.aclint.prepareState(wrong, 1), { instanceOf: StateError });
  }
});

test('Aclint: both ways of reckoning time and deadlines agree, with and without a written mtime', (t) => {
  const times = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1_0000_0000, 0x1_8000_0001, 2 ** 53 - 1];
  const deadlines = [
    0n,
    1n,
    0x8000_0000n,
    0x1_0000_0000n,
    0x1_8000_0001n,
    2n ** 53n - 1n,
    2n ** 53n + 1n,
    2n ** 64n - 1n,
  ];
  for (const now of times) {
    for (const deadline of deadlines) {
      const { signals, clock, aclint } = make();
      clock.now = now;
      const read = () => BigInt(aclint.read(0xbff8, 4)) | (BigInt(aclint.read(0xbffc, 4)) << 32n);
      t.is(read(), BigInt(now));
      aclint.write(0x4000, 4, Number(deadline & 0xffff_ffffn));
      aclint.write(0x4004, 4, Number(deadline >> 32n));
      t.is(aclint.mtimecmp(0), deadline);
      t.is(signals.pending(0, MTIP), BigInt(now) >= deadline, `${now} and ${deadline}`);
      // A time that is 2^32 ahead of the clock takes the other way
      aclint.write(0xbffc, 4, 7);
      t.is(read() >> 32n, 7n);
      t.is(signals.pending(0, MTIP), read() >= deadline, `${read()} and ${deadline}`);
    }
  }
});
