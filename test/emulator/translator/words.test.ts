import test from 'ava';
import type { Engine } from '../../../emulator/hart/hart.ts';
import { encode } from '../../../emulator/isa/encode.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { BareHart, CODE, DATA } from '../../fixtures/bare_hart.ts';

const WORD_OPS = ['addw', 'subw', 'sllw', 'srlw', 'sraw', 'mulw', 'divw', 'remuw', 'rorw', 'rolw'];
const WIDE_OPS = ['and', 'or', 'xor', 'add', 'sub', 'sltu', 'mul', 'andn', 'max', 'sll'];
const IMMEDIATES = ['addi', 'addiw', 'andi', 'ori', 'xori', 'slti'];
const SHIFTS = ['slliw', 'srliw', 'sraiw', 'slli', 'srli'];
const BRANCHES = ['beq', 'bne', 'blt', 'bge', 'bltu', 'bgeu'];
const CORNERS = [
  0n, 1n, -1n, 0x7fff_ffffn, -0x8000_0000n, 0x8000_0000n, 0xffff_ffffn, 0x1_0000_0000n, -0x8000_0000_0000_0000n,
]; // biome-ignore format: one list
/** Few, so that one instruction's result is often the next one's operand */
const FIRST = 10;
const REGISTERS = 6;
const COUNTER = 9;
const BASE = 8;

/** Rounds of a random program of integers, of 32 and of 64 bits by turns; its state after each slice */
function run(engine: Engine, seed: number): readonly (readonly bigint[])[] {
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % below;
  };
  const pick = <T>(list: readonly T[]): T => list[random(list.length)]!;
  const register = (): number => (random(12) === 0 ? 0 : FIRST + random(REGISTERS));
  const instruction = (): number => {
    const [rd, rs1, rs2] = [register(), register(), register()];
    switch (random(10)) {
      case 0:
      case 1:
      case 2:
        return encode(pick(WORD_OPS), { rd, rs1, rs2 });
      case 3:
      case 4:
        return encode(pick(WIDE_OPS), { rd, rs1, rs2 });
      case 5:
        return encode(pick(IMMEDIATES), { rd, rs1, imm: pick([0, 1, -1, 255, random(4096) - 2048]) });
      case 6:
        return encode(pick(SHIFTS), { rd, rs1, imm: random(32) });
      case 7:
        return encode('lui', { rd, imm: random(2) === 0 ? 0x7ffff000 : -0x80000000 });
      case 8:
        return encode(pick(['lw', 'lwu', 'lh', 'ld']), { rd, rs1: BASE, imm: random(8) * 8 });
      default:
        return random(2) === 0
          ? encode(pick(['sw', 'sd']), { rs1: BASE, rs2, imm: random(8) * 8 })
          : // Over the next one
            encode(pick(BRANCHES), { rs1, rs2, imm: 8 });
    }
  };
  const length = 30 + random(30);
  const body = Array.from({ length }, instruction);
  const machine = new BareHart({ engine, hotAfter: 3 });
  const { hart, ram } = machine;
  machine.code(CODE, [
    ...body,
    encode('addi', { rd: 0, imm: 0 }),
    encode('addi', { rd: COUNTER, rs1: COUNTER, imm: -1 }),
    encode('bne', { rs1: COUNTER, rs2: 0, imm: -4 * (length + 2) }),
    encode('jal', { rd: 0, imm: 0 }),
  ]);
  for (let index = 0; index < REGISTERS; index++) hart.setX(FIRST + index, BigInt.asUintN(64, pick(CORNERS)));
  for (let at = 0; at < 64; at += 8) ram.setU64(DATA + at, BigInt.asUintN(64, pick(CORNERS)));
  hart.setX(BASE, BigInt(DATA));
  hart.setX(COUNTER, 60n);
  hart.pc = BigInt(CODE);
  const seen: bigint[][] = [];
  for (let slice = 0; slice < 12; slice++) {
    hart.step(100 + random(200));
    const registers = Array.from({ length: REGISTERS }, (_, index) => hart.x(FIRST + index));
    seen.push([hart.pc, ...registers, ...Array.from({ length: 8 }, (_, index) => ram.u64(DATA + index * 8))]);
  }
  seen.push([hart.get64(H.COUNT_TRANSLATED_FUNCTIONS) > 0n === (engine === 'translator') ? 1n : 0n]);
  return seen;
}

test('Words that are kept as words leave the same 64 bits behind', (t) => {
  t.timeout(120_000);
  for (let seed = 1; seed <= 80; seed++) t.deepEqual(run('translator', seed), run('interpreter', seed), `seed ${seed}`);
});
