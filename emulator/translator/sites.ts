// A way out of a translated function as one word: where execution goes on, and what is still to be counted.

/** Instructions that a path may have executed since they were counted; one more fits into twelve bits */
const MAX_SPENT = 0xffe;
export const SPENT_MASK = 0xfff;
export const SITE_AT_SHIFT = 13;
/** A site's word where `result` says where to go on, the fuel is counted, and another function may do that */
export const SITE_GO_ON = -1;

/** A call goes anywhere in 4 GiB; a site has room for what a region reaches */
export function isNear(at: number): boolean {
  return (at << SITE_AT_SHIFT) >> SITE_AT_SHIFT === at;
}

/**
 * Where a function is left: place, one more than the instructions not yet counted, and whether the interpreter is to do
 * the instruction there. Never 0, which says that `result` is the place
 */
export function site(at: number, spent: number, interpret: boolean): number {
  if (!isNear(at)) throw new RangeError(`A function cannot be left for ${at} bytes from its page by a site`);
  if (spent > MAX_SPENT) throw new RangeError(`A path of ${spent} instructions is too long for one function`);
  return (at << SITE_AT_SHIFT) | ((spent + 1) << 1) | (interpret ? 1 : 0);
}
