import type { GuestSymbol } from '../../protocols/symbols/mod.ts';

/** Plain data that can be posted to a thread: by address, ascending, each once. */
export interface SymbolData {
  readonly addresses: BigUint64Array;
  /** In `bytes`; 0 where it is not known */
  readonly sizes: Uint32Array;
  readonly names: readonly string[];
}

export interface SymbolAt {
  readonly name: string;
  /** From the symbol's address, in `bytes` */
  readonly offset: number;
}

/** Where a symbol's size is not known it reaches to the next one, at most this far, in `bytes` */
const MAX_REACH = 1n << 20n;

/** Names for addresses, sorted. Where several stand at one address, one with a size comes before one without. */
export function sortSymbols(symbols: readonly GuestSymbol[]): SymbolData {
  const sorted = [...symbols].sort((a, b) =>
    a.address < b.address ? -1 : a.address > b.address ? 1 : b.sizeBytes - a.sizeBytes,
  );
  const kept = sorted.filter(({ address }, index) => index === 0 || sorted[index - 1]!.address !== address);
  return {
    addresses: BigUint64Array.from(kept, ({ address }) => address),
    sizes: Uint32Array.from(kept, ({ sizeBytes }) => sizeBytes),
    names: kept.map(({ name }) => name),
  };
}

/** Looks up which symbol an address is in. */
export class SymbolTable {
  readonly #data: SymbolData;

  constructor(data: SymbolData) {
    this.#data = data;
  }

  get size(): number {
    return this.#data.names.length;
  }

  /** Undefined before the first symbol, and behind the end of one. */
  find(address: bigint): SymbolAt | undefined {
    const { addresses, sizes, names } = this.#data;
    let low = 0;
    let high = addresses.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (addresses[middle]! <= address) low = middle + 1;
      else high = middle;
    }
    const index = low - 1;
    if (index < 0) return undefined;
    const offset = address - addresses[index]!;
    const size = BigInt(sizes[index]!);
    if (offset >= (size === 0n ? MAX_REACH : size)) return undefined;
    return { name: names[index]!, offset: Number(offset) };
  }
}
