import type { F32, F64, I32 as I32Op, I64 as I64Op } from '../wasm/opcodes.ts';

/**
 * Values of the guest program while its semantics are written down. They are tokens: an emitter appends code in
 * the order of the calls, so each value is used exactly once, by the call that encloses it, in argument order.
 * What is needed twice goes through `let64`/`let32`.
 */
export interface I64 {
  readonly kind: 'i64';
}
export interface I32 {
  readonly kind: 'i32';
}
export interface Local<T> {
  get(): T;
}

export type I64Name = keyof typeof I64Op;
export type I32Name = keyof typeof I32Op;
export type FpName = keyof typeof F32 & keyof typeof F64;
/** Memory access by the letters of the RISC-V load mnemonics */
export type LoadWidth = 'b' | 'bu' | 'h' | 'hu' | 'w' | 'wu' | 'd';
export type StoreWidth = 'b' | 'h' | 'w' | 'd';
export type AmoName = 'add' | 'and' | 'or' | 'xor' | 'xchg' | 'min' | 'max' | 'minu' | 'maxu';
/** Single or double precision */
export type Precision = 's' | 'd';

/**
 * What instruction semantics are written against. The interpreter generator reads operands from predecoded slots;
 * the translator has them as constants and wasm locals. A difference between the engines is a bug in an emitter.
 */
export interface Emitter {
  // Operands
  rs1(): I64;
  rs2(): I64;
  /** Low 32 bits */
  rs1w(): I32;
  rs2w(): I32;
  /** Sign-extended immediate, or shift amount */
  imm(): I64;
  imm32(): I32;
  pc(): I64;
  /** Address of the instruction that follows */
  nextPc(): I64;

  // Integer arithmetic, by WebAssembly's names
  c64(value: bigint | number): I64;
  c32(value: number): I32;
  i64(op: I64Name, a: I64, b: I64): I64;
  i32(op: I32Name, a: I32, b: I32): I32;
  compare64(op: I64Name, a: I64, b: I64): I32;
  unary64(op: 'clz' | 'ctz' | 'popcnt', a: I64): I64;
  unary32(op: 'clz' | 'ctz' | 'popcnt', a: I32): I32;
  isZero64(a: I64): I32;
  isZero32(a: I32): I32;
  wrap(a: I64): I32;
  signExtend(a: I32): I64;
  zeroExtend(a: I32): I64;
  /** Sign-extends the low 8, 16 or 32 bits */
  signExtendFrom(bits: 8 | 16 | 32, a: I64): I64;
  select(ifTrue: I64, ifFalse: I64, condition: I32): I64;
  cond64(condition: I32, then: () => I64, otherwise: () => I64): I64;
  cond32(condition: I32, then: () => I32, otherwise: () => I32): I32;
  let64(value: I64): Local<I64>;
  let32(value: I32): Local<I32>;
  /** High 64 bits of the 128-bit product */
  mulHigh(kind: 'ss' | 'uu' | 'su', a: I64, b: I64): I64;

  setRd(value: I64): void;

  // Memory; a fault leaves the instruction
  load(width: LoadWidth, address: I64): I64;
  /** `value` may be asked for more than once */
  store(width: StoreWidth, address: I64, value: () => I64): void;
  loadReserved(bytes: 4 | 8): void;
  storeConditional(bytes: 4 | 8): void;
  amo(op: AmoName, bytes: 4 | 8): void;
  fence(): void;

  // Control
  /** To pc + imm where the condition holds */
  branch(condition: I32): void;
  jump(): void;
  jumpTo(address: I64): void;
  /** Instructions that touch privileged state, by name: the kernel does them from the encoded instruction */
  system(name: SystemName): void;

  // Floating point. Each row starts with fpEnabled (mstatus.FS), but those whose call says that it does so itself
  fpEnabled(): void;
  /** Raw 64 bits of a floating-point register */
  fs1(): I64;
  fs2(): I64;
  /** A single; the canonical NaN where the register is not NaN-boxed (unprivileged spec, "NaN Boxing") */
  single1(): I32;
  single2(): I32;
  setFd(value: I64): void;
  setSingle(value: I32): void;
  /** a op b with rounding and flags; checks FS itself */
  fpArithmetic(op: 'add' | 'sub' | 'mul' | 'div', precision: Precision): void;
  fpSqrt(precision: Precision): void;
  /** ±(rs1 × rs2) ± rs3 with one rounding */
  fpFused(negateProduct: boolean, negateAddend: boolean, precision: Precision): void;
  fpMinMax(op: 'min' | 'max', precision: Precision): void;
  fpCompare(op: 'eq' | 'lt' | 'le', precision: Precision): void;
  fpClass(precision: Precision): void;
  /** To an integer register */
  fpToInteger(precision: Precision, to: IntegerKind): void;
  integerToFp(from: IntegerKind, precision: Precision): void;
  fpConvert(from: Precision, to: Precision): void;
}

export type IntegerKind = 'i32' | 'u32' | 'i64' | 'u64';

export const SYSTEM_NAMES = [
  'ecall', 'ebreak', 'mret', 'sret', 'wfi', 'sfence.vma', 'sinval.vma', 'sfence.w.inval', 'sfence.inval.ir', 'fence.i',
  'csrrw', 'csrrs', 'csrrc', 'csrrwi', 'csrrsi', 'csrrci', 'cbo.inval', 'cbo.clean', 'cbo.flush', 'cbo.zero',
] as const; // biome-ignore format: short list
export type SystemName = (typeof SYSTEM_NAMES)[number];
