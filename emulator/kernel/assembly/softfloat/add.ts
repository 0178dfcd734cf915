import {
  RDN,
  exponentOf,
  infinity,
  invalid,
  isInfinite,
  isNan,
  isNegative,
  nanResult,
  shiftRightSticky,
  significandOf,
  zero,
} from './number';
import { normalizeAndRound } from './round';

/** a + b */
export function add(a: u64, b: u64, rm: u32, single: bool): u64 {
  if (isNan(a) || isNan(b)) return nanResult(a, b, single);
  let negative = isNegative(a);
  const subtracts = negative != isNegative(b);
  if (isInfinite(a)) return isInfinite(b) && subtracts ? invalid(single) : infinity(negative, single);
  if (isInfinite(b)) return infinity(isNegative(b), single);

  let exponent = exponentOf(a);
  let larger = significandOf(a);
  let smallerExponent = exponentOf(b);
  let smaller = significandOf(b);
  if (smallerExponent > exponent || (smallerExponent == exponent && smaller > larger)) {
    const swappedExponent = exponent;
    exponent = smallerExponent;
    smallerExponent = swappedExponent;
    const swapped = larger;
    larger = smaller;
    smaller = swapped;
    negative = isNegative(b);
  }
  // Ten guard bits: what the shift loses cannot reach the last place, even after one place of cancellation.
  const aligned = shiftRightSticky(smaller, exponent - smallerExponent);
  const sum = subtracts ? larger - aligned : larger + aligned;
  // IEEE 754-2019 §6.3: an exact zero difference is positive, except when rounding down.
  if (sum == 0) return zero(subtracts ? rm == RDN : negative, single);
  return normalizeAndRound(negative, exponent, sum, rm, single);
}
