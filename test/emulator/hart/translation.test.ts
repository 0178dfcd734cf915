import test from 'ava';
import { encode } from '../../../emulator/isa/mod.ts';
import {
  BareHart,
  CODE,
  DATA,
  M,
  PageTables,
  PTE,
  pte,
  RWX,
  S,
  SV39,
  SV48,
  SV57,
  TABLES,
  U,
} from '../../fixtures/bare_hart.ts';

const machine = new BareHart();
const A0 = 10;
const A1 = 11;
const LOAD = encode('ld', { rd: A1, rs1: A0 });
const STORE = encode('sd', { rs2: A1, rs1: A0 });
const SUM = 1n << 18n;
const MXR = 1n << 19n;
const ADUE = 1n << 61n;
const PBMTE = 1n << 62n;
const PAGE_FAULT = { fetch: 12n, load: 13n, store: 15n } as const;
const VALUE = 0x1122_3344_5566_7788n;
const MODES = { Sv39: SV39, Sv48: SV48, Sv57: SV57 } as const;

/** S-mode with code mapped, DATA holding VALUE; ADUE on */
function supervisor(mode: bigint, extra: { mstatus?: bigint; menvcfg?: bigint; mode?: number } = {}): PageTables {
  machine.clear().set({ menvcfg: ADUE, mode: S, ...extra });
  machine.ram.setU64(DATA, VALUE);
  return new PageTables(machine, mode).identity(extra.mode === U ? RWX | PTE.U : RWX);
}

/** Loads from, stores to, or jumps to `va`; the trap's cause, or undefined. The mode is as before. */
function access(kind: 'load' | 'store' | 'fetch', va: bigint): bigint | undefined {
  const { mode } = machine;
  const mstatus = machine.get('mstatus');
  machine.hart.setX(A0, va);
  machine.hart.setX(A1, VALUE);
  if (kind === 'fetch') machine.run([encode('jalr', { rs1: A0 })], 2);
  else machine.run([kind === 'load' ? LOAD : STORE], 1);
  const { trap } = machine;
  if (trap === undefined) return undefined;
  machine.set({ mode, mstatus });
  if (trap.tval !== BigInt.asUintN(64, va))
    throw new Error(`tval ${trap.tval.toString(16)}, expected ${va.toString(16)}`);
  return trap.cause;
}

for (const [name, mode] of Object.entries(MODES)) {
  const bits = 12n + 9n * (mode - 5n);

  test(`${name}: a page is where its table says, at both ends of the address space`, (t) => {
    const tables = supervisor(mode);
    for (const va of [
      0x4000_0000n,
      (1n << (bits - 1n)) - 4096n,
      BigInt.asUintN(64, -(1n << (bits - 1n))),
      (1n << 64n) - 4096n,
    ]) {
      tables.map(va, DATA, RWX);
      t.is(access('load', va), undefined);
      t.is(machine.hart.x(A1), VALUE);
      t.is(access('store', va + 8n), undefined);
      t.is(machine.ram.u64(DATA + 8), VALUE);
    }
  });

  test(`${name}: an address that is not sign-extended faults, for every access`, (t) => {
    supervisor(mode);
    for (const va of [
      1n << (bits - 1n),
      1n << 63n,
      BigInt.asUintN(64, ~(1n << (bits - 1n))) - 7n,
      1n << bits,
      BigInt(DATA) | (1n << 62n),
    ]) {
      for (const kind of ['load', 'store', 'fetch'] as const) t.is(access(kind, va & ~7n), PAGE_FAULT[kind]);
    }
  });

  test(`${name}: superpages of each size map their whole range, and misaligned ones fault`, (t) => {
    for (let level = 1; level < Number(mode) - 5; level++) {
      const size = 1n << BigInt(12 + 9 * level);
      const base = BigInt(DATA) & ~(size - 1n);
      const va = size * 3n;
      const tables = supervisor(mode);
      tables.map(va, base, RWX, level);
      t.is(access('load', va + (BigInt(DATA) & (size - 1n))), undefined);
      t.is(machine.hart.x(A1), VALUE);
      tables.map(va, base + 4096n, RWX, level);
      t.is(access('load', va), PAGE_FAULT.load);
      tables.map(va, base + size / 2n, RWX, level);
      t.is(access('store', va), PAGE_FAULT.store);
    }
  });
}

const VA = 0x4000_0000n;

test('Entries that the specification reserves fault', (t) => {
  for (const [name, flags] of [
    ['not valid', RWX & ~PTE.V],
    ['W without R', RWX & ~PTE.R],
    ['W and X without R', (RWX & ~PTE.R) | PTE.X],
    ['pointer at the last level', PTE.V],
    ['bit 54', RWX | (1n << 54n)],
    ['bit 60', RWX | (1n << 60n)],
    ['PBMT without menvcfg.PBMTE', RWX | (1n << 61n)],
    ['N, without Svnapot', RWX | (1n << 63n)],
  ] as const) {
    supervisor(SV39).map(VA, DATA, flags);
    t.is(access('load', VA), PAGE_FAULT.load, name);
    t.is(access('store', VA), PAGE_FAULT.store, name);
  }
});

test('With menvcfg.PBMTE the memory types 1 and 2 are allowed, 3 and any on a pointer are not', (t) => {
  for (const [type, ok] of [
    [0n, true],
    [1n, true],
    [2n, true],
    [3n, false],
  ] as const) {
    supervisor(SV39, { menvcfg: ADUE | PBMTE }).map(VA, DATA, RWX | (type << 61n));
    t.is(access('load', VA), ok ? undefined : PAGE_FAULT.load);
  }
  const tables = supervisor(SV39, { menvcfg: ADUE | PBMTE });
  tables.map(VA, DATA, RWX);
  const root = TABLES + Number(VA >> 30n) * 8;
  machine.ram.setU64(root, machine.ram.u64(root) | (1n << 61n));
  t.is(access('load', VA), PAGE_FAULT.load);
});

test('A, D or U on a pointer to a table faults', (t) => {
  for (const flag of [PTE.A, PTE.D, PTE.U]) {
    const tables = supervisor(SV39);
    tables.map(VA, DATA, RWX);
    const root = TABLES + Number(VA >> 30n) * 8;
    machine.ram.setU64(root, machine.ram.u64(root) | flag);
    t.is(access('load', VA), PAGE_FAULT.load);
  }
});

test('A table outside RAM is an access fault of the access that wanted it', (t) => {
  for (const table of [0x1000, 0x6000_0000, 0x9000_0000_0000]) {
    supervisor(SV39);
    machine.ram.setU64(TABLES + Number(VA >> 30n) * 8, pte(table, PTE.V));
    machine.hart.flushTranslations();
    t.is(access('load', VA), 5n);
    t.is(access('store', VA), 7n);
    t.is(access('fetch', VA), 1n);
  }
});

test('Rights are R, W and X of the leaf, whatever the tables above say', (t) => {
  for (const [flags, load, store, fetch] of [
    [PTE.R, true, false, false],
    [PTE.X, false, false, true],
    [PTE.R | PTE.W, true, true, false],
    [PTE.R | PTE.X, true, false, true],
    [PTE.R | PTE.W | PTE.X, true, true, true],
  ] as const) {
    for (const [kind, ok] of [
      ['load', load],
      ['store', store],
      ['fetch', fetch],
    ] as const) {
      supervisor(SV39).map(VA, DATA, PTE.V | PTE.A | PTE.D | flags);
      machine.code(DATA, [encode('addi'), encode('addi')]);
      t.is(access(kind, VA), ok ? undefined : PAGE_FAULT[kind], `${kind} with ${flags}`);
    }
  }
});

test('MXR makes executable pages readable, and taking it back makes them unreadable again', (t) => {
  supervisor(SV39).map(VA, DATA, PTE.V | PTE.X | PTE.A);
  t.is(access('load', VA), PAGE_FAULT.load);
  machine.set({ mode: S, mstatus: MXR });
  t.is(access('load', VA), undefined);
  // By the CSR, not by the harness, so that the kernel has to forget the entry itself
  machine.hart.setX(12, MXR);
  machine.run([encode('csrrc', { rs1: 12, csr: 0x100 })]);
  t.is(access('load', VA), PAGE_FAULT.load);
});

test('S reaches U pages with SUM only, and never executes them; U reaches nothing of S', (t) => {
  for (const [mstatus, ok] of [
    [0n, false],
    [SUM, true],
  ] as const) {
    supervisor(SV39, { mstatus }).map(VA, DATA, RWX | PTE.U);
    t.is(access('load', VA), ok ? undefined : PAGE_FAULT.load);
    machine.set({ mode: S, mstatus });
    t.is(access('store', VA), ok ? undefined : PAGE_FAULT.store);
    machine.set({ mode: S, mstatus });
    t.is(access('fetch', VA), PAGE_FAULT.fetch);
  }
  for (const kind of ['load', 'store', 'fetch'] as const) {
    supervisor(SV39, { mode: U }).map(VA, DATA, RWX);
    t.is(access(kind, VA), PAGE_FAULT[kind]);
  }
});

test('What S loaded with SUM is forgotten when SUM goes', (t) => {
  supervisor(SV39, { mstatus: SUM }).map(VA, DATA, RWX | PTE.U);
  t.is(access('load', VA), undefined);
  machine.hart.setX(12, SUM);
  machine.run([encode('csrrc', { rs1: 12, csr: 0x100 })]);
  t.is(access('load', VA), PAGE_FAULT.load);
});

test('M-mode is not translated, but loads with MPRV are those of MPP', (t) => {
  supervisor(SV39).map(VA, DATA, RWX);
  machine.set({ mode: M });
  t.is(access('load', VA), 5n, 'physical: nothing is there');
  machine.set({ mode: M, mstatus: (1n << 17n) | (1n << 11n) });
  t.is(access('load', VA), undefined);
  t.is(machine.hart.x(A1), VALUE);
  machine.set({ mode: M, mstatus: 1n << 17n });
  t.is(access('load', VA), PAGE_FAULT.load, 'as U');
});

test('A and D are set by the access with ADUE, D by stores alone, and the table page is marked dirty', (t) => {
  const clean = PTE.V | PTE.R | PTE.W | PTE.X;
  const tables = supervisor(SV39);
  const entry = tables.map(VA, DATA, clean);
  machine.bytes[machine.layout.dirty + ((entry - 0x8000_0000) >> 12)] = 0;
  t.is(access('load', VA), undefined);
  t.is(machine.ram.u64(entry) & 0xffn, clean | PTE.A);
  t.is(machine.dirty(entry), 0xff);
  t.is(access('store', VA), undefined);
  t.is(machine.ram.u64(entry) & 0xffn, clean | PTE.A | PTE.D);
});

test('Without ADUE an access that would have to set A or D faults and sets nothing', (t) => {
  const clean = PTE.V | PTE.R | PTE.W | PTE.X;
  for (const [flags, kind, ok] of [
    [clean, 'load', false],
    [clean, 'fetch', false],
    [clean | PTE.D, 'store', false],
    [clean | PTE.A, 'store', false],
    [clean | PTE.A, 'load', true],
    [clean | PTE.A | PTE.D, 'store', true],
  ] as const) {
    const entry = supervisor(SV39, { menvcfg: 0n }).map(VA, DATA, flags);
    machine.code(DATA, [encode('addi'), encode('addi')]);
    t.is(access(kind, VA), ok ? undefined : PAGE_FAULT[kind]);
    t.is(machine.ram.u64(entry) & 0xffn, flags);
  }
});

test('A fault for rights sets neither A nor D', (t) => {
  const flags = PTE.V | PTE.R;
  const entry = supervisor(SV39).map(VA, DATA, flags);
  t.is(access('store', VA), PAGE_FAULT.store);
  t.is(machine.ram.u64(entry) & 0xffn, flags);
});

test('A translation is remembered until sfence.vma, and not beyond', (t) => {
  const tables = supervisor(SV39);
  const entry = tables.map(VA, DATA, RWX);
  t.is(access('load', VA), undefined);
  machine.ram.setU64(entry, pte(DATA + 4096, RWX));
  machine.ram.setU64(DATA + 4096, 42n);
  machine.run([encode('sfence.vma')]);
  t.is(access('load', VA), undefined);
  t.is(machine.hart.x(A1), 42n);
  machine.ram.setU64(entry, 0n);
  machine.run([encode('sfence.vma')]);
  t.is(access('load', VA), PAGE_FAULT.load);
});

test('Code goes on where a new satp maps it', (t) => {
  machine.clear().set({ mode: S });
  new PageTables(machine, SV39).identity();
  const satp = machine.get('satp');
  machine.set({ satp: 0n });
  machine.hart.setX(A0, satp);
  machine.hart.setX(A1, 0n);
  machine.run([encode('csrrw', { rs1: A0, csr: 0x180 }), encode('addi', { rd: A1, rs1: A1, imm: 5 })]);
  t.is(machine.hart.x(A1), 5n);
  machine.run([encode('csrrw', { rs1: 0, csr: 0x180 }), encode('addi', { rd: A1, rs1: A1, imm: 5 })]);
  t.is(machine.hart.x(A1), 10n);
});

test('One virtual page seen by U and S with other rights is checked for each', (t) => {
  supervisor(SV39, { mstatus: SUM, mode: S }).map(VA, DATA, RWX | PTE.U);
  t.is(access('load', VA), undefined);
  machine.set({ mode: U });
  machine.hart.setX(A0, VA);
  // Code is not mapped for U: the fetch faults although S has fetched it before
  machine.run([LOAD], 1);
  t.deepEqual(machine.trap, { cause: 12n, epc: BigInt(CODE), tval: BigInt(CODE), mode: 'M' });
});

test('Translating code marks no page that the code did not get to', (t) => {
  const tables = supervisor(SV39);
  const [near, far] = [0x4000_0000n, 0x4000_1000n];
  tables.map(near, CODE, RWX);
  const entry = tables.map(far, CODE + 4096, RWX);
  machine.code(CODE + 4096, [encode('jalr', { rs1: 1 })]);
  // a0 rounds; the call is taken where a1 is zero
  machine.code(CODE, [
    encode('addi', { rd: A0, rs1: A0, imm: -1 }),
    encode('bne', { rs1: A1, imm: 8 }),
    encode('jal', { rd: 1, imm: 4096 - 8 }),
    encode('bne', { rs1: A0, imm: -12 }),
  ]);
  const rounds = (call: boolean): bigint => {
    machine.hart.setX(A0, 50n);
    machine.hart.setX(A1, call ? 0n : 1n);
    machine.hart.pc = near;
    machine.hart.step(50 * (call ? 5 : 3));
    return machine.ram.u64(entry) & PTE.A;
  };
  // The call is run once, so that it and its target are known
  machine.hart.pc = near + 8n;
  machine.hart.step(2);
  machine.ram.setU64(entry, pte(CODE + 4096, RWX & ~PTE.A));
  machine.hart.flushTranslations();
  t.is(rounds(false), 0n);
  t.is(rounds(true), PTE.A);
});
