// The translator's half of the instruction table: operands are constants and WebAssembly locals. Here floating point.
import type { Emitter, FpName, I32, I64, IntegerKind, Precision } from '../isa/emitter.ts';
import { BOX, WIDE, WORD } from '../isa/stack_emitter.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { FunctionBody } from '../wasm/module_builder.ts';
import { CONVERT, F32, F64, F64_MORE, MEMORY, I32 as OP32, I64 as OP64, TYPE_F64 } from '../wasm/opcodes.ts';
import type { AccessGroup } from './access_groups.ts';
import type { Instruction } from './instruction.ts';
import { MemoryEmitter } from './memory_emitter.ts';

const F32_EQ = 0x5b;
const F32_LT = 0x5d;
const F32_LE = 0x5f;
const F32_NEG = 0x8c;
const TO_DOUBLE: Record<IntegerKind, number> = {
  i32: CONVERT.f64_convert_i32_s,
  u32: CONVERT.f64_convert_i32_u,
  i64: CONVERT.f64_convert_i64_s,
  u64: CONVERT.f64_convert_i64_u,
};
const TO_SINGLE: Record<IntegerKind, number> = {
  i32: CONVERT.f32_convert_i32_s,
  u32: CONVERT.f32_convert_i32_u,
  i64: CONVERT.f32_convert_i64_s,
  u64: CONVERT.f32_convert_i64_u,
};
const RM_NEAREST = 0;
const RM_ZERO = 1;
const RM_DYNAMIC = 7;

/** Emits one instruction after the other into a function. */
export class RegisterEmitter extends MemoryEmitter implements Emitter {
  readonly #tempsF: number[] = [];
  #usedF = 0;
  /** Of this block: 0 nothing known of mstatus.FS, 1 not Off, 2 Dirty, 3 native arithmetic stands too */
  #fpState = 0;

  override beginBlock(): void {
    super.beginBlock();
    this.#fpState = 0;
  }

  emit(instruction: Instruction, group: AccessGroup | undefined): void {
    this.instruction = instruction;
    this.group = group;
    this.resetTemporaries();
    this.#usedF = 0;
    const { row } = instruction.facts;
    if (row.name.startsWith('fsgnj') && row.extension === 'D' && this.#signInject(row.name)) return;
    if (this.onWords(row.name)) return;
    row.emit(this);
  }

  #tempF(): number {
    const index = this.#usedF++;
    this.#tempsF[index] ??= this.f.local(TYPE_F64);
    return this.#tempsF[index];
  }

  fpEnabled(): void {
    if (this.#fpState > 0) return;
    this.#fpState = 1;
    this.loadHart(MEMORY.i32_load, H.HART_FS).op(OP32.eqz);
    this.frame.leaveIf();
  }

  #fpDirty(): void {
    if (this.#fpState >= 2) return;
    this.#fpState = 2;
    this.frame.pushHart();
    this.f.i32(3).mem(MEMORY.i32_store, this.frame.field(H.HART_FS));
  }

  #double(register: number): FunctionBody {
    return this.f.get(this.frame.fp(register));
  }
  #bits(register: number): FunctionBody {
    return this.#double(register).op(CONVERT.i64_reinterpret_f64);
  }
  fs1(): I64 {
    this.#bits(this.now().rs1);
    return WIDE;
  }
  fs2(): I64 {
    this.#bits(this.now().rs2);
    return WIDE;
  }

  setFd(_value: I64): void {
    if (!this.doubleOnStack) this.f.op(CONVERT.f64_reinterpret_i64);
    this.doubleOnStack = false;
    this.f.set(this.frame.fp(this.now().rd));
    this.#fpDirty();
  }
  override setSingle(value: I32): void {
    this.doubleOnStack = false;
    super.setSingle(value);
  }

  /** Sign injection of doubles without going through integers; false where it must. */
  #signInject(name: string): boolean {
    const { rs1, rs2 } = this.now();
    if (name === 'fsgnjx.d' && rs1 !== rs2) return false;
    this.fpEnabled();
    if (name === 'fsgnjx.d') this.#double(rs1).op(F64_MORE.abs);
    else {
      this.#double(rs1);
      if (rs1 === rs2) {
        if (name === 'fsgnjn.d') this.f.op(F64_MORE.neg);
      } else {
        this.#double(rs2);
        if (name === 'fsgnjn.d') this.f.op(F64_MORE.neg);
        this.f.op(F64_MORE.copysign);
      }
    }
    this.doubleOnStack = true;
    this.setFd(WIDE);
    return true;
  }

  /** Arithmetic in another rounding mode is the interpreter's; gives false then. */
  #isNearest(): boolean {
    const { rm } = this.now();
    return rm === RM_NEAREST || rm === RM_DYNAMIC;
  }
  /**
   * Leaves unless flags and rounding let native arithmetic stand: NX accrued, frm RNE, FS Dirty. Nothing in a
   * block changes that, so one look is enough for it.
   */
  #beginNative(): void {
    if (this.#fpState === 3) return;
    this.#fpState = 3;
    this.loadHart(MEMORY.i32_load, H.HART_FP_FAST).op(OP32.eqz);
    this.frame.leaveIf();
  }
  /** To the interpreter, whatever the operands are */
  #leave(): void {
    this.f.i32(1);
    this.frame.leaveIf();
  }
  #operand(precision: Precision, register: number): void {
    this.#bits(register);
    if (precision === 's') this.unbox();
  }
  #soft(precision: Precision, name: string): void {
    this.f.call(this.frame.call(`f${precision === 's' ? 32 : 64}_${name}`));
  }

  /** Leaves unless the registers hold boxed singles. */
  #boxed(registers: readonly number[]): void {
    for (const [index, register] of registers.entries()) {
      this.#bits(register);
      if (index > 0) this.f.op(OP64.and);
    }
    this.f.i64(32).op(OP64.shr_u).i64(0xffff_ffff).op(OP64.ne);
    this.frame.leaveIf();
  }
  #nativeSingle(register: number): FunctionBody {
    return this.#bits(register).op(CONVERT.i32_wrap_i64).op(CONVERT.f32_reinterpret_i32);
  }
  #native(precision: Precision, register: number): FunctionBody {
    return precision === 'd' ? this.#double(register) : this.#nativeSingle(register);
  }

  /**
   * Takes the native result from the stack as the instruction's: it is right with its flags where its exponent is
   * safely normal; where small results are exact, if it is finite. Else the interpreter does the instruction;
   * but a product is exactly zero where `zeroOperand` leaves i32 1.
   */
  #accept(precision: Precision, exactSmall: boolean, zeroOperand?: () => void): void {
    const f = this.f;
    const least = exactSmall ? 0 : 2;
    const [infinite, shift] = precision === 'd' ? [0x7ff, 52] : [0xff, 23];
    const result = precision === 'd' ? this.#tempF() : -1;
    const bits = precision === 'd' ? -1 : this.temp32();
    const { rd } = this.now();
    if (precision === 'd') {
      f.tee(result).op(CONVERT.i64_reinterpret_f64).i64(shift).op(OP64.shr_u).op(CONVERT.i32_wrap_i64);
    } else f.op(CONVERT.i32_reinterpret_f32).tee(bits).i32(shift).op(OP32.shr_u);
    f.i32(infinite).op(OP32.and);
    if (least > 0) f.i32(least).op(OP32.sub);
    f.i32(infinite - least).op(OP32.ge_u);
    if (zeroOperand !== undefined) {
      f.hint(false).if();
      zeroOperand();
      f.op(OP32.eqz);
      this.frame.leaveIf();
      f.end();
    } else this.frame.leaveIf();
    if (precision === 'd') f.get(result);
    else f.get(bits).op(CONVERT.i64_extend_i32_u).i64(BOX).op(OP64.or).op(CONVERT.f64_reinterpret_i64);
    f.set(this.frame.fp(rd));
  }

  fpArithmetic(op: 'add' | 'sub' | 'mul' | 'div', precision: Precision): void {
    if (!this.#isNearest()) {
      this.#leave();
      return;
    }
    const f = this.f;
    const { rs1, rs2 } = this.now();
    this.#beginNative();
    if (precision === 's') this.#boxed([rs1, rs2]);
    this.#native(precision, rs1);
    this.#native(precision, rs2).op(precision === 'd' ? F64[op] : F32[op]);
    // Zero times a finite number; of two zeros or an infinity the result would not be zero
    const zeroOperand =
      op !== 'mul' || precision === 's'
        ? undefined
        : () => {
            this.#double(rs1).get(this.frame.fp(rs2)).op(F64[op]).f64(0).op(F64_MORE.eq);
            this.#double(rs1).f64(0).op(F64_MORE.eq).get(this.frame.fp(rs2)).f64(0).op(F64_MORE.eq);
            f.op(OP32.or).op(OP32.and);
          };
    this.#accept(precision, op === 'add' || op === 'sub', zeroOperand);
  }
  fpSqrt(precision: Precision): void {
    if (!this.#isNearest()) {
      this.#leave();
      return;
    }
    const { rs1 } = this.now();
    const op: FpName = 'sqrt';
    this.#beginNative();
    if (precision === 's') this.#boxed([rs1]);
    this.#native(precision, rs1).op(precision === 'd' ? F64[op] : F32[op]);
    this.#accept(precision, false);
  }
  fpFused(negateProduct: boolean, negateAddend: boolean, precision: Precision): void {
    if (!this.#isNearest() || !this.frame.fusesMultiplyAdd) {
      this.#leave();
      return;
    }
    const f = this.f;
    const { rs1, rs2, rs3 } = this.now();
    this.#beginNative();
    if (precision === 's') this.#boxed([rs1, rs2, rs3]);
    const lanes = (register: number, negative: boolean): void => {
      this.#native(precision, register);
      if (negative) f.op(precision === 'd' ? F64_MORE.neg : F32_NEG);
      f.simd(precision === 'd' ? 0x14 : 0x13); // splat
    };
    lanes(rs1, negateProduct);
    lanes(rs2, false);
    lanes(rs3, negateAddend);
    // relaxed_madd, extract_lane 0
    if (precision === 'd') f.simd(0x107).simd(0x21, 0);
    else f.simd(0x105).simd(0x1f, 0);
    this.#accept(precision, false);
  }
  /** Leaves where an operand is a NaN: flags and canonical values are the interpreter's. */
  #ordered(precision: Precision): void {
    const { rs1, rs2 } = this.now();
    const equal = precision === 'd' ? F64_MORE.eq : F32_EQ;
    for (const register of rs1 === rs2 ? [rs1] : [rs1, rs2]) {
      this.#native(precision, register);
      this.#native(precision, register).op(equal);
    }
    if (rs1 !== rs2) this.f.op(OP32.and);
    this.f.op(OP32.eqz);
    this.frame.leaveIf();
  }
  fpMinMax(op: 'min' | 'max', precision: Precision): void {
    const { rs1, rs2 } = this.now();
    this.fpEnabled();
    if (precision === 's') {
      this.#operand(precision, rs1);
      this.#operand(precision, rs2);
      this.#soft(precision, op);
      this.setSingle(WORD);
      return;
    }
    this.#ordered(precision);
    this.#double(rs1)
      .get(this.frame.fp(rs2))
      .op(op === 'min' ? F64_MORE.min : F64_MORE.max);
    this.doubleOnStack = true;
    this.setFd(WIDE);
  }
  fpCompare(op: 'eq' | 'lt' | 'le', precision: Precision): void {
    const f = this.f;
    const { rs1, rs2 } = this.now();
    this.fpEnabled();
    if (precision === 's') this.#boxed([rs1, rs2]);
    this.#ordered(precision);
    this.#native(precision, rs1);
    this.#native(precision, rs2);
    f.op(precision === 'd' ? F64_MORE[op] : { eq: F32_EQ, lt: F32_LT, le: F32_LE }[op]);
    f.op(CONVERT.i64_extend_i32_u);
    this.setRd(WIDE);
    this.#fpDirty();
  }
  fpClass(precision: Precision): void {
    this.fpEnabled();
    this.#operand(precision, this.now().rs1);
    this.#soft(precision, 'class');
    this.f.op(CONVERT.i64_extend_i32_u);
    this.setRd(WIDE);
  }

  fpToInteger(precision: Precision, to: IntegerKind): void {
    const f = this.f;
    const { rs1, rm } = this.now();
    if (!this.#isNearest() && rm !== RM_ZERO) {
      this.#leave();
      return;
    }
    this.#beginNative();
    const value = this.#tempF();
    if (precision === 's') {
      this.#boxed([rs1]);
      this.#nativeSingle(rs1).op(CONVERT.f64_promote_f32);
    } else this.#double(rs1);
    f.op(rm === RM_ZERO ? F64_MORE.trunc : F64_MORE.nearest).tee(value);
    // Out of range, or a NaN: the interpreter saturates and says so
    const signed = to === 'i32' || to === 'i64';
    const bound = { i32: 2 ** 31, u32: 2 ** 32, i64: 2 ** 63, u64: 2 ** 64 }[to];
    if (signed) f.op(F64_MORE.abs);
    f.f64(bound).op(F64_MORE.lt);
    if (!signed) f.get(value).f64(0).op(F64_MORE.ge).op(OP32.and);
    f.op(OP32.eqz);
    this.frame.leaveIf();
    f.get(value).op(to === 'u64' ? CONVERT.i64_trunc_f64_u : CONVERT.i64_trunc_f64_s);
    if (to === 'u32') f.op(CONVERT.i64_extend32_s);
    this.setRd(WIDE);
  }

  integerToFp(from: IntegerKind, precision: Precision): void {
    const f = this.f;
    if (!this.#isNearest()) {
      this.#leave();
      return;
    }
    this.#beginNative();
    this.x(this.now().rs1);
    const narrow = from === 'i32' || from === 'u32';
    if (narrow) f.op(CONVERT.i32_wrap_i64);
    const opcodes = precision === 'd' ? TO_DOUBLE : TO_SINGLE;
    f.op(opcodes[from]);
    if (precision === 'd') {
      this.doubleOnStack = true;
      this.setFd(WIDE);
    } else {
      f.op(CONVERT.i32_reinterpret_f32);
      this.setSingle(WORD);
    }
  }

  fpConvert(from: Precision, to: Precision): void {
    const { rs1 } = this.now();
    if (!this.#isNearest()) {
      this.#leave();
      return;
    }
    this.#beginNative();
    if (from === 's') this.#boxed([rs1]);
    this.#native(from, rs1).op(from === 's' ? CONVERT.f64_promote_f32 : CONVERT.f32_demote_f64);
    // To double is exact
    this.#accept(to, to === 'd');
  }
}
