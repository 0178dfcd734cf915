// The one place where a result is rounded, and where overflow, underflow and inexact are found.

import { GUARD_BITS, INEXACT, OVERFLOW, RDN, RMM, RNE, RUP, UNDERFLOW, infinity, raise, shiftRightSticky } from './number';

/** What to add before truncating `mask`'s bits: half a unit, nearly a whole one, or nothing (IEEE 754-2019 §4.3) */
function increment(negative: bool, rm: u32, mask: u64): u64 {
  if (rm == RNE || rm == RMM) return (mask >> 1) + 1;
  return rm == (negative ? RDN : RUP) ? mask : 0;
}

/** Rounds off `mask`'s bits; nearest-even turns a tie's odd last place back */
function roundOff(significand: u64, negative: bool, rm: u32, mask: u64): u64 {
  const sum = significand + increment(negative, rm, mask);
  const tie = rm == RNE && (significand & mask) == (mask >> 1) + 1;
  return sum & ~mask & ~(<u64>tie * (mask + 1));
}

/**
 * Rounds `significand` × 2^(`exponent` − 62) to the format and gives its bits.
 * The leading one is bit 62; bit 0 stands for everything that is smaller ("sticky").
 */
export function round(negative: bool, exponent: i32, significand: u64, rm: u32, single: bool): u64 {
  const fractionBits: u32 = single ? 23 : 52;
  const maximum: i32 = single ? 127 : 1023;
  const minimum = 1 - maximum;
  const drop: u32 = single ? GUARD_BITS + 29 : GUARD_BITS;
  const mask = (<u64>1 << drop) - 1;
  const sign = <u64>negative << (single ? 31 : 63);

  if (exponent < minimum) {
    // Tininess is detected after rounding (F §11.2): as if the exponent were unbounded, so on the unshifted bits.
    const tiny = exponent < minimum - 1 || roundOff(significand, negative, rm, mask) >> 63 == 0;
    const shifted = shiftRightSticky(significand, minimum - exponent);
    if (shifted & mask) raise(tiny ? INEXACT | UNDERFLOW : INEXACT);
    // A carry into the implicit one makes the smallest normal number by itself.
    return sign | (roundOff(shifted, negative, rm, mask) >> drop);
  }

  // The implicit one, and a carry beyond it, are added to the exponent's field.
  const rounded = roundOff(significand, negative, rm, mask) >> drop;
  const magnitude = (<u64>(exponent + maximum - 1) << fractionBits) + rounded;
  const limit = infinity(false, single);
  if (exponent > maximum || magnitude >= limit) {
    raise(OVERFLOW | INEXACT);
    // Directed away from infinity: the largest finite number (IEEE 754-2019 §7.4).
    return sign | (limit - <u64>(increment(negative, rm, mask) == 0));
  }
  if (significand & mask) raise(INEXACT);
  return sign | magnitude;
}

/** {@link round} for a nonzero significand whose leading one may be anywhere */
export function normalizeAndRound(negative: bool, exponent: i32, significand: u64, rm: u32, single: bool): u64 {
  if (<i64>significand < 0) return round(negative, exponent + 1, shiftRightSticky(significand, 1), rm, single);
  const shift = <i32>clz(significand) - 1;
  return round(negative, exponent - shift, significand << shift, rm, single);
}
