// Small functions become part of the regions that call them: registers stay in locals, and nothing is passed on.
import { writesX } from './analysis.ts';
import type { Instruction } from './instruction.ts';
import { type Block, type BlockEnd, type CodePage, MAX_PAGES, type Region } from './region.ts';

/** Longer functions are called: the call costs them less than its copies cost the compiler */
export const MAX_INLINED = 32;
/** Instructions that one region may grow by */
const MAX_ADDED = 128;
/** Calls within calls; a function within itself, beside the one that it is in */
const MAX_DEPTH = 3;
const MAX_RECURSION = 1;
const RA = 1;

/** A jump goes anywhere within 2 GiB, and its target has a name, too */
const COPY_DISTANCE = 2 ** 40;
/** Names are exact as numbers: below 2^53 */
const COPIES = 2 ** 12;

/**
 * A block's name in its region. What belongs to the region itself is named by its place, the offset from the base
 * page; a copy of a called function's block by the number of the copy, too.
 */
function nameOf(at: number, copy: number): number {
  return at + copy * COPY_DISTANCE;
}
/** The place of the block that is so named */
export function placeOf(name: number): number {
  return name - Math.round(name / COPY_DISTANCE) * COPY_DISTANCE;
}
/** Whether the block belongs to a copy: other code than the caller's must not enter the function there. */
export function isCopied(name: number): boolean {
  return name !== placeOf(name);
}

export interface Callees {
  /** The function at a place, where it is worth a copy */
  at(target: number): Region | undefined;
  /** Where a call by register may go, likely places first; `region` is what it was found in */
  guess(call: Instruction, region: Region): readonly number[];
}

/**
 * Puts copies of the functions that are called in place of the calls. A copy's return goes on behind the call: at once
 * where nothing in the copy changes `ra`, else if `ra` says so. A call by register goes to the copy if its register
 * says so.
 */
export function inlineCalls(region: Region, callees: Callees): Region {
  return new Inliner(region, callees).inline();
}

class Inliner {
  readonly #region: Region;
  readonly #source: Callees;
  readonly #callees = new Map<number, Region | undefined>();
  readonly #blocks = new Map<number, Block>();
  readonly #pages: Map<number, CodePage>;
  #copies = 0;
  #added = 0;

  constructor(region: Region, source: Callees) {
    this.#region = region;
    this.#source = source;
    this.#pages = new Map(region.pages);
  }

  inline(): Region {
    const { start, resumes, blocks } = this.#region;
    for (const block of blocks.values()) this.#add(block, this.#region, 0, block.end, [start]);
    // A copy may be left, and the interpreter comes back behind the call
    const backs = [...blocks.values()].flatMap(({ end }) => (end.kind === 'call' ? [end.back] : []));
    const known = backs.filter((at) => blocks.has(at));
    return { start, resumes: new Set([...resumes, ...known]), blocks: this.#blocks, pages: this.#pages };
  }

  /** Adds a block of `region` whose `end` names blocks of copy `copy`. */
  #add(block: Block, region: Region, copy: number, end: BlockEnd, within: readonly number[]): void {
    const at = nameOf(block.at, copy);
    this.#blocks.set(at, { at, instructions: block.instructions, end: this.#inlined(block, region, end, within) });
  }

  /** The end of a block that calls, or where the copy begins that stands for the call */
  #inlined(block: Block, region: Region, end: BlockEnd, within: readonly number[]): BlockEnd {
    if (end.kind !== 'call') return end;
    const call = block.instructions.at(-1)!;
    if (call.rd !== RA || within.length > MAX_DEPTH) return end;
    const targets = end.target === undefined ? this.#source.guess(call, region) : [end.target];
    const target = targets.find((at) => this.#callee(at) !== undefined);
    if (target === undefined || within.filter((at) => at === target).length > MAX_RECURSION) return end;
    const callee = this.#callee(target)!;
    if (!this.#hasRoom(callee)) return end;
    const copy = ++this.#copies;
    this.#added += sizeOf(callee);
    for (const [number, page] of callee.pages) this.#pages.set(number, page);
    const keepsRa = [...callee.blocks.values()].every(leavesRa);
    for (const called of callee.blocks.values()) {
      this.#add(called, callee, copy, endOfCopy(called, copy, end.back, keepsRa), [...within, target]);
    }
    const to = nameOf(target, copy);
    return end.target === undefined ? { kind: 'guess', target, to, back: end.back } : { kind: 'next', to };
  }

  #callee(target: number): Region | undefined {
    if (!this.#callees.has(target)) {
      const found = this.#source.at(target);
      this.#callees.set(target, found !== undefined && canBeCopied(found) ? found : undefined);
    }
    return this.#callees.get(target);
  }

  #hasRoom(callee: Region): boolean {
    const pages = new Set([...this.#pages.keys(), ...callee.pages.keys()]);
    return this.#added + sizeOf(callee) <= MAX_ADDED && pages.size <= MAX_PAGES && this.#copies + 1 < COPIES;
  }
}

export function sizeOf({ blocks }: Region): number {
  let size = 0;
  for (const { instructions } of blocks.values()) size += instructions.length;
  return size;
}

/** Nothing in the block changes `ra`, and nobody that it calls, by whatever register, may do so. */
function leavesRa({ instructions, end }: Block): boolean {
  return end.kind !== 'call' && !instructions.some((instruction) => writesX(instruction) === 1 << RA);
}

/** A function that ends by returning, and that neither the kernel nor the interpreter has a part in */
function canBeCopied(callee: Region): boolean {
  if (sizeOf(callee) > MAX_INLINED || callee.resumes.size > 0) return false;
  return [...callee.blocks.values()].every(({ instructions, end }) => {
    if (end.kind === 'system') return false;
    return end.kind !== 'register' || isReturn(instructions.at(-1)!);
  });
}

function isReturn({ rs1, imm }: Instruction): boolean {
  return rs1 === RA && imm === 0;
}

/** The end of a copied block, by the names of its copy; `back` is where the call returns to. */
function endOfCopy({ end }: Block, copy: number, back: number, keepsRa: boolean): BlockEnd {
  switch (end.kind) {
    case 'next':
    case 'leave':
    case 'system':
      return { ...end, to: nameOf(end.to, copy) };
    case 'branch':
      return { kind: 'branch', taken: nameOf(end.taken, copy), to: nameOf(end.to, copy) };
    case 'call':
    case 'guess':
      return { ...end, back: nameOf(end.back, copy) };
    case 'register':
      return keepsRa ? { kind: 'next', to: back } : { kind: 'register', targets: [back] };
  }
}
