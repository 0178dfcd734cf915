// Which part of a region is translated when a place in the middle of a long function got hot.
import { type Block, type CodePage, type Region, successorsOf } from './region.ts';

/** A region of so many instructions is translated whole */
const SMALL = 100;

/**
 * The region, or of a long one what belongs to its start: the loop that begins there and what comes after it, to where
 * other loops or translations (`isKnown`) begin or the code goes back to before the start. In a long function each loop gets hot
 * in its turn, and reaches all others by the loops around it: without this, a function of ten loops would be
 * translated ten times. What is around gets hot by itself, and has its inner loops in it once more: as often as
 * loops are nested, not as often as there are loops.
 */
export function belongingToStart(region: Region, isKnown: (at: number) => boolean): Region {
  if (sizeOf(region.blocks.values()) <= SMALL) return region;
  // Compilers put what is around a loop before it
  const after = new Map<number, readonly number[]>();
  const before = new Map<number, number[]>();
  for (const block of region.blocks.values()) {
    if (block.at < region.start) continue;
    const next = successorsOf(region, block).filter((to) => to >= region.start);
    after.set(block.at, next);
    for (const to of next) {
      const known = before.get(to);
      if (known === undefined) before.set(to, [block.at]);
      else known.push(block.at);
    }
  }
  const reached = closure([region.start], (at) => after.get(at)!);
  const reaching = closure([region.start], (at) => before.get(at) ?? []);
  const loop = [...reached].filter((at) => reaching.has(at));
  const isLoop = (at: number): boolean => closure(after.get(at)!, (from) => after.get(from)!).has(at);
  const kept = closure(loop, (at) =>
    after.get(at)!.filter((to) => (reached.has(to) && reaching.has(to)) || !(isKnown(to) || isLoop(to))),
  );
  return keep(region, kept);
}

function sizeOf(blocks: Iterable<Block>): number {
  let size = 0;
  for (const { instructions } of blocks) size += instructions.length;
  return size;
}

function closure(starts: readonly number[], next: (at: number) => readonly number[]): Set<number> {
  const seen = new Set(starts);
  for (const at of seen) for (const to of next(at)) seen.add(to);
  return seen;
}

function keep(region: Region, kept: ReadonlySet<number>): Region {
  const blocks = new Map([...region.blocks].filter(([at]) => kept.has(at)));
  const pages = new Map<number, CodePage>();
  const use = (number: number): void => {
    const page = region.pages.get(number);
    if (page !== undefined) pages.set(number, page);
  };
  for (const { instructions } of blocks.values()) {
    for (const { at, length } of instructions) {
      use(at >> 12);
      use((at + length - 1) >> 12);
    }
  }
  const resumes = new Set([...region.resumes].filter((at) => kept.has(at)));
  return { start: region.start, blocks, pages, resumes };
}
