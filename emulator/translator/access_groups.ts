// Accesses of one block off one unchanged register: their page is looked up once.
import * as H from '../kernel/assembly/hart_layout.ts';
import { writesX } from './analysis.ts';
import { type Instruction, X } from './instruction.ts';

/** Bytes from the first to behind the last: the longer, the more often a page ends between. No more than windows allow for */
const MAX_SPAN = H.WINDOW_SPAN;

export interface AccessGroup {
  /** Least offset from the register, and bytes to behind the last access */
  min: number;
  span: number;
  loads: boolean;
  stores: boolean;
  members: number;
  /**
   * Stores after which the page need not be marked dirty: another of the group follows, and between the two nothing
   * leaves the function
   */
  readonly unmarked: Set<Instruction>;
  /** Local with the host address of register + min, 0 where the lookup failed; -1 before it is made */
  hostLocal: number;
  /** Local with the host page's number, for stores */
  pageLocal: number;
}

/** Bytes of each load and store */
export const SIZES: Readonly<Record<string, number>> = {
  lb: 1, lbu: 1, lh: 2, lhu: 2, lw: 4, lwu: 4, ld: 8, sb: 1, sh: 2, sw: 4, sd: 8, flw: 4, fld: 8, fsw: 4, fsd: 8,
}; // biome-ignore format: one table

/** For each instruction that is in a group of at least two, its group */
export function groupAccesses(instructions: readonly Instruction[]): ReadonlyMap<Instruction, AccessGroup> {
  const open: (AccessGroup | undefined)[] = [];
  const found = new Map<Instruction, AccessGroup>();
  for (const instruction of instructions) {
    const { facts, rs1, imm } = instruction;
    const size = facts.loads ? SIZES[facts.row.name] : undefined;
    if (size !== undefined && facts.rs1 === X) {
      const stores = facts.rs2 !== 0;
      const group = open[rs1];
      const min = group === undefined ? imm : Math.min(group.min, imm);
      const end = group === undefined ? imm + size : Math.max(group.min + group.span, imm + size);
      if (group === undefined || end - min > MAX_SPAN) {
        const made = {
          min: imm,
          span: size,
          loads: !stores,
          stores,
          members: 1,
          unmarked: new Set<Instruction>(),
          hostLocal: -1,
          pageLocal: -1,
        };
        open[rs1] = made;
        found.set(instruction, made);
      } else {
        group.min = min;
        group.span = end - min;
        group.loads ||= !stores;
        group.stores ||= stores;
        group.members++;
        found.set(instruction, group);
      }
    }
    const written = writesX(instruction);
    if (written !== 0) open[instruction.rd] = undefined;
  }
  for (const [instruction, group] of found) if (group.members < 2) found.delete(instruction);
  markLast(instructions, found);
  return found;
}

function markLast(instructions: readonly Instruction[], groups: ReadonlyMap<Instruction, AccessGroup>): void {
  const opened = new Set<AccessGroup>();
  const last = new Map<AccessGroup, Instruction>();
  for (const instruction of instructions) {
    const group = groups.get(instruction);
    // What a group knows of its page it knows from its first member on
    if (instruction.facts.leaves && (group === undefined || !opened.has(group))) last.clear();
    if (group === undefined) continue;
    opened.add(group);
    if (instruction.facts.rs2 === 0) continue;
    const before = last.get(group);
    if (before !== undefined) group.unmarked.add(before);
    last.set(group, instruction);
  }
}
