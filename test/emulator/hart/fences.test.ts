import test from 'ava';
import fc from 'fast-check';
import { readCounters } from '../../../emulator/hart/counters.ts';
import type { Engine } from '../../../emulator/hart/hart.ts';
import { encode } from '../../../emulator/isa/mod.ts';
import { BareHart, CODE, PageTables, pte, RAM, RWX, S, SV39 } from '../../fixtures/bare_hart.ts';

const [RA, T0, A0, A1] = [1, 5, 10, 11];
/** Rounds of a loop that calls: it is translated meanwhile, and then calls by address, without a fetch */
const ROUNDS = 6;
const LOAD = BigInt(CODE);
const CALL = BigInt(CODE + 0x10);
const FENCE = BigInt(CODE + 0x20);
const FENCE_ALL = BigInt(CODE + 0x30);
const FENCE_I = BigInt(CODE + 0x40);
const PAGE = 4096;
const SUPERPAGE = 2 << 20;
/** Of 4 KiB, with data and code of their own */
const FRAMES = [0, 1, 2, 3].map((index) => RAM + 0x10_0000 + index * PAGE);
/** Neighbours, and pages that share an entry of the data or of the fetch TLB with the first */
const PAGES = [0, 2, 256, 1024].map((page) => 0x4000_0000n + BigInt(page * PAGE));
const SUPERPAGES = [0x5000_0000n, 0x5020_0000n];
const SUPERFRAMES = [RAM, RAM + SUPERPAGE];
/** In a superpage: frames that exist in both of its places */
const OFFSETS = [0, 1, 2, 3].map((index) => 0x10_0000 + index * PAGE);

/** A guest in S-mode whose page tables the test changes, as another hart would. */
class Guest {
  readonly machine: BareHart;
  readonly pages: number[];
  readonly superpages: number[];

  constructor(engine: Engine) {
    const machine = new BareHart({ engine });
    this.machine = machine;
    machine.set({ mode: S });
    const tables = new PageTables(machine, SV39).identity();
    this.pages = PAGES.map((va) => tables.map(va, FRAMES[0]!, RWX));
    this.superpages = SUPERPAGES.map((va) => tables.map(va, SUPERFRAMES[0]!, RWX, 1));
    machine.code(Number(LOAD), [encode('ld', { rd: A1, rs1: A0 })]);
    machine.code(Number(CALL), [
      encode('jalr', { rd: RA, rs1: A0 }),
      encode('addi', { rd: T0, rs1: T0, imm: -1 }),
      encode('bne', { rs1: T0, imm: -8 }),
    ]);
    machine.code(Number(FENCE), [encode('sfence.vma', { rs1: A0 })]);
    machine.code(Number(FENCE_ALL), [encode('sfence.vma')]);
    machine.code(Number(FENCE_I), [encode('fence.i')]);
    for (const base of SUPERFRAMES) {
      for (const [index, offset] of OFFSETS.entries()) {
        const number = (base === RAM ? 100 : 200) + index;
        machine.ram.setU64(base + offset, BigInt(number));
        this.writeCode(base + offset, number);
      }
    }
    machine.hart.flushInstructions();
  }

  /** A frame's code gives this number. */
  writeCode(frame: number, number: number): void {
    this.machine.code(frame + 8, [encode('addi', { rd: A1, rs1: 0, imm: number }), encode('jalr', { rd: 0, rs1: RA })]);
  }

  #at(pc: bigint, a0: bigint, steps: number): bigint {
    const { hart } = this.machine;
    hart.setX(A0, a0);
    hart.setX(A1, 0n);
    hart.pc = pc;
    hart.step(steps);
    return hart.x(A1);
  }
  load(va: bigint): bigint {
    return this.#at(LOAD, va, 1);
  }
  /** Runs the code of a page. */
  call(va: bigint): bigint {
    this.machine.hart.setX(T0, BigInt(ROUNDS));
    return this.#at(CALL, va + 8n, 5 * ROUNDS);
  }
  fence(va: bigint): void {
    this.#at(FENCE, va, 1);
  }
  fenceAll(): void {
    this.#at(FENCE_ALL, 0n, 1);
  }
  fenceInstructions(): void {
    this.#at(FENCE_I, 0n, 1);
  }
  count(name: string): number {
    const { memory, hart } = this.machine;
    return Number(readCounters(memory.buffer as SharedArrayBuffer, hart.base).get(name)!);
  }
}

const ADDRESSES = [...PAGES, ...SUPERPAGES.flatMap((va) => OFFSETS.map((offset) => va + BigInt(offset)))];
const step = fc.oneof(
  fc.record({
    kind: fc.constant('access' as const),
    how: fc.constantFrom('load' as const, 'call' as const),
    address: fc.nat(ADDRESSES.length - 1),
  }),
  fc.record({
    kind: fc.constant('page' as const),
    page: fc.nat(PAGES.length - 1),
    frame: fc.nat(3),
    byte: fc.nat(4095),
  }),
  fc.record({
    kind: fc.constant('superpage' as const),
    page: fc.nat(1),
    frame: fc.nat(1),
    byte: fc.nat(SUPERPAGE - 1),
  }),
  fc.record({ kind: fc.constant('code' as const), frame: fc.nat(3), base: fc.nat(1), number: fc.nat(2000) }),
);

for (const engine of ['interpreter', 'translator'] as const) {
  test(`fences of one address, and of changed code alone, are as good as fences of all (${engine})`, (t) => {
    let single = 0;
    fc.assert(
      fc.property(fc.array(step, { minLength: 10, maxLength: 80 }), (steps) => {
        const [one, all] = [new Guest(engine), new Guest(engine)];
        for (const each of steps) {
          if (each.kind === 'access') {
            const va = ADDRESSES[each.address]!;
            if (one[each.how](va) !== all[each.how](va)) return false;
            continue;
          }
          if (each.kind === 'code') {
            const frame = SUPERFRAMES[each.base]! + OFFSETS[each.frame]!;
            for (const guest of [one, all]) {
              guest.writeCode(frame, each.number);
              guest.fenceInstructions();
            }
            all.machine.hart.flushInstructions();
            continue;
          }
          const small = each.kind === 'page';
          for (const guest of [one, all]) {
            const entry = (small ? guest.pages : guest.superpages)[each.page]!;
            guest.machine.ram.setU64(entry, pte((small ? FRAMES : SUPERFRAMES)[each.frame]!, RWX));
          }
          one.fence((small ? PAGES : SUPERPAGES)[each.page]! + BigInt(each.byte));
          all.fenceAll();
        }
        single += one.count('tlb-page-flushes');
        return ADDRESSES.every((va) => one.load(va) === all.load(va) && one.call(va) === all.call(va));
      }),
      { numRuns: 40 },
    );
    t.true(single > 100);
  });
}

test('sfence.vma of one address leaves other translations, and takes all where a superpage may be meant', (t) => {
  const guest = new Guest('translator');
  const [first, second] = PAGES as [bigint, bigint];
  guest.fenceAll();
  for (const va of [first, second]) {
    t.is(guest.load(va), 100n);
    t.is(guest.call(va), 100n);
  }
  const counts = () => ['data-tlb-misses', 'fetch-tlb-misses', 'tlb-flushes'].map((name) => guest.count(name));
  const before = counts();
  guest.fence(first + 5n);
  t.is(guest.load(second), 100n);
  t.is(guest.call(second), 100n);
  t.deepEqual(counts(), before);
  t.is(guest.load(first), 100n);
  t.is(guest.count('data-tlb-misses'), before[0]! + 1);
  // What a superpage was entered for may be anywhere in it
  guest.load(SUPERPAGES[0]! + BigInt(OFFSETS[1]!));
  guest.fence(SUPERPAGES[0]!);
  t.is(guest.count('tlb-flushes'), before[2]! + 1);
  guest.fence(SUPERPAGES[0]!);
  t.is(guest.count('tlb-flushes'), before[2]! + 1, 'nothing of it is remembered any more');
});

test('fence.i leaves what is unchanged, and what is fetched twice is decoded once', (t) => {
  const guest = new Guest('translator');
  const [first, second] = PAGES as [bigint, bigint];
  guest.machine.ram.setU64(guest.pages[1]!, pte(FRAMES[1]!, RWX));
  guest.fenceAll();
  t.deepEqual([guest.call(first), guest.call(second)], [100n, 101n]);
  const counts = () => ['fetch-tlb-misses', 'code-pages-invalidated'].map((name) => guest.count(name));
  const before = counts();
  guest.fenceInstructions();
  t.deepEqual([guest.call(first), guest.call(second)], [100n, 101n]);
  t.deepEqual(counts(), before);
  guest.writeCode(FRAMES[1]!, 7);
  guest.fenceInstructions();
  t.deepEqual([guest.call(first), guest.call(second)], [100n, 7n]);
  t.deepEqual(counts(), [before[0]! + 1, before[1]! + 1]);
});

for (const engine of ['interpreter', 'translator'] as const) {
  test(`fence.i forgets all code that has changed, in however many pages (${engine})`, (t) => {
    const guest = new Guest(engine);
    for (const [index, frame] of FRAMES.entries()) guest.machine.ram.setU64(guest.pages[index]!, pte(frame, RWX));
    guest.fenceAll();
    // Each at another offset: the cache of indirect jumps then has all of them
    for (const first of [100, 1000, 500]) {
      for (const [index, frame] of FRAMES.entries()) guest.writeCode(frame + 16 * index, first + index);
      guest.fenceInstructions();
      const found = PAGES.map((va, index) => guest.call(va + BigInt(16 * index)));
      t.deepEqual(
        found,
        FRAMES.map((_, index) => BigInt(first + index)),
      );
    }
  });
}

test('Fences of one address, without end, keep the list of execution cells as long as there are cells', (t) => {
  const guest = new Guest('translator');
  for (let round = 0; round < 20_000; round++) {
    const va = PAGES[round & 3]!;
    if (guest.call(va) !== 100n) t.fail(`round ${round}`);
    guest.fence(va);
  }
  t.is(guest.count('tlb-flushes'), new Guest('translator').count('tlb-flushes'));
});

test('A predecoded page that gave way to another is not found by its old slots', (t) => {
  // In M-mode, in pages that use all entries of the fetch TLB but the first page's
  const machine = new BareHart({ ramBytes: 8 << 20, engine: 'interpreter' });
  const first = RAM + 0x10_0000;
  const run = (address: number, number: number): bigint => {
    machine.code(address, [encode('addi', { rd: A1, rs1: 0, imm: number })]);
    machine.hart.pc = BigInt(address);
    machine.hart.step(1);
    return machine.hart.x(A1);
  };
  t.is(run(first, 42), 42n);
  let pages = 0;
  for (let page = 1; pages < 1100; page++) {
    if (page % 256 === 0) continue;
    if (run(first + page * PAGE, page) !== BigInt(page)) t.fail(`page ${page}`);
    pages++;
  }
  machine.hart.pc = BigInt(first);
  machine.hart.step(1);
  t.is(machine.hart.x(A1), 42n);
});

test('fence.i finds changed code however often fences of one address have emptied entries before', (t) => {
  const guest = new Guest('interpreter');
  const [first, second] = PAGES as [bigint, bigint];
  guest.machine.ram.setU64(guest.pages[1]!, pte(FRAMES[1]!, RWX));
  guest.fenceAll();
  t.is(guest.call(second), 101n);
  // Each round lists the first page's entry once more: the list is made anew many times, and has to keep the second's
  for (let round = 0; round < 10_000; round++) {
    guest.fence(first);
    if (guest.call(first) !== 100n) t.fail(`round ${round}`);
  }
  guest.writeCode(FRAMES[1]!, 7);
  guest.writeCode(FRAMES[0]!, 8);
  guest.fenceInstructions();
  t.deepEqual([guest.call(second), guest.call(first)], [7n, 8n]);
});
