// Which registers the ways out of a function store: many ways, few sets, and most of them parts of others.

/** Registers that one way out of a function stores */
export interface RegisterSet {
  readonly key: string;
  readonly x: number;
  readonly fp: number;
}

/** By what a set is found: its registers */
export function setKey(x: number, fp: number): string {
  return `${x}:${fp}`;
}

/** Chains of sets, each within the next: what they have in common is stored by the same code. */
export function chainSets(sets: readonly RegisterSet[]): RegisterSet[][] {
  const chains: RegisterSet[][] = [];
  for (const set of sets.toSorted((a, b) => sizeOf(a) - sizeOf(b))) {
    const chain = chains.find((known) => {
      const last = known.at(-1)!;
      return (last.x & ~set.x) === 0 && (last.fp & ~set.fp) === 0;
    });
    if (chain === undefined) chains.push([set]);
    else chain.push(set);
  }
  return chains;
}
function sizeOf({ x, fp }: RegisterSet): number {
  let size = 0;
  for (let register = 0; register < 32; register++) size += ((x >>> register) & 1) + ((fp >>> register) & 1);
  return size;
}
