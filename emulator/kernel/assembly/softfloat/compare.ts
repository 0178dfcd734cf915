import { CANONICAL_NAN, INVALID, SIGN, isNan, isNegative, isSignaling, raise } from './number';

/** Maps the numbers, −0 below +0, onto signed integers in the same order */
// @ts-ignore: decorator
@inline
function order(a: u64): i64 {
  return isNegative(a) ? <i64>~a ^ <i64>SIGN : <i64>a;
}

/** a = b, quiet: only a signaling NaN is invalid (F §11.8) */
export function isEqual(a: u64, b: u64): bool {
  if (isNan(a) || isNan(b)) {
    if (isSignaling(a) || isSignaling(b)) raise(INVALID);
    return false;
  }
  return a == b || ((a | b) & ~SIGN) == 0;
}

/** a < b, signaling: any NaN is invalid */
export function isLess(a: u64, b: u64): bool {
  if (isNan(a) || isNan(b)) {
    raise(INVALID);
    return false;
  }
  return order(a) < order(b) && ((a | b) & ~SIGN) != 0;
}

/** a ≤ b, signaling: any NaN is invalid */
export function isLessOrEqual(a: u64, b: u64): bool {
  if (isNan(a) || isNan(b)) {
    raise(INVALID);
    return false;
  }
  return order(a) <= order(b) || ((a | b) & ~SIGN) == 0;
}

/**
 * Whether fmin or fmax gives `a` (1), `b` (0) or the canonical NaN (−1): IEEE 754-2019 minimumNumber and
 * maximumNumber, F §11.6; a number wins over any NaN, −0 is below +0.
 */
export function selectExtreme(a: u64, b: u64, maximum: bool): i32 {
  if (isSignaling(a) || isSignaling(b)) raise(INVALID);
  if (isNan(a)) return isNan(b) ? -1 : 0;
  if (isNan(b)) return 1;
  return <i32>(maximum ? order(a) >= order(b) : order(a) <= order(b));
}

/** fmin.d, fmax.d */
export function extreme(a: u64, b: u64, maximum: bool): u64 {
  const selected = selectExtreme(a, b, maximum);
  return selected < 0 ? CANONICAL_NAN : selected ? a : b;
}

/** The fclass mask, F §11.9, of a number given by its parts */
export function classify(negative: bool, exponentIsMaximum: bool, exponentIsZero: bool, fraction: u64, quiet: bool): u32 {
  if (exponentIsMaximum) {
    if (fraction) return quiet ? 1 << 9 : 1 << 8;
    return negative ? 1 << 0 : 1 << 7;
  }
  if (!exponentIsZero) return negative ? 1 << 1 : 1 << 6;
  if (fraction) return negative ? 1 << 2 : 1 << 5;
  return negative ? 1 << 3 : 1 << 4;
}
