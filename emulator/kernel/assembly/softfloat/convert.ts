import {
  INEXACT,
  INVALID,
  RDN,
  RMM,
  RNE,
  RUP,
  exponentOf,
  infinity,
  isInfinite,
  isNan,
  isNegative,
  isZero,
  nanResult,
  raise,
  significandOf,
  zero,
} from './number';
import { normalizeAndRound, round } from './round';

const HALF: u64 = 0x8000000000000000;

/** Raises invalid and saturates; a NaN counts as positive (F §11.7, "domains of float-to-integer conversions") */
function saturate(negative: bool, minimum: u64, maximum: u64): u64 {
  raise(INVALID);
  return negative ? minimum : maximum;
}

/**
 * Rounds to an integer between `minimum` and `maximum`, given as two's complement; `minimum` is 0 for an unsigned target.
 * Out of range raises invalid only, never inexact as well.
 */
export function toInteger(a: u64, rm: u32, minimum: u64, maximum: u64): u64 {
  if (isNan(a)) return saturate(false, minimum, maximum);
  const negative = isNegative(a);
  const exponent = exponentOf(a);
  if (exponent > 63) return saturate(negative, minimum, maximum);

  const significand = significandOf(a);
  // `rest` is the part below one, in units of 2^-64.
  let whole: u64 = 0;
  let rest: u64 = 0;
  if (exponent >= 62) {
    whole = significand << (exponent - 62);
  } else if (exponent >= -1) {
    whole = significand >> (62 - exponent);
    rest = significand << (exponent + 2);
  } else {
    rest = <u64>(significand != 0);
  }
  let up = false;
  if (rm == RNE) up = rest > HALF || (rest == HALF && (whole & 1) != 0);
  else if (rm == RMM) up = rest >= HALF;
  else if (rm == (negative ? RDN : RUP)) up = rest != 0;
  // Cannot wrap: there is no rest to round up when the exponent is 62 or more.
  const magnitude = whole + <u64>up;

  if (magnitude > (negative ? 0 - minimum : maximum)) return saturate(negative, minimum, maximum);
  if (rest) raise(INEXACT);
  return negative ? 0 - magnitude : magnitude;
}

/** A 64-bit magnitude with a sign to the format */
export function fromInteger(negative: bool, magnitude: u64, rm: u32, single: bool): u64 {
  if (magnitude == 0) return zero(false, single);
  return normalizeAndRound(negative, 62, magnitude, rm, single);
}

/** Rounds a number to the format; a NaN becomes the canonical NaN */
export function toFormat(a: u64, rm: u32, single: bool): u64 {
  if (isNan(a)) return nanResult(a, a, single);
  const negative = isNegative(a);
  if (isInfinite(a)) return infinity(negative, single);
  if (isZero(a)) return zero(negative, single);
  return round(negative, exponentOf(a), significandOf(a), rm, single);
}
