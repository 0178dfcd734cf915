// Zba, Zbb, Zbs, Zicond: unprivileged specification, "B" and "Zicond".
import type { Emitter, I64, I64Name } from './emitter.ts';
import { type Row, r, r2, shift, shiftw } from './row.ts';

const OP_IMM = 0x13;
const OP_IMM_32 = 0x1b;
const OP = 0x33;
const OP_32 = 0x3b;

const low32 = (e: Emitter): I64 => e.zeroExtend(e.rs1w());
const shiftAdd = (amount: number) => (e: Emitter) =>
  e.setRd(e.i64('add', e.i64('shl', e.rs1(), e.c64(amount)), e.rs2()));
const shiftAddWord = (amount: number) => (e: Emitter) =>
  e.setRd(e.i64('add', e.i64('shl', low32(e), e.c64(amount)), e.rs2()));
const not = (e: Emitter, value: I64): I64 => e.i64('xor', value, e.c64(-1));
const pick = (op: I64Name) => (e: Emitter) => e.setRd(e.select(e.rs1(), e.rs2(), e.compare64(op, e.rs1(), e.rs2())));
const bit = (e: Emitter, index: () => I64): I64 => e.i64('shl', e.c64(1), index());

/** Swaps neighbours of `width` bits, given the mask of the low ones */
const swap = (e: Emitter, value: I64, width: number, mask: bigint): I64 => {
  const v = e.let64(value);
  return e.i64(
    'or',
    e.i64('and', e.i64('shr_u', v.get(), e.c64(width)), e.c64(mask)),
    e.i64('shl', e.i64('and', v.get(), e.c64(mask)), e.c64(width)),
  );
};

const BYTE_HIGH = 0x8080_8080_8080_8080n;
const BYTE_LOW = 0x7f7f_7f7f_7f7f_7f7fn;

export const BIT_ROWS: readonly Row[] = [
  r('sh1add', 'Zba', OP, 2, 0x10, shiftAdd(1)),
  r('sh2add', 'Zba', OP, 4, 0x10, shiftAdd(2)),
  r('sh3add', 'Zba', OP, 6, 0x10, shiftAdd(3)),
  r('add.uw', 'Zba', OP_32, 0, 0x04, (e) => e.setRd(e.i64('add', low32(e), e.rs2()))),
  r('sh1add.uw', 'Zba', OP_32, 2, 0x10, shiftAddWord(1)),
  r('sh2add.uw', 'Zba', OP_32, 4, 0x10, shiftAddWord(2)),
  r('sh3add.uw', 'Zba', OP_32, 6, 0x10, shiftAddWord(3)),
  shift('slli.uw', 'Zba', OP_IMM_32, 1, 0x02, (e) => e.setRd(e.i64('shl', low32(e), e.imm()))),

  r('andn', 'Zbb', OP, 7, 0x20, (e) => e.setRd(e.i64('and', e.rs1(), not(e, e.rs2())))),
  r('orn', 'Zbb', OP, 6, 0x20, (e) => e.setRd(e.i64('or', e.rs1(), not(e, e.rs2())))),
  r('xnor', 'Zbb', OP, 4, 0x20, (e) => e.setRd(not(e, e.i64('xor', e.rs1(), e.rs2())))),
  r2('clz', 'Zbb', OP_IMM, 1, 0x600, (e) => e.setRd(e.unary64('clz', e.rs1()))),
  r2('ctz', 'Zbb', OP_IMM, 1, 0x601, (e) => e.setRd(e.unary64('ctz', e.rs1()))),
  r2('cpop', 'Zbb', OP_IMM, 1, 0x602, (e) => e.setRd(e.unary64('popcnt', e.rs1()))),
  r2('clzw', 'Zbb', OP_IMM_32, 1, 0x600, (e) => e.setRd(e.zeroExtend(e.unary32('clz', e.rs1w())))),
  r2('ctzw', 'Zbb', OP_IMM_32, 1, 0x601, (e) => e.setRd(e.zeroExtend(e.unary32('ctz', e.rs1w())))),
  r2('cpopw', 'Zbb', OP_IMM_32, 1, 0x602, (e) => e.setRd(e.zeroExtend(e.unary32('popcnt', e.rs1w())))),
  r2('sext.b', 'Zbb', OP_IMM, 1, 0x604, (e) => e.setRd(e.signExtendFrom(8, e.rs1()))),
  r2('sext.h', 'Zbb', OP_IMM, 1, 0x605, (e) => e.setRd(e.signExtendFrom(16, e.rs1()))),
  r2('zext.h', 'Zbb', OP_32, 4, 0x080, (e) => e.setRd(e.i64('and', e.rs1(), e.c64(0xffff)))),
  r('max', 'Zbb', OP, 6, 0x05, pick('gt_s')),
  r('maxu', 'Zbb', OP, 7, 0x05, pick('gt_u')),
  r('min', 'Zbb', OP, 4, 0x05, pick('lt_s')),
  r('minu', 'Zbb', OP, 5, 0x05, pick('lt_u')),
  r('rol', 'Zbb', OP, 1, 0x30, (e) => e.setRd(e.i64('rotl', e.rs1(), e.rs2()))),
  r('ror', 'Zbb', OP, 5, 0x30, (e) => e.setRd(e.i64('rotr', e.rs1(), e.rs2()))),
  shift('rori', 'Zbb', OP_IMM, 5, 0x18, (e) => e.setRd(e.i64('rotr', e.rs1(), e.imm()))),
  r('rolw', 'Zbb', OP_32, 1, 0x30, (e) => e.setRd(e.signExtend(e.i32('rotl', e.rs1w(), e.rs2w())))),
  r('rorw', 'Zbb', OP_32, 5, 0x30, (e) => e.setRd(e.signExtend(e.i32('rotr', e.rs1w(), e.rs2w())))),
  shiftw('roriw', 'Zbb', OP_IMM_32, 5, 0x30, (e) => e.setRd(e.signExtend(e.i32('rotr', e.rs1w(), e.imm32())))),
  r2('orc.b', 'Zbb', OP_IMM, 5, 0x287, (e) => {
    // A byte's high bit becomes 1 where any of its bits is: (b & 0x7f) + 0x7f carries into it, or it is set itself
    const x = e.let64(e.rs1());
    const high = e.let64(
      e.i64(
        'and',
        e.i64('or', e.i64('add', e.i64('and', x.get(), e.c64(BYTE_LOW)), e.c64(BYTE_LOW)), x.get()),
        e.c64(BYTE_HIGH),
      ),
    );
    // 0x80 per byte → 0xff per byte
    e.setRd(e.i64('or', e.i64('sub', high.get(), e.i64('shr_u', high.get(), e.c64(7))), high.get()));
  }),
  r2('rev8', 'Zbb', OP_IMM, 5, 0x6b8, (e) => {
    const halves = swap(e, swap(e, e.rs1(), 8, 0x00ff_00ff_00ff_00ffn), 16, 0x0000_ffff_0000_ffffn);
    e.setRd(e.i64('rotl', halves, e.c64(32)));
  }),

  r('bclr', 'Zbs', OP, 1, 0x24, (e) =>
    e.setRd(
      e.i64(
        'and',
        e.rs1(),
        not(
          e,
          bit(e, () => e.rs2()),
        ),
      ),
    ),
  ),
  r('bext', 'Zbs', OP, 5, 0x24, (e) => e.setRd(e.i64('and', e.i64('shr_u', e.rs1(), e.rs2()), e.c64(1)))),
  r('binv', 'Zbs', OP, 1, 0x34, (e) =>
    e.setRd(
      e.i64(
        'xor',
        e.rs1(),
        bit(e, () => e.rs2()),
      ),
    ),
  ),
  r('bset', 'Zbs', OP, 1, 0x14, (e) =>
    e.setRd(
      e.i64(
        'or',
        e.rs1(),
        bit(e, () => e.rs2()),
      ),
    ),
  ),
  shift('bclri', 'Zbs', OP_IMM, 1, 0x12, (e) =>
    e.setRd(
      e.i64(
        'and',
        e.rs1(),
        not(
          e,
          bit(e, () => e.imm()),
        ),
      ),
    ),
  ),
  shift('bexti', 'Zbs', OP_IMM, 5, 0x12, (e) => e.setRd(e.i64('and', e.i64('shr_u', e.rs1(), e.imm()), e.c64(1)))),
  shift('binvi', 'Zbs', OP_IMM, 1, 0x1a, (e) =>
    e.setRd(
      e.i64(
        'xor',
        e.rs1(),
        bit(e, () => e.imm()),
      ),
    ),
  ),
  shift('bseti', 'Zbs', OP_IMM, 1, 0x0a, (e) =>
    e.setRd(
      e.i64(
        'or',
        e.rs1(),
        bit(e, () => e.imm()),
      ),
    ),
  ),

  r('czero.eqz', 'Zicond', OP, 5, 0x07, (e) => e.setRd(e.select(e.c64(0), e.rs1(), e.isZero64(e.rs2())))),
  r('czero.nez', 'Zicond', OP, 7, 0x07, (e) => e.setRd(e.select(e.rs1(), e.c64(0), e.isZero64(e.rs2())))),
];
