import test from 'ava';
import { encode } from '../../../emulator/isa/encode.ts';
import { groupAccesses } from '../../../emulator/translator/access_groups.ts';
import { type Instruction, readWord } from '../../../emulator/translator/instruction.ts';
import { BareHart, CODE, DATA } from '../../fixtures/bare_hart.ts';

const [SP, A0, A1, A2] = [2, 10, 11, 12];
const sd = (imm: number, rs1 = SP): number => encode('sd', { rs1, rs2: A2, imm });
const ld = (imm: number, rs1 = SP): number => encode('ld', { rd: A2, rs1, imm });
const ADDW = encode('addw', { rd: A2, rs1: A2, rs2: A2 });

function read(words: readonly number[]): Instruction[] {
  return words.map((word, index) => readWord(word, index * 4)!);
}
/** Of each store: whether its page is marked dirty behind it */
function marked(words: readonly number[]): boolean[] {
  const instructions = read(words);
  const groups = groupAccesses(instructions);
  const stores = instructions.filter(({ facts }) => facts.row.name === 'sd');
  return stores.map((store) => groups.get(store)?.unmarked.has(store) !== true);
}

test('Accesses off an unchanged register, near each other, are one group', (t) => {
  const instructions = read([ld(0), sd(8, A0), sd(16), ld(2000), ld(-8, A0)]);
  const groups = groupAccesses(instructions);
  const [first, second, third, far, fifth] = instructions.map((instruction) => groups.get(instruction));
  t.is(first, third);
  t.is(second, fifth);
  t.is(far, undefined);
  t.like(first, { min: 0, span: 24, loads: true, stores: true, members: 2 });
  t.like(second, { min: -8, span: 24 });
});

test('A register that is written begins another group', (t) => {
  const instructions = read([ld(0), encode('addi', { rd: SP, rs1: SP, imm: -16 }), ld(0), ld(8)]);
  const groups = groupAccesses(instructions);
  t.is(groups.get(instructions[0]!), undefined);
  t.is(groups.get(instructions[2]!), groups.get(instructions[3]!));
});

test('Of stores in a row into one page the last marks it', (t) => {
  t.deepEqual(marked([sd(0), sd(8), ADDW, sd(16)]), [false, false, true]);
  t.deepEqual(marked([sd(0), sd(0, A0), sd(8), sd(8, A0)]), [true, false, true, true]);
  t.deepEqual(marked([sd(0)]), [true]);
});

test('A page is marked before anything that may leave the function', (t) => {
  t.deepEqual(marked([sd(0), sd(8), ld(0, A0), sd(16)]), [false, true, true]);
  t.deepEqual(marked([sd(0), encode('fadd.d', { rd: 1, rs1: 1, rs2: 2 }), sd(8)]), [true, true]);
  t.deepEqual(marked([sd(0), encode('amoadd.d', { rd: A1, rs1: A0, rs2: A2 }), sd(8)]), [true, true]);
  // Loads of a group that was looked up already stay
  t.deepEqual(marked([ld(0), sd(8), ld(16), sd(24)]), [false, true]);
});

test('A loop of stores in a row leaves its pages dirty', (t) => {
  const machine = new BareHart({ hotAfter: 3 });
  const { hart } = machine;
  machine.code(CODE, [
    ...[sd(0), sd(8), sd(16, A0), sd(24, A0), sd(1000)],
    encode('addi', { rd: A1, rs1: A1, imm: -1 }),
    encode('bne', { rs1: A1, rs2: 0, imm: -24 }),
    encode('jal', { rd: 0, imm: 0 }),
  ]);
  hart.setX(SP, BigInt(DATA));
  hart.setX(A0, BigInt(DATA + 0x2000));
  hart.setX(A1, 200n);
  hart.pc = BigInt(CODE);
  hart.step(7 * 100);
  for (let page = 0; page < 3; page++) machine.bytes[machine.layout.dirty + 16 + page] = 0;
  hart.step(7 * 50);
  t.deepEqual(
    [0, 1, 2].map((page) => machine.dirty(DATA + page * 0x1000)),
    [0xff, 0, 0xff],
  );
});
