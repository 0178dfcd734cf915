// IEEE 754 by definition: operands are exact rationals of BigInts, and one function rounds. Slow, short, and sharing
// nothing with the soft float under test.

export interface Format {
  /** Significand bits with the implicit one */
  readonly precision: number;
  readonly exponentBits: number;
}

export const SINGLE: Format = { precision: 24, exponentBits: 8 };
export const DOUBLE: Format = { precision: 53, exponentBits: 11 };

export const NX = 1;
export const UF = 2;
export const OF = 4;
export const DZ = 8;
export const NV = 16;

export const RNE = 0;
export const RTZ = 1;
export const RDN = 2;
export const RUP = 3;
export const RMM = 4;

/** ± numerator ÷ denominator; a zero keeps its sign */
export interface Rational {
  readonly negative: boolean;
  readonly numerator: bigint;
  readonly denominator: bigint;
}

export type Operand =
  | ({ readonly kind: 'finite' } & Rational)
  | { readonly kind: 'infinite'; readonly negative: boolean }
  | { readonly kind: 'nan'; readonly signaling: boolean; readonly negative: boolean };

export interface Result {
  readonly bits: bigint;
  readonly flags: number;
}

const bias = (format: Format) => 2 ** (format.exponentBits - 1) - 1;
const widthOf = (format: Format) => format.precision + format.exponentBits;
const power = (exponent: number): Rational => ({
  negative: false,
  numerator: exponent > 0 ? 1n << BigInt(exponent) : 1n,
  denominator: exponent < 0 ? 1n << BigInt(-exponent) : 1n,
});

export function infinityBits(negative: boolean, format: Format): bigint {
  const field = (1n << BigInt(format.exponentBits)) - 1n;
  return (BigInt(negative) << BigInt(widthOf(format) - 1)) | (field << BigInt(format.precision - 1));
}

export function nanBits(format: Format): bigint {
  return infinityBits(false, format) | (1n << BigInt(format.precision - 2));
}

const zeroBits = (negative: boolean, format: Format) => BigInt(negative) << BigInt(widthOf(format) - 1);

export function decodeFloat(bits: bigint, format: Format): Operand {
  const fractionBits = format.precision - 1;
  const negative = bits >> BigInt(widthOf(format) - 1) === 1n;
  const fraction = bits & ((1n << BigInt(fractionBits)) - 1n);
  const field = Number((bits >> BigInt(fractionBits)) & ((1n << BigInt(format.exponentBits)) - 1n));
  if (field === 2 ** format.exponentBits - 1) {
    if (fraction === 0n) return { kind: 'infinite', negative };
    return { kind: 'nan', signaling: fraction >> BigInt(fractionBits - 1) === 0n, negative };
  }
  const whole = field === 0 ? fraction : fraction | (1n << BigInt(fractionBits));
  const scale = power(Math.max(field, 1) - bias(format) - fractionBits);
  return { kind: 'finite', negative, numerator: whole * scale.numerator, denominator: scale.denominator };
}

/** Quotient rounded to an integer; `inexact` when it was not one */
export function roundQuotient(value: Rational, rm: number): { whole: bigint; inexact: boolean } {
  const whole = value.numerator / value.denominator;
  const rest = value.numerator % value.denominator;
  const half = rest * 2n - value.denominator;
  const up =
    rm === RNE
      ? half > 0n || (half === 0n && (whole & 1n) === 1n)
      : rm === RMM
        ? half >= 0n
        : rest > 0n && rm === (value.negative ? RDN : RUP);
  return { whole: whole + BigInt(up), inexact: rest !== 0n };
}

const bitLength = (value: bigint) => value.toString(2).length;

/** Floor of the binary logarithm of a positive rational */
function exponentOf({ numerator, denominator }: Rational): number {
  const guess = bitLength(numerator) - bitLength(denominator);
  const { numerator: n, denominator: d } = power(guess);
  return numerator * d >= denominator * n ? guess : guess - 1;
}

/** `value` in units of 2^exponent, rounded to an integer */
function quantize(value: Rational, exponent: number, rm: number) {
  const unit = power(exponent);
  return roundQuotient(
    { ...value, numerator: value.numerator * unit.denominator, denominator: value.denominator * unit.numerator },
    rm,
  );
}

/** Rounds an exact value to the format */
export function roundTo(value: Rational, rm: number, format: Format): Result {
  if (value.numerator === 0n) return { bits: zeroBits(value.negative, format), flags: 0 };
  const fractionBits = format.precision - 1;
  const maximum = bias(format);
  const minimum = 1 - maximum;
  const exponent = exponentOf(value);
  const bounded = Math.max(exponent, minimum);
  const { whole, inexact } = quantize(value, bounded - fractionBits, rm);
  const magnitude = (BigInt(bounded + maximum - 1) << BigInt(fractionBits)) + whole;
  if (magnitude >= infinityBits(false, format)) {
    const toLargest = rm === RTZ || rm === (value.negative ? RUP : RDN);
    return { bits: infinityBits(value.negative, format) - BigInt(toLargest), flags: OF | NX };
  }
  // Tininess after rounding: with an unbounded exponent the result would still be below the smallest normal number.
  const unbounded = quantize(value, exponent - fractionBits, rm).whole;
  const tiny = exponent < minimum - 1 || (exponent < minimum && unbounded < 1n << BigInt(format.precision));
  return { bits: zeroBits(value.negative, format) | magnitude, flags: inexact ? (tiny ? UF | NX : NX) : 0 };
}

const invalid = (format: Format): Result => ({ bits: nanBits(format), flags: NV });

function nanResult(operands: readonly Operand[], format: Format): Result | undefined {
  const nans = operands.filter((operand) => operand.kind === 'nan');
  if (nans.length === 0) return undefined;
  return { bits: nanBits(format), flags: nans.some((nan) => nan.signaling) ? NV : 0 };
}

const isZero = (operand: Operand) => operand.kind === 'finite' && operand.numerator === 0n;

function sumOf(a: Rational, b: Rational, rm: number): Rational {
  const left = (a.negative ? -a.numerator : a.numerator) * b.denominator;
  const right = (b.negative ? -b.numerator : b.numerator) * a.denominator;
  const sum = left + right;
  const bothNegative = a.negative && b.negative;
  const negative = sum < 0n || (sum === 0n && (bothNegative || (a.negative !== b.negative && rm === RDN)));
  return { negative, numerator: sum < 0n ? -sum : sum, denominator: a.denominator * b.denominator };
}

export function add(a: Operand, b: Operand, rm: number, format: Format): Result {
  const nan = nanResult([a, b], format);
  if (nan) return nan;
  if (a.kind === 'infinite' && b.kind === 'infinite' && a.negative !== b.negative) return invalid(format);
  if (a.kind !== 'finite') return { bits: infinityBits(a.negative, format), flags: 0 };
  if (b.kind !== 'finite') return { bits: infinityBits(b.negative, format), flags: 0 };
  // An exact zero out of two nonzero numbers is positive, except when rounding down.
  const sum = sumOf(a, b, rm);
  const cancelled = sum.numerator === 0n && !isZero(a);
  return roundTo(cancelled ? { ...sum, negative: rm === RDN } : sum, rm, format);
}

export const negate = <T extends Operand>(a: T): T => ({ ...a, negative: !a.negative });

export function multiply(a: Operand, b: Operand, rm: number, format: Format): Result {
  const nan = nanResult([a, b], format);
  if (nan) return nan;
  if (a.kind === 'nan' || b.kind === 'nan') throw new Error('unreachable');
  const negative = a.negative !== b.negative;
  if (a.kind === 'infinite' || b.kind === 'infinite') {
    return isZero(a) || isZero(b) ? invalid(format) : { bits: infinityBits(negative, format), flags: 0 };
  }
  return roundTo(productOf(a, b), rm, format);
}

const productOf = (a: Rational, b: Rational): Rational => ({
  negative: a.negative !== b.negative,
  numerator: a.numerator * b.numerator,
  denominator: a.denominator * b.denominator,
});

export function multiplyAdd(a: Operand, b: Operand, c: Operand, rm: number, format: Format): Result {
  const infiniteTimesZero = (a.kind === 'infinite' && isZero(b)) || (isZero(a) && b.kind === 'infinite');
  if (infiniteTimesZero) return invalid(format);
  const nan = nanResult([a, b, c], format);
  if (nan) return nan;
  if (a.kind === 'nan' || b.kind === 'nan' || c.kind === 'nan') throw new Error('unreachable');
  if (a.kind === 'infinite' || b.kind === 'infinite') {
    const negative = a.negative !== b.negative;
    if (c.kind === 'infinite' && c.negative !== negative) return invalid(format);
    return { bits: infinityBits(negative, format), flags: 0 };
  }
  return add({ kind: 'finite', ...productOf(a, b) }, c, rm, format);
}

export function divide(a: Operand, b: Operand, rm: number, format: Format): Result {
  const nan = nanResult([a, b], format);
  if (nan) return nan;
  if (a.kind === 'nan' || b.kind === 'nan') throw new Error('unreachable');
  const negative = a.negative !== b.negative;
  if (a.kind === 'infinite') {
    return b.kind === 'infinite' ? invalid(format) : { bits: infinityBits(negative, format), flags: 0 };
  }
  if (b.kind === 'infinite') return { bits: zeroBits(negative, format), flags: 0 };
  if (isZero(b)) return isZero(a) ? invalid(format) : { bits: infinityBits(negative, format), flags: DZ };
  const quotient = { negative, numerator: a.numerator * b.denominator, denominator: a.denominator * b.numerator };
  return roundTo(quotient, rm, format);
}

function integerRoot(value: bigint): bigint {
  if (value < 2n) return value;
  let root = 1n << BigInt(Math.ceil(bitLength(value) / 2));
  for (;;) {
    const next = (root + value / root) >> 1n;
    if (next >= root) return root;
    root = next;
  }
}

export function squareRoot(a: Operand, rm: number, format: Format): Result {
  const nan = nanResult([a], format);
  if (nan) return nan;
  if (isZero(a)) return { bits: zeroBits(a.negative, format), flags: 0 };
  if (a.negative) return invalid(format);
  if (a.kind !== 'finite') return { bits: infinityBits(false, format), flags: 0 };
  // √(n/d) = √(nd)/d; √(nd) in units of 2^-160, plus half a unit if that is not all of it.
  const radicand = (a.numerator * a.denominator) << 320n;
  const root = integerRoot(radicand);
  const numerator = root * 2n + BigInt(root * root !== radicand);
  return roundTo({ negative: false, numerator, denominator: a.denominator << 161n }, rm, format);
}

/** To a two's complement integer of `width` bits; `bits` is not extended */
export function toInteger(a: Operand, rm: number, width: number, signed: boolean): Result {
  const maximum = (1n << BigInt(signed ? width - 1 : width)) - 1n;
  const minimum = signed ? -maximum - 1n : 0n;
  const low = (value: bigint) => BigInt.asUintN(width, value);
  if (a.kind === 'nan') return { bits: low(maximum), flags: NV };
  if (a.kind === 'infinite') return { bits: low(a.negative ? minimum : maximum), flags: NV };
  const { whole, inexact } = roundQuotient(a, rm);
  const value = a.negative ? -whole : whole;
  if (value > maximum || value < minimum) return { bits: low(a.negative ? minimum : maximum), flags: NV };
  return { bits: low(value), flags: inexact ? NX : 0 };
}

export function fromInteger(value: bigint, rm: number, format: Format): Result {
  return roundTo({ negative: value < 0n, numerator: value < 0n ? -value : value, denominator: 1n }, rm, format);
}

export function convert(a: Operand, rm: number, format: Format): Result {
  const nan = nanResult([a], format);
  if (nan) return nan;
  if (a.kind !== 'finite') return { bits: infinityBits(a.negative, format), flags: 0 };
  return roundTo(a, rm, format);
}

const signOf = (value: bigint) => (value > 0n ? 1 : value < 0n ? -1 : 0);

/** −1, 0 or 1 as a is below, equal to or above b; zeros of either sign are equal */
export function compare(a: Operand, b: Operand): number {
  if (a.kind === 'nan' || b.kind === 'nan') throw new Error('NaNs have no order');
  if (a.kind === 'infinite' || b.kind === 'infinite') {
    const rank = (x: Operand) => (x.kind === 'infinite' ? (x.negative ? -1 : 1) : 0);
    return Math.sign(rank(a) - rank(b));
  }
  const signed = (x: Rational) => (x.negative ? -x.numerator : x.numerator);
  return signOf(signed(a) * b.denominator - signed(b) * a.denominator);
}
