import test from 'ava';
import { encode } from '../../../emulator/isa/mod.ts';
import { BareHart, CODE, DATA, M, PageTables, RWX, S, SV39, TABLES } from '../../fixtures/bare_hart.ts';

const machine = new BareHart();
const A0 = 10;
const A1 = 11;
const R = 1;
const W = 2;
const X = 4;
const TOR = 1 << 3;
const NA4 = 2 << 3;
const NAPOT = 3 << 3;
const L = 0x80;
const EVERYTHING = (1n << 54n) - 1n;
const napot = (base: number, size: number): number => base / 4 + size / 8 - 1;
const CODE_ENTRY = [NAPOT | R | X, napot(CODE, 4096)] as const;

type Entry = readonly [number, number | bigint];

/** CODE may be executed; then these entries. S-mode unless told. */
function protect(entries: readonly Entry[], mode = S): void {
  machine
    .clear()
    .set({ mode })
    .pmp([CODE_ENTRY, ...entries]);
}

const LOADS = { 1: 'lbu', 2: 'lhu', 4: 'lwu', 8: 'ld' } as const;
const STORES = { 1: 'sb', 2: 'sh', 4: 'sw', 8: 'sd' } as const;
type Size = keyof typeof LOADS;

/** What one access traps with; the mode is as before */
function cause(word: number, address: number): bigint | undefined {
  const { mode } = machine;
  machine.hart.setX(A0, BigInt(address));
  machine.run([word], 1);
  const { trap } = machine;
  if (trap !== undefined) machine.set({ mode, mstatus: 0n });
  return trap?.cause;
}
const load = (address: number, size: Size = 8) => cause(encode(LOADS[size], { rd: A1, rs1: A0 }), address);
const store = (address: number, size: Size = 8) => cause(encode(STORES[size], { rs2: A1, rs1: A0 }), address);

test('With no entry in use nothing is protected; with one, S and U reach only what entries grant', (t) => {
  machine.clear().set({ mode: S });
  t.is(load(DATA), undefined);
  protect([]);
  t.is(load(DATA), 5n);
  protect([]);
  t.is(store(DATA), 7n);
  protect([]);
  machine.hart.setX(A0, BigInt(DATA));
  machine.run([encode('jalr', { rs1: A0 })], 2);
  t.deepEqual(machine.trap, { cause: 1n, epc: BigInt(DATA), tval: BigInt(DATA), mode: 'M' });
});

test('M-mode passes entries that are not locked, and is held by those that are', (t) => {
  protect([[NAPOT, EVERYTHING]], M);
  t.is(load(DATA), undefined);
  protect([[NAPOT | L | R, napot(DATA, 4096)]], M);
  t.is(load(DATA), undefined);
  t.is(store(DATA), 7n);
  t.is(store(DATA + 4096), undefined);
});

test('NA4, NAPOT and TOR cover exactly their bytes', (t) => {
  for (const [name, entries, first, last] of [
    ['NA4', [[NA4 | R | W, (DATA + 64) / 4]], DATA + 64, DATA + 67],
    ['NAPOT of 8', [[NAPOT | R | W, napot(DATA + 64, 8)]], DATA + 64, DATA + 71],
    ['NAPOT of 4 KiB', [[NAPOT | R | W, napot(DATA, 4096)]], DATA, DATA + 4095],
    ['TOR', [[0, (DATA + 20) / 4], [TOR | R | W, (DATA + 4100) / 4]], DATA + 20, DATA + 4099],
  ] as const) {
    for (const [address, ok] of [
      [first - 1, false],
      [first, true],
      [last, true],
      [last + 1, false],
    ] as const) {
      protect(entries);
      t.is(load(address, 1), ok ? undefined : 5n, `${name}: load ${address.toString(16)}`);
      protect(entries);
      t.is(store(address, 1), ok ? undefined : 7n, `${name}: store ${address.toString(16)}`);
    }
  }
}); // biome-ignore format: a table

test('TOR of entry 0 starts at address 0, and one whose bounds cross covers nothing', (t) => {
  machine
    .clear()
    .set({ mode: S })
    .pmp([[TOR | R | X, (DATA + 8) / 4]]);
  t.is(load(DATA), undefined);
  protect([
    [0, (DATA + 64) / 4],
    [TOR | R, DATA / 4],
  ]);
  t.is(load(DATA), 5n);
});

test('An access that an entry covers in part only fails, whatever later entries say', (t) => {
  for (const size of [2, 4, 8] as const) {
    // RAM is writable by the second entry, but its first bytes belong to the first
    const entries: Entry[] = [
      [NA4 | R | W, (DATA + 8) / 4],
      [NAPOT | R | W | X, EVERYTHING],
    ];
    const crossing = DATA + 8 - size / 2;
    protect(entries);
    t.is(load(crossing, size), 5n);
    protect(entries);
    t.is(store(crossing, size), 7n);
  }
  protect([
    [NA4 | R | W, (DATA + 8) / 4],
    [NAPOT | R | W | X, EVERYTHING],
  ]);
  t.is(load(DATA + 8, 4), undefined);
  t.is(load(DATA + 8, 8), 5n);
});

test('The lowest entry that matches decides', (t) => {
  protect([
    [NAPOT | R, napot(DATA, 4096)],
    [NAPOT | R | W, EVERYTHING],
  ]);
  t.is(load(DATA), undefined);
  t.is(store(DATA), 7n);
  t.is(store(DATA + 4096), undefined);
});

test('A page that entries divide is checked at every access, also after one that was allowed', (t) => {
  protect([[NAPOT | R | W, napot(DATA, 64)]]);
  t.is(load(DATA), undefined);
  t.is(store(DATA + 56), undefined);
  t.is(load(DATA + 64), 5n);
  t.is(store(DATA + 64), 7n);
});

test('A right taken back is gone at once: translations are forgotten', (t) => {
  protect([[NAPOT | R | W, EVERYTHING]], M);
  machine.set({ mstatus: (1n << 17n) | (1n << 11n) });
  t.is(store(DATA), undefined);
  machine.hart.setX(12, BigInt(CODE_ENTRY[0]));
  machine.run([encode('csrrw', { rs1: 12, csr: 0x3a0 })]);
  t.is(store(DATA), 7n);
});

// --- execution inside a page that entries divide -----------------------------------------------------------------

const NOP = encode('addi');
/** Executable from DATA for 64 bytes only */
const SLICE: readonly Entry[] = [[NAPOT | X, napot(DATA, 64)]];

function runInSlice(words: readonly number[], from: number, steps: number): void {
  protect(SLICE);
  machine.code(from, words);
  machine.hart.pc = BigInt(from);
  machine.hart.flushInstructions();
  machine.hart.step(steps);
}

test('Falling out of an executable region inside a page faults at its end', (t) => {
  runInSlice([NOP, NOP, NOP], DATA + 56, 3);
  t.deepEqual(machine.trap, { cause: 1n, epc: BigInt(DATA + 64), tval: BigInt(DATA + 64), mode: 'M' });
});

test('Jumps and branches out of an executable region inside a page fault', (t) => {
  for (const word of [encode('jal', { imm: 128 }), encode('beq', { imm: 128 }), 0xa041 /* c.j +128 */]) {
    runInSlice([word], DATA, 2);
    t.deepEqual(machine.trap, { cause: 1n, epc: BigInt(DATA + 128), tval: BigInt(DATA + 128), mode: 'M' });
  }
});

test('An instruction whose second half lies outside its executable region is not run', (t) => {
  protect([
    [0, DATA / 4],
    [TOR | X, (DATA + 64) / 4],
  ]);
  machine.code(DATA + 62, [encode('addi', { rd: A1, imm: 1 })]);
  machine.hart.pc = BigInt(DATA + 62);
  machine.hart.step(1);
  t.deepEqual(machine.trap, { cause: 1n, epc: BigInt(DATA + 62), tval: BigInt(DATA + 64), mode: 'M' });
  t.is(machine.hart.x(A1), 0n);
});

test('Code in a divided page runs as anywhere: loops, 16-bit forms, links', (t) => {
  // a1 = 5; do a1-- while (a1 != 0) with c.addi and c.bnez; then jal over a word
  runInSlice([0x4595, 0x15fd, 0xfdfd, encode('jal', { rd: 1, imm: 8 }), 0xffff_ffff, NOP], DATA, 1 + 5 * 2 + 2);
  t.is(machine.trap, undefined);
  t.is(machine.hart.x(A1), 0n);
  t.is(machine.hart.x(1), BigInt(DATA + 10));
  t.is(machine.hart.pc, BigInt(DATA + 18));
});

test('Page tables are read and updated under the rights of S', (t) => {
  for (const [rights, expected] of [
    [0, 5n],
    [R, 5n],
    [R | W, undefined],
  ] as const) {
    machine.clear().set({ mode: S, menvcfg: 1n << 61n });
    const tables = new PageTables(machine, SV39).identity();
    tables.map(0x4000_0000n, DATA, RWX & ~0xc0n);
    // Warm up nothing: the walk of the load itself has to read tables and set A
    machine.pmp([
      [NAPOT | rights, napot(TABLES, 0x10000)],
      [NAPOT | R | W | X, EVERYTHING],
    ]);
    if (rights === 0) {
      // Not even the fetch can be translated
      machine.run([NOP], 1);
      t.is(machine.trap?.cause, 1n);
      continue;
    }
    t.is(load(0x4000_0000), expected);
  }
});

// --- locks -------------------------------------------------------------------------------------------------------

const writePmp = (csr: number, value: number | bigint): bigint => {
  machine.hart.setX(A0, BigInt(value));
  machine.run([encode('csrrw', { rs1: A0, csr }), encode('csrrs', { rd: A1, csr })]);
  return machine.hart.x(A1);
};

test('A locked entry keeps its configuration and address until reset', (t) => {
  machine.clear();
  t.is(writePmp(0x3b1, DATA / 4), BigInt(DATA / 4));
  t.is(writePmp(0x3a0, (L | NA4 | R) << 8), BigInt((L | NA4 | R) << 8));
  t.is(writePmp(0x3a0, 0x1f1f), BigInt(((L | NA4 | R) << 8) | 0x1f));
  t.is(writePmp(0x3b1, 1), BigInt(DATA / 4));
  t.is(writePmp(0x3b0, 1), 1n, 'NA4 locks no address but its own');
  machine.clear();
  t.is(writePmp(0x3b1, 1), 1n);
});

test('A locked TOR entry locks the address below it', (t) => {
  machine.clear();
  writePmp(0x3b0, 100);
  writePmp(0x3a0, (L | TOR) << 8);
  t.is(writePmp(0x3b0, 5), 100n);
  t.is(writePmp(0x3b2, 5), 5n);
  // Across the two configuration registers: entry 8 is TOR, so the address of entry 7 is locked
  machine.clear();
  writePmp(0x3b7, 100);
  writePmp(0x3a2, L | TOR);
  t.is(writePmp(0x3b7, 5), 100n);
});
