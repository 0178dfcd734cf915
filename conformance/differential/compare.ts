// Two RAMs after the same image: which legs ended differently, and in what.
import type { Image } from './image.ts';
import {
  DATA_OFFSET,
  FAR_PIECE_BYTES,
  FAR_PIECES,
  farBase,
  jumpTablesAt,
  PAGE,
  PROGRAMS,
  RAM_BASE,
  RAM_BYTES,
  RECORD,
  SLOT_BYTES,
  SLOT_PAGES,
  SLOTS,
  slotBase,
  TRAP_LOG,
  TRAP_LOG_ENTRIES,
  TRAP_LOG_ENTRY_BYTES,
} from './layout.ts';
import type { ProgramPlan } from './nodes.ts';
import { pageTables } from './page_tables.ts';

export interface Mismatch {
  readonly program: ProgramPlan;
  /** Index in the program's legs of the first that differs; undefined where only memory does */
  readonly leg: number | undefined;
  readonly texts: readonly string[];
}

const SHOWN = 8;
const PTE_A = 64n;
const hex = (value: bigint): string => `0x${value.toString(16)}`;
const view = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function fieldName(offset: number): string {
  if (offset < RECORD.f) return `x${offset / 8}`;
  if (offset < RECORD.fcsr) return `f${(offset - RECORD.f) / 8}`;
  return Object.entries(RECORD).find(([, at]) => at === offset)?.[0] ?? `+${offset}`;
}

/** Doublewords of a range that differ, as text; `name` says what stands at an address */
function rangeDifferences(
  ours: Uint8Array,
  theirs: Uint8Array,
  from: number,
  bytes: number,
  name: (offset: number) => string,
): string[] {
  const [start, end] = [from - RAM_BASE, from - RAM_BASE + bytes];
  const [a, b] = [ours.subarray(start, end), theirs.subarray(start, end)];
  if (Buffer.compare(a, b) === 0) return [];
  const texts: string[] = [];
  const [our, their] = [view(a), view(b)];
  for (let at = 0; at < bytes; at += 8) {
    const [left, right] = [our.getBigUint64(at, true), their.getBigUint64(at, true)];
    if (left !== right && !isCodeMark(from + at, left, right))
      texts.push(`${name(at)} ${hex(left)}, expected ${hex(right)}`);
  }
  return texts;
}

/** The first trap that differs, as far as the log goes: only the last leg's traps are there. */
export function firstTrapDifference(ours: Uint8Array, theirs: Uint8Array): string | undefined {
  const [a, b] = [view(ours), view(theirs)];
  const entry = (v: DataView, index: number): bigint[] =>
    [0, 8, 16].map((offset) => v.getBigUint64(TRAP_LOG - RAM_BASE + index * TRAP_LOG_ENTRY_BYTES + offset, true));
  for (let index = 1; index < TRAP_LOG_ENTRIES; index++) {
    const [left, right] = [entry(a, index), entry(b, index)];
    // tval of illegal instructions and breakpoints is the implementation's choice
    const count = left[0] === 2n || left[0] === 3n ? 2 : 3;
    if (left.slice(0, count).join() === right.slice(0, count).join()) continue;
    const text = ([cause, epc, tval]: bigint[]) => `cause ${cause} epc ${hex(epc!)} tval ${hex(tval!)}`;
    return `trap ${index}: ${text(left)}, expected ${text(right)}`;
  }
  return undefined;
}

/** One entry for each program that differs. */
export function compareRams(image: Image, ours: Uint8Array, theirs: Uint8Array): Mismatch[] {
  const found = new Map<ProgramPlan, { leg: number | undefined; texts: string[] }>();
  const note = (program: ProgramPlan, leg: number | undefined, texts: readonly string[]): void => {
    if (texts.length === 0) return;
    const known = found.get(program);
    if (known === undefined) found.set(program, { leg, texts: [...texts] });
    else known.texts.push(...texts);
  };
  for (const { program, plan, record } of image.legs) {
    const leg = program.legs.indexOf(plan);
    const where = `${plan.mode}${plan.paging ? '' : ' bare'}`;
    const texts = rangeDifferences(ours, theirs, record, RECORD.done + 8, (at) => `${where} ${fieldName(at)}`);
    // Later legs of the program begin with the memory that this one left
    if (found.get(program)?.leg === undefined) note(program, leg, texts);
  }
  for (const program of image.programs) {
    const base = slotBase(program.slot);
    const name = (at: number) =>
      at < DATA_OFFSET ? `code+0x${at.toString(16)}` : `data+0x${(at - DATA_OFFSET).toString(16)}`;
    note(program, undefined, rangeDifferences(ours, theirs, base, SLOT_BYTES, name));
    for (let piece = 0; piece < FAR_PIECES; piece++) {
      const far = (at: number) => `far code ${piece}+0x${at.toString(16)}`;
      note(program, undefined, rangeDifferences(ours, theirs, farBase(program.slot, piece), FAR_PIECE_BYTES, far));
    }
  }
  for (const program of image.programs) {
    for (const owner of ['S', 'U'] as const) {
      const entries = pageTables.entries(owner, program.slot);
      const name = (at: number) => `${owner} PTE of page ${at / 8}`;
      note(program, undefined, rangeDifferences(ours, theirs, entries, SLOT_PAGES * 8, name));
      const tables = pageTables.entryOf(owner, jumpTablesAt(program.slot));
      note(
        program,
        undefined,
        rangeDifferences(ours, theirs, tables, 8, () => `${owner} PTE of the jump tables`),
      );
    }
  }
  return [...found].map(([program, { leg, texts }]) => ({ program, leg, texts: texts.slice(0, SHOWN) }));
}

/**
 * Marks of code pages: a translated function may be of two pages, and marks both when it begins, as A may be set ahead
 * of the access (privileged specification, "Addressing and Memory Protection"); D may not. That translating alone marks
 * nothing is for test/emulator/hart/translation.test.ts to see.
 */
export function isCodeMark(address: number, ours: bigint, theirs: bigint): boolean {
  if ((ours ^ theirs) !== PTE_A || (ours & PTE_A) === 0n) return false;
  for (const owner of ['S', 'U'] as const) {
    const page = (address - pageTables.entries(owner, 0)) / 8;
    if (page < 0 || page >= (RAM_BASE + RAM_BYTES - PROGRAMS) / PAGE) continue;
    if (page < SLOTS * SLOT_PAGES) return page % SLOT_PAGES < DATA_OFFSET / PAGE;
    // Each piece's last page has jump tables, or nothing
    return page % (FAR_PIECE_BYTES / PAGE) < FAR_PIECE_BYTES / PAGE - 1;
  }
  return false;
}
