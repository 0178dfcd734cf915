import {
  INVALID,
  RDN,
  exponentOf,
  infinity,
  invalid,
  isInfinite,
  isNan,
  isNegative,
  isSignaling,
  isZero,
  nan,
  nanResult,
  raise,
  shiftRightSticky,
  significandOf,
  zero,
} from './number';
import { normalizeAndRound, round } from './round';

/** Upper half of the 128-bit product */
function multiplyHigh(a: u64, b: u64): u64 {
  const aLow = a & 0xffffffff;
  const aHigh = a >> 32;
  const bLow = b & 0xffffffff;
  const bHigh = b >> 32;
  const middle = aHigh * bLow + ((aLow * bLow) >> 32);
  const carry = aLow * bHigh + (middle & 0xffffffff);
  return aHigh * bHigh + (middle >> 32) + (carry >> 32);
}

/** a × b */
export function multiply(a: u64, b: u64, rm: u32, single: bool): u64 {
  if (isNan(a) || isNan(b)) return nanResult(a, b, single);
  const negative = isNegative(a) != isNegative(b);
  if (isInfinite(a) || isInfinite(b)) return isZero(a) || isZero(b) ? invalid(single) : infinity(negative, single);
  if (isZero(a) || isZero(b)) return zero(negative, single);
  const left = significandOf(a) << 1;
  const right = significandOf(b) << 1;
  const product = multiplyHigh(left, right) | <u64>(left * right != 0);
  return normalizeAndRound(negative, exponentOf(a) + exponentOf(b), product, rm, single);
}

/** a × b + c with one rounding */
export function multiplyAdd(a: u64, b: u64, c: u64, rm: u32, single: bool): u64 {
  // F §11.6: ∞ × 0 is invalid even when the addend is a quiet NaN.
  const invalidProduct = (isInfinite(a) && isZero(b)) || (isZero(a) && isInfinite(b));
  if (invalidProduct || isNan(a) || isNan(b) || isNan(c)) {
    if (invalidProduct || isSignaling(a) || isSignaling(b) || isSignaling(c)) raise(INVALID);
    return nan(single);
  }
  let negative = isNegative(a) != isNegative(b);
  const subtracts = negative != isNegative(c);
  if (isInfinite(a) || isInfinite(b)) {
    return isInfinite(c) && subtracts ? invalid(single) : infinity(negative, single);
  }
  if (isInfinite(c)) return infinity(isNegative(c), single);

  // Both terms as 128 bits in units of 2^-124: the product exactly, with its leading one in bit 124 or 125.
  // Its last twenty bits and the addend's last seventy are zeros, so alignment loses bits only where
  // the terms are too far apart to cancel by more than a place.
  const left = significandOf(a);
  const right = significandOf(b);
  let high = multiplyHigh(left, right);
  let low = left * right;
  let exponent = exponentOf(a) + exponentOf(b);
  let addendHigh = significandOf(c) >> 2;
  let addendLow: u64 = 0;
  const distance = exponent - exponentOf(c);
  if (distance > 0) {
    addendLow = lowAfterShift(addendHigh, 0, distance);
    addendHigh = distance > 63 ? 0 : addendHigh >> distance;
  } else if (distance < 0) {
    low = lowAfterShift(high, low, -distance);
    high = -distance > 63 ? 0 : high >> -distance;
    exponent -= distance;
  }

  if (!subtracts) {
    low += addendLow;
    high += addendHigh + <u64>(low < addendLow);
  } else if (addendHigh > high || (addendHigh == high && addendLow > low)) {
    negative = !negative;
    high = addendHigh - high - <u64>(addendLow < low);
    low = addendLow - low;
  } else {
    high = high - addendHigh - <u64>(low < addendLow);
    low -= addendLow;
  }
  if ((high | low) == 0) return zero(subtracts ? rm == RDN : negative, single);

  // Only close terms cancel this far, and those were not shifted beyond their zeros: `low` has a bit above bit 0.
  if (high == 0) {
    exponent -= 63;
    high = low >> 1;
    low <<= 63;
  }
  const shift = <i32>clz(high) - 1;
  if (shift) {
    high = (high << shift) | (low >> (64 - shift));
    low <<= shift;
  }
  return round(negative, exponent + 2 - shift, high | <u64>(low != 0), rm, single);
}

/** Lower half of (high:low) >> count, sticky; count is 1 or more */
function lowAfterShift(high: u64, low: u64, count: u32): u64 {
  if (count > 63) return shiftRightSticky(high, count - 64) | <u64>(low != 0);
  return (high << (64 - count)) | shiftRightSticky(low, count);
}
