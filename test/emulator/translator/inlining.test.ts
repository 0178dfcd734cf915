import test from 'ava';
import { encode } from '../../../emulator/isa/encode.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { type Callees, inlineCalls, isCopied, placeOf, sizeOf } from '../../../emulator/translator/inlining.ts';
import { type Instruction, readWord } from '../../../emulator/translator/instruction.ts';
import type { Block, BlockEnd, Region } from '../../../emulator/translator/region.ts';
import { BareHart, CODE, DATA } from '../../fixtures/bare_hart.ts';

const RA = 1;
const PROGRAMS = 60;
const SLICES = 40;

// --- what becomes of a region ---------------------------------------------------------------------------------------

const page = { slots: 0, host: 0x10000 };
const nop = (at: number): Instruction => readWord(encode('addi', { rd: 0, rs1: 0, imm: 0 }), at)!;
const jal = (at: number, to: number): Instruction => readWord(encode('jal', { rd: RA, imm: to - at }), at)!;
const ret = (at: number): Instruction => readWord(encode('jalr', { rd: 0, rs1: RA, imm: 0 }), at)!;
const callByRegister = (at: number): Instruction => readWord(encode('jalr', { rd: RA, rs1: 10, imm: 0 }), at)!;
const loadRa = (at: number): Instruction => readWord(encode('ld', { rd: RA, rs1: 2, imm: 8 }), at)!;

function region(start: number, ...blocks: readonly [readonly Instruction[], BlockEnd][]): Region {
  const made = blocks.map(([instructions, end]): Block => ({ at: instructions[0]!.at, instructions, end }));
  return {
    start,
    blocks: new Map(made.map((block) => [block.at, block])),
    pages: new Map([[0, page]]),
    resumes: new Set(),
  };
}
const returns: BlockEnd = { kind: 'register', targets: [] };
const call = (target: number | undefined, back: number): BlockEnd => ({ kind: 'call', target, back });
const only = (known: Readonly<Record<number, Region>>, guesses: readonly number[] = []): Callees => ({
  at: (target) => known[target],
  guess: () => guesses,
});
const endsOf = ({ blocks }: Region): string[] =>
  [...blocks.values()].map(({ at, end }) => {
    const name = (of: number): string =>
      `${placeOf(of).toString(16)}${isCopied(of) ? `#${Math.round(of / 2 ** 40)}` : ''}`;
    const to = end.kind === 'register' ? end.targets : 'to' in end ? [end.to] : 'back' in end ? [end.back] : [];
    return `${name(at)} ${end.kind} ${to.map(name).join()}`.trim();
  });

const caller = region(0, [[nop(0), jal(4, 0x100)], call(0x100, 8)], [[ret(8)], returns]);
const leaf = region(0x100, [[nop(0x100), ret(0x104)], returns]);

test('A call of a function that keeps ra becomes its code, which goes on behind the call', (t) => {
  const inlined = inlineCalls(caller, only({ 256: leaf }));
  t.deepEqual(endsOf(inlined), ['100#1 next 8', '0 next 100#1', '8 register']);
  t.is(sizeOf(inlined), 5);
});

test('The return of a function that loads ra goes on behind the call only where ra says so', (t) => {
  const saves = region(0x100, [[nop(0x100), loadRa(0x104), ret(0x108)], returns]);
  t.deepEqual(endsOf(inlineCalls(caller, only({ 256: saves }))), ['100#1 register 8', '0 next 100#1', '8 register']);
});

test('A call by register becomes a guess; without one it stays a call', (t) => {
  const indirect = region(0, [[callByRegister(0)], call(undefined, 4)], [[ret(4)], returns]);
  t.deepEqual(endsOf(inlineCalls(indirect, only({ 256: leaf }, [0x40, 0x100]))), [
    '100#1 next 4',
    '0 guess 100#1',
    '4 register',
  ]);
  t.deepEqual(endsOf(inlineCalls(indirect, only({ 256: leaf }))), endsOf(indirect));
});

test('A function is copied into itself once, and for each call', (t) => {
  const twice = region(
    0,
    [[nop(0), jal(4, 0)], call(0, 8)],
    [[jal(8, 0)], call(0, 12)],
    [[loadRa(12), ret(16)], returns],
  );
  const inlined = inlineCalls(twice, only({ 0: twice }));
  t.is(sizeOf(inlined), 3 * sizeOf(twice));
  t.is([...inlined.blocks.values()].filter(({ end }) => end.kind === 'call').length, 4);
});

for (const [what, callee] of Object.entries<Region>({
  'jumps to another': region(0x100, [[readWord(encode('jalr', { rd: 0, rs1: 5, imm: 0 }), 0x100)!], returns]),
  'returns elsewhere than to ra': region(0x100, [
    [readWord(encode('jalr', { rd: 0, rs1: RA, imm: 4 }), 0x100)!],
    returns,
  ]),
  'needs the kernel': region(0x100, [[nop(0x100)], { kind: 'system', to: 0x104 }]),
  'goes on behind what the interpreter does': { ...leaf, resumes: new Set([0x104]) },
  'is long': region(0x100, [[...Array.from({ length: 60 }, (_, i) => nop(0x100 + 4 * i)), ret(0x200)], returns]),
  'lies in too many pages': { ...leaf, pages: new Map([1, 2, 3, 4, 5, 6].map((number) => [number, page])) },
})) {
  test(`A function that ${what} is called`, (t) => {
    t.deepEqual(endsOf(inlineCalls(caller, only({ 256: callee }))), endsOf(caller));
  });
}

test('A region grows by a bounded number of instructions', (t) => {
  const calls = Array.from({ length: 100 }, (_, i): [Instruction[], BlockEnd] => [
    [jal(4 * i, 0x800)],
    call(0x800, 4 * i + 4),
  ]);
  const callee = region(0x800, [[...Array.from({ length: 30 }, (_, i) => nop(0x800 + 4 * i)), ret(0x878)], returns]);
  const inlined = inlineCalls(region(0, ...calls), only({ 2048: callee }));
  t.true(sizeOf(inlined) > 200);
  t.true(sizeOf(inlined) <= 100 + 128);
});

// --- what it computes -----------------------------------------------------------------------------------------------

class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = Math.imul(seed, 0x9e3779b1) >>> 0;
  }
  below(bound: number): number {
    this.#state = (Math.imul(this.#state, 1103515245) + 12345) >>> 0;
    return (this.#state >>> 8) % bound;
  }
  value(): number {
    return 10 + this.below(6);
  }
}

const NOP = encode('addi', { rd: 0, rs1: 0, imm: 0 });
const FUNCTION_WORDS = 32;
/** Registers: 2 stack, 8 data, 9 rounds left, 18 a function's address, 10 to 15 values, 5 scratch */
const STACK = DATA + 0x8000;

function simple(random: Random): number {
  const [rd, rs1, rs2] = [random.value(), random.value(), random.value()];
  switch (random.below(6)) {
    case 0:
      return encode('ld', { rd, rs1: 8, imm: random.below(64) * 8 });
    case 1:
      return encode('sd', { rs1: 8, rs2, imm: random.below(64) * 8 });
    case 2:
      return encode('mul', { rd, rs1, rs2 });
    default:
      return encode(random.below(2) === 0 ? 'add' : 'xor', { rd, rs1, rs2 });
  }
}

/** A loop that calls, then functions: leaves with loops and early returns, functions that call later ones, one that returns late. */
function program(seed: number): number[] {
  const random = new Random(seed);
  const functions = 3 + random.below(4);
  const at = (index: number): number => index * FUNCTION_WORDS * 4;
  const words: number[] = [];
  for (let index = 0; index <= functions; index++) {
    const code: number[] = [];
    const here = (): number => at(index) + code.length * 4;
    const later = (): number => at(index + 1 + random.below(functions - index));
    const callLater = (): void => {
      if (random.below(3) === 0) {
        // By register: mostly the same function
        code.push(encode('andi', { rd: 5, rs1: random.value(), imm: 7 }));
        code.push(encode('bne', { rs1: 5, rs2: 0, imm: 8 }));
        code.push(encode('auipc', { rd: 18, imm: 0 }), encode('addi', { rd: 18, rs1: 18, imm: later() - here() + 4 }));
        code.push(encode('jalr', { rd: RA, rs1: 18, imm: 0 }));
      } else code.push(encode('jal', { rd: RA, imm: later() - here() }));
      // Where a function returns late
      code.push(simple(random));
    };
    if (index === 0) {
      code.push(
        encode('auipc', { rd: 18, imm: 0 }),
        encode('addi', { rd: 18, rs1: 18, imm: at(functions) - here() + 4 }),
      );
      const loop = here();
      for (let i = 1 + random.below(3); i > 0; i--) callLater();
      code.push(encode('addi', { rd: 9, rs1: 9, imm: -1 }), encode('bne', { rs1: 9, rs2: 0, imm: loop - here() - 4 }));
      code.push(encode('jal', { rd: 0, imm: 0 }));
    } else {
      const calls = index < functions && random.below(3) > 0;
      if (calls) code.push(encode('addi', { rd: 2, rs1: 2, imm: -16 }), encode('sd', { rs1: 2, rs2: RA, imm: 8 }));
      code.push(simple(random));
      if (random.below(2) === 0) {
        // A loop of up to four turns
        code.push(encode('andi', { rd: 5, rs1: random.value(), imm: 3 }));
        const loop = here();
        code.push(simple(random), encode('addi', { rd: 5, rs1: 5, imm: -1 }));
        code.push(encode('bge', { rs1: 5, rs2: 0, imm: loop - here() }));
      }
      if (!calls && random.below(2) === 0) {
        code.push(encode('andi', { rd: 5, rs1: random.value(), imm: 1 }), encode('beq', { rs1: 5, rs2: 0, imm: 8 }));
        code.push(encode('jalr', { rd: 0, rs1: RA, imm: 0 }));
      }
      if (calls) {
        callLater();
        code.push(encode('ld', { rd: RA, rs1: 2, imm: 8 }), encode('addi', { rd: 2, rs1: 2, imm: 16 }));
        // Behind the instruction after the call
        if (random.below(4) === 0) code.push(encode('addi', { rd: RA, rs1: RA, imm: 4 }));
      }
      code.push(simple(random), encode('jalr', { rd: 0, rs1: RA, imm: 0 }));
    }
    if (code.length > FUNCTION_WORDS) throw new Error(`A function of ${code.length} words`);
    while (code.length < FUNCTION_WORDS) code.push(NOP);
    words.push(...code);
  }
  return words;
}

const stateOf = ({ hart }: BareHart): string =>
  [hart.pc, hart.get64(H.HART_INSTRET_END), ...Array.from({ length: 32 }, (_, i) => hart.x(i))].join(' ');

test('Random calls end every slice in the same state on both engines', (t) => {
  const machines = [new BareHart({ engine: 'interpreter' }), new BareHart({ engine: 'translator', hotAfter: 6 })];
  const [interpreter, translator] = machines as [BareHart, BareHart];
  let copied = 0;
  for (let seed = 1; seed <= PROGRAMS; seed++) {
    const words = program(seed);
    for (const machine of machines) {
      machine.bytes.fill(
        0,
        machine.hart.base + H.HART_VISITS,
        machine.hart.base + H.HART_VISITS + 2 * H.VISIT_COUNTERS,
      );
      machine.clear().code(CODE, words);
      for (let register = 10; register < 16; register++) machine.hart.setX(register, BigInt(register * seed * 977));
      for (const [register, value] of [
        [2, STACK],
        [8, DATA],
        [9, 1 << 20],
      ] as const)
        machine.hart.setX(register, BigInt(value));
    }
    for (let slice = 0; slice < SLICES; slice++) {
      const fuel = 1 + ((seed * 7 + slice * 131) % 600);
      for (const { hart } of machines) hart.step(fuel);
      if (stateOf(interpreter) !== stateOf(translator)) t.fail(`seed ${seed}, slice ${slice}, fuel ${fuel}`);
      // Later slices run other code in place of the last function
      if (slice === SLICES / 2) {
        for (const machine of machines) {
          machine.code(CODE + (words.length - FUNCTION_WORDS) * 4, [encode('addi', { rd: 10, rs1: 10, imm: 77 })]);
          machine.hart.flushInstructions();
        }
      }
    }
    for (let offset = 0; offset < 512; offset += 4) {
      const [ours, theirs] = machines.map(({ ram }) => ram.u32(DATA + offset));
      if (ours !== theirs) t.fail(`seed ${seed}, memory at ${offset}`);
    }
    const real = words.filter((word) => word !== NOP).length;
    if (translator.hart.get64(H.COUNT_TRANSLATED_INSTRUCTIONS) > BigInt(real)) copied++;
  }
  t.true(copied > PROGRAMS / 4, `${copied} programs with more instructions translated than there are: copies`);
});

for (const distance of [300, 700, 1000, -300, -700, -1000].map((kib) => kib * 1024)) {
  test(`A jump of ${distance / 1024} KiB out of a function, and out of a copy of it, goes where it says`, (t) => {
    const machine = new BareHart({ engine: 'translator', hotAfter: 6 });
    const start = CODE + 0x20_0000;
    const addOne = (register: number): number => encode('addi', { rd: register, rs1: register, imm: 1 });
    const jump = (offset: number): number => encode('jal', { rd: 0, imm: offset });
    // A loop that calls a function that goes on elsewhere, and that goes round by way of a third place
    machine.code(start, [addOne(10), encode('jal', { rd: RA, imm: 0x20 - 4 }), jump(distance + 0x400 - 8)]);
    machine.code(start + 0x20, [addOne(11), jump(distance - 0x24)]);
    machine.code(start + distance, [addOne(12), encode('jalr', { rd: 0, rs1: RA, imm: 0 })]);
    machine.code(start + distance + 0x400, [addOne(13), jump(-distance - 0x404)]);
    machine.hart.pc = BigInt(start);
    const turns = 300;
    machine.hart.step(turns * 9);
    t.deepEqual(
      [10, 11, 12, 13].map((register) => machine.hart.x(register)),
      [turns, turns, turns, turns].map(BigInt),
    );
    t.true(machine.hart.get64(H.COUNT_TRANSLATED_FUNCTIONS) > 0n);
  });
}

test('A function that calls by t0 one that changes ra returns to where ra says', (t) => {
  const results = (['interpreter', 'translator'] as const).map((engine) => {
    const machine = new BareHart({ engine, hotAfter: 6 });
    const addOne = (register: number): number => encode('addi', { rd: register, rs1: register, imm: 1 });
    // The loop calls; two returns are two instructions apart, and only the second counts in x12
    machine.code(CODE, [
      encode('jal', { rd: RA, imm: 0x40 }),
      addOne(11),
      addOne(12),
      encode('jal', { rd: 0, imm: -12 }),
    ]);
    machine.code(CODE + 0x40, [
      addOne(10),
      encode('jal', { rd: 5, imm: 0x3c }),
      encode('jalr', { rd: 0, rs1: RA, imm: 0 }),
    ]);
    machine.code(CODE + 0x80, [encode('addi', { rd: RA, rs1: RA, imm: 4 }), encode('jalr', { rd: 0, rs1: 5, imm: 0 })]);
    machine.hart.pc = BigInt(CODE);
    machine.hart.step(5000);
    return [10, 11, 12, RA].map((register) => machine.hart.x(register)).concat(machine.hart.pc);
  });
  t.deepEqual(results[1], results[0]);
  t.is(results[0]![1], 0n);
});
