// Litmus tests as bare-metal code, all for the same number of harts one after the other: rounds in batches. Each round
// has places of its own; harts meet before it, roughly, and wander against each other by a few instructions. Hart 0
// counts outcomes after each batch.
import { encode } from '../../emulator/isa/mod.ts';
import { Assembly, assemble } from '../differential/assembly.ts';
import { COUNTERS, emitIncrement } from './counters.ts';
import type { LitmusTest, Location, Register, Step } from './litmus_tests.ts';

export const RAM_BASE = 0x8000_0000;
export const RAM_BYTES = 16 << 20;
/** Words that the harts meet by, a cache line each */
const BARRIER = RAM_BASE + 0x8_0000;
const SENSE = BARRIER + 64;
const PROGRESS = BARRIER + 128;
const LINE = 64;
/** Of each counter: the count, and in the next line the lock */
const COUNTS = RAM_BASE + 0x9_0000;
const COUNT_BYTES = 2 * LINE;
const HISTOGRAMS = RAM_BASE + 0x10_0000;
const HISTOGRAM_ENTRIES = 4096;
const PLACES = RAM_BASE + 0x40_0000;
const PLACE_BYTES = 256;
const RESULTS = RAM_BASE + 0x80_0000;
const RESULT_BYTES = 64;
/** Rounds of the longest batch: harts meet for certain between batches only, and that takes long on a busy host */
export const LONGEST_BATCH = 10_000;
const TEST_DEVICE = 0x10_0000;
const POWER_OFF = 0x5555;

const REGISTERS: Readonly<Record<Register, number>> = { a: 10, b: 11, c: 12, d: 13 };
const ORDER = Object.keys(REGISTERS) as Register[];
const OFFSETS: Readonly<Record<Location, number>> = { x: 0, y: LINE, z: 2 * LINE };
const [zero, ra, s0, s1, s2, s3, s4, s5, t0, t1, t2, t3] = [0, 1, 8, 9, 18, 19, 20, 21, 5, 6, 7, 28] as const;
/** Bits of an observed value in the histogram's index */
const VALUE_BITS = 2;

/** What an outcome is made of, in the order of the index's bits, lowest first */
function observed(test: LitmusTest): (Register | Location)[] {
  const names: (Register | Location)[] = [];
  for (const steps of test.harts) for (const step of steps) if ('to' in step && step.to) names.push(step.to);
  return [...names, ...(test.final ?? [])];
}

/** How long harts wait for each other before a round: with more harts than processors, waiting is in vain */
const patience = (harts: number): number => (harts > 2 ? 60 : 600);

export interface Rounds {
  readonly batches: number;
  /** Rounds of one */
  readonly batch: number;
}

/** Every test of the list, then every counter. */
export function litmusProgram(tests: readonly LitmusTest[], harts: number, rounds: Rounds): Uint8Array {
  const a = new Assembly('.t');
  a.op('csrrs', { rd: s5, csr: 0xf14 });
  for (let hart = 0; hart < harts; hart++) {
    const next = a.fresh('next');
    a.constant(t0, hart).branch('bne', s5, t0, next).jump(`hart${hart}`).label(next);
  }
  a.label('sleep').op('wfi').jump('sleep');
  emitBarrier(a, harts);
  for (let hart = 0; hart < harts; hart++) {
    a.label(`hart${hart}`);
    for (const [index, test] of tests.entries()) emitTest(a, test, index, hart, rounds);
    for (const [index, counter] of COUNTERS.entries()) {
      const [count, loop] = [COUNTS + index * COUNT_BYTES, a.fresh('loop')];
      a.jump('barrier', ra)
        .constant(s1, count)
        .constant(s0, count + LINE)
        .constant(s4, rounds.batches * rounds.batch)
        .label(loop);
      emitIncrement(a, counter);
      a.op('addi', { rd: s4, rs1: s4, imm: -1 }).branch('bne', s4, zero, loop);
    }
    // The others may still look at the barrier
    a.jump('barrier', ra).jump(hart === 0 ? 'powerOff' : 'sleep');
  }
  a.label('powerOff').constant(t0, TEST_DEVICE).constant(t1, POWER_OFF).op('sw', { rs1: t0, rs2: t1 }).jump('sleep');
  const { bytes } = assemble(RAM_BASE, a.pieces).sections[0];
  if (RAM_BASE + bytes.length > BARRIER) throw new RangeError('Cannot assemble the litmus tests: too many');
  return bytes;
}

function emitTest(a: Assembly, test: LitmusTest, index: number, hart: number, rounds: Rounds): void {
  const steps = test.harts[hart] ?? [];
  const [batch, round] = [a.fresh('batch'), a.fresh('round')];
  a.constant(s4, rounds.batches).label(batch);
  a.jump('barrier', ra);
  a.constant(s0, PLACES)
    .constant(s1, RESULTS + hart * RESULT_BYTES * rounds.batch)
    .constant(s2, 0);
  a.label(round);
  emitMeeting(a, hart, test.harts.length);
  for (const step of steps) emitStep(a, step);
  for (const step of steps) {
    if ('to' in step && step.to) a.op('sw', { rs1: s1, rs2: REGISTERS[step.to], imm: 4 * ORDER.indexOf(step.to) });
  }
  a.op('addi', { rd: s0, rs1: s0, imm: PLACE_BYTES }).op('addi', { rd: s1, rs1: s1, imm: RESULT_BYTES });
  a.op('addi', { rd: s2, rs1: s2, imm: 1 }).constant(t0, rounds.batch).branch('blt', s2, t0, round);
  a.jump('barrier', ra);
  if (hart === 0) emitCount(a, test, HISTOGRAMS + index * HISTOGRAM_ENTRIES * 4, rounds.batch);
  a.op('addi', { rd: s4, rs1: s4, imm: -1 }).branch('bne', s4, zero, batch);
}

/** All harts, by a counter and a sense that the last one turns */
function emitBarrier(a: Assembly, harts: number): void {
  a.label('barrier').constant(t0, SENSE).op('lw', { rd: t1, rs1: t0 }).constant(t2, BARRIER);
  a.op('addi', { rd: t3, imm: 1 }).add((encode('amoadd.w', { rd: t3, rs1: t2, rs2: t3 }) | (3 << 25)) >>> 0);
  a.op('addi', { rd: t3, rs1: t3, imm: 1 - harts }).branch('bne', t3, zero, 'barrierWait');
  a.op('sw', { rs1: t2, rs2: zero }).op('addi', { rd: t1, rs1: t1, imm: 1 }).add(0x0330_000f);
  a.op('sw', { rs1: t0, rs2: t1 }).add(0x0330_000f).op('jalr', { rs1: ra });
  a.label('barrierWait').op('lw', { rd: t3, rs1: t0 }).branch('beq', t3, t1, 'barrierWait').add(0x0330_000f);
  a.op('jalr', { rs1: ra });
}

/** Says how far this hart is, waits for the others a while, then for a time that changes from round to round */
function emitMeeting(a: Assembly, hart: number, harts: number): void {
  const [wait, go, delay, done] = ['wait', 'go', 'delay', 'done'].map((name) => a.fresh(name)) as [
    string,
    string,
    string,
    string,
  ];
  a.constant(t0, PROGRESS)
    .op('sw', { rs1: t0, rs2: s2, imm: hart * LINE })
    .constant(t1, patience(harts))
    .label(wait);
  for (let other = 0; other < harts; other++) {
    if (other === hart) continue;
    const next = a.fresh('next');
    a.op('lw', { rd: t2, rs1: t0, imm: other * LINE }).branch('bge', t2, s2, next);
    a.op('addi', { rd: t1, rs1: t1, imm: -1 }).branch('bne', t1, zero, wait).jump(go).label(next);
  }
  // Up to 1, 2, 4 … 128 steps: how far apart the harts notice each other depends on engine and host
  a.label(go)
    .op('andi', { rd: t3, rs1: s4, imm: 7 })
    .op('addi', { rd: t2, imm: 1 })
    .op('sll', { rd: t2, rs1: t2, rs2: t3 });
  a.op('addi', { rd: t2, rs1: t2, imm: -1 });
  a.constant(t1, 0x9e37_79b1 + 2 * hart).op('mul', { rd: t1, rs1: t1, rs2: s2 });
  a.op('srli', { rd: t1, rs1: t1, imm: 20 + hart }).op('and', { rd: t1, rs1: t1, rs2: t2 });
  a.label(delay).branch('beq', t1, zero, done).op('addi', { rd: t1, rs1: t1, imm: -1 }).jump(delay).label(done);
}

function emitStep(a: Assembly, step: Step): void {
  const at = (location: Location) => OFFSETS[location];
  if ('fence' in step) a.add((0x0000_000f | (step.fence << 20)) >>> 0);
  else if ('read' in step) {
    const { read, to, address } = step;
    const rd = REGISTERS[to];
    if (address === undefined) a.op('lw', { rd, rs1: s0, imm: at(read) });
    else {
      const from = REGISTERS[address];
      a.op('xor', { rd: t0, rs1: from, rs2: from }).op('add', { rd: t0, rs1: t0, rs2: s0 });
      a.op('lw', { rd, rs1: t0, imm: at(read) });
    }
  } else if ('write' in step) {
    const { write, value } = step;
    a.op('addi', { rd: t1, imm: value });
    if ('after' in step) {
      const from = REGISTERS[step.after];
      const over = a.fresh('over');
      if (step.by === 'data') a.op('xor', { rd: t2, rs1: from, rs2: from }).op('add', { rd: t1, rs1: t1, rs2: t2 });
      else a.branch('bne', from, zero, over).label(over);
    }
    a.op('sw', { rs1: s0, rs2: t1, imm: at(write) });
  } else if ('amo' in step) {
    const { amo, location, value, to } = step;
    const [, name, order = ''] = /^(\w+\.\w)(\.\w+)?$/.exec(amo)!;
    const bits = (order.includes('aq') ? 2 : 0) | (order.includes('rl') ? 1 : 0);
    a.op('addi', { rd: t1, imm: value }).op('addi', { rd: t0, rs1: s0, imm: at(location) });
    const rd = to === undefined ? 0 : REGISTERS[to];
    a.add((encode(name!, { rd, rs1: t0, rs2: t1 }) | (bits << 25)) >>> 0);
  } else if ('reserve' in step) {
    a.op('addi', { rd: t0, rs1: s0, imm: at(step.reserve) }).op('addi', { rd: t1, imm: 0 });
    a.op('lr.w', { rd: REGISTERS[step.to], rs1: t0 });
  } else {
    a.op('addi', { rd: t0, rs1: s0, imm: at(step.conditional) }).op('addi', { rd: t1, imm: step.value });
    a.op('sc.w', { rd: REGISTERS[step.to], rs1: t0, rs2: t1 }).op('sltu', {
      rd: REGISTERS[step.to],
      rs2: REGISTERS[step.to],
    });
  }
}

/** Hart 0, after a batch: one more for each round's outcome, and the places empty again */
function emitCount(a: Assembly, test: LitmusTest, histogram: number, batch: number): void {
  const count = a.fresh('count');
  const homes = new Map<Register, number>();
  for (const [hart, steps] of test.harts.entries())
    for (const step of steps) if ('to' in step && step.to) homes.set(step.to, hart);
  a.constant(s0, PLACES).constant(s1, RESULTS).constant(s2, 0).constant(s3, histogram).label(count);
  a.op('addi', { rd: t0, imm: 0 });
  for (const [index, name] of observed(test).entries()) {
    const hart = homes.get(name as Register);
    if (hart === undefined) a.op('lw', { rd: t1, rs1: s0, imm: OFFSETS[name as Location] });
    else {
      a.constant(t2, hart * RESULT_BYTES * batch).op('add', { rd: t2, rs1: t2, rs2: s1 });
      a.op('lw', { rd: t1, rs1: t2, imm: 4 * ORDER.indexOf(name as Register) });
    }
    a.op('andi', { rd: t1, rs1: t1, imm: 3 }).op('slli', { rd: t1, rs1: t1, imm: VALUE_BITS * index });
    a.op('or', { rd: t0, rs1: t0, rs2: t1 });
  }
  a.op('sh2add', { rd: t0, rs1: t0, rs2: s3 }).op('lw', { rd: t1, rs1: t0 });
  a.op('addi', { rd: t1, rs1: t1, imm: 1 }).op('sw', { rs1: t0, rs2: t1 });
  for (const offset of Object.values(OFFSETS)) a.op('sd', { rs1: s0, rs2: zero, imm: offset });
  a.op('addi', { rd: s0, rs1: s0, imm: PLACE_BYTES }).op('addi', { rd: s1, rs1: s1, imm: RESULT_BYTES });
  a.op('addi', { rd: s2, rs1: s2, imm: 1 }).constant(t0, batch).branch('blt', s2, t0, count);
  // Nobody may be ahead in the next batch because of this one
  a.constant(t0, PROGRESS);
  for (let hart = 0; hart < test.harts.length; hart++) a.op('sw', { rs1: t0, rs2: zero, imm: hart * LINE });
}

/** Outcomes of one of the tests by what they are, with how often they came */
export function readHistogram(test: LitmusTest, index: number, ram: Uint8Array): Map<string, number> {
  const view = new DataView(ram.buffer, ram.byteOffset, ram.length);
  const names = observed(test);
  const counts = new Map<string, number>();
  for (let entry = 0; entry < HISTOGRAM_ENTRIES; entry++) {
    const count = view.getUint32(HISTOGRAMS - RAM_BASE + 4 * (index * HISTOGRAM_ENTRIES + entry), true);
    if (count === 0) continue;
    const text = names.map((name, i) => `${name}=${(entry >> (VALUE_BITS * i)) & 3}`).join(' ');
    counts.set(text, count);
  }
  return counts;
}

/** What each counter stands at */
export function readCounts(ram: Uint8Array): number[] {
  const view = new DataView(ram.buffer, ram.byteOffset, ram.length);
  return COUNTERS.map((_, index) => Number(view.getBigUint64(COUNTS - RAM_BASE + index * COUNT_BYTES, true)));
}

/** Whether an outcome of the histogram is one of the forbidden ones */
export function isForbidden(test: LitmusTest, outcome: string): boolean {
  const values = new Map(outcome.split(' ').map((part) => part.split('=') as [string, string]));
  return test.forbidden.some((bad) => Object.entries(bad).every(([name, value]) => values.get(name) === String(value)));
}
