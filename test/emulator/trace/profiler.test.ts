import test from 'ava';
import { encode } from '../../../emulator/isa/mod.ts';
import { HartSampler } from '../../../emulator/trace/hart_sampler.ts';
import { foldSample } from '../../../emulator/trace/profiler.ts';
import { MAX_CALLERS, type Sample, SampleRing } from '../../../emulator/trace/sample_ring.ts';
import { BareHart, CODE, DATA, M } from '../../fixtures/bare_hart.ts';
import { MachineRig } from '../../fixtures/machine_rig.ts';

const [RA, SP, FP] = [1, 2, 8];
const sample = (changes: Partial<Sample>): Sample => ({
  weight: 1,
  privilege: 1,
  pc: 0x1004n,
  ra: 0n,
  callers: [],
  ...changes,
});
/** Functions of 0x1000 bytes each */
const nameOf = (address: bigint, isReturn: boolean): string =>
  `f${((isReturn ? address - 1n : address) >> 12n).toString()}`;

test('foldSample() puts the root first, and ra between a leaf and the frames that its caller made', (t) => {
  t.deepEqual(foldSample(sample({ callers: [0x2010n, 0x3010n] }), nameOf), ['supervisor', 'f3', 'f2', 'f1']);
  // A leaf: fp is still its caller's
  t.deepEqual(foldSample(sample({ ra: 0x2010n, callers: [0x3010n] }), nameOf), ['supervisor', 'f3', 'f2', 'f1']);
  // ra is what an earlier call of the function itself left
  t.deepEqual(foldSample(sample({ ra: 0x1010n, callers: [0x3010n] }), nameOf), ['supervisor', 'f3', 'f1']);
  // The frame is made already and ra is not changed yet
  t.deepEqual(foldSample(sample({ ra: 0x3010n, callers: [0x3010n] }), nameOf), ['supervisor', 'f3', 'f1']);
  t.deepEqual(foldSample(sample({ privilege: 0 }), nameOf), ['user', 'f1']);
});

test('foldSample() counts a call at the end of a function to that function, not to the next one', (t) => {
  t.deepEqual(foldSample(sample({ callers: [0x3000n] }), nameOf), ['supervisor', 'f2', 'f1']);
});

test('SampleRing gives what was put in, in order, over its end, and counts what had no room', (t) => {
  const buffer = SampleRing.allocate();
  const writer = new SampleRing(buffer);
  const reader = new SampleRing(buffer);
  const taken: bigint[] = [];
  for (let round = 0; round < 5; round++) {
    for (let index = 0; index < 300; index++)
      writer.put(sample({ pc: BigInt(round * 300 + index), callers: [1n, 2n] }));
    reader.drain(({ pc, callers }) => {
      taken.push(pc);
      if (callers.length !== 2 || callers[1] !== 2n) t.fail('callers');
    });
  }
  t.deepEqual(
    taken,
    Array.from({ length: 1500 }, (_, index) => BigInt(index)),
  );
  t.is(reader.lost, 0);
  for (let index = 0; index < 600; index++) writer.put(sample({ weight: 2 }));
  t.is(reader.lost, 2 * (600 - 512));
  const deep = sample({ callers: new Array<bigint>(200).fill(7n) });
  reader.drain(() => {});
  writer.put(deep);
  reader.drain(({ callers }) => t.is(callers.length, MAX_CALLERS));
});

test('SampleRing.drain() stays in its bounds whatever the other thread wrote', (t) => {
  const buffer = SampleRing.allocate();
  const reader = new SampleRing(buffer);
  new Int32Array(buffer).fill(0x7fff_fff0, 1, 3);
  new Uint8Array(buffer).fill(0xff, 64);
  let taken = 0;
  reader.drain(({ callers }) => {
    taken++;
    if (callers.length > MAX_CALLERS) t.fail('too many');
  });
  t.true(taken <= 512);
});

/** `main` at CODE calls `middle` which calls `leaf`, frames as a compiler makes them, cut off in the leaf. */
function stackedHart(): { machine: BareHart; sampler: HartSampler; ring: SampleRing } {
  const machine = new BareHart();
  const call = (distance: number): number => encode('jal', { rd: RA, imm: distance });
  machine.code(CODE, [call(0x100), encode('addi', { rd: 0, imm: 0 })]);
  machine.code(CODE + 0x100, [call(0x100)]);
  machine.code(CODE + 0x200, [encode('addi', { rd: 0, imm: 0 })]);
  const top = DATA + 0x1000;
  // middle's frame: ra into main at fp - 8, the end of the chain at fp - 16
  machine.ram.setU64(top - 8, BigInt(CODE + 4));
  machine.ram.setU64(top - 16, 0n);
  machine.hart.pc = BigInt(CODE + 0x200);
  machine.hart.setX(RA, BigInt(CODE + 0x104));
  machine.hart.setX(FP, BigInt(top));
  machine.hart.setX(SP, BigInt(top - 64));
  const buffer = SampleRing.allocate();
  const ring = new SampleRing(buffer);
  return { machine, sampler: new HartSampler(machine.hart, buffer, machine.memory.buffer as SharedArrayBuffer), ring };
}

const only = (ring: SampleRing): Sample | undefined => {
  const all: Sample[] = [];
  ring.drain((taken) => all.push(taken));
  return all[0];
};

test('HartSampler unwinds by frame pointers, only when it is asked, and weighs what it missed', (t) => {
  const { sampler, ring } = stackedHart();
  sampler.check();
  t.is(only(ring), undefined);
  ring.request();
  ring.request();
  sampler.check();
  t.deepEqual(only(ring), {
    weight: 2,
    privilege: M,
    pc: BigInt(CODE + 0x200),
    ra: BigInt(CODE + 0x104),
    callers: [BigInt(CODE + 4)],
  });
  ring.request();
  sampler.skip();
  sampler.check();
  t.is(only(ring), undefined, 'what was asked for during a sleep');
});

test('HartSampler believes no frame pointer that does not lead behind a call', (t) => {
  const { machine, sampler, ring } = stackedHart();
  const asked = (): Sample => {
    ring.request();
    sampler.check();
    return only(ring)!;
  };
  machine.ram.setU64(DATA + 0x1000 - 8, BigInt(CODE + 8));
  t.deepEqual(asked().callers, []);
  for (const fp of [0n, 1n, BigInt(DATA), 0xffff_ffff_ffff_fff0n, BigInt(DATA + 0x1004)]) {
    machine.hart.setX(FP, fp);
    t.deepEqual(asked().callers, [], fp.toString(16));
  }
  // A frame that points at itself
  machine.hart.setX(FP, BigInt(DATA + 0x1000));
  machine.ram.setU64(DATA + 0x1000 - 8, BigInt(CODE + 4));
  machine.ram.setU64(DATA + 0x1000 - 16, BigInt(DATA + 0x1000));
  t.true(asked().callers.length <= MAX_CALLERS);
});

test('a machine that is asked for a profile gives one, and knows how much its harts slept', async (t) => {
  await using rig = new MachineRig({ profile: true, harts: 2 });
  rig.machine.start();
  await rig.expect(/ready/);
  await rig.ask('count 3000', /generation=3\d{3} /);
  const profile = rig.machine.profile();
  t.true(profile!.samples > 5, `${profile!.samples} samples`);
  t.is(profile!.stacks[0]!.frames[0], 'machine');
  t.true(profile!.idle > 0, 'the second hart sleeps');
  t.is(profile!.harts, 2);
  const counted = profile!.stacks.reduce((sum, { count }) => sum + count, 0);
  t.is(counted, profile!.samples);
});

test('a machine that is not asked makes none', async (t) => {
  await using rig = new MachineRig();
  t.is(rig.machine.profile(), undefined);
});
