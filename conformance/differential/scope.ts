// Which registers a place in a function may write, and which its surroundings rely on.
import type { Random } from '../isa/random.ts';
import { X } from './handlers.ts';
import type { Node } from './nodes.ts';
import type { Registers } from './words.ts';

/** Loop counters and what else calls preserve; a longjmp brings them back. x8 and x9, with short forms, come last */
export const COUNTERS = [18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 8, 9] as const;
/** What calls do not preserve; the first have short forms */
const TEMPORARIES = [10, 11, 12, 13, 14, 15, 5, 6, 7, 16, 17, 28, 29, 30, 31];
const SHORT_TEMPORARIES = 6;
/** Registers that must remain for the items themselves */
const LEAST_FREE = 6;

export const isCounter = (register: number): boolean => (COUNTERS as readonly number[]).includes(register);

/** One node of several: a loop around may begin its first round between any two items, but not inside one. */
export const together = (body: readonly Node[]): Node => (body.length === 1 ? body[0]! : { t: 'group', body });

export class Scope implements Registers {
  readonly random: Random;
  readonly saves: readonly number[];
  readonly writable: readonly number[];
  readonly #reserved: number[] = [];

  /** @param saves callee-saved registers that the function may use */
  constructor(
    random: Random,
    saves: readonly number[],
    options: { readonly leaf: boolean; readonly millicode: boolean },
  ) {
    this.random = random;
    this.saves = saves;
    const temporaries = TEMPORARIES.filter((register) => !options.millicode || register !== X.t0);
    this.writable = [...temporaries, ...(options.leaf ? [] : [X.ra]), ...saves];
  }

  destination(): number {
    const { random } = this;
    for (;;) {
      const register = random.once(2) ? TEMPORARIES[random.below(SHORT_TEMPORARIES)]! : random.pick(this.writable);
      if (!this.isReserved(register)) return register;
    }
  }

  source(): number {
    const { random } = this;
    return random.once(16) ? random.below(32) : random.pick(this.writable);
  }

  isReserved(register: number): boolean {
    return this.#reserved.includes(register);
  }

  /** Different registers out of `from`, reserved while `use` makes what they are for; undefined where too few are left */
  reserve<T>(
    count: number,
    use: (...registers: number[]) => T,
    from: readonly number[] = this.writable,
  ): T | undefined {
    const free = from.filter((register) => !this.isReserved(register));
    const chosen: number[] = [];
    while (chosen.length < count && free.length > 0) chosen.push(...free.splice(this.random.below(free.length), 1));
    if (chosen.length < count || this.writable.length - this.#reserved.length - count < LEAST_FREE) return undefined;
    this.#reserved.push(...chosen);
    const result = use(...chosen);
    this.#reserved.length -= count;
    return result;
  }
}
