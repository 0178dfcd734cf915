// Random control flow on both engines, compared after slices of random length: branches into the middle of loops,
// computed jumps, calls, CSR instructions, loads and stores.
import test from 'ava';
import { encode } from '../../../emulator/isa/encode.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { BareHart, CODE, DATA } from '../../fixtures/bare_hart.ts';

const PROGRAMS = 150;
const SLICES = 40;
const BLOCK_WORDS = 24;
const NOP = 0x13;
const JUMP_TO_SELF = 0x6f;
/** Registers: 8 data, 9 rounds left, 10 to 17 values, 5 and 6 scratch */
const ROUNDS = 900n;

class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
    for (let i = 0; i < 5; i++) this.below(9);
  }
  below(bound: number): number {
    this.#state = (Math.imul(this.#state, 1103515245) + 12345) >>> 0;
    return (this.#state >>> 8) % bound;
  }
  value(): number {
    return 10 + this.below(8);
  }
}

function program(seed: number): number[] {
  const random = new Random(seed);
  const blocks = 3 + random.below(14);
  const at = (block: number): number => block * BLOCK_WORDS * 4;
  const any = (): number => at(random.below(blocks));
  const words: number[] = [];
  for (let block = 0; block < blocks; block++) {
    const code: number[] = [];
    const here = (): number => at(block) + code.length * 4;
    for (let i = random.below(6); i > 0; i--) code.push(simple(random));
    code.push(encode('addi', { rd: 9, rs1: 9, imm: -1 }));
    code.push(encode('blt', { rs1: 9, rs2: 0, imm: at(blocks) - here() }));
    const end = random.below(10);
    if (end < 6) {
      code.push(encode('andi', { rd: 5, rs1: random.value(), imm: 1 << random.below(4) }));
      code.push(encode(random.below(2) === 0 ? 'beq' : 'bne', { rs1: 5, rs2: 0, imm: any() - here() }));
      if (random.below(2) === 0) {
        code.push(encode('slti', { rd: 5, rs1: random.value(), imm: random.below(100) - 50 }));
        code.push(encode('beq', { rs1: 5, rs2: 0, imm: any() - here() }));
      }
    } else if (end < 8) {
      // A table of four jumps, entered by a computed address
      code.push(encode('andi', { rd: 5, rs1: random.value(), imm: 3 }));
      code.push(encode('auipc', { rd: 6, imm: 0 }));
      code.push(encode('slli', { rd: 5, rs1: 5, imm: 2 }));
      code.push(encode('add', { rd: 6, rs1: 6, rs2: 5 }));
      code.push(encode('jalr', { rd: 0, rs1: 6, imm: 16 }));
      for (let i = 0; i < 4; i++) code.push(encode('jal', { rd: 0, imm: any() - here() }));
    } else if (end < 9) {
      code.push(encode('jal', { rd: 1, imm: at(blocks) + 8 - here() }));
    } else {
      code.push(encode('csrrs', { rd: 5, rs1: 0, csr: 0x140 }));
    }
    code.push(encode('jal', { rd: 0, imm: any() - here() }));
    while (code.length < BLOCK_WORDS) code.push(NOP);
    words.push(...code);
  }
  words.push(JUMP_TO_SELF, NOP);
  // What blocks call
  words.push(encode('addi', { rd: 11, rs1: 11, imm: 7 }), encode('ld', { rd: 12, rs1: 8, imm: 8 }));
  words.push(encode('jalr', { rd: 0, rs1: 1, imm: 0 }));
  return words;
}

function simple(random: Random): number {
  const [rd, rs1, rs2] = [random.value(), random.value(), random.value()];
  switch (random.below(7)) {
    case 0:
      return encode('add', { rd, rs1, rs2 });
    case 1:
      return encode('addi', { rd, rs1, imm: random.below(2000) - 1000 });
    case 2:
      return encode('xor', { rd, rs1, rs2 });
    case 3:
      return encode('ld', { rd, rs1: 8, imm: random.below(64) * 8 });
    case 4:
      return encode('sd', { rs1: 8, rs2, imm: random.below(64) * 8 });
    case 5:
      return encode('addw', { rd, rs1, rs2 });
    default:
      return encode('mul', { rd, rs1, rs2 });
  }
}

function prepare(machine: BareHart, seed: number): void {
  const { hart, bytes } = machine;
  bytes.fill(0, hart.base + H.HART_VISITS, hart.base + H.HART_VISITS + 2 * H.VISIT_COUNTERS);
  machine.clear().code(CODE, program(seed));
  const random = new Random(seed);
  for (let register = 10; register < 18; register++) hart.setX(register, BigInt(random.below(100_000)));
  hart.setX(8, BigInt(DATA));
  hart.setX(9, ROUNDS);
}

const stateOf = ({ hart }: BareHart): string =>
  [hart.pc, hart.get64(H.HART_INSTRET_END), ...Array.from({ length: 32 }, (_, i) => hart.x(i))].join(' ');

test('Random control flow ends every slice in the same state on both engines', (t) => {
  const interpreter = new BareHart({ engine: 'interpreter' });
  const translator = new BareHart({ engine: 'translator', hotAfter: 3 });
  let translated = 0;
  for (let seed = 1; seed <= PROGRAMS; seed++) {
    for (const machine of [interpreter, translator]) prepare(machine, seed);
    for (let slice = 0; slice < SLICES; slice++) {
      const fuel = 1 + ((seed * 7 + slice * 131) % 300);
      interpreter.hart.step(fuel);
      translator.hart.step(fuel);
      if (stateOf(interpreter) !== stateOf(translator)) t.fail(`seed ${seed}, slice ${slice}, fuel ${fuel}`);
    }
    translated += Number(translator.hart.get64(H.COUNT_TRANSLATED_FUNCTIONS));
    for (let offset = 0; offset < 512; offset += 4) {
      const [ours, theirs] = [interpreter, translator].map(({ ram }) => ram.u32(DATA + offset));
      if (ours !== theirs) t.fail(`seed ${seed}, memory at ${offset}`);
    }
  }
  t.true(translated > PROGRAMS, 'most of it was translated');
});
