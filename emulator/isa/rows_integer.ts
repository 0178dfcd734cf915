// RV64I and M: unprivileged specification, "RV32I", "RV64I", "M". One row an instruction.
import type { Emitter, I32, I64, I64Name, LoadWidth, StoreWidth } from './emitter.ts';
import { b, exact, i, jump, type Row, r, s, shift, shiftw, upper } from './row.ts';

const OP_IMM = 0x13;
const OP_IMM_32 = 0x1b;
const OP = 0x33;
const OP_32 = 0x3b;
const C = { compressed: true } as const;

const alu = (op: I64Name) => (e: Emitter) => e.setRd(e.i64(op, e.rs1(), e.rs2()));
const aluImmediate = (op: I64Name) => (e: Emitter) => e.setRd(e.i64(op, e.rs1(), e.imm()));
const compare = (op: I64Name) => (e: Emitter) => e.setRd(e.zeroExtend(e.compare64(op, e.rs1(), e.rs2())));
const branch = (op: I64Name) => (e: Emitter) => e.branch(e.compare64(op, e.rs1(), e.rs2()));
const load = (width: LoadWidth) => (e: Emitter) => e.setRd(e.load(width, e.i64('add', e.rs1(), e.imm())));
const store = (width: StoreWidth) => (e: Emitter) => e.store(width, e.i64('add', e.rs1(), e.imm()), () => e.rs2());

export const BASE_ROWS: readonly Row[] = [
  upper('lui', 0x37, (e) => e.setRd(e.imm()), C),
  upper('auipc', 0x17, (e) => e.setRd(e.i64('add', e.pc(), e.imm()))),
  jump('jal', 0x6f, (e) => {
    e.setRd(e.nextPc());
    e.jump();
  }),
  i(
    'jalr',
    'I',
    0x67,
    0,
    (e) => {
      // The target is read before rd is written: they may be the same register
      const target = e.let64(e.i64('and', e.i64('add', e.rs1(), e.imm()), e.c64(-2)));
      e.setRd(e.nextPc());
      e.jumpTo(target.get());
    },
    C,
  ),
  b('beq', 0, branch('eq'), C),
  b('bne', 1, branch('ne'), C),
  b('blt', 4, branch('lt_s')),
  b('bge', 5, branch('ge_s')),
  b('bltu', 6, branch('lt_u')),
  b('bgeu', 7, branch('ge_u')),
  i('lb', 'I', 0x03, 0, load('b'), { format: 'LOAD' }),
  i('lh', 'I', 0x03, 1, load('h'), { format: 'LOAD' }),
  i('lw', 'I', 0x03, 2, load('w'), { format: 'LOAD', ...C }),
  i('ld', 'I', 0x03, 3, load('d'), { format: 'LOAD', ...C }),
  i('lbu', 'I', 0x03, 4, load('bu'), { format: 'LOAD' }),
  i('lhu', 'I', 0x03, 5, load('hu'), { format: 'LOAD' }),
  i('lwu', 'I', 0x03, 6, load('wu'), { format: 'LOAD' }),
  s('sb', 'I', 0x23, 0, store('b')),
  s('sh', 'I', 0x23, 1, store('h')),
  s('sw', 'I', 0x23, 2, store('w'), C),
  s('sd', 'I', 0x23, 3, store('d'), C),
  i('addi', 'I', OP_IMM, 0, aluImmediate('add'), C),
  i('slti', 'I', OP_IMM, 2, (e) => e.setRd(e.zeroExtend(e.compare64('lt_s', e.rs1(), e.imm())))),
  i('sltiu', 'I', OP_IMM, 3, (e) => e.setRd(e.zeroExtend(e.compare64('lt_u', e.rs1(), e.imm())))),
  i('xori', 'I', OP_IMM, 4, aluImmediate('xor')),
  i('ori', 'I', OP_IMM, 6, aluImmediate('or')),
  i('andi', 'I', OP_IMM, 7, aluImmediate('and'), C),
  shift('slli', 'I', OP_IMM, 1, 0x00, aluImmediate('shl'), C),
  shift('srli', 'I', OP_IMM, 5, 0x00, aluImmediate('shr_u'), C),
  shift('srai', 'I', OP_IMM, 5, 0x10, aluImmediate('shr_s'), C),
  r('add', 'I', OP, 0, 0x00, alu('add'), C),
  r('sub', 'I', OP, 0, 0x20, alu('sub'), C),
  r('sll', 'I', OP, 1, 0x00, alu('shl')),
  r('slt', 'I', OP, 2, 0x00, compare('lt_s')),
  r('sltu', 'I', OP, 3, 0x00, compare('lt_u')),
  r('xor', 'I', OP, 4, 0x00, alu('xor'), C),
  r('srl', 'I', OP, 5, 0x00, alu('shr_u')),
  r('sra', 'I', OP, 5, 0x20, alu('shr_s')),
  r('or', 'I', OP, 6, 0x00, alu('or'), C),
  r('and', 'I', OP, 7, 0x00, alu('and'), C),
  i('addiw', 'I', OP_IMM_32, 0, (e) => e.setRd(e.signExtend(e.i32('add', e.rs1w(), e.imm32()))), C),
  shiftw('slliw', 'I', OP_IMM_32, 1, 0x00, (e) => e.setRd(e.signExtend(e.i32('shl', e.rs1w(), e.imm32())))),
  shiftw('srliw', 'I', OP_IMM_32, 5, 0x00, (e) => e.setRd(e.signExtend(e.i32('shr_u', e.rs1w(), e.imm32())))),
  shiftw('sraiw', 'I', OP_IMM_32, 5, 0x20, (e) => e.setRd(e.signExtend(e.i32('shr_s', e.rs1w(), e.imm32())))),
  r('addw', 'I', OP_32, 0, 0x00, (e) => e.setRd(e.signExtend(e.i32('add', e.rs1w(), e.rs2w()))), C),
  r('subw', 'I', OP_32, 0, 0x20, (e) => e.setRd(e.signExtend(e.i32('sub', e.rs1w(), e.rs2w()))), C),
  r('sllw', 'I', OP_32, 1, 0x00, (e) => e.setRd(e.signExtend(e.i32('shl', e.rs1w(), e.rs2w())))),
  r('srlw', 'I', OP_32, 5, 0x00, (e) => e.setRd(e.signExtend(e.i32('shr_u', e.rs1w(), e.rs2w())))),
  r('sraw', 'I', OP_32, 5, 0x20, (e) => e.setRd(e.signExtend(e.i32('shr_s', e.rs1w(), e.rs2w())))),
  i('fence', 'I', 0x0f, 0, (e) => e.fence(), { format: 'NONE' }),
  exact('fence.i', 'Zifencei', 0x100f, 0x707f, 'SYS', (e) => e.system('fence.i')),
  exact('ecall', 'I', 0x0000_0073, 0xffff_ffff, 'SYS', (e) => e.system('ecall')),
  exact('ebreak', 'I', 0x0010_0073, 0xffff_ffff, 'SYS', (e) => e.system('ebreak'), C),
];

const MIN64 = -0x8000_0000_0000_0000n;
const MIN32 = -0x8000_0000;

/** Division by zero and overflow give values, not traps ("Division Operations") */
const div64 = (op: 'div' | 'rem', signed: boolean) => (e: Emitter) => {
  const dividend = e.let64(e.rs1());
  const divisor = e.let64(e.rs2());
  const divide = (): I64 => e.i64(signed ? `${op}_s` : `${op}_u`, dividend.get(), divisor.get());
  const overflow = (): I64 => (op === 'div' ? dividend.get() : e.c64(0));
  // wasm's rem_s gives 0 on overflow by itself, div_s would trap
  const checked = (): I64 =>
    signed && op === 'div'
      ? e.cond64(
          e.i32('and', e.compare64('eq', dividend.get(), e.c64(MIN64)), e.compare64('eq', divisor.get(), e.c64(-1))),
          overflow,
          divide,
        )
      : divide();
  e.setRd(e.cond64(e.isZero64(divisor.get()), () => (op === 'div' ? e.c64(-1) : dividend.get()), checked));
};

const div32 = (op: 'div' | 'rem', signed: boolean) => (e: Emitter) => {
  const dividend = e.let32(e.rs1w());
  const divisor = e.let32(e.rs2w());
  const divide = (): I32 => e.i32(signed ? `${op}_s` : `${op}_u`, dividend.get(), divisor.get());
  const checked = (): I32 =>
    signed && op === 'div'
      ? e.cond32(
          e.i32('and', e.i32('eq', dividend.get(), e.c32(MIN32)), e.i32('eq', divisor.get(), e.c32(-1))),
          () => dividend.get(),
          divide,
        )
      : divide();
  e.setRd(
    e.signExtend(e.cond32(e.isZero32(divisor.get()), () => (op === 'div' ? e.c32(-1) : dividend.get()), checked)),
  );
};

export const MULTIPLY_ROWS: readonly Row[] = [
  r('mul', 'M', OP, 0, 1, alu('mul')),
  r('mulh', 'M', OP, 1, 1, (e) => e.setRd(e.mulHigh('ss', e.rs1(), e.rs2()))),
  r('mulhsu', 'M', OP, 2, 1, (e) => e.setRd(e.mulHigh('su', e.rs1(), e.rs2()))),
  r('mulhu', 'M', OP, 3, 1, (e) => e.setRd(e.mulHigh('uu', e.rs1(), e.rs2()))),
  r('div', 'M', OP, 4, 1, div64('div', true)),
  r('divu', 'M', OP, 5, 1, div64('div', false)),
  r('rem', 'M', OP, 6, 1, div64('rem', true)),
  r('remu', 'M', OP, 7, 1, div64('rem', false)),
  r('mulw', 'M', OP_32, 0, 1, (e) => e.setRd(e.signExtend(e.i32('mul', e.rs1w(), e.rs2w())))),
  r('divw', 'M', OP_32, 4, 1, div32('div', true)),
  r('divuw', 'M', OP_32, 5, 1, div32('div', false)),
  r('remw', 'M', OP_32, 6, 1, div32('rem', true)),
  r('remuw', 'M', OP_32, 7, 1, div32('rem', false)),
];
