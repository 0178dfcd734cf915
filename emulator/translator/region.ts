// A region: what one place in guest code reaches without calls. It becomes one WebAssembly function.
import { type Instruction, readSlot, readWord } from './instruction.ts';

/** At most so many instructions, and pages of code, make one function */
export const MAX_INSTRUCTIONS = 1500;
export const MAX_PAGES = 6;
/** A region reaches at most so many pages to either side of its start */
const REACH_PAGES = 32;
/** Targets of one guest switch, and the code that they may span, in bytes */
export const MAX_SWITCH_TARGETS = 250;
export const MAX_SWITCH_SPAN = 0x8000;
const RA = 1;
const T0 = 5;

/** One page of guest code */
export interface CodePage {
  /** Address of its slots in memory */
  readonly slots: number;
  /** Host address of the page */
  readonly host: number;
}

export type BlockEnd =
  | { readonly kind: 'next'; readonly to: number }
  | { readonly kind: 'branch'; readonly taken: number; readonly to: number }
  /** `target` undefined: in a register; `back` is where it returns to */
  | { readonly kind: 'call'; readonly target: number | undefined; readonly back: number }
  /** A call by register: of a function that begins at the block `to` of this region if it goes to `target` */
  | { readonly kind: 'guess'; readonly target: number; readonly to: number; readonly back: number }
  /** To where a register says: a return, a tail call; `targets` where it has gone before, or an inlined call's end */
  | { readonly kind: 'register'; readonly targets: readonly number[] }
  /** After a CSR instruction, which the kernel does: registers are in memory then */
  | { readonly kind: 'system'; readonly to: number }
  /** To the interpreter, before an instruction that is not translated */
  | { readonly kind: 'leave'; readonly to: number };

export interface Block {
  /** Offset of its first instruction; of a copy in inlining.ts, its name, and so are the places that `end` says */
  readonly at: number;
  readonly instructions: readonly Instruction[];
  readonly end: BlockEnd;
}

export interface Region {
  /** Offset of the entry that it was made for; all offsets count from the base page */
  readonly start: number;
  readonly blocks: ReadonlyMap<number, Block>;
  /** Pages that its instructions lie in, by page number from the base page */
  readonly pages: ReadonlyMap<number, CodePage>;
  /** Places where execution goes on after an instruction that the interpreter does, or comes back from a call */
  readonly resumes: ReadonlySet<number>;
}

export interface RegionSource {
  readonly view: DataView;
  /** The page at so many pages from the base page, if this hart ran code of it and may do so now */
  page(number: number): CodePage | undefined;
  /** Where the indirect jump at this host address has gone, as distances from it */
  jumpTargets(host: number): readonly number[];
}

interface Found {
  readonly instruction: Instruction;
  readonly end: BlockEnd | undefined;
}

/** Reads what is reachable from `start`, at most so many instructions, through those that were run before. */
export function findRegion(source: RegionSource, start: number, most = MAX_INSTRUCTIONS): Region | undefined {
  return new RegionFinder(source, most).find(start);
}

class RegionFinder {
  readonly #source: RegionSource;
  readonly #most: number;
  readonly #pages = new Map<number, CodePage | undefined>();
  readonly #used = new Map<number, CodePage>();
  readonly #found = new Map<number, Found>();
  readonly #leaders = new Set<number>();
  readonly #resumes = new Set<number>();
  readonly #work: number[] = [];

  constructor(source: RegionSource, most: number) {
    this.#source = source;
    this.#most = most;
  }

  find(start: number): Region | undefined {
    this.#target(start);
    for (let next = this.#work.pop(); next !== undefined; next = this.#work.pop()) this.#follow(next);
    if (!this.#found.has(start)) return undefined;
    const blocks = new Map<number, Block>();
    for (const leader of this.#leaders) {
      const block = this.#block(leader);
      if (block !== undefined) blocks.set(leader, block);
    }
    const resumes = new Set([...this.#resumes].filter((at) => blocks.has(at)));
    return { start, blocks, pages: this.#used, resumes };
  }

  #target(at: number): void {
    if (this.#leaders.has(at)) return;
    this.#leaders.add(at);
    if (!this.#found.has(at)) this.#work.push(at);
  }

  #page(number: number): CodePage | undefined {
    if (number < -REACH_PAGES || number > REACH_PAGES) return undefined;
    if (!this.#pages.has(number)) this.#pages.set(number, this.#source.page(number));
    return this.#pages.get(number);
  }

  /** Notes that the code of a page is used; false where that is one too many. */
  #use(number: number, page: CodePage): boolean {
    if (this.#used.has(number)) return true;
    if (this.#used.size === MAX_PAGES) return false;
    this.#used.set(number, page);
    return true;
  }

  #read(at: number): Instruction | 'illegal' | undefined {
    const { view } = this.#source;
    const number = at >> 12;
    const page = this.#page(number);
    if (page === undefined) return undefined;
    const offset = at & 0xfff;
    const known = readSlot(view, page.slots + offset * 8, at);
    if (known !== undefined || offset !== 0xffe)
      return known !== undefined && this.#use(number, page) ? known : undefined;
    const low = view.getUint16(page.host + offset, true);
    const next = this.#page(number + 1);
    if ((low & 3) !== 3 || next === undefined) return undefined;
    const straddling = readWord(low | (view.getUint16(next.host, true) << 16), at);
    if (straddling === undefined || !this.#use(number, page) || !this.#use(number + 1, next)) return undefined;
    return straddling;
  }

  /** Reads instructions in a row, to the first that ends it or was read before. */
  #follow(start: number): void {
    let at = start;
    while (!this.#found.has(at)) {
      if (this.#found.size >= this.#most) return;
      const instruction = this.#read(at);
      if (instruction === undefined || instruction === 'illegal') return;
      const next = at + instruction.length;
      if (instruction.facts.flow === 'system' && !isQuickCsr(instruction)) {
        // The interpreter does it, and may come back behind it
        this.#resumes.add(next);
        this.#target(next);
        return;
      }
      const end = this.#end(instruction, next);
      this.#found.set(at, { instruction, end });
      if (end !== undefined) return;
      at = next;
    }
  }

  #end(instruction: Instruction, next: number): BlockEnd | undefined {
    const { facts, at, imm, rd, rs1 } = instruction;
    switch (facts.flow) {
      case 'branch':
        this.#target(next);
        this.#target(at + imm);
        return { kind: 'branch', taken: at + imm, to: next };
      case 'jal':
        if (rd === 0) {
          this.#target(at + imm);
          return { kind: 'next', to: at + imm };
        }
        this.#target(next);
        return { kind: 'call', target: at + imm, back: next };
      case 'jalr': {
        if (rd !== 0) {
          this.#target(next);
          return { kind: 'call', target: undefined, back: next };
        }
        const targets = rs1 === RA || rs1 === T0 ? [] : this.#switchTargets(at);
        for (const target of targets) this.#target(target);
        return { kind: 'register', targets };
      }
      case 'system':
        this.#target(next);
        return { kind: 'system', to: next };
      default:
        return undefined;
    }
  }

  #switchTargets(at: number): readonly number[] {
    const page = this.#page(at >> 12)!;
    const all = this.#source.jumpTargets(page.host + (at & 0xfff)).map((distance) => at + distance);
    const near = all.filter((target) => this.#page(target >> 12) !== undefined).slice(0, MAX_SWITCH_TARGETS);
    // One target is a tail call, or a return by another register
    if (near.length < 2 || Math.max(...near) - Math.min(...near) > MAX_SWITCH_SPAN) return [];
    return near;
  }

  #block(start: number): Block | undefined {
    const instructions: Instruction[] = [];
    let at = start;
    for (;;) {
      const found = this.#found.get(at);
      if (found === undefined) break;
      instructions.push(found.instruction);
      if (found.end !== undefined) return { at: start, instructions, end: knownTarget(instructions, found.end) };
      at += found.instruction.length;
      if (this.#leaders.has(at) && this.#found.has(at))
        return { at: start, instructions, end: { kind: 'next', to: at } };
    }
    return instructions.length === 0 ? undefined : { at: start, instructions, end: { kind: 'leave', to: at } };
  }
}

/** CSRs that change neither mappings nor the machine: sstatus, sie, sscratch to stval, sip, fcsr and its parts, counters */
const QUICK_CSRS = new Set([
  0x001, 0x002, 0x003, 0x100, 0x104, 0x140, 0x141, 0x142, 0x143, 0x144, 0xc00, 0xc01, 0xc02,
]); // biome-ignore format: one list
/** A CSR instruction that the kernel can do without the function being left */
function isQuickCsr({ facts, imm }: Instruction): boolean {
  return facts.row.extension === 'Zicsr' && QUICK_CSRS.has(imm >>> 20);
}

/** The target of `auipc rd; jalr rd`, as compilers write a far call, where nothing jumps between the two */
function knownTarget(instructions: readonly Instruction[], end: BlockEnd): BlockEnd {
  const [before, jump] = instructions.slice(-2);
  if (end.kind !== 'call' || end.target !== undefined || before === undefined || jump === undefined) return end;
  if (before.facts.row.name !== 'auipc' || before.rd !== jump.rs1) return end;
  return { ...end, target: before.at + before.imm + jump.imm };
}

/** Where a block may go on inside its region, without entering a call */
export function successorsOf(region: Region, block: Block): readonly number[] {
  const { end } = block;
  const all =
    end.kind === 'next' || end.kind === 'system'
      ? [end.to]
      : end.kind === 'branch'
        ? [end.taken, end.to]
        : end.kind === 'call'
          ? [end.back]
          : end.kind === 'guess'
            ? [end.to, end.back]
            : end.kind === 'register'
              ? end.targets
              : [];
  return [...new Set(all)].filter((to) => region.blocks.has(to));
}
