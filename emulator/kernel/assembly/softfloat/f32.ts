// The instructions on singles: `a`, `b`, `c` and results are bit patterns, `rm` is 0 to 4, flags accrue in the hart.

import { add } from './add';
import { classify, isEqual, isLess, isLessOrEqual, selectExtreme } from './compare';
import { fromInteger, toFormat, toInteger } from './convert';
import { divide, squareRoot } from './divide';
import { multiply, multiplyAdd } from './multiply';
import { CANONICAL_NAN_SINGLE, RNE, widen } from './number';

export function f32_add(a: u32, b: u32, rm: u32): u32 {
  return <u32>add(widen(a), widen(b), rm, true);
}

export function f32_sub(a: u32, b: u32, rm: u32): u32 {
  return <u32>add(widen(a), widen(b ^ 0x80000000), rm, true);
}

export function f32_mul(a: u32, b: u32, rm: u32): u32 {
  return <u32>multiply(widen(a), widen(b), rm, true);
}

export function f32_div(a: u32, b: u32, rm: u32): u32 {
  return <u32>divide(widen(a), widen(b), rm, true);
}

export function f32_sqrt(a: u32, rm: u32): u32 {
  return <u32>squareRoot(widen(a), rm, true);
}

/** a × b + c with one rounding; fmsub, fnmsub and fnmadd are this with signs of operands flipped */
export function f32_fma(a: u32, b: u32, c: u32, rm: u32): u32 {
  return <u32>multiplyAdd(widen(a), widen(b), widen(c), rm, true);
}

export function f32_min(a: u32, b: u32): u32 {
  const selected = selectExtreme(widen(a), widen(b), false);
  return selected < 0 ? CANONICAL_NAN_SINGLE : selected ? a : b;
}

export function f32_max(a: u32, b: u32): u32 {
  const selected = selectExtreme(widen(a), widen(b), true);
  return selected < 0 ? CANONICAL_NAN_SINGLE : selected ? a : b;
}

export function f32_eq(a: u32, b: u32): i32 {
  return <i32>isEqual(widen(a), widen(b));
}

export function f32_lt(a: u32, b: u32): i32 {
  return <i32>isLess(widen(a), widen(b));
}

export function f32_le(a: u32, b: u32): i32 {
  return <i32>isLessOrEqual(widen(a), widen(b));
}

export function f32_class(a: u32): u32 {
  const field = (a >> 23) & 0xff;
  return classify(<i32>a < 0, field == 0xff, field == 0, a & 0x7fffff, (a & 0x400000) != 0);
}

/** As the register sees it: sign-extended to 64 bits */
export function f32_to_i32(a: u32, rm: u32): u64 {
  return toInteger(widen(a), rm, 0xffffffff80000000, 0x7fffffff);
}

/** The unsigned 32-bit result is sign-extended, too (F §11.7) */
export function f32_to_u32(a: u32, rm: u32): u64 {
  return <u64><i64><i32>toInteger(widen(a), rm, 0, 0xffffffff);
}

export function f32_to_i64(a: u32, rm: u32): u64 {
  return toInteger(widen(a), rm, 0x8000000000000000, 0x7fffffffffffffff);
}

export function f32_to_u64(a: u32, rm: u32): u64 {
  return toInteger(widen(a), rm, 0, 0xffffffffffffffff);
}

/** From the low half of a register */
export function i32_to_f32(a: u64, rm: u32): u32 {
  const value = <i64><i32>a;
  return <u32>fromInteger(value < 0, <u64>(value < 0 ? -value : value), rm, true);
}

/** From the low half of a register */
export function u32_to_f32(a: u64, rm: u32): u32 {
  return <u32>fromInteger(false, a & 0xffffffff, rm, true);
}

export function i64_to_f32(a: u64, rm: u32): u32 {
  return <u32>fromInteger(<i64>a < 0, <i64>a < 0 ? 0 - a : a, rm, true);
}

export function u64_to_f32(a: u64, rm: u32): u32 {
  return <u32>fromInteger(false, a, rm, true);
}

/** Exact; a NaN becomes the canonical NaN */
export function f32_to_f64(a: u32): u64 {
  return toFormat(widen(a), RNE, false);
}
