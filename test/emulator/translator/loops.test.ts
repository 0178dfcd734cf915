import test from 'ava';
import type { Instruction } from '../../../emulator/translator/instruction.ts';
import { belongingToStart } from '../../../emulator/translator/loops.ts';
import type { Block, BlockEnd, Region } from '../../../emulator/translator/region.ts';

/** A block of so many instructions of two bytes each; only their number and places matter here */
function block(at: number, size: number, end: BlockEnd): [number, Block] {
  const instructions = Array.from({ length: size }, (_, i) => ({ at: at + 2 * i, length: 2 }) as Instruction);
  return [at, { at, instructions, end }];
}
const page = { slots: 0, host: 0x10000 };
function region(start: number, blocks: readonly [number, Block][]): Region {
  return { start, blocks: new Map(blocks), pages: new Map([[0, page], [1, page]]), resumes: new Set([0x40, 0x140]) }; // biome-ignore format: one value
}
const branch = (taken: number, to: number): BlockEnd => ({ kind: 'branch', taken, to });
const next = (to: number): BlockEnd => ({ kind: 'next', to });
const kept = (of: Region): number[] => [...of.blocks.keys()].sort((a, b) => a - b);
const nothing = (): boolean => false;

// for (…) { for (…) 0x40; 0x80; for (…) 0x100; 0x140 }, and the end at 0x180
const nest = (start: number): Region =>
  region(start, [
    block(0x00, 30, next(0x40)),
    block(0x40, 30, branch(0x40, 0x80)),
    block(0x80, 30, next(0x100)),
    block(0x100, 30, branch(0x100, 0x140)),
    block(0x140, 30, branch(0x00, 0x180)),
    block(0x180, 30, { kind: 'register', targets: [] }),
  ]);

test('An inner loop takes along what follows it, but no other loop and not what is around it', (t) => {
  t.deepEqual(kept(belongingToStart(nest(0x40), nothing)), [0x40, 0x80]);
  t.deepEqual(kept(belongingToStart(nest(0x100), nothing)), [0x100, 0x140, 0x180]);
});

test('An outer loop has its inner loops in it', (t) => {
  t.deepEqual(kept(belongingToStart(nest(0x00), nothing)), [0x00, 0x40, 0x80, 0x100, 0x140, 0x180]);
});

test('What follows a loop ends where another translation begins', (t) => {
  t.deepEqual(kept(belongingToStart(nest(0x100), (at) => at === 0x140)), [0x100]);
});

test('A place between loops is the start of what runs to the next loop', (t) => {
  t.deepEqual(kept(belongingToStart(nest(0x80), nothing)), [0x80]);
});

test('A short region is kept whole', (t) => {
  const short = region(0x40, [block(0x00, 4, next(0x40)), block(0x40, 4, branch(0x00, 0x80)), block(0x80, 1, next(0))]);
  t.is(belongingToStart(short, nothing), short);
});

test('Pages and resumes are those of the blocks that are kept', (t) => {
  const far = region(0x40, [...nest(0x40).blocks, block(0x1000, 30, next(0x40))]);
  const loop = belongingToStart(far, nothing);
  t.deepEqual([...loop.pages.keys()], [0]);
  t.deepEqual([...loop.resumes], [0x40]);
});
