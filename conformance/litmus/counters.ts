// Locks and counters: every hart adds one to a count so many times, under a lock or atomically. No count may be lost.
import { encode } from '../../emulator/isa/mod.ts';
import type { Assembly } from '../differential/assembly.ts';

const [zero, s0, s1, t0, t1, t2] = [0, 8, 9, 5, 6, 7] as const;
const ordered = (word: number, bits: number): number => (word | (bits << 25)) >>> 0;
const ACQUIRE = 2;
const RELEASE = 1;

export const COUNTERS = [
  'amoswap lock',
  'lr/sc lock',
  'lock released by fence and store',
  'amoadd',
  'lr/sc add',
] as const;
type Counter = (typeof COUNTERS)[number];

/** s0 is the lock's address, s1 the count's */
export function emitIncrement(a: Assembly, counter: Counter): void {
  const [again, inside] = [a.fresh('again'), a.fresh('inside')];
  const add = () =>
    a.op('ld', { rd: t1, rs1: s1 }).op('addi', { rd: t1, rs1: t1, imm: 1 }).op('sd', { rs1: s1, rs2: t1 });
  switch (counter) {
    case 'amoswap lock':
    case 'lock released by fence and store':
      a.op('addi', { rd: t0, imm: 1 })
        .label(again)
        .add(ordered(encode('amoswap.w', { rd: t2, rs1: s0, rs2: t0 }), ACQUIRE));
      a.branch('bne', t2, zero, again);
      add();
      if (counter === 'amoswap lock') a.add(ordered(encode('amoswap.w', { rs1: s0 }), RELEASE));
      else a.add(0x0310_000f).op('sw', { rs1: s0, rs2: zero }); // fence rw,w
      return;
    case 'lr/sc lock':
      a.op('addi', { rd: t0, imm: 1 })
        .label(again)
        .add(ordered(encode('lr.w', { rd: t2, rs1: s0 }), ACQUIRE));
      a.branch('bne', t2, zero, again)
        .op('sc.w', { rd: t2, rs1: s0, rs2: t0 })
        .branch('beq', t2, zero, inside)
        .jump(again);
      a.label(inside);
      add();
      a.add(ordered(encode('amoswap.w', { rs1: s0 }), RELEASE));
      return;
    case 'amoadd':
      a.op('addi', { rd: t0, imm: 1 }).op('amoadd.d', { rs1: s1, rs2: t0 });
      return;
    case 'lr/sc add':
      a.label(again).op('lr.d', { rd: t1, rs1: s1 }).op('addi', { rd: t1, rs1: t1, imm: 1 });
      a.op('sc.d', { rd: t2, rs1: s1, rs2: t1 }).branch('bne', t2, zero, again);
  }
}
