// What a region's code needs to know of itself: which registers are live and which differ from memory, and how the
// fuel that paths use is counted.
import type { Flow } from './flow.ts';
import { F, type Instruction, X } from './instruction.ts';
import type { Block } from './region.ts';

/** Sets of registers are words: bit n stands for register n; x0 is never in. */
export interface BlockFacts {
  /** Registers whose locals must hold their values at the block's start */
  liveX: number;
  liveF: number;
  /** Registers whose locals may be newer than memory, at the start and at the end */
  dirtyInX: number;
  dirtyInF: number;
  dirtyX: number;
  dirtyF: number;
  /** Instructions executed at the block's start that the fuel word does not know of */
  spent: number;
  /** The fuel word is exact at the block's start, and what lies ahead to the next such place was checked */
  isSync: boolean;
  /** From a sync block: the most instructions to the next */
  ahead: number;
}

const bit = (register: number): number => 1 << register;

export function readsX({ facts, rs1, rs2 }: Instruction): number {
  const mask = (facts.rs1 === X ? bit(rs1) : 0) | (facts.rs2 === X ? bit(rs2) : 0);
  return mask & ~1;
}
export function readsF({ facts, rs1, rs2, rs3 }: Instruction): number {
  return (facts.rs1 === F ? bit(rs1) : 0) | (facts.rs2 === F ? bit(rs2) : 0) | (facts.rs3 === F ? bit(rs3) : 0);
}
export function writesX({ facts, rd }: Instruction): number {
  return facts.rd === X ? bit(rd) & ~1 : 0;
}
export function writesF({ facts, rd }: Instruction): number {
  return facts.rd === F ? bit(rd) : 0;
}

export type Analysis = ReadonlyMap<number, BlockFacts>;

export function analyse(flow: Flow): Analysis {
  const facts = new Map<number, BlockFacts>();
  const blocks: Block[] = [];
  for (const { block } of flow.nodes) {
    if (block === undefined) continue;
    blocks.push(block);
    facts.set(block.at, {
      liveX: 0, liveF: 0, dirtyInX: 0, dirtyInF: 0, dirtyX: 0, dirtyF: 0, spent: 0, isSync: false, ahead: 0,
    }); // biome-ignore format: one value
  }
  followRegisters(blocks, facts, flow);
  countFuel(blocks, facts, flow);
  return facts;
}

/** Blocks that follow in the same frame: after a call or the kernel all registers come from memory again */
function following(flow: Flow, block: Block): number[] {
  const { end } = block;
  if (end.kind === 'call' || end.kind === 'system') return [];
  if (end.kind === 'guess') return [end.to];
  return flow.nodeOf.get(block.at)!.edges.map(({ target }) => target);
}

function followRegisters(blocks: readonly Block[], facts: Map<number, BlockFacts>, flow: Flow): void {
  const next = new Map(blocks.map((block) => [block.at, following(flow, block)]));
  const own = new Map(
    blocks.map((block) => {
      let [useX, useF, defX, defF] = [0, 0, 0, 0];
      for (const instruction of block.instructions) {
        useX! |= readsX(instruction) & ~defX!;
        useF! |= readsF(instruction) & ~defF!;
        defX! |= writesX(instruction);
        defF! |= writesF(instruction);
      }
      return [block.at, { useX: useX!, useF: useF!, defX: defX!, defF: defF! }];
    }),
  );
  for (let changed = true; changed; ) {
    changed = false;
    for (const block of blocks) {
      const its = facts.get(block.at)!;
      const { defX, defF } = own.get(block.at)!;
      its.dirtyX = its.dirtyInX | defX;
      its.dirtyF = its.dirtyInF | defF;
      for (const to of next.get(block.at)!) {
        const target = facts.get(to)!;
        if ((its.dirtyX & ~target.dirtyInX) === 0 && (its.dirtyF & ~target.dirtyInF) === 0) continue;
        target.dirtyInX |= its.dirtyX;
        target.dirtyInF |= its.dirtyF;
        changed = true;
      }
    }
  }
  // What is dirty is stored sooner or later, so its local must be good: it counts as used
  for (let changed = true; changed; ) {
    changed = false;
    for (let i = blocks.length - 1; i >= 0; i--) {
      const block = blocks[i]!;
      const its = facts.get(block.at)!;
      const { useX, useF, defX, defF } = own.get(block.at)!;
      let [outX, outF] = [0, 0];
      for (const to of next.get(block.at)!) {
        outX! |= facts.get(to)!.liveX;
        outF! |= facts.get(to)!.liveF;
      }
      const liveX = useX | its.dirtyInX | (outX! & ~defX);
      const liveF = useF | its.dirtyInF | (outF! & ~defF);
      if (liveX === its.liveX && liveF === its.liveF) continue;
      its.liveX = liveX;
      its.liveF = liveF;
      changed = true;
    }
  }
}

/**
 * The fuel word in memory is brought up to date at sync blocks (entries, loop headers, where calls come back); between
 * them each block knows how many instructions were executed since. Where paths of different length meet, the
 * shorter one pays the difference on its edge. A sync block is entered only with fuel for all that can
 * follow before the next, so a run never executes more than it was given.
 */
function countFuel(blocks: readonly Block[], facts: Map<number, BlockFacts>, flow: Flow): void {
  for (const target of flow.entries) facts.get(target)!.isSync = true;
  for (const { edges, order } of flow.nodes) {
    for (const edge of edges) {
      if (edge.from.kind !== 'block') continue;
      // By way of a dispatch node, or back: all that the dispatch node leads to is meant
      if (edge.to.order <= order || edge.to.kind === 'dispatch') facts.get(edge.target)!.isSync = true;
    }
  }
  for (const { kind, edges } of flow.nodes) {
    if (kind === 'dispatch') for (const { target } of edges) if (target >= 0) facts.get(target)!.isSync = true;
  }
  for (const { end } of blocks) {
    const back =
      end.kind === 'call' || end.kind === 'guess'
        ? facts.get(end.back)
        : end.kind === 'system'
          ? facts.get(end.to)
          : undefined;
    if (back !== undefined) back.isSync = true;
  }
  for (const block of blocks) {
    const after = facts.get(block.at)!.spent + block.instructions.length;
    for (const to of following(flow, block)) {
      const target = facts.get(to)!;
      if (!target.isSync) target.spent = Math.max(target.spent, after);
    }
  }
  for (let i = blocks.length - 1; i >= 0; i--) {
    const block = blocks[i]!;
    let most = 0;
    for (const to of following(flow, block)) {
      const target = facts.get(to)!;
      if (!target.isSync) most = Math.max(most, target.ahead);
    }
    facts.get(block.at)!.ahead = block.instructions.length + most;
  }
}
