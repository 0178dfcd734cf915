import test from 'ava';
import { HART_COUNTERS, readCounters } from '../../../emulator/hart/counters.ts';
import { encode } from '../../../emulator/isa/mod.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { BareHart, CODE, DATA, M, MMIO } from '../../fixtures/bare_hart.ts';

const A0 = 10;
const A1 = 11;

/** What the run added to each counter that changed */
function counted(machine: BareHart, words: readonly number[], fuel = words.length): Record<string, number> {
  const read = () => readCounters(machine.memory.buffer as SharedArrayBuffer, machine.hart.base);
  machine.code(CODE, words);
  const before = read();
  machine.hart.pc = BigInt(CODE);
  machine.hart.run(fuel);
  const risen: Record<string, number> = {};
  for (const [name, value] of read()) {
    const rise = Number(value - before.get(name)!);
    if (rise !== 0) risen[name] = rise;
  }
  return risen;
}

test('each counter has its own word, inside the area of the counters', (t) => {
  const offsets = HART_COUNTERS.map(({ offset }) => offset);
  t.is(new Set(offsets).size, offsets.length);
  for (const offset of offsets) {
    t.true(offset >= H.HART_COUNTERS && offset + 8 <= H.HART_COUNTERS_END && offset % 8 === 0);
  }
});

test('a page of code is decoded once; its second run counts instructions only', (t) => {
  const machine = new BareHart();
  const words = [encode('addi', { rd: A0, rs1: A0, imm: 1 }), encode('addi', { rd: A0, rs1: A0, imm: 1 })];
  t.deepEqual(counted(machine, words), {
    instructions: 2,
    'fetch-tlb-misses': 1,
    'code-pages-predecoded': 1,
    'instructions-predecoded': 2,
  });
  machine.hart.pc = BigInt(CODE);
  const before = readCounters(machine.memory.buffer as SharedArrayBuffer, machine.hart.base);
  machine.hart.run(2);
  const after = readCounters(machine.memory.buffer as SharedArrayBuffer, machine.hart.base);
  t.is(after.get('instructions')! - before.get('instructions')!, 2n);
  t.is(after.get('instructions-predecoded'), before.get('instructions-predecoded'));
});

test('changed code, data misses, MMIO and traps are counted where they happen', (t) => {
  const machine = new BareHart();
  counted(machine, [encode('addi', { rd: A0, rs1: A0, imm: 1 })]);
  machine.hart.flushInstructions();
  machine.hart.setX(A0, BigInt(DATA));
  machine.hart.setX(A1, BigInt(MMIO));
  const load = encode('ld', { rd: 12, rs1: A0, imm: 0 });
  const risen = counted(machine, [
    load,
    load,
    encode('lw', { rd: 12, rs1: A1, imm: 0 }),
    encode('sw', { rs1: A1, rs2: 12, imm: 0 }),
    encode('ecall', {}),
  ]);
  t.is(risen['code-pages-invalidated'], 1);
  // The two loads miss once; MMIO never enters the TLB
  t.is(risen['data-tlb-misses'], 3);
  t.is(risen['mmio-reads'], 1);
  t.is(risen['mmio-writes'], 1);
  t.is(risen.exceptions, 1);
  t.is(risen.instructions, 4, 'ecall does not retire');
  t.is(machine.hart.get32(H.HART_PRIV), M);
});

test('what runs in translated code is told from what is interpreted', (t) => {
  const loop = [encode('addi', { rd: A0, rs1: A0, imm: 1 }), encode('jal', { rd: 0, imm: -4 })];
  const risen = (hotAfter: number): Record<string, number> => counted(new BareHart({ hotAfter }), loop, 1000);
  const interpreted = risen(0);
  t.is(interpreted['instructions-in-translated-code'], undefined);
  t.is(interpreted['translated-code-entries'], undefined);
  const translated = risen(4);
  t.is(translated['functions-translated'], 1);
  // Counted jumps until it is hot are interpreted, and so may be what is left of the fuel at the end
  t.true(translated['instructions-in-translated-code']! > 950 && translated['instructions-in-translated-code']! < 1000);
  t.true(translated['translated-code-entries']! >= 1 && translated['translated-code-entries']! < 5);
});
