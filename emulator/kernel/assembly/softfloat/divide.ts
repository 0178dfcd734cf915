// Quotient and root: the host's own correctly rounded operation on the significands, as doubles in [1, 4), then the
// exact remainder's sign. Neither a quotient nor a root of 53-bit numbers can lie halfway between two 53-bit numbers,
// so "above, equal or below the rounded result" is all that rounding to any narrower place needs to know.

import {
  DIVIDE_BY_ZERO,
  FRACTION,
  GUARD_BITS,
  IMPLICIT_ONE,
  exponentOf,
  infinity,
  invalid,
  isInfinite,
  isNan,
  isNegative,
  isZero,
  nanResult,
  raise,
  significandOf,
  zero,
} from './number';
import { round } from './round';

const ONE: u64 = 0x3ff0000000000000;

/** The 53-bit `significand` as a double in [1, 2) */
// @ts-ignore: decorator
@inline
function toDouble(significand: u64): f64 {
  return reinterpret<f64>(ONE | (significand & FRACTION));
}

/** The 53-bit significand of a positive double */
// @ts-ignore: decorator
@inline
function toSignificand(value: f64): u64 {
  return (reinterpret<u64>(value) & FRACTION) | IMPLICIT_ONE;
}

/** A working significand just above, at or just below `rounded`, as the remainder is positive, zero or negative */
// @ts-ignore: decorator
@inline
function adjust(rounded: u64, remainder: i64): u64 {
  return (rounded << GUARD_BITS) + <u64>(<i64>(remainder > 0) - <i64>(remainder < 0));
}

/** a ÷ b */
export function divide(a: u64, b: u64, rm: u32, single: bool): u64 {
  if (isNan(a) || isNan(b)) return nanResult(a, b, single);
  const negative = isNegative(a) != isNegative(b);
  if (isInfinite(a)) return isInfinite(b) ? invalid(single) : infinity(negative, single);
  if (isInfinite(b)) return zero(negative, single);
  if (isZero(b)) {
    if (isZero(a)) return invalid(single);
    raise(DIVIDE_BY_ZERO);
    return infinity(negative, single);
  }
  if (isZero(a)) return zero(negative, single);

  const dividend = significandOf(a) >> GUARD_BITS;
  const divisor = significandOf(b) >> GUARD_BITS;
  const quotient = toSignificand(toDouble(dividend) / toDouble(divisor));
  // The remainder is below 2^53 in magnitude: its wrapped 64 bits are exact.
  const below = <i32>(dividend < divisor);
  const remainder = <i64>((dividend << (52 + below)) - quotient * divisor);
  return round(negative, exponentOf(a) - exponentOf(b) - below, adjust(quotient, remainder), rm, single);
}

/** √a */
export function squareRoot(a: u64, rm: u32, single: bool): u64 {
  if (isNan(a)) return nanResult(a, a, single);
  if (isZero(a)) return zero(isNegative(a), single);
  if (isNegative(a)) return invalid(single);
  if (isInfinite(a)) return infinity(false, single);

  const significand = significandOf(a) >> GUARD_BITS;
  const exponent = exponentOf(a);
  const odd = exponent & 1;
  const root = toSignificand(sqrt<f64>(toDouble(significand) * <f64>(1 + odd)));
  const remainder = <i64>((significand << (52 + odd)) - root * root);
  return round(false, exponent >> 1, adjust(root, remainder), rm, single);
}
