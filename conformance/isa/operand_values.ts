// What the operands are filled with: the corner values of their kind, their neighbours, and random bits.
import type { Random } from './random.ts';

const U64 = (value: bigint): bigint => BigInt.asUintN(64, value);

const INTEGER_CORNERS: readonly bigint[] = [
  0n, 1n, 2n, 0x7fn, 0x80n, 0xffn, 0x7fffn, 0x8000n, 0xffffn, 0x7fff_fffen, 0x7fff_ffffn, 0x8000_0000n, 0x8000_0001n,
  0xffff_ffffn, 0x1_0000_0000n, 0x7fff_ffff_ffff_fffen, 0x7fff_ffff_ffff_ffffn, 0x8000_0000_0000_0000n,
  0x8000_0000_0000_0001n, 0xffff_ffff_8000_0000n, 0xffff_ffff_7fff_ffffn, 0x5555_5555_5555_5555n, 0x00ff_00ff_00ff_00ffn,
  -1n, -2n, -0x80n, -0x8000n,
].map(U64); // biome-ignore format: a table

export function integerValue(random: Random): bigint {
  switch (random.below(4)) {
    case 0:
      return random.pick(INTEGER_CORNERS);
    case 1:
      return U64((1n << BigInt(random.below(64))) + BigInt(random.below(5)) - 2n);
    case 2: // small, of either sign
      return U64(BigInt.asIntN(32, BigInt(random.u32()) >> BigInt(random.below(32))) * (random.once(2) ? -1n : 1n));
    default:
      return random.u64() >> BigInt(random.once(2) ? random.below(64) : 0);
  }
}

interface Layout {
  readonly fractionBits: number;
  readonly bias: number;
}
const SINGLE: Layout = { fractionBits: 23, bias: 127 };
const DOUBLE: Layout = { fractionBits: 52, bias: 1023 };

function floatBits(random: Random, { fractionBits, bias }: Layout): bigint {
  const width = BigInt(fractionBits);
  const ones = (1n << width) - 1n;
  const fraction = () => {
    switch (random.below(6)) {
      case 0:
        return 0n;
      case 1:
        return ones;
      case 2:
        return BigInt(random.below(4));
      case 3:
        return 1n << BigInt(random.below(fractionBits));
      case 4:
        return ones ^ ((1n << BigInt(random.below(fractionBits))) - 1n);
      default:
        return random.u64() & ones;
    }
  };
  const field = () => {
    switch (random.below(8)) {
      case 0:
        return 0; // zeros, subnormals
      case 1:
        return 2 * bias + 1; // infinities, NaNs
      case 2:
        return 1 + random.below(fractionBits + 3);
      case 3:
        return 2 * bias - random.below(4);
      case 4:
        return bias + random.below(68); // where integers end
      case 5:
        return (bias >> 1) - 3 + random.below(7) + (random.once(2) ? bias : 0);
      case 6:
        return bias - 3 + random.below(7);
      default:
        return random.below(2 * bias + 2);
    }
  };
  return (
    (BigInt(random.below(2)) << BigInt(fractionBits + bias.toString(2).length + 1)) |
    (BigInt(field()) << width) |
    fraction()
  );
}

const BOX = 0xffff_ffff_0000_0000n;

/** A double; a single in its NaN box; now and then a single that is not boxed and so counts as a NaN (D §12.2) */
export function floatValue(random: Random, single: boolean): bigint {
  if (!single) return floatBits(random, DOUBLE);
  const bits = floatBits(random, SINGLE);
  if (random.once(24)) return bits | (random.u64() & BOX);
  return bits | BOX;
}
