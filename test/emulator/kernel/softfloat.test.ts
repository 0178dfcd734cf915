import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { HART_FFLAGS } from '../../../emulator/kernel/assembly/hart_layout.ts';
import { compileAssembly } from './compile_assembly.ts';
import * as model from './float_model.ts';
import { DOUBLE, type Format, NV, type Operand, type Result, SINGLE } from './float_model.ts';

const HART = 0x4000;
const { exports: soft, memory } = await compileAssembly('emulator/kernel/assembly/softfloat/mod.ts', HART);
const fflags = new Uint32Array(memory.buffer, HART + HART_FFLAGS, 1);
const MODES = [model.RNE, model.RTZ, model.RDN, model.RUP, model.RMM];
const MODE_NAMES = ['rne', 'rtz', 'rdn', 'rup', 'rmm'];

/** One format's side of the soft float */
interface Side {
  readonly name: 'f32' | 'f64';
  readonly format: Format;
  readonly corners: readonly bigint[];
}

/** Zeros, ends of the subnormals and normals, around powers of two, integers' limits, halves; both signs; NaNs */
function cornersOf(format: Format): bigint[] {
  const fractionBits = BigInt(format.precision - 1);
  const bias = 2 ** (format.exponentBits - 1) - 1;
  const ones = (1n << fractionBits) - 1n;
  const at = (exponent: number, fraction: bigint) => (BigInt(exponent + bias) << fractionBits) | fraction;
  const positive = [
    0n,
    1n,
    2n,
    1n << (fractionBits - 1n),
    ones - 1n,
    ones,
    at(1 - bias, 0n),
    at(1 - bias, 1n),
    at(1 - bias, ones),
    at(2 - bias, 0n),
    at(-format.precision, 0n),
    at(-1, 0n),
    at(-1, ones),
    at(0, 0n),
    at(0, 1n),
    at(0, 1n << (fractionBits - 1n)),
    at(0, ones),
    at(1, 1n << (fractionBits - 2n)),
    at(format.precision - 1, 1n),
    at(30, ones),
    at(31, 0n),
    at(62, ones),
    at(63, 0n),
    at(bias - 1, ones),
    at(bias, 0n),
    at(bias, ones),
    at(bias + 1, 0n), // infinity
    at(bias + 1, 1n), // signaling
    at(bias + 1, (1n << (fractionBits - 1n)) | 5n), // quiet
  ];
  const sign = 1n << BigInt(format.precision + format.exponentBits - 1);
  return positive.flatMap((bits) => [bits, bits | sign]);
}

const SIDES: readonly Side[] = [
  { name: 'f32', format: SINGLE, corners: cornersOf(SINGLE) },
  { name: 'f64', format: DOUBLE, corners: cornersOf(DOUBLE) },
];

const toArgument = (side: Side, bits: bigint) => (side.name === 'f32' ? Number(bits) | 0 : bits);
const toBits = (result: number | bigint) =>
  typeof result === 'bigint' ? BigInt.asUintN(64, result) : BigInt(result >>> 0);

/** Calls an export with cleared flags */
function call(name: string, ...args: (number | bigint)[]): Result {
  fflags[0] = 0;
  const bits = toBits(soft[name]!(...args));
  return { bits, flags: fflags[0]! };
}

function check(t: ExecutionContext, what: () => string, actual: Result, expected: Result) {
  if (actual.bits === expected.bits && actual.flags === expected.flags) return;
  const show = ({ bits, flags }: Result) => `0x${bits.toString(16)} flags ${flags}`;
  t.fail(`${what()}: ${show(actual)}, expected ${show(expected)}`);
  throw new Error('first difference');
}

const show = (...operands: bigint[]) => operands.map((bits) => `0x${bits.toString(16)}`).join(' ');

type Reference = (operands: Operand[], rm: number, format: Format) => Result;

const ARITHMETIC: Record<string, { readonly arity: number; readonly reference: Reference }> = {
  add: { arity: 2, reference: ([a, b], rm, format) => model.add(a!, b!, rm, format) },
  sub: { arity: 2, reference: ([a, b], rm, format) => model.add(a!, model.negate(b!), rm, format) },
  mul: { arity: 2, reference: ([a, b], rm, format) => model.multiply(a!, b!, rm, format) },
  div: { arity: 2, reference: ([a, b], rm, format) => model.divide(a!, b!, rm, format) },
  sqrt: { arity: 1, reference: ([a], rm, format) => model.squareRoot(a!, rm, format) },
  fma: { arity: 3, reference: ([a, b, c], rm, format) => model.multiplyAdd(a!, b!, c!, rm, format) },
};

function checkArithmetic(t: ExecutionContext, side: Side, operation: string, operands: readonly bigint[], rm: number) {
  const { reference } = ARITHMETIC[operation]!;
  const name = `${side.name}_${operation}`;
  const expected = reference(
    operands.map((bits) => model.decodeFloat(bits, side.format)),
    rm,
    side.format,
  );
  const actual = call(name, ...operands.map((bits) => toArgument(side, bits)), rm);
  check(t, () => `${name} ${show(...operands)} ${MODE_NAMES[rm]}`, actual, expected);
}

/** Any bits, corners, and numbers whose exponents lie near each other or near an end */
function operandArbitrary(side: Side): fc.Arbitrary<bigint> {
  const { precision, exponentBits } = side.format;
  const fractionBits = BigInt(precision - 1);
  const bias = 2 ** (exponentBits - 1) - 1;
  const fraction = fc.oneof(
    fc.bigInt(0n, (1n << fractionBits) - 1n),
    fc.integer({ min: 0, max: precision - 2 }).map((bit) => 1n << BigInt(bit)),
    fc.integer({ min: 0, max: precision - 2 }).map((bit) => (1n << fractionBits) - (1n << BigInt(bit))),
    fc.integer({ min: 0, max: 3 }).map(BigInt),
  );
  const field = fc.oneof(
    fc.integer({ min: 0, max: 2 * bias }),
    fc.integer({ min: bias - 3, max: bias + 3 }),
    fc.integer({ min: bias - precision - 2, max: bias + 66 }),
    fc.integer({ min: 0, max: precision + 2 }),
    fc.integer({ min: 2 * bias - 4, max: 2 * bias }),
    fc.integer({ min: (bias >> 1) - 4, max: (bias >> 1) + 4 }),
  );
  const number = fc
    .tuple(fc.boolean(), field, fraction)
    .map(
      ([negative, exponent, bits]) =>
        (BigInt(negative) << BigInt(precision + exponentBits - 1)) | (BigInt(exponent) << fractionBits) | bits,
    );
  return fc.oneof(
    { weight: 8, arbitrary: number },
    { weight: 1, arbitrary: fc.bigInt(0n, (1n << BigInt(precision + exponentBits)) - 1n) },
    { weight: 1, arbitrary: fc.constantFrom(...side.corners) },
  );
}

const modeArbitrary = fc.constantFrom(...MODES);

for (const side of SIDES) {
  for (const [operation, { arity }] of Object.entries(ARITHMETIC)) {
    test(`${side.name}_${operation}() equals exact rationals, rounded once, on random operands`, (t) => {
      const operands = fc.array(operandArbitrary(side), { minLength: arity, maxLength: arity });
      fc.assert(
        fc.property(operands, modeArbitrary, (values, rm) => checkArithmetic(t, side, operation, values, rm)),
        { numRuns: 10_000 },
      );
      t.pass();
    });

    if (arity > 2) continue;
    test(`${side.name}_${operation}() equals exact rationals on the corner values in every rounding mode`, (t) => {
      for (const a of side.corners) {
        for (const b of arity === 1 ? [0n] : side.corners) {
          for (const rm of MODES) checkArithmetic(t, side, operation, arity === 1 ? [a] : [a, b], rm);
        }
      }
      t.pass();
    });
  }

  test(`${side.name}_fma() equals exact rationals where terms cancel, tie or nearly vanish`, (t) => {
    const few = side.corners.filter((_, index) => index % 3 === 0);
    let index = 0;
    for (const a of few)
      for (const b of few) for (const c of few) checkArithmetic(t, side, 'fma', [a, b, c], index++ % 5);
    // c = −round(a × b) and its neighbours: what is left is the product's own rounding error.
    const operand = operandArbitrary(side);
    const sign = 1n << BigInt(side.format.precision + side.format.exponentBits - 1);
    fc.assert(
      fc.property(operand, operand, fc.bigInt(-2n, 2n), modeArbitrary, (a, b, step, rm) => {
        const product = call(`${side.name}_mul`, toArgument(side, a), toArgument(side, b), rm).bits;
        const c = BigInt.asUintN(side.name === 'f32' ? 32 : 64, (product ^ sign) + step);
        checkArithmetic(t, side, 'fma', [a, b, c], rm);
      }),
      { numRuns: 10_000 },
    );
    t.pass();
  });

  test(`${side.name}_div() and ${side.name}_sqrt() keep exact results exact`, (t) => {
    const whole = fc.bigInt(1n, (1n << BigInt(side.format.precision >> 1)) - 1n);
    fc.assert(
      fc.property(whole, whole, modeArbitrary, (a, b, rm) => {
        const bits = (value: bigint) => model.fromInteger(value, model.RNE, side.format).bits;
        const product = toArgument(side, bits(a * b));
        t.deepEqual(call(`${side.name}_div`, product, toArgument(side, bits(b)), rm), { bits: bits(a), flags: 0 });
        t.deepEqual(call(`${side.name}_sqrt`, toArgument(side, bits(a * a)), rm), { bits: bits(a), flags: 0 });
      }),
      { numRuns: 500 },
    );
  });

  test(`${side.name} comparisons and extremes follow the order of rationals and their NaN rules`, (t) => {
    for (const a of side.corners) {
      for (const b of side.corners) {
        const left = model.decodeFloat(a, side.format);
        const right = model.decodeFloat(b, side.format);
        const args = [toArgument(side, a), toArgument(side, b)];
        const nan = left.kind === 'nan' || right.kind === 'nan';
        const signaling = [left, right].some((operand) => operand.kind === 'nan' && operand.signaling);
        const order = nan ? Number.NaN : model.compare(left, right);
        const quietFlags = signaling ? NV : 0;
        const expect = (name: string, bits: bigint, flags: number) =>
          check(t, () => `${name} ${show(a, b)}`, call(`${side.name}_${name}`, ...args), { bits, flags });
        expect('eq', BigInt(order === 0), quietFlags);
        expect('lt', BigInt(order < 0), nan ? NV : 0);
        expect('le', BigInt(order <= 0), nan ? NV : 0);
        const pick = (maximum: boolean): bigint => {
          if (left.kind === 'nan') return right.kind === 'nan' ? model.nanBits(side.format) : b;
          if (right.kind === 'nan') return a;
          if (order === 0) return left.negative === maximum ? b : a; // −0 is below +0
          return order < 0 === maximum ? b : a;
        };
        expect('min', pick(false), quietFlags);
        expect('max', pick(true), quietFlags);
      }
    }
    t.pass();
  });

  test(`${side.name}_class() names every kind`, (t) => {
    const { precision, exponentBits } = side.format;
    const smallestNormal = 1n << BigInt(precision - 1);
    for (const bits of side.corners) {
      const operand = model.decodeFloat(bits, side.format);
      const magnitude = bits & ((1n << BigInt(precision + exponentBits - 1)) - 1n);
      const expected = () => {
        if (operand.kind === 'nan') return operand.signaling ? 8 : 9;
        if (operand.kind === 'infinite') return operand.negative ? 0 : 7;
        const rank = magnitude === 0n ? 0 : magnitude < smallestNormal ? 1 : 2;
        return operand.negative ? 3 - rank : 4 + rank;
      };
      const what = () => `class ${show(bits)}`;
      const actual = call(`${side.name}_class`, toArgument(side, bits));
      check(t, what, actual, { bits: 1n << BigInt(expected()), flags: 0 });
    }
    t.pass();
  });

  const INTEGERS = [
    { name: 'i32', width: 32, signed: true },
    { name: 'u32', width: 32, signed: false },
    { name: 'i64', width: 64, signed: true },
    { name: 'u64', width: 64, signed: false },
  ];
  for (const { name, width, signed } of INTEGERS) {
    test(`${side.name}_to_${name}() rounds, saturates and extends the sign of 32 bits`, (t) => {
      const verify = (bits: bigint, rm: number) => {
        const expected = model.toInteger(model.decodeFloat(bits, side.format), rm, width, signed);
        const register = BigInt.asUintN(64, BigInt.asIntN(width, expected.bits));
        const actual = call(`${side.name}_to_${name}`, toArgument(side, bits), rm);
        check(t, () => `to_${name} ${show(bits)} ${MODE_NAMES[rm]}`, actual, { bits: register, flags: expected.flags });
      };
      // Around the limits: a half below, at, above; where the format has room for it.
      const limits = [0n, 1n << 31n, 1n << 32n, 1n << 63n, 1n << 64n];
      for (const limit of limits) {
        for (let step = -8n; step <= 8n; step++) {
          const value = { negative: limit * 4n + step < 0n, numerator: limit * 4n + step, denominator: 4n };
          const numerator = value.numerator < 0n ? -value.numerator : value.numerator;
          for (const negative of [value.negative, !value.negative]) {
            const { bits } = model.roundTo({ negative, numerator, denominator: 4n }, model.RNE, side.format);
            for (const rm of MODES) verify(bits, rm);
          }
        }
      }
      for (const bits of side.corners) for (const rm of MODES) verify(bits, rm);
      fc.assert(fc.property(operandArbitrary(side), modeArbitrary, verify), { numRuns: 4000 });
      t.pass();
    });

    test(`${name}_to_${side.name}() rounds once and ignores the upper half for 32 bits`, (t) => {
      const verify = (register: bigint, rm: number) => {
        const value = signed ? BigInt.asIntN(width, register) : BigInt.asUintN(width, register);
        const expected = model.fromInteger(value, rm, side.format);
        check(
          t,
          () => `${name} ${show(register)} ${MODE_NAMES[rm]}`,
          call(`${name}_to_${side.name}`, register, rm),
          expected,
        );
      };
      for (let bit = 0n; bit < 64n; bit++) {
        for (const step of [-3n, -2n, -1n, 0n, 1n, 2n, 3n]) {
          for (const rm of MODES) {
            verify(BigInt.asUintN(64, (1n << bit) + step), rm);
            verify(BigInt.asUintN(64, -(1n << bit) + step), rm);
          }
        }
      }
      fc.assert(fc.property(fc.bigInt(0n, (1n << 64n) - 1n), modeArbitrary, verify), { numRuns: 4000 });
      t.pass();
    });
  }
}

test('f64_to_f32() rounds once, also into subnormals; f32_to_f64() is exact', (t) => {
  const [single, double] = SIDES as [Side, Side];
  const narrow = (bits: bigint, rm: number) => {
    const expected = model.convert(model.decodeFloat(bits, DOUBLE), rm, SINGLE);
    check(t, () => `f64_to_f32 ${show(bits)} ${MODE_NAMES[rm]}`, call('f64_to_f32', bits, rm), expected);
  };
  const widen = (bits: bigint) => {
    const expected = model.convert(model.decodeFloat(bits, SINGLE), model.RNE, DOUBLE);
    check(t, () => `f32_to_f64 ${show(bits)}`, call('f32_to_f64', toArgument(single, bits)), expected);
  };
  for (const bits of double.corners) for (const rm of MODES) narrow(bits, rm);
  // Doubles between and around two neighbouring singles, near the single's ends.
  for (const bits of single.corners) {
    const wide = call('f32_to_f64', toArgument(single, bits)).bits;
    for (const step of [-1n, 0n, 1n, (1n << 28n) - 1n, 1n << 28n, (1n << 28n) + 1n]) {
      for (const rm of MODES) narrow(BigInt.asUintN(64, wide + step), rm);
    }
    widen(bits);
  }
  fc.assert(fc.property(operandArbitrary(double), modeArbitrary, narrow), { numRuns: 2000 });
  fc.assert(fc.property(operandArbitrary(single), widen), { numRuns: 4000 });
  t.pass();
});

test('Underflow is raised only when the result is tiny after rounding', (t) => {
  const { RNE, RDN, RUP, NX, UF } = model;
  const smallestNormal = 0x0010000000000000n;
  // 2^-1022 × (1 − 2^-53) has 53 bits: with an unbounded exponent it is exact, and tiny, though it rounds up here.
  const tiny = [smallestNormal, 0x3fefffffffffffffn] as const;
  t.deepEqual(call('f64_mul', ...tiny, RNE), { bits: smallestNormal, flags: UF | NX });
  t.deepEqual(call('f64_mul', ...tiny, RUP), { bits: smallestNormal, flags: UF | NX });
  t.deepEqual(call('f64_mul', ...tiny, RDN), { bits: smallestNormal - 1n, flags: UF | NX });
  // 2^-1022 × (1 − 2^-54) has 54 bits: to nearest it becomes 2^-1022 even with an unbounded exponent, so it is not.
  const notTiny = [0x3c90000000000000n, smallestNormal | (1n << 63n), smallestNormal] as const;
  t.deepEqual(call('f64_fma', ...notTiny, RNE), { bits: smallestNormal, flags: NX });
  t.deepEqual(call('f64_fma', ...notTiny, RUP), { bits: smallestNormal, flags: NX });
  t.deepEqual(call('f64_fma', ...notTiny, RDN), { bits: smallestNormal - 1n, flags: UF | NX });
});

test('f64_fma() sees the last bit of a product far below its tie', (t) => {
  // 4525252887137481 × 8964099956182393 = 2^105 + 1; 2^105 is half a unit in the last place of 2^158.
  const bitsOf = (value: bigint) => model.fromInteger(value, model.RNE, DOUBLE).bits;
  const [a, b] = [bitsOf(4525252887137481n), bitsOf(8964099956182393n)] as const;
  const c = bitsOf(1n << 158n);
  t.deepEqual(call('f64_fma', a, b, c, model.RNE), { bits: c + 1n, flags: model.NX });
  t.deepEqual(call('f64_fma', a, b, c, model.RTZ), { bits: c, flags: model.NX });
  t.deepEqual(call('f64_fma', a, b, c + 1n, model.RNE), { bits: c + 2n, flags: model.NX });
  const below = bitsOf(1n << 159n);
  t.deepEqual(call('f64_fma', a | (1n << 63n), b, below, model.RNE), { bits: below - 1n, flags: model.NX });
});

test('RNE arithmetic equals the host', (t) => {
  const doubleBits = (value: number) => new BigUint64Array(Float64Array.of(value).buffer)[0]!;
  const singleBits = (value: number) => new Uint32Array(Float32Array.of(value).buffer)[0]!;
  const number = fc.double({ noNaN: true });
  const single = fc.float({ noNaN: true });
  const canonical = (bits: bigint) => ((bits & 0x7fffffffffffffffn) > 0x7ff0000000000000n ? 0x7ff8000000000000n : bits);
  const canonicalSingle = (bits: number) => BigInt((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : bits);
  const operations: Record<string, (a: number, b: number) => number> = {
    add: (a, b) => a + b,
    sub: (a, b) => a - b,
    mul: (a, b) => a * b,
    div: (a, b) => a / b,
  };
  fc.assert(
    fc.property(number, number, single, single, (a, b, x, y) => {
      for (const [name, host] of Object.entries(operations)) {
        t.is(call(`f64_${name}`, doubleBits(a), doubleBits(b), 0).bits, canonical(doubleBits(host(a, b))));
        // A double has more than twice a single's bits and two: rounding twice is harmless here.
        const expected = canonicalSingle(singleBits(Math.fround(host(x, y))));
        t.is(call(`f32_${name}`, singleBits(x) | 0, singleBits(y) | 0, 0).bits, expected);
      }
      t.is(call('f64_sqrt', doubleBits(a), 0).bits, canonical(doubleBits(Math.sqrt(a))));
      t.is(call('f32_sqrt', singleBits(x) | 0, 0).bits, canonicalSingle(singleBits(Math.fround(Math.sqrt(x)))));
    }),
    { numRuns: 4000 },
  );
});

test('Flags accrue: an operation adds to what is set and clears nothing', (t) => {
  fflags[0] = model.DZ;
  soft.f64_add!(0x3ff0000000000000n, 0x3c00000000000000n, model.RNE);
  t.is(fflags[0], model.DZ | model.NX);
  soft.f64_eq!(0x7ff0000000000001n, 0n);
  t.is(fflags[0], model.DZ | model.NX | NV);
  fflags[0] = 0;
});
