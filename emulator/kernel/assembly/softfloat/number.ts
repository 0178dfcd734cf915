// The soft float's one kind of number: a double's bit pattern. Every single is exactly a double, so singles are
// widened without loss, computed with here, and rounded once, to the format that the instruction names.
// Special values follow the RISC-V unprivileged specification, F §11.3: every NaN result is the canonical NaN.

import { HART } from '../hart';
import { HART_FFLAGS } from '../hart_layout';

/** Accrued exceptions as in fflags */
export const INEXACT: u32 = 1;
export const UNDERFLOW: u32 = 2;
export const OVERFLOW: u32 = 4;
export const DIVIDE_BY_ZERO: u32 = 8;
export const INVALID: u32 = 16;

/** Rounding modes as in frm; the dynamic mode 7 is resolved by the caller */
export const RNE: u32 = 0;
export const RTZ: u32 = 1;
export const RDN: u32 = 2;
export const RUP: u32 = 3;
export const RMM: u32 = 4;

export const CANONICAL_NAN: u64 = 0x7ff8000000000000;
export const CANONICAL_NAN_SINGLE: u32 = 0x7fc00000;

export const SIGN: u64 = 0x8000000000000000;
const INFINITY_BITS: u64 = 0x7ff0000000000000;
const QUIET: u64 = 0x0008000000000000;
export const FRACTION: u64 = 0x000fffffffffffff;
export const IMPLICIT_ONE: u64 = 0x0010000000000000;

/** Below every exponent that a finite operand or a product of two can have: a zero is always the one to be aligned */
const ZERO_EXPONENT: i32 = -0x4000;

/** Bits below a double's last place in the working significand, whose leading one is bit 62 */
export const GUARD_BITS: u32 = 10;

/** ORs `flags` into the hart's accrued exceptions */
export function raise(flags: u32): void {
  store<u32>(HART, load<u32>(HART, HART_FFLAGS) | flags, HART_FFLAGS);
}

// @ts-ignore: decorator
@inline
export function isNan(a: u64): bool {
  return (a & ~SIGN) > INFINITY_BITS;
}

// @ts-ignore: decorator
@inline
export function isSignaling(a: u64): bool {
  return isNan(a) && !(a & QUIET);
}

// @ts-ignore: decorator
@inline
export function isInfinite(a: u64): bool {
  return (a & ~SIGN) == INFINITY_BITS;
}

// @ts-ignore: decorator
@inline
export function isZero(a: u64): bool {
  return (a & ~SIGN) == 0;
}

// @ts-ignore: decorator
@inline
export function isNegative(a: u64): bool {
  return <i64>a < 0;
}

/** Exponent of the leading one of a finite number: 0 for 1.0, -1074 for the smallest subnormal */
export function exponentOf(a: u64): i32 {
  const field = <i32>(a >> 52) & 0x7ff;
  if (field) return field - 1023;
  const fraction = a & FRACTION;
  return fraction ? -1011 - <i32>clz(fraction) : ZERO_EXPONENT;
}

/** Significand of a finite number with its leading one in bit 62; 0 for a zero */
export function significandOf(a: u64): u64 {
  const fraction = a & FRACTION;
  if (a & INFINITY_BITS) return (fraction | IMPLICIT_ONE) << GUARD_BITS;
  return fraction << (clz(fraction) - 1);
}

/** Infinity of the sign, in the result's format */
export function infinity(negative: bool, single: bool): u64 {
  return single ? (<u64>negative << 31) | 0x7f800000 : (<u64>negative << 63) | INFINITY_BITS;
}

/** Zero of the sign, in the result's format */
export function zero(negative: bool, single: bool): u64 {
  return <u64>negative << (single ? 31 : 63);
}

/** The canonical NaN in the result's format */
export function nan(single: bool): u64 {
  return single ? <u64>CANONICAL_NAN_SINGLE : CANONICAL_NAN;
}

/** Raises the invalid exception and gives the canonical NaN */
export function invalid(single: bool): u64 {
  raise(INVALID);
  return nan(single);
}

/** The result of an operation with a NaN operand: invalid only if one of them is signaling */
export function nanResult(a: u64, b: u64, single: bool): u64 {
  if (isSignaling(a) || isSignaling(b)) raise(INVALID);
  return nan(single);
}

/** A single's bit pattern as the double of the same value; a NaN stays quiet or signaling, nothing is raised */
export function widen(a: u32): u64 {
  const sign = <u64>(a >> 31) << 63;
  const field = (a >> 23) & 0xff;
  const fraction = a & 0x7fffff;
  if (field == 0xff) return sign | INFINITY_BITS | (<u64>fraction << 29);
  if (field) return sign | (<u64>(field + 896) << 52) | (<u64>fraction << 29);
  if (!fraction) return sign;
  const shift = clz(fraction) - 8;
  return sign | (<u64>(897 - shift) << 52) | (<u64>((fraction << shift) & 0x7fffff) << 29);
}

/** Shifts right; what falls out is remembered in bit 0 */
export function shiftRightSticky(a: u64, count: u32): u64 {
  if (count == 0) return a;
  if (count > 63) return <u64>(a != 0);
  return (a >> count) | <u64>(a << (64 - count) != 0);
}
