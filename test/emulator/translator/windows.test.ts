import test from 'ava';
import type { Engine } from '../../../emulator/hart/hart.ts';
import { encode } from '../../../emulator/isa/encode.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { X } from '../../../emulator/translator/instruction.ts';
import type { Region } from '../../../emulator/translator/region.ts';
import { windowRegisters } from '../../../emulator/translator/windows.ts';
import {
  BareHart, CODE, DATA, M, M_HANDLER, PageTables, PTE, pte, RAM, RAM_BYTES, RWX, S, S_HANDLER, SV39, TABLES,
} from '../../fixtures/bare_hart.ts'; // biome-ignore format: one list

const VA = 0x12_3456_0000n;
const PAGE = 4096;
const SEPC = 0x141;
const [T0, T1, A0, A1, A2, A3, S0, S1] = [5, 6, 10, 11, 12, 13, 8, 9];
const ANY_WINDOW = { leastWindow: 1 };

/** The window of the mode that the hart is in */
function windowOf({ hart }: BareHart): { first: bigint; bytes: bigint; host: number } {
  const reach = hart.get64(H.HART_WINDOW_REACH);
  const bytes = reach === 0n ? 0n : reach + BigInt(H.WINDOW_SPAN - 1);
  return { first: hart.get64(H.HART_WINDOW), bytes, host: hart.get32(H.HART_WINDOW_HOST) >>> 0 };
}

function load(machine: BareHart, va: bigint): bigint {
  machine.hart.setX(A0, va);
  machine.run([encode('ld', { rd: A1, rs1: A0 })]);
  return machine.hart.x(A1);
}

/** A supervisor whose code and handlers are where they are */
function supervisor(engine: Engine = 'translator', hotAfter = 3): { machine: BareHart; tables: PageTables } {
  const machine = new BareHart({ engine, hotAfter, ...ANY_WINDOW });
  machine.set({ medeleg: 0xffffn, mode: S });
  const tables = new PageTables(machine, SV39);
  for (const page of [CODE, M_HANDLER, S_HANDLER])
    tables.map(BigInt(page), page, PTE.V | PTE.R | PTE.X | PTE.A | PTE.D);
  return { machine, tables };
}

// --- what the kernel makes a window of ------------------------------------------------------------------------

test('Without translation all of RAM is one window', (t) => {
  const machine = new BareHart();
  load(machine, BigInt(DATA));
  t.deepEqual(windowOf(machine), { first: BigInt(RAM), bytes: BigInt(RAM_BYTES), host: machine.layout.ram });
});

test('Pages whose entries go on as the first’s are one window, whichever is met first', (t) => {
  for (const met of [0, 2, 4]) {
    const { machine, tables } = supervisor();
    for (let page = 0; page < 5; page++) tables.map(VA + BigInt(page * PAGE), DATA + page * PAGE, RWX);
    tables.map(VA + BigInt(5 * PAGE), DATA + 6 * PAGE, RWX);
    load(machine, VA + BigInt(met * PAGE));
    const host = machine.layout.ram + DATA - RAM;
    t.deepEqual(windowOf(machine), { first: VA, bytes: BigInt(5 * PAGE), host });
  }
});

test('A page of other rights, or that no access has marked, is not in the window', (t) => {
  for (const without of [PTE.V, PTE.R | PTE.W, PTE.W, PTE.A, PTE.D, PTE.X]) {
    const { machine, tables } = supervisor();
    for (let page = 0; page < 3; page++) {
      tables.map(VA + BigInt(page * PAGE), DATA + page * PAGE, page === 1 ? RWX & ~without : RWX);
    }
    load(machine, VA);
    t.deepEqual([windowOf(machine).first, windowOf(machine).bytes], [VA, BigInt(PAGE)], `without ${without}`);
  }
});

test('Pages that may only be read, devices, and what is beside RAM are in no window', (t) => {
  const { machine, tables } = supervisor();
  tables.map(VA, DATA, PTE.V | PTE.R | PTE.A | PTE.D);
  load(machine, VA);
  t.is(windowOf(machine).bytes, 0n);
  tables.map(VA, 0x6000_0000, RWX);
  load(machine, VA);
  t.is(windowOf(machine).bytes, 0n);
  // The last page of RAM, and what comes behind it
  for (let page = 0; page < 2; page++) tables.map(VA + BigInt(page * PAGE), RAM + RAM_BYTES - PAGE + page * PAGE, RWX);
  load(machine, VA);
  t.is(windowOf(machine).bytes, BigInt(PAGE));
  // A leaf that lies in RAM in part
  tables.map(0x4000_0000n, RAM, RWX, 2);
  load(machine, 0x4000_0000n + 0x20_0000n);
  t.is(machine.trap, undefined);
  t.is(windowOf(machine).bytes, 0n);
});

test('The longer of two ranges stays; neighbours that were met one after the other become one', (t) => {
  const { machine, tables } = supervisor();
  const far = VA + 0x1_0000_0000n;
  tables.map(far, DATA + 0x8000, RWX);
  for (let page = 0; page < 4; page++) tables.map(VA + BigInt(page * PAGE), DATA + page * PAGE, RWX);
  load(machine, far);
  t.is(windowOf(machine).first, far);
  load(machine, VA);
  t.is(windowOf(machine).first, VA);
  load(machine, far);
  t.is(windowOf(machine).first, VA);
  // Two tables: the entries of one do not show the other's
  const end = 0x13_3460_0000n;
  for (let page = -2; page < 2; page++) tables.map(end + BigInt(page * PAGE), DATA + 0x1_0000 + (page + 2) * PAGE, RWX);
  load(machine, end);
  t.is(windowOf(machine).bytes, BigInt(2 * PAGE));
  load(machine, end - 8n);
  t.is(windowOf(machine).first, end - BigInt(2 * PAGE));
  t.is(windowOf(machine).bytes, BigInt(4 * PAGE));
});

test('A range ends with the lower half of the address space', (t) => {
  const gibibyte = 1 << 30;
  const machine = new BareHart({ ramBytes: 2 * gibibyte, ...ANY_WINDOW });
  machine.set({ mode: S });
  const tables = new PageTables(machine, SV39);
  tables.map(BigInt(CODE), RAM, RWX, 2);
  for (const [index, frame] of [RAM, RAM + gibibyte].entries()) {
    machine.ram.setU64(TABLES + (255 + index) * 8, pte(frame, RWX));
  }
  machine.hart.flushTranslations();
  load(machine, 255n << 30n);
  t.deepEqual([windowOf(machine).first, windowOf(machine).bytes], [255n << 30n, BigInt(gibibyte)]);
  load(machine, 256n << 30n);
  t.is(machine.trap?.cause, 13n);
});

test('PMP that says different things of RAM leaves no window', (t) => {
  const machine = new BareHart();
  machine.pmp([
    [0x91, (DATA + 0x1000) >>> 2],
    [0x1f, 0x3f_ffff_ffff_ffffn],
  ]);
  load(machine, BigInt(DATA));
  t.is(windowOf(machine).bytes, 0n);
});

test('sfence.vma for any address of a window closes it, for another does not', (t) => {
  const { machine, tables } = supervisor();
  for (let page = 0; page < 3; page++) tables.map(VA + BigInt(page * PAGE), DATA + page * PAGE, RWX);
  for (let page = -1; page < 4; page++) {
    load(machine, VA);
    machine.hart.setX(A0, VA + BigInt(page * PAGE) + 0xff8n);
    machine.run([encode('sfence.vma', { rs1: A0 })]);
    t.is(windowOf(machine).bytes, page < 0 || page > 2 ? BigInt(3 * PAGE) : 0n, `page ${page}`);
    machine.run([encode('sfence.vma')]);
    t.is(windowOf(machine).bytes, 0n);
  }
});

test('A switch of the address space leaves windows of global pages alone', (t) => {
  for (const global of [0n, PTE.G]) {
    const { machine, tables } = supervisor();
    for (let page = 0; page < 3; page++) tables.map(VA + BigInt(page * PAGE), DATA + page * PAGE, RWX | global);
    load(machine, VA);
    machine.hart.setX(A0, machine.get('satp') | (1n << 44n));
    machine.run([encode('csrrw', { rd: 0, rs1: A0, csr: 0x180 })]);
    t.is(windowOf(machine).bytes, global === 0n ? 0n : BigInt(3 * PAGE));
    // What is global and what is not, side by side, is not global
    const end = VA + BigInt(3 * PAGE);
    tables.map(end, DATA + 3 * PAGE, RWX | (PTE.G ^ global));
    load(machine, VA);
    load(machine, end);
    t.is(windowOf(machine).bytes, BigInt(4 * PAGE));
    machine.hart.setX(A0, machine.get('satp') | (2n << 44n));
    machine.run([encode('csrrw', { rd: 0, rs1: A0, csr: 0x180 })]);
    t.is(windowOf(machine).bytes, 0n);
  }
});

test('Entries that PMP hides from the supervisor make no window', (t) => {
  const { machine, tables } = supervisor();
  for (let page = 0; page < 3; page++) tables.map(VA + BigInt(page * PAGE), DATA + page * PAGE, RWX);
  const entry = tables.map(VA + BigInt(3 * PAGE), DATA + 3 * PAGE, RWX);
  // The fourth entry alone may not be read
  machine.pmp([
    [0x18, entry >>> 2],
    [0x1f, 0x3f_ffff_ffff_ffffn],
  ]);
  load(machine, VA);
  t.is(machine.trap, undefined);
  t.is(windowOf(machine).bytes, 0n);
});

// --- what is made of one ----------------------------------------------------------------------------------------

const COUNT_DOWN = (to: number): number[] => [
  encode('addi', { rd: S1, rs1: S1, imm: -1 }),
  encode('bne', { rs1: S1, rs2: 0, imm: to - 4 }),
];

test('Translated loads and stores go where the window says', (t) => {
  const machine = new BareHart({ hotAfter: 3 });
  const { hart, ram, layout } = machine;
  machine.code(CODE, [
    encode('ld', { rd: T0, rs1: A0 }),
    encode('add', { rd: T1, rs1: T1, rs2: T0 }),
    encode('sd', { rs1: A1, rs2: T1 }),
    ...COUNT_DOWN(-12),
    encode('jal', { rd: 0, imm: -20 }),
  ]);
  hart.setX(A0, BigInt(DATA));
  hart.setX(A1, BigInt(DATA + PAGE));
  ram.setU64(DATA, 1n);
  hart.pc = BigInt(CODE);
  hart.step(6 * 400);
  // Nobody else moves it: the function must look there
  ram.setU64(DATA + 8, 1000n);
  hart.set32(H.HART_WINDOW_HOST, layout.ram + 8);
  const before = hart.x(T1);
  hart.step(6 * 10);
  t.true(hart.x(T1) - before >= 9000n);
  t.is(ram.u64(DATA + PAGE + 8), hart.x(T1));
});

/** Random accesses through a run of pages: groups, both directions, over page ends, what may not be done skipped. */
function randomAccesses(engine: Engine, seed: number): readonly unknown[] {
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % below;
  };
  const pages = 8;
  const { machine, tables } = supervisor(engine);
  const { hart, ram } = machine;
  for (let i = 0; i < pages * PAGE; i += 4) ram.setU32(DATA + i, Math.imul(i + seed, 0x9e3779b1) >>> 0);
  const start = random(3);
  for (let page = 0; page < pages; page++) {
    const kind = random(12);
    if (kind === 0) continue;
    const physical = DATA + (kind < 3 ? random(pages) : (page + start) % pages) * PAGE;
    tables.map(VA + BigInt(page * PAGE), physical, kind === 3 ? RWX & ~PTE.W : RWX);
  }
  const offset = (): number => random(1000) - 500;
  machine.code(CODE, [
    encode('add', { rd: A0, rs1: S0, rs2: A2 }),
    encode('ld', { rd: T0, rs1: A0, imm: offset() }),
    encode('lbu', { rd: T1, rs1: A0, imm: offset() }),
    encode('sw', { rs1: A0, rs2: T0, imm: offset() }),
    encode('add', { rd: A1, rs1: S0, rs2: A3 }),
    encode('lh', { rd: 7, rs1: A1, imm: offset() }),
    encode('sb', { rs1: A1, rs2: 7, imm: offset() }),
    encode('xor', { rd: 28, rs1: 28, rs2: T0 }),
    encode('add', { rd: 28, rs1: 28, rs2: 7 }),
    encode('add', { rd: A2, rs1: A2, rs2: 14 }),
    encode('and', { rd: A2, rs1: A2, rs2: 22 }),
    encode('sub', { rd: A3, rs1: A3, rs2: 15 }),
    encode('and', { rd: A3, rs1: A3, rs2: 22 }),
    ...COUNT_DOWN(-52),
    encode('jal', { rd: 0, imm: 0 }),
  ]);
  machine.code(S_HANDLER, [
    encode('csrrs', { rd: T0, rs1: 0, csr: SEPC }),
    encode('addi', { rd: T0, rs1: T0, imm: 4 }),
    encode('csrrw', { rd: 0, rs1: T0, csr: SEPC }),
    encode('sret', {}),
  ]);
  const registers = { [A2]: random(32768), [A3]: random(32768), 14: random(4200), 15: random(600), [S1]: 400 };
  for (const [register, value] of Object.entries(registers)) hart.setX(Number(register), BigInt(value));
  hart.setX(22, 32767n);
  hart.setX(S0, VA);
  hart.pc = BigInt(CODE);
  for (let slice = 0; slice < 20; slice++) hart.step(300 + random(50));
  let sum = 0n;
  for (let i = 0; i < pages * PAGE; i += 8) sum = BigInt.asUintN(64, sum * 31n + ram.u64(DATA + i));
  const dirty = Array.from({ length: pages }, (_, page) => machine.dirty(DATA + page * PAGE));
  return [sum, dirty, ...[T0, T1, 7, 28, A0, A1, A2, A3, S1].map((register) => hart.x(register)), hart.pc];
}

test('Accesses in and around a window do what the interpreter’s do', (t) => {
  t.timeout(120_000);
  for (let seed = 1; seed <= 30; seed++) {
    t.deepEqual(randomAccesses('translator', seed), randomAccesses('interpreter', seed), `seed ${seed}`);
  }
});

/** A loop that maps one page after the other elsewhere, with a fence, and reads all of them meanwhile. */
function remapping(engine: Engine, fenceAll: boolean): readonly bigint[] {
  const pages = 4;
  const { machine, tables } = supervisor(engine);
  const { hart, ram } = machine;
  let entries = 0;
  for (let page = 0; page < pages; page++) {
    const at = tables.map(VA + BigInt(page * PAGE), DATA + page * PAGE, RWX);
    if (page === 0) entries = at;
  }
  for (let frame = 0; frame < 16; frame++) ram.setU64(DATA + frame * PAGE, BigInt((frame + 1) ** 5));
  // The table itself, for the guest
  const tableVa = VA + 0x10_0000n;
  tables.map(tableVa, entries - (entries % PAGE), RWX);
  const read = (page: number): number[] => [
    encode('add', { rd: 14 + page, rs1: S0, rs2: 24 + page }),
    encode('ld', { rd: T0, rs1: 14 + page }),
    encode('add', { rd: T1, rs1: T1, rs2: T0 }),
    encode('slli', { rd: 7, rs1: T1, imm: 7 }),
    encode('xor', { rd: T1, rs1: T1, rs2: 7 }),
  ];
  const body = [
    // a2: page 0..3, a3: frame 0..15; entry = flags | frame's number
    encode('addi', { rd: A3, rs1: A3, imm: 5 }),
    encode('andi', { rd: A3, rs1: A3, imm: 15 }),
    encode('slli', { rd: T0, rs1: A3, imm: 10 }),
    encode('add', { rd: T0, rs1: T0, rs2: 20 }),
    encode('slli', { rd: 7, rs1: A2, imm: 3 }),
    encode('add', { rd: 7, rs1: 7, rs2: 21 }),
    encode('sd', { rs1: 7, rs2: T0 }),
    encode('slli', { rd: 7, rs1: A2, imm: 12 }),
    encode('add', { rd: 7, rs1: 7, rs2: S0 }),
    encode('sfence.vma', fenceAll ? {} : { rs1: 7 }),
    encode('addi', { rd: A2, rs1: A2, imm: 1 }),
    encode('andi', { rd: A2, rs1: A2, imm: 3 }),
    ...Array.from({ length: pages }, (_, page) => read(page)).flat(),
  ];
  machine.code(CODE, [...body, ...COUNT_DOWN(-4 * body.length), encode('jal', { rd: 0, imm: 0 })]);
  for (let page = 0; page < pages; page++) hart.setX(24 + page, BigInt(page * PAGE));
  hart.setX(S0, VA);
  hart.setX(20, pte(DATA, RWX));
  hart.setX(21, tableVa + BigInt(entries % PAGE));
  hart.setX(S1, 300n);
  hart.pc = BigInt(CODE);
  hart.step(300 * (body.length + 2));
  return [hart.x(T1), hart.x(S1), hart.get64(H.COUNT_TRANSLATED_FUNCTIONS) > 0n ? 1n : 0n];
}

for (const fenceAll of [false, true]) {
  test(`A page that the guest maps elsewhere is not found by an old window (fence of ${fenceAll ? 'all' : 'it'})`, (t) => {
    const [sum, left] = remapping('interpreter', fenceAll);
    t.is(left, 0n);
    t.deepEqual(remapping('translator', fenceAll), [sum!, 0n, 1n]);
  });
}

test('A user’s pages are in the supervisor’s window only while SUM stands', (t) => {
  const [SSTATUS, SUM] = [0x100, 0x4_0000];
  const walk = (): number[] => [
    encode('addi', { rd: S1, rs1: 0, imm: 9 }),
    encode('ld', { rd: T0, rs1: A0 }),
    encode('add', { rd: T1, rs1: T1, rs2: T0 }),
    ...COUNT_DOWN(-8),
  ];
  const program = [
    encode('csrrs', { rd: 0, rs1: A1, csr: SSTATUS }),
    ...walk(),
    encode('csrrc', { rd: 0, rs1: A1, csr: SSTATUS }),
    ...walk(),
    encode('jal', { rd: 0, imm: -48 }),
  ];
  const [translated, interpreted] = (['translator', 'interpreter'] as const).map((engine) => {
    const { machine, tables } = supervisor(engine);
    const { hart, ram } = machine;
    for (let page = 0; page < 3; page++) tables.map(VA + BigInt(page * PAGE), DATA, RWX | PTE.U);
    ram.setU64(DATA, 1n);
    machine
      .code(CODE, program)
      .code(S_HANDLER, [
        encode('addi', { rd: S0, rs1: S0, imm: 1 }),
        encode('csrrs', { rd: T0, rs1: 0, csr: SEPC }),
        encode('addi', { rd: T0, rs1: T0, imm: 4 }),
        encode('csrrw', { rd: 0, rs1: T0, csr: SEPC }),
        encode('sret', {}),
      ]);
    hart.setX(A0, VA);
    hart.setX(A1, BigInt(SUM));
    hart.pc = BigInt(CODE);
    hart.step(5000);
    return [hart.x(T1), hart.x(S0), hart.pc];
  });
  t.deepEqual(translated, interpreted);
  t.true(interpreted![1]! > 100n);
});

test('A page that PMP locks against stores is not stored to by an old window', (t) => {
  const [PMPCFG0, PMPADDR0] = [0x3a0, 0x3b0];
  for (const engine of ['interpreter', 'translator'] as const) {
    const machine = new BareHart({ engine, hotAfter: 3 });
    const { hart } = machine;
    const loop = [encode('sd', { rs1: A0, rs2: S1 }), ...COUNT_DOWN(-4)];
    machine.code(CODE, [
      ...loop,
      encode('csrrw', { rd: 0, rs1: A1, csr: PMPADDR0 }),
      encode('csrrw', { rd: 0, rs1: A2, csr: PMPCFG0 }),
      encode('addi', { rd: S1, rs1: 0, imm: 100 }),
      ...loop,
    ]);
    hart.setX(A0, BigInt(DATA));
    // NAPOT of one page, locked, readable alone
    hart.setX(A1, (BigInt(DATA) >> 2n) | 0x1ffn);
    hart.setX(A2, 0x99n);
    hart.setX(S1, 100n);
    hart.pc = BigInt(CODE);
    hart.step(304);
    t.is(machine.mode, M);
    t.deepEqual([machine.trap?.cause, hart.x(S1), machine.ram.u64(DATA)], [7n, 100n, 1n], engine);
  }
});

// --- which registers ----------------------------------------------------------------------------------------------

function regionOf(bases: readonly number[]): Region {
  const facts = { loads: true, rs1: X } as unknown;
  const instructions = bases.map((rs1) => ({ facts, rs1 }));
  return { blocks: new Map([[0, { instructions }]]) } as unknown as Region;
}

test('Registers that point into the window are looked for there, others where most are', (t) => {
  const range = { first: 0x8000_0000n, bytes: 0x1000_0000n };
  const values: Readonly<Record<number, bigint>> = { 2: 0x8000_1000n, 10: 0x8fff_ffffn, 11: 0x9000_0000n, 12: 5n };
  const chosen = (bases: readonly number[]): number[] => {
    const mask = windowRegisters(regionOf(bases), (register) => values[register]!, range);
    return [...new Set(bases)].filter((register) => (mask >>> register) & 1);
  };
  t.deepEqual(chosen([2, 10, 11]), [2, 10]);
  t.deepEqual(chosen([2, 12]), [2, 12]);
  t.deepEqual(chosen([2, 11, 12]), [2]);
  t.deepEqual(chosen([2, 2, 11, 12]), [2, 12]);
  t.deepEqual(chosen([11, 12]), []);
});
