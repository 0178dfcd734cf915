// Which of a region's pointers are looked for in the hart's window (kernel/assembly/window.ts) before the TLB: four
// instructions where they are in it, and as many in vain where they are not.
import { X } from './instruction.ts';
import type { Region } from './region.ts';

/** A window of fewer `bytes` is left alone, unless HartOptions say otherwise */
export const LEAST_WINDOW = 0x10_0000;

/** A range of addresses, in `bytes` */
export interface AddressRange {
  readonly first: bigint;
  readonly bytes: bigint;
}

/** Nobody keeps data below, and Sv48 has no addresses between */
const LEAST_ADDRESS = 0x1_0000n;
const ADDRESS_BITS = 47;

/**
 * A set of registers, as in analysis.ts. A guess by what they hold now, while the region is about to run: those that point
 * into the window; and those that hold no address now, if most of what the others are used for is in it.
 */
export function windowRegisters(region: Region, read: (register: number) => bigint, window: AddressRange): number {
  const uses = new Map<number, number>();
  for (const { instructions } of region.blocks.values()) {
    for (const instruction of instructions) {
      const { facts, rs1 } = instruction;
      if (facts.loads && facts.rs1 === X) uses.set(rs1, (uses.get(rs1) ?? 0) + 1);
    }
  }
  let [inside, unknown, balance] = [0, 0, 0];
  for (const [register, count] of uses) {
    const value = read(register);
    if (BigInt.asUintN(64, value - window.first) < window.bytes) {
      inside! |= 1 << register;
      balance! += count;
    } else if (isAddress(value)) balance! -= count;
    else unknown! |= 1 << register;
  }
  return balance! > 0 ? inside! | unknown! : inside!;
}

function isAddress(value: bigint): boolean {
  const signed = BigInt.asIntN(64, value);
  return signed === BigInt.asIntN(ADDRESS_BITS + 1, value) && BigInt.asUintN(64, value) >= LEAST_ADDRESS;
}
