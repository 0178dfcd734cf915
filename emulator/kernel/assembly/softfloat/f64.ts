// The instructions on doubles: `a`, `b`, `c` and results are bit patterns, `rm` is 0 to 4, flags accrue in the hart.

import { add } from './add';
import { classify, extreme, isEqual, isLess, isLessOrEqual } from './compare';
import { fromInteger, toFormat, toInteger } from './convert';
import { divide, squareRoot } from './divide';
import { multiply, multiplyAdd } from './multiply';
import { SIGN } from './number';

export function f64_add(a: u64, b: u64, rm: u32): u64 {
  return add(a, b, rm, false);
}

export function f64_sub(a: u64, b: u64, rm: u32): u64 {
  return add(a, b ^ SIGN, rm, false);
}

export function f64_mul(a: u64, b: u64, rm: u32): u64 {
  return multiply(a, b, rm, false);
}

export function f64_div(a: u64, b: u64, rm: u32): u64 {
  return divide(a, b, rm, false);
}

export function f64_sqrt(a: u64, rm: u32): u64 {
  return squareRoot(a, rm, false);
}

/** a × b + c with one rounding; fmsub, fnmsub and fnmadd are this with signs of operands flipped */
export function f64_fma(a: u64, b: u64, c: u64, rm: u32): u64 {
  return multiplyAdd(a, b, c, rm, false);
}

export function f64_min(a: u64, b: u64): u64 {
  return extreme(a, b, false);
}

export function f64_max(a: u64, b: u64): u64 {
  return extreme(a, b, true);
}

export function f64_eq(a: u64, b: u64): i32 {
  return <i32>isEqual(a, b);
}

export function f64_lt(a: u64, b: u64): i32 {
  return <i32>isLess(a, b);
}

export function f64_le(a: u64, b: u64): i32 {
  return <i32>isLessOrEqual(a, b);
}

export function f64_class(a: u64): u32 {
  const field = <u32>(a >> 52) & 0x7ff;
  return classify(<i64>a < 0, field == 0x7ff, field == 0, a & 0xfffffffffffff, (a & 0x8000000000000) != 0);
}

/** As the register sees it: sign-extended to 64 bits */
export function f64_to_i32(a: u64, rm: u32): u64 {
  return toInteger(a, rm, 0xffffffff80000000, 0x7fffffff);
}

/** The unsigned 32-bit result is sign-extended, too (F §11.7) */
export function f64_to_u32(a: u64, rm: u32): u64 {
  return <u64><i64><i32>toInteger(a, rm, 0, 0xffffffff);
}

export function f64_to_i64(a: u64, rm: u32): u64 {
  return toInteger(a, rm, 0x8000000000000000, 0x7fffffffffffffff);
}

export function f64_to_u64(a: u64, rm: u32): u64 {
  return toInteger(a, rm, 0, 0xffffffffffffffff);
}

/** From the low half of a register */
export function i32_to_f64(a: u64, rm: u32): u64 {
  const value = <i64><i32>a;
  return fromInteger(value < 0, <u64>(value < 0 ? -value : value), rm, false);
}

/** From the low half of a register */
export function u32_to_f64(a: u64, rm: u32): u64 {
  return fromInteger(false, a & 0xffffffff, rm, false);
}

export function i64_to_f64(a: u64, rm: u32): u64 {
  return fromInteger(<i64>a < 0, <i64>a < 0 ? 0 - a : a, rm, false);
}

export function u64_to_f64(a: u64, rm: u32): u64 {
  return fromInteger(false, a, rm, false);
}

export function f64_to_f32(a: u64, rm: u32): u32 {
  return <u32>toFormat(a, rm, true);
}
