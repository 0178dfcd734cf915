// What both engines' emitters do alike: WebAssembly is a stack machine, and values of the guest are values on its stack.

import * as H from '../kernel/assembly/hart_layout.ts';
import type { FunctionBody } from '../wasm/module_builder.ts';
import {
  ATOMIC_RMW,
  CONVERT,
  LOAD64,
  I32 as OP32,
  I64 as OP64,
  SELECT,
  STORE64,
  TYPE_I32,
  TYPE_I64,
} from '../wasm/opcodes.ts';
import type { AmoName, I32, I32Name, I64, I64Name, Local } from './emitter.ts';

export const WIDE: I64 = { kind: 'i64' };
export const WORD: I32 = { kind: 'i32' };
const CANONICAL_NAN32 = 0x7fc0_0000;
/** Upper half of a register that holds a single (unprivileged specification, "NaN Boxing of Narrower Values") */
export const BOX = -0x1_0000_0000n;
const I64_ATOMIC_LOAD = 0x11;
const I64_ATOMIC_LOAD32_U = 0x16;

/** Locals that instructions use one after the other */
class LocalPool {
  readonly #f: FunctionBody;
  readonly #type: number;
  readonly #locals: number[] = [];
  #used = 0;

  constructor(f: FunctionBody, type: number) {
    this.#f = f;
    this.#type = type;
  }
  take(): number {
    const index = this.#used++;
    this.#locals[index] ??= this.#f.local(this.#type);
    return this.#locals[index];
  }
  reset(): void {
    this.#used = 0;
  }
}

/** Arithmetic and atomics of an Emitter; operands, plain memory, control and floating point are each engine's own. */
export abstract class StackEmitter {
  protected readonly f: FunctionBody;
  readonly #wide: LocalPool;
  readonly #words: LocalPool;

  constructor(f: FunctionBody) {
    this.f = f;
    this.#wide = new LocalPool(f, TYPE_I64);
    this.#words = new LocalPool(f, TYPE_I32);
  }

  abstract rs1(): I64;
  abstract rs2(): I64;
  abstract fs1(): I64;
  abstract fs2(): I64;
  abstract setRd(value: I64): void;
  abstract setFd(value: I64): void;
  /** A hart field's value on the stack */
  protected abstract loadHart(opcode: number, offset: number): FunctionBody;
  /** Stores what `push` pushes to a hart field */
  protected abstract storeHart(opcode: number, offset: number, push: () => void): void;
  /** Host address of the aligned word that rs1 names, in a local */
  protected abstract atomicHost(bytes: 4 | 8, write: boolean): number;
  protected abstract markDirty(host: number): void;
  /** Function index of a helper */
  protected abstract helper(name: string): number;

  /** The temporaries of the instruction before are free again. */
  protected resetTemporaries(): void {
    this.#wide.reset();
    this.#words.reset();
  }
  protected temp64(): number {
    return this.#wide.take();
  }
  protected temp32(): number {
    return this.#words.take();
  }

  c64(value: bigint | number): I64 {
    this.f.i64(value);
    return WIDE;
  }
  c32(value: number): I32 {
    this.f.i32(value);
    return WORD;
  }
  i64(op: I64Name, _a: I64, _b: I64): I64 {
    this.f.op(OP64[op]);
    return WIDE;
  }
  i32(op: I32Name, _a: I32, _b: I32): I32 {
    this.f.op(OP32[op]);
    return WORD;
  }
  compare64(op: I64Name, _a: I64, _b: I64): I32 {
    this.f.op(OP64[op]);
    return WORD;
  }
  unary64(op: 'clz' | 'ctz' | 'popcnt', _a: I64): I64 {
    this.f.op(OP64[op]);
    return WIDE;
  }
  unary32(op: 'clz' | 'ctz' | 'popcnt', _a: I32): I32 {
    this.f.op(OP32[op]);
    return WORD;
  }
  isZero64(_a: I64): I32 {
    this.f.op(OP64.eqz);
    return WORD;
  }
  isZero32(_a: I32): I32 {
    this.f.op(OP32.eqz);
    return WORD;
  }
  wrap(_a: I64): I32 {
    this.f.op(CONVERT.i32_wrap_i64);
    return WORD;
  }
  signExtend(_a: I32): I64 {
    this.f.op(CONVERT.i64_extend_i32_s);
    return WIDE;
  }
  zeroExtend(_a: I32): I64 {
    this.f.op(CONVERT.i64_extend_i32_u);
    return WIDE;
  }
  signExtendFrom(bits: 8 | 16 | 32, _a: I64): I64 {
    this.f.op(bits === 8 ? 0xc2 : bits === 16 ? 0xc3 : CONVERT.i64_extend32_s);
    return WIDE;
  }
  select(_a: I64, _b: I64, _condition: I32): I64 {
    this.f.op(SELECT);
    return WIDE;
  }
  cond64(_condition: I32, then: () => I64, otherwise: () => I64): I64 {
    this.f.if(TYPE_I64);
    then();
    this.f.else();
    otherwise();
    this.f.end();
    return WIDE;
  }
  cond32(_condition: I32, then: () => I32, otherwise: () => I32): I32 {
    this.f.if(TYPE_I32);
    then();
    this.f.else();
    otherwise();
    this.f.end();
    return WORD;
  }
  let64(_value: I64): Local<I64> {
    const local = this.temp64();
    this.f.set(local);
    return {
      get: () => {
        this.f.get(local);
        return WIDE;
      },
    };
  }
  let32(_value: I32): Local<I32> {
    const local = this.temp32();
    this.f.set(local);
    return {
      get: () => {
        this.f.get(local);
        return WORD;
      },
    };
  }
  mulHigh(kind: 'ss' | 'uu' | 'su', _a: I64, _b: I64): I64 {
    this.f.call(this.helper(`mulHigh_${kind}`));
    return WIDE;
  }

  // --- atomics ------------------------------------------------------------------------------------------------

  /** LR remembers address and value; SC compares and exchanges. Spurious success needs the same value back. */
  loadReserved(bytes: 4 | 8): void {
    const { f } = this;
    const host = this.atomicHost(bytes, false);
    const value = this.temp64();
    f.get(host)
      .atomic(bytes === 8 ? I64_ATOMIC_LOAD : I64_ATOMIC_LOAD32_U, bytes === 8 ? 3 : 2, 0)
      .set(value);
    this.storeHart(STORE64.d, H.HART_RESERVATION, () => f.get(host).op(CONVERT.i64_extend_i32_u));
    this.storeHart(STORE64.d, H.HART_RESERVED_VALUE, () => f.get(value));
    f.get(value);
    if (bytes === 4) f.op(CONVERT.i64_extend32_s);
    this.setRd(WIDE);
  }

  storeConditional(bytes: 4 | 8): void {
    const { f } = this;
    const host = this.atomicHost(bytes, true);
    const failed = this.temp32();
    f.i32(1).set(failed);
    this.loadHart(LOAD64.d, H.HART_RESERVATION).get(host).op(CONVERT.i64_extend_i32_u).op(OP64.eq);
    f.if();
    f.get(host);
    this.loadHart(LOAD64.d, H.HART_RESERVED_VALUE);
    this.rs2();
    // The 32-bit form compares and stores zero-extended values
    if (bytes === 4) f.i64(0xffff_ffff).op(OP64.and);
    f.atomic(ATOMIC_RMW.cmpxchg[bytes === 8 ? 1 : 0], bytes === 8 ? 3 : 2, 0);
    this.loadHart(LOAD64.d, H.HART_RESERVED_VALUE).op(OP64.ne).set(failed);
    this.markDirty(host);
    f.end();
    this.storeHart(STORE64.d, H.HART_RESERVATION, () => f.i64(0));
    f.get(failed).op(CONVERT.i64_extend_i32_u);
    this.setRd(WIDE);
  }

  amo(op: AmoName, bytes: 4 | 8): void {
    const { f } = this;
    const wide = bytes === 8 ? 1 : 0;
    const align = bytes === 8 ? 3 : 2;
    const host = this.atomicHost(bytes, true);
    const old = this.temp64();
    if (op === 'min' || op === 'max' || op === 'minu' || op === 'maxu') {
      const operand = this.temp64();
      const chosen = this.temp64();
      this.rs2();
      if (bytes === 4) f.op(CONVERT.i64_extend32_s);
      f.set(operand);
      const again = f.loop();
      f.get(host)
        .atomic(bytes === 8 ? I64_ATOMIC_LOAD : I64_ATOMIC_LOAD32_U, align, 0)
        .set(old);
      // Words are compared sign-extended: that keeps the unsigned order too, if both sides are
      const extend = (): void => {
        f.get(old);
        if (bytes === 4) f.op(CONVERT.i64_extend32_s);
      };
      extend();
      f.get(operand);
      extend();
      f.get(operand)
        .op(OP64[({ min: 'lt_s', max: 'gt_s', minu: 'lt_u', maxu: 'gt_u' } as const)[op]])
        .op(SELECT)
        .set(chosen);
      f.get(host).get(old).get(chosen);
      if (bytes === 4) f.i64(0xffff_ffff).op(OP64.and);
      f.atomic(ATOMIC_RMW.cmpxchg[wide], align, 0).get(old).op(OP64.ne).brIf(again);
      f.end();
    } else {
      f.get(host);
      this.rs2();
      f.atomic(ATOMIC_RMW[op][wide], align, 0).set(old);
    }
    this.markDirty(host);
    f.get(old);
    if (bytes === 4) f.op(CONVERT.i64_extend32_s);
    this.setRd(WIDE);
  }

  // --- singles ------------------------------------------------------------------------------------------------

  /** Takes a register's 64 bits from the stack and leaves its single, or the canonical NaN where it is not boxed. */
  protected unbox(): void {
    const raw = this.temp64();
    const { f } = this;
    f.tee(raw).op(CONVERT.i32_wrap_i64).i32(CANONICAL_NAN32);
    f.get(raw).i64(32).op(OP64.shr_u).i64(0xffff_ffff).op(OP64.eq).op(SELECT);
  }
  single1(): I32 {
    this.fs1();
    this.unbox();
    return WORD;
  }
  single2(): I32 {
    this.fs2();
    this.unbox();
    return WORD;
  }
  setSingle(_value: I32): void {
    this.f.op(CONVERT.i64_extend_i32_u).i64(BOX).op(OP64.or);
    this.setFd(WIDE);
  }
}
