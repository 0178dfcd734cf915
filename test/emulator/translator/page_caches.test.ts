import test from 'ava';
import { encode } from '../../../emulator/isa/encode.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { BareHart, CODE, DATA, M_HANDLER, PageTables, PTE, S, S_HANDLER, SV39 } from '../../fixtures/bare_hart.ts';

const VA = 0x12_3456_0000n;
const PAGES = 8;
const SEPC = 0x141;

/** Two pointers step through eight pages; what faults is skipped by the handler. */
const LOOP = [
  encode('add', { rd: 10, rs1: 20, rs2: 12 }),
  encode('add', { rd: 11, rs1: 20, rs2: 13 }),
  encode('ld', { rd: 5, rs1: 10, imm: 0 }),
  encode('add', { rd: 6, rs1: 6, rs2: 5 }),
  encode('lw', { rd: 7, rs1: 11, imm: 8 }),
  encode('xor', { rd: 6, rs1: 6, rs2: 7 }),
  encode('bge', { rs1: 7, rs2: 0, imm: 8 }),
  encode('sd', { rs1: 11, rs2: 6, imm: 24 }),
  encode('add', { rd: 12, rs1: 12, rs2: 14 }),
  encode('and', { rd: 12, rs1: 12, rs2: 22 }),
  encode('add', { rd: 13, rs1: 13, rs2: 15 }),
  encode('and', { rd: 13, rs1: 13, rs2: 22 }),
  encode('addi', { rd: 16, rs1: 16, imm: -1 }),
  encode('bne', { rs1: 16, rs2: 0, imm: -52 }),
  encode('jal', { rd: 0, imm: 0 }),
];
const SKIP = [
  encode('csrrs', { rd: 5, rs1: 0, csr: SEPC }),
  encode('addi', { rd: 5, rs1: 5, imm: 4 }),
  encode('csrrw', { rd: 0, rs1: 5, csr: SEPC }),
  encode('sret', {}),
];

function run(engine: 'interpreter' | 'translator', seed: number): readonly (bigint | string)[] {
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % below;
  };
  const machine = new BareHart({ engine, hotAfter: 3 });
  const { hart, ram } = machine;
  for (let i = 0; i < PAGES * 4096; i += 4) ram.setU32(DATA + i, Math.imul(i + seed, 0x9e3779b1) >>> 0);
  const tables = new PageTables(machine, SV39);
  for (const page of [CODE, M_HANDLER, S_HANDLER])
    tables.map(BigInt(page), page, PTE.V | PTE.R | PTE.X | PTE.A | PTE.D);
  // Neighbours that are none in memory, some that may only be read, some that are not there, two for one
  for (let page = 0; page < PAGES; page++) {
    const kind = random(8);
    if (kind === 0) continue;
    const physical = DATA + random(PAGES) * 4096;
    tables.map(VA + BigInt(page * 4096), physical, PTE.V | PTE.R | PTE.A | PTE.D | (kind < 3 ? 0n : PTE.W));
  }
  machine.code(CODE, LOOP).code(S_HANDLER, SKIP);
  machine.set({ medeleg: 0xffffn, mode: S });
  const registers = { 12: random(32768), 13: random(32768), 14: random(4200), 15: random(600), 16: 400, 22: 32767 };
  for (const [register, value] of Object.entries(registers)) hart.setX(Number(register), BigInt(value));
  hart.setX(20, VA);
  hart.pc = BigInt(CODE);
  for (let slice = 0; slice < 20; slice++) hart.step(300 + random(50));
  let sum = 0n;
  for (let i = 0; i < PAGES * 4096; i += 8) sum = BigInt.asUintN(64, sum * 31n + ram.u64(DATA + i));
  return [sum, ...[5, 6, 7, 10, 11, 12, 13, 16].map((register) => hart.x(register)), hart.pc];
}

test('What a loop remembers of its pointers’ pages never reaches another page, nor one that it may not write', (t) => {
  t.timeout(120_000);
  for (let seed = 1; seed <= 25; seed++) t.deepEqual(run('translator', seed), run('interpreter', seed), `seed ${seed}`);
});

test('A page that is mapped elsewhere between two runs is not remembered', (t) => {
  const machine = new BareHart({ engine: 'translator', hotAfter: 3 });
  const { hart, ram } = machine;
  const tables = new PageTables(machine, SV39);
  for (const page of [CODE, M_HANDLER, S_HANDLER])
    tables.map(BigInt(page), page, PTE.V | PTE.R | PTE.X | PTE.A | PTE.D);
  const read = PTE.V | PTE.R | PTE.A | PTE.D;
  tables.map(VA, DATA, read);
  ram.setU64(DATA, 1n);
  ram.setU64(DATA + 4096, 1000n);
  machine.code(CODE, [
    encode('ld', { rd: 5, rs1: 10, imm: 0 }),
    encode('add', { rd: 6, rs1: 6, rs2: 5 }),
    encode('jal', { rd: 0, imm: -8 }),
  ]);
  machine.set({ mode: S });
  hart.setX(10, VA);
  hart.pc = BigInt(CODE);
  hart.step(3 * 200);
  t.is(hart.x(6), 200n);
  t.true(hart.get64(H.COUNT_TRANSLATED_FUNCTIONS) > 0n);
  tables.map(VA, DATA + 4096, read);
  hart.step(3 * 10);
  t.is(hart.x(6), 200n + 10_000n);
});

test('A page that loops may read only while SUM stands is not remembered beyond', (t) => {
  const [SSTATUS, SUM] = [0x100, 0x4_0000];
  const walk = (): number[] => [
    encode('addi', { rd: 16, rs1: 0, imm: 9 }),
    encode('ld', { rd: 5, rs1: 10, imm: 0 }),
    encode('add', { rd: 6, rs1: 6, rs2: 5 }),
    encode('addi', { rd: 16, rs1: 16, imm: -1 }),
    encode('bne', { rs1: 16, rs2: 0, imm: -12 }),
  ];
  const program = [
    encode('csrrs', { rd: 0, rs1: 11, csr: SSTATUS }),
    ...walk(),
    encode('csrrc', { rd: 0, rs1: 11, csr: SSTATUS }),
    ...walk(),
    encode('jal', { rd: 0, imm: -48 }),
  ];
  let translated = 0n;
  const counted = (['interpreter', 'translator'] as const).map((engine) => {
    const machine = new BareHart({ engine, hotAfter: 3 });
    const { hart, ram } = machine;
    const tables = new PageTables(machine, SV39);
    for (const page of [CODE, M_HANDLER, S_HANDLER])
      tables.map(BigInt(page), page, PTE.V | PTE.R | PTE.X | PTE.A | PTE.D);
    tables.map(VA, DATA, PTE.V | PTE.R | PTE.U | PTE.A | PTE.D);
    ram.setU64(DATA, 1n);
    // The second loop's loads fault, each of them
    machine.code(CODE, program).code(S_HANDLER, [encode('addi', { rd: 9, rs1: 9, imm: 1 }), ...SKIP]);
    machine.set({ medeleg: 0xffffn, mode: S });
    hart.setX(10, VA);
    hart.setX(11, BigInt(SUM));
    hart.pc = BigInt(CODE);
    hart.step(5000);
    translated = hart.get64(H.COUNT_TRANSLATED_FUNCTIONS);
    return [hart.x(6), hart.x(9), hart.pc];
  });
  t.deepEqual(counted[1], counted[0]);
  t.true(counted[0]![1]! > 100n);
  t.true(translated > 1n);
});
