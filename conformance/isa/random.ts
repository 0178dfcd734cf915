/** Reproducible random numbers (xorshift128, seeded through a multiplicative hash): a case is named by its seed. */
export class Random {
  readonly #state: Uint32Array;

  constructor(seed: number) {
    this.#state = Uint32Array.from({ length: 4 }, (_, i) => Math.imul(seed + i + 1, 0x9e37_79b1) ^ (0x85eb_ca6b >>> i));
    for (let i = 0; i < 16; i++) this.u32();
  }

  u32(): number {
    const s = this.#state;
    let t = s[3]!;
    t ^= t << 11;
    t ^= t >>> 8;
    s[3] = s[2]!;
    s[2] = s[1]!;
    s[1] = s[0]!;
    s[0] = t ^ s[0]! ^ (s[0]! >>> 19);
    return s[0]!;
  }

  u64(): bigint {
    return (BigInt(this.u32()) << 32n) | BigInt(this.u32());
  }

  /** 0 … limit − 1 */
  below(limit: number): number {
    return this.u32() % limit;
  }

  /** True once in `times` */
  once(times: number): boolean {
    return this.below(times) === 0;
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)]!;
  }
}
