export interface AdaptiveTryTerms {
  /** What one that failed takes of what others have earned, where one that did well earns 1 */
  readonly cost: number;
  /** What can be earned at most */
  readonly maxCredit: number;
  /** After a failure that nothing pays for, so many are let pass; twice as many each time, up to the second number */
  readonly pause: readonly [first: number, most: number];
}

/**
 * Something that is worth trying for as long as it mostly does well. What fails is paid for by what did well before it;
 * where that does not suffice it is not tried for the next N times, N doubling, until all that can be earned was.
 */
export class AdaptiveTry {
  readonly #terms: AdaptiveTryTerms;
  #credit = 0;
  #pause: number;
  #passing = 0;

  constructor(terms: AdaptiveTryTerms) {
    this.#terms = terms;
    this.#pause = terms.pause[0];
  }

  /** True: try it, and tell {@link succeeded} or {@link failed} afterwards. */
  enter(): boolean {
    if (this.#passing === 0) return true;
    this.#passing--;
    return false;
  }

  succeeded(): void {
    const { maxCredit, pause } = this.#terms;
    this.#credit = Math.min(this.#credit + 1, maxCredit);
    if (this.#credit === maxCredit) this.#pause = pause[0];
  }

  failed(): void {
    this.#credit -= this.#terms.cost;
    if (this.#credit < 0) this.giveUp();
  }

  /** Not the next N times, whatever was earned. */
  giveUp(): void {
    this.#credit = 0;
    this.#passing = this.#pause;
    this.#pause = Math.min(this.#pause * 2, this.#terms.pause[1]);
  }
}
