import test from 'ava';
import { Plic } from '../../../../emulator/devices/plic/mod.ts';
import { StateError } from '../../../../emulator/state/state.ts';
import { RecordedSignals, sharedWords } from '../../../macros/platform.ts';

const CLAIM_M0 = 0x20_0004;
const CLAIM_S0 = 0x20_1004;
const THRESHOLD_S0 = 0x20_1000;
const ENABLE_S0 = 0x2080;
const ENABLE_S1 = 0x2180;
const MEIP = 11;
const SEIP = 9;

function make(harts = 2) {
  const words = sharedWords(Plic.WORDS);
  const signals = new RecordedSignals(harts);
  const plic = new Plic(words, signals);
  return { words, signals, plic };
}

test('Plic: a line that rises reaches only the contexts that enabled it', (t) => {
  const { signals, plic } = make();
  plic.write(4 * 10, 4, 1);
  plic.write(ENABLE_S0, 4, 1 << 10);
  plic.line(10).set(true);
  t.true(signals.pending(0, SEIP));
  t.false(signals.pending(0, MEIP));
  t.false(signals.pending(1, SEIP));
  t.is(plic.read(0x1000, 4), 1 << 10);
  t.is(plic.read(CLAIM_S0, 4), 10);
  t.false(signals.pending(0, SEIP));
  t.is(plic.read(0x1000, 4), 0);
});

test('Plic: a line that is still high at completion asks again; one that fell does not', (t) => {
  const { signals, plic } = make();
  plic.write(4 * 33, 4, 3);
  plic.write(ENABLE_S0 + 4, 4, 1 << 1);
  plic.line(33).set(true);
  t.is(plic.read(CLAIM_S0, 4), 33);
  t.is(plic.read(CLAIM_S0, 4), 0, 'in service: not claimed twice');
  plic.write(CLAIM_S0, 4, 33);
  t.true(signals.pending(0, SEIP));
  t.is(plic.read(CLAIM_S0, 4), 33);
  plic.line(33).set(false);
  plic.write(CLAIM_S0, 4, 33);
  t.false(signals.pending(0, SEIP));
  t.is(plic.read(CLAIM_S0, 4), 0);
});

test('Plic: claim gives the highest priority, then the lowest source', (t) => {
  const { plic } = make();
  for (const [source, priority] of [
    [5, 2],
    [9, 7],
    [40, 7],
    [3, 1],
  ] as const) {
    plic.write(4 * source, 4, priority);
    plic.line(source).set(true);
  }
  plic.write(ENABLE_S0, 4, 0xffff_fffe);
  plic.write(ENABLE_S0 + 4, 4, 0xffff_ffff);
  const order = Array.from({ length: 5 }, () => plic.read(CLAIM_S0, 4));
  t.deepEqual(order, [9, 40, 5, 3, 0]);
});

test('Plic: the threshold masks the interrupt but not the claim', (t) => {
  const { signals, plic } = make();
  plic.write(4 * 1, 4, 3);
  plic.write(ENABLE_S0, 4, 2);
  plic.write(THRESHOLD_S0, 4, 3);
  plic.line(1).set(true);
  t.false(signals.pending(0, SEIP));
  t.is(plic.read(CLAIM_S0, 4), 1);
  plic.write(CLAIM_S0, 4, 1);
  plic.write(THRESHOLD_S0, 4, 2);
  t.true(signals.pending(0, SEIP));
});

test('Plic: source 31, whose bit is the sign of its word, works', (t) => {
  const { signals, plic } = make();
  plic.write(4 * 31, 4, 1);
  plic.write(ENABLE_S0, 4, 0x8000_0000);
  t.is(plic.read(ENABLE_S0, 4), 0x8000_0000);
  plic.line(31).set(true);
  t.true(signals.pending(0, SEIP));
  t.is(plic.read(CLAIM_S0, 4), 31);
});

test('Plic: one context claims what two enabled; the other then gets nothing', (t) => {
  const { signals, plic } = make();
  plic.write(4 * 8, 4, 1);
  plic.write(ENABLE_S0, 4, 1 << 8);
  plic.write(ENABLE_S1, 4, 1 << 8);
  plic.line(8).set(true);
  t.true(signals.pending(0, SEIP) && signals.pending(1, SEIP));
  t.is(plic.read(0x20_3004, 4), 8);
  t.false(signals.pending(0, SEIP) || signals.pending(1, SEIP));
  t.is(plic.read(CLAIM_S0, 4), 0);
});

test('Plic: a guest that completes what it did not claim, or a source out of range, changes nothing', (t) => {
  const { signals, plic } = make();
  plic.write(4 * 8, 4, 1);
  plic.write(ENABLE_S0, 4, 1 << 8);
  plic.line(8).set(true);
  for (const wrong of [0, 9, 96, 0x1_0000, 0xffff_ffff]) plic.write(CLAIM_S0, 4, wrong);
  t.is(plic.read(CLAIM_S0, 4), 8);
  // From a context that has not enabled it
  plic.write(CLAIM_M0, 4, 8);
  t.is(plic.read(CLAIM_S0, 4), 0);
  t.false(signals.pending(0, SEIP));
  plic.write(CLAIM_S0, 4, 8);
  t.is(plic.read(CLAIM_S0, 4), 8);
});

test('Plic: a guest that touches registers which do not exist, or with a wrong width, reads zero', (t) => {
  const { plic } = make();
  for (const offset of [0, 4 * 96, 0xffc, 0x100c, 0x1ffc, 0x200c, 0x2200, 0x1f_fffc, 0x20_0008, 0x20_4000, 0x5f_fffc]) {
    plic.write(offset, 4, 0xffff_ffff);
    t.is(plic.read(offset, 4), 0, offset.toString(16));
  }
  plic.write(4 * 8, 1, 7);
  t.is(plic.read(4 * 8, 4), 0);
  plic.write(4 * 8, 4, 0xffff_ffff);
  t.is(plic.read(4 * 8, 4), 7, 'WARL');
  t.is(plic.read(4 * 8, 2), 0);
  plic.write(ENABLE_S0, 4, 0xffff_ffff);
  t.is(plic.read(ENABLE_S0, 4), 0xffff_fffe, 'source 0 cannot be enabled');
  t.throws(() => plic.line(0), { instanceOf: RangeError });
  t.throws(() => plic.line(96), { instanceOf: RangeError });
});

test('Plic: reset keeps the lines that devices hold high', (t) => {
  const { signals, plic } = make();
  plic.write(4 * 8, 4, 1);
  plic.write(ENABLE_S0, 4, 1 << 8);
  plic.line(8).set(true);
  t.is(plic.read(CLAIM_S0, 4), 8);
  plic.reset();
  t.false(signals.pending(0, SEIP));
  t.is(plic.read(ENABLE_S0, 4), 0);
  plic.write(4 * 8, 4, 1);
  plic.write(ENABLE_S0, 4, 1 << 8);
  t.true(signals.pending(0, SEIP));
});

test('Plic: state moves to another machine, in service and pending included', (t) => {
  const a = make();
  a.plic.write(4 * 8, 4, 1);
  a.plic.write(4 * 9, 4, 2);
  a.plic.write(ENABLE_S0, 4, 0x300);
  a.plic.line(8).set(true);
  a.plic.line(9).set(true);
  t.is(a.plic.read(CLAIM_S0, 4), 9);
  const b = make();
  b.plic.prepareState(a.plic.saveState(), 1)();
  t.deepEqual(b.plic.saveState(), a.plic.saveState());
  t.true(b.signals.pending(0, SEIP));
  t.is(b.plic.read(CLAIM_S0, 4), 8);
  b.plic.write(CLAIM_S0, 4, 9);
  t.is(b.plic.read(CLAIM_S0, 4), 9);
});

test('Plic: a state of another machine, or damaged, is refused by the name of the field', (t) => {
  const { plic } = make();
  const good = plic.saveState() as Record<string, unknown>;
  const wrong: [string, unknown][] = [
    ['harts', 3],
    ['level', [0, 0]],
    ['level', [1, 0, 0]],
    ['priority', new Array(96).fill(8)],
    ['priority', new Array(97).fill(0)],
    ['threshold', [0, 0, 0, -1]],
    ['enable', 'text'],
    ['claimed', [0, 0, 2 ** 32]],
  ];
  for (const [field, value] of wrong) {
    t.throws(() => plic.prepareState({ ...good, [field]: value }, 1), { instanceOf: StateError }, field);
  }
  t.throws(() => plic.prepareState(good, 2), { instanceOf: StateError });
  t.throws(() => plic.prepareState(null, 1), { instanceOf: StateError });
});
