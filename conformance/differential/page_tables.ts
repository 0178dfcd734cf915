// Four address spaces: code and data of the programs for the supervisor or for the user, and of each two that map
// other code at the same address of the window.
import { Random } from '../isa/random.ts';
import {
  ABSENT,
  CODE_PAGE_INDEX,
  CODE_PAGES,
  DATA_PAGES,
  DEMAND_PAGE,
  MOVING_PAGE,
  MOVING_PAGES,
  PAGE,
  PROGRAMS,
  RAM_BASE,
  RAM_BYTES,
  SLOT_PAGES,
  TABLES,
  TABLES_BYTES,
  WINDOW,
  WINDOW_ENTRIES,
  WINDOW_PAGES,
} from './layout.ts';

const V = 1n;
const R = 2n;
const W = 4n;
const X = 8n;
const U = 16n;
const G = 32n;
const A = 64n;
const D = 128n;
const MEGA = 2 << 20;
const GIGA = 1 << 30;
const SV39 = 8n << 60n;

/** Numbers of the address spaces */
export const SUPERVISOR_SPACES = [1, 2] as const;
const USER_SPACES = [3, 0xfffe] as const;

export type Owner = 'S' | 'U';
export type Space = 0 | 1;

const entry = (pa: number, flags: bigint): bigint => ((BigInt(pa) >> 12n) << 10n) | flags;

export interface PageTables {
  readonly bytes: Uint8Array;
  satp(owner: Owner, space: Space): bigint;
  /** Address of the table that the window's entries are in, of all four spaces */
  readonly windows: readonly number[];
  /** Address of the entry of a page of the programs; the entries of all of them follow each other */
  entryOf(owner: Owner, address: number): number;
  /** Address of the entries of a program's own pages */
  entries(owner: Owner, slot: number): number;
  /** What toggles satp between the two spaces of an owner, given satp ^ this */
  readonly satpToggle: Readonly<Record<Owner, bigint>>;
}

/** @param random decides which pages begin without A and D */
function buildPageTables(random: Random): PageTables {
  const bytes = new Uint8Array(TABLES_BYTES);
  const view = new DataView(bytes.buffer);
  let next = TABLES;
  const table = (): number => {
    const at = next;
    next += PAGE;
    if (next > TABLES + TABLES_BYTES) throw new RangeError('Cannot make page tables: no room');
    return at;
  };
  const set = (at: number, index: number, value: bigint): void =>
    view.setBigUint64(at + 8 * index - TABLES, value, true);
  const roots = new Map<string, number>();
  const windows: number[] = [];
  const level0s = new Map<Owner, number>();
  for (const owner of ['S', 'U'] as const) {
    const user = owner === 'U' ? U : 0n;
    const { level1: programs, level0 } = programTables(owner, random, table, set);
    level0s.set(owner, level0);
    for (const space of [0, 1] as const) {
      const root = table();
      const level1 = table();
      const window = table();
      set(root, RAM_BASE / GIGA, entry(programs, V));
      set(root, WINDOW / GIGA, entry(level1, V));
      set(level1, 0, entry(window, V));
      windowEntries(user, space, (index, value) => set(window, index, value));
      roots.set(`${owner}${space}`, root);
      windows.push(window);
    }
  }
  const satp = (owner: Owner, space: Space): bigint => {
    const number = BigInt((owner === 'S' ? SUPERVISOR_SPACES : USER_SPACES)[space]);
    return SV39 | (number << 44n) | BigInt(roots.get(`${owner}${space}`)! / PAGE);
  };
  return {
    bytes: bytes.subarray(0, next - TABLES),
    satp,
    windows,
    entryOf: (owner, address) => level0s.get(owner)! + ((address - PROGRAMS) / PAGE) * 8,
    entries: (owner, slot) => level0s.get(owner)! + slot * SLOT_PAGES * 8,
    satpToggle: { S: satp('S', 0) ^ satp('S', 1), U: satp('U', 0) ^ satp('U', 1) },
  };
}

/** The gigabyte of RAM: the runtime and the window's pages for the supervisor, the programs by 4 KiB pages */
function programTables(
  owner: Owner,
  random: Random,
  table: () => number,
  set: (at: number, index: number, value: bigint) => void,
): { level1: number; level0: number } {
  const level1 = table();
  const all = V | R | W | X;
  for (const mega of [0, 1]) set(level1, mega, entry(RAM_BASE + mega * MEGA, all | A | D));
  const first = (PROGRAMS - RAM_BASE) / MEGA;
  const last = RAM_BYTES / MEGA;
  const tables = Array.from({ length: last - first }, table);
  for (const [index, level0] of tables.entries()) {
    const mega = first + index;
    set(level1, mega, entry(level0, V));
    for (let page = 0; page < MEGA / PAGE; page++) {
      const marks = random.pick([0n, A, A | D, A | D]) | random.pick([0n, G]);
      set(level0, page, entry(RAM_BASE + mega * MEGA + page * PAGE, all | marks | (owner === 'U' ? U : 0n)));
    }
  }
  return { level1, level0: tables[0]! };
}

function windowEntries(user: bigint, space: Space, set: (index: number, value: bigint) => void): void {
  const page = (index: number) => WINDOW_PAGES + index * PAGE;
  const data = V | R | W | A | D | user;
  set(0, entry(page(0), data));
  set(1, entry(page(0), data));
  set(2, entry(page(1), V | R | A | user));
  set(3, entry(page(2), V | R | W | user));
  set(DEMAND_PAGE, entry(page(3), data & ~V));
  set(5, entry(page(3), data));
  set(7, entry(page(1), data));
  set(8, entry(page(2), data ^ U));
  set(9, entry(ABSENT, data));
  set(10, entry(page(3), V | X | A | user));
  set(11, entry(page(0), V | W | A | D | user));
  set(12, entry(page(space), data));
  for (let i = 0; i < MOVING_PAGES; i++) set(MOVING_PAGE + i, entry(page((i + space) % DATA_PAGES), data));
  const code = V | R | W | X | A | D | user;
  set(CODE_PAGE_INDEX, entry(page(space === 0 ? CODE_PAGES.a : CODE_PAGES.b), code));
  set(CODE_PAGE_INDEX + 1, entry(page(CODE_PAGES.shared), code | G));
  if (MOVING_PAGE + MOVING_PAGES > WINDOW_ENTRIES) throw new RangeError('Cannot map the window: too many pages');
}

/** They do not depend on the programs, so that a program alone meets the same ones */
export const pageTables: PageTables = buildPageTables(new Random(1));
