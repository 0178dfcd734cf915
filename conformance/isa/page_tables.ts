// Page tables for the cases: the code mapped by gigapages, and a fresh leaf for each case.
import type { Section } from './assembler.ts';
import { CODE_BASE } from './program.ts';

const PAGE = 4096;
const GIGA = 1 << 30;
export const PTE = { V: 1n, R: 2n, W: 4n, X: 8n, U: 16n, G: 32n, A: 64n, D: 128n } as const;
const SUPERVISOR_LEAF = 0xcfn; // D A X W R V
const USER_LEAF = SUPERVISOR_LEAF | PTE.U;
/** Where the second mapping of the code lies, which U-mode may execute */
export const USER_ALIAS = GIGA;
const CASES_AT = 4 * GIGA;
const MEGAPAGES_AT = 5 * GIGA;
const MEGA = 2 << 20;
const ECALL = 0x73n;
/** In the order of their numbers, from 8 */
export const SATP_MODES = ['Sv39', 'Sv48', 'Sv57'] as const;

export const leaf = (pa: number, flags: bigint): bigint => ((BigInt(pa) >> 12n) << 10n) | flags;

/** A case's own entry and the virtual address that it maps */
export interface Slot {
  readonly pte: number;
  readonly va: number;
}

export class PageTables {
  readonly #tables: Section;
  readonly #roots: readonly number[];
  readonly #level1: number;
  readonly #level1Mega: number;
  #level0 = 0;
  #used = 0;
  #usedMega = 0;
  /** Two pages in a row, each of which begins with an ecall */
  readonly target: number;

  constructor(tables: Section) {
    this.#tables = tables;
    const [root, root48, root57] = [0, 1, 2].map(() => tables.reserve(PAGE, PAGE)) as [number, number, number];
    this.#roots = [root, root48, root57];
    this.#entry(root48, 0, leaf(root, PTE.V));
    this.#entry(root57, 0, leaf(root48, PTE.V));
    this.#level1 = tables.reserve(PAGE, PAGE);
    this.#level1Mega = tables.reserve(PAGE, PAGE);
    this.target = tables.reserve(2 * PAGE, PAGE);
    for (const page of [0, PAGE]) tables.u64At(this.target + page, ECALL);
    this.#entry(root, CODE_BASE / GIGA, leaf(CODE_BASE, SUPERVISOR_LEAF));
    this.#entry(root, (CODE_BASE + USER_ALIAS) / GIGA, leaf(CODE_BASE, USER_LEAF));
    this.#entry(root, CASES_AT / GIGA, leaf(this.#level1, PTE.V));
    this.#entry(root, MEGAPAGES_AT / GIGA, leaf(this.#level1Mega, PTE.V));
  }

  /** satp of Sv39; of Sv48 and Sv57, whose upper levels lead to the same tables for the low addresses */
  satp(mode: 'Sv39' | 'Sv48' | 'Sv57' = 'Sv39'): bigint {
    const level = SATP_MODES.indexOf(mode);
    return (BigInt(8 + level) << 60n) | BigInt(this.#roots[level]! / PAGE);
  }

  #entry(table: number, index: number, value: bigint): number {
    this.#tables.u64At(table + 8 * index, value);
    return table + 8 * index;
  }

  /** A 4 KiB page's entry */
  page(value: bigint): Slot {
    const index = this.#used++;
    if (index % 512 === 0) {
      this.#level0 = this.#tables.reserve(PAGE, PAGE);
      this.#entry(this.#level1, index / 512, leaf(this.#level0, PTE.V));
    }
    return { pte: this.#entry(this.#level0, index % 512, value), va: CASES_AT + index * PAGE };
  }

  /** A 2 MiB page's entry; the address is where the target lies in its own 2 MiB */
  megapage(value: bigint): Slot {
    const index = this.#usedMega++;
    return {
      pte: this.#entry(this.#level1Mega, index, value),
      va: MEGAPAGES_AT + index * MEGA + (this.target % MEGA),
    };
  }

  get targetMegapage(): number {
    return this.target - (this.target % MEGA);
  }
}
