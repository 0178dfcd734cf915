/**
 * Instructions that the hart executes in a few hundredths of a second: a translation that did not last so long has hardly
 * paid for itself
 */
const SHORT_LIFE = 1n << 24n;
/** A page that changes all the time is translated at one of 2^6 places that get hot */
const MOST_LOSSES = 6;
/** Pages that are remembered: the guest decides how many change */
const MAX_PAGES = 4096;

interface PageHistory {
  /** Of the code that was translated last, and the instructions that the hart had executed then */
  version: number;
  at: bigint;
  /** That translation is known to be worth nothing any more, and was judged */
  lost: boolean;
  /** Short lives in a row */
  losses: number;
  /** Places that got hot since the last translation, and were not translated */
  refusals: number;
}

/**
 * Holds translations back from pages whose code changes again and again, as those of a compiler in the guest or of a
 * guest that means harm: the interpreter runs such code sooner than it can be translated.
 */
export class ChangingPages {
  readonly #pages = new Map<number, PageHistory>();

  /**
   * Whether to translate a place of the page that got hot now. `page`: its host address; `version`: of its code;
   * `instructions`: what the hart has executed, which the guest may set
   */
  mayTranslate(page: number, version: number, instructions: bigint): boolean {
    const known = this.#pages.get(page);
    if (known === undefined) {
      if (this.#pages.size === MAX_PAGES) this.#pages.clear();
      this.#pages.set(page, { version, at: instructions, lost: false, losses: 0, refusals: 0 });
      return true;
    }
    if (known.version === version) return true;
    if (!known.lost) {
      known.lost = true;
      known.losses = instructions - known.at < SHORT_LIFE ? Math.min(known.losses + 1, MOST_LOSSES) : 0;
    }
    if (known.refusals < (1 << known.losses) - 1) {
      known.refusals++;
      return false;
    }
    Object.assign(known, { version, at: instructions, lost: false, refusals: 0 });
    return true;
  }
}
