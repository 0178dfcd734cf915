import test from 'ava';
import { encode } from '../../../emulator/isa/mod.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { BareHart, CODE, DATA, M_HANDLER, MMIO, PageTables, PTE, RWX, S, SV39, U } from '../../fixtures/bare_hart.ts';

const machine = new BareHart({ harts: 2 });
const A0 = 10;
const A1 = 11;
const A2 = 12;
const ADUE = 1n << 61n;
const VA = 0x4000_0000n;
const PATTERN = 0x1122_3344_5566_7788n;
const addi = (rd: number, imm: number, rs1 = 0) => encode('addi', { rd, rs1, imm });

// --- page crossings ----------------------------------------------------------------------------------------------

const WIDTHS = [
  [2, 'lh', 'lhu', 'sh'],
  [4, 'lw', 'lwu', 'sw'],
  [8, 'ld', 'ld', 'sd'],
] as const;

test('Loads and stores across pages that lie apart in RAM move every byte, at every offset', (t) => {
  for (const [size, signed, unsigned, store] of WIDTHS) {
    for (let before = 1; before < size; before++) {
      machine.clear().set({ mode: S, menvcfg: ADUE });
      const tables = new PageTables(machine, SV39).identity();
      // The second page comes first in RAM
      tables.map(VA, DATA + 8192, RWX);
      tables.map(VA + 4096n, DATA, RWX);
      machine.hart.setX(A0, VA + 4096n - BigInt(before));
      machine.hart.setX(A1, 0x8899_aabb_ccdd_eeffn);
      machine.run([
        encode(store, { rs1: A0, rs2: A1 }),
        encode(unsigned, { rs1: A0, rd: A2 }),
        encode(signed, { rs1: A0, rd: 13 }),
      ]);
      t.is(machine.trap, undefined);
      const low = 0x8899_aabb_ccdd_eeffn & ((1n << BigInt(8 * size)) - 1n);
      t.is(machine.hart.x(A2), low);
      t.is(machine.hart.x(13), BigInt.asUintN(64, BigInt.asIntN(8 * size, low)));
      const bytes = Array.from({ length: size }, (_, i) => Number((low >> BigInt(8 * i)) & 255n));
      const first = machine.ram.read(DATA + 8192 + 4096 - before, before);
      t.deepEqual([...first, ...machine.ram.read(DATA, size - before)], bytes);
      t.is(machine.ram.u8(DATA + size - before), 0, 'and no byte beyond');
      t.is(machine.ram.u8(DATA + 8192 + 4096 - before - 1), 0);
    }
  }
});

test('A store whose second page faults stores nothing in the first, and says where it failed', (t) => {
  for (const [size, , , store] of WIDTHS) {
    for (const flags of [undefined, RWX & ~PTE.W]) {
      machine.clear().set({ mode: S, menvcfg: ADUE });
      const tables = new PageTables(machine, SV39).identity();
      tables.map(VA, DATA, RWX);
      if (flags !== undefined) tables.map(VA + 4096n, DATA + 4096, flags);
      machine.ram.setU64(DATA + 4088, PATTERN);
      machine.ram.setU64(DATA + 4096, PATTERN);
      machine.hart.setX(A0, VA + 4096n - 1n);
      machine.hart.setX(A1, -1n);
      machine.run([encode(store, { rs1: A0, rs2: A1 })], 1);
      t.deepEqual(machine.trap, { cause: 15n, epc: BigInt(CODE), tval: VA + 4096n, mode: 'M' }, `${size}`);
      t.is(machine.ram.u64(DATA + 4088), PATTERN);
      t.is(machine.ram.u64(DATA + 4096), PATTERN);
    }
  }
});

test('A load whose second page faults leaves rd as it was', (t) => {
  machine.clear().set({ mode: S, menvcfg: ADUE });
  new PageTables(machine, SV39).identity().map(VA, DATA, RWX);
  machine.hart.setX(A0, VA + 4092n);
  machine.hart.setX(A1, 77n);
  machine.run([encode('ld', { rs1: A0, rd: A1 })], 1);
  t.deepEqual(machine.trap, { cause: 13n, epc: BigInt(CODE), tval: VA + 4096n, mode: 'M' });
  t.is(machine.hart.x(A1), 77n);
});

test('A store across two pages marks both dirty', (t) => {
  machine.clear();
  machine.bytes.fill(0, machine.layout.dirty, machine.layout.dirty + 64);
  machine.hart.setX(A0, BigInt(DATA + 4095));
  machine.run([encode('sh', { rs1: A0, rs2: A1 })]);
  t.is(machine.dirty(DATA), 0xff);
  t.is(machine.dirty(DATA + 4096), 0xff);
  t.is(machine.dirty(DATA + 8192), 0);
});

test('Every kind of store marks its page dirty', (t) => {
  for (const word of [
    encode('sb', { rs1: A0 }),
    encode('sd', { rs1: A0 }),
    encode('fsd', { rs1: A0 }),
    encode('amoadd.w', { rs1: A0 }),
    encode('amomax.d', { rs1: A0 }),
    encode('cbo.zero', { rs1: A0 }),
    0xc108, // c.sw a0,0(a0)
  ]) {
    machine.clear().set({ fs: 3 });
    machine.hart.setX(A0, BigInt(DATA));
    for (let again = 0; again < 2; again++) {
      // The second time goes by the translation that the first has entered
      machine.bytes.fill(0, machine.layout.dirty, machine.layout.dirty + 64);
      machine.run([word], 1);
      t.is(machine.trap, undefined);
      t.is(machine.dirty(DATA), 0xff);
    }
  }
});

test('An instruction across two pages that lie apart runs; where the second is not mapped it faults there', (t) => {
  for (const mapped of [true, false]) {
    machine.clear().set({ mode: S, menvcfg: ADUE });
    const tables = new PageTables(machine, SV39).identity();
    tables.map(VA, DATA + 8192, RWX);
    if (mapped) tables.map(VA + 4096n, DATA, RWX);
    const word = addi(A1, 123);
    machine.ram.setU16(DATA + 8192 + 4094, word & 0xffff);
    machine.ram.setU16(DATA, word >>> 16);
    machine.code(DATA + 2, [addi(A2, 5)]);
    machine.hart.pc = VA + 4094n;
    machine.hart.step(mapped ? 2 : 1);
    if (mapped) {
      t.is(machine.trap, undefined);
      t.deepEqual([machine.hart.x(A1), machine.hart.x(A2)], [123n, 5n]);
    } else {
      t.deepEqual(machine.trap, { cause: 12n, epc: VA + 4094n, tval: VA + 4096n, mode: 'M' });
      t.is(machine.hart.x(A1), 0n);
    }
  }
});

test('A jump that straddles two pages links and goes right, forwards and backwards', (t) => {
  for (const imm of [64, -64]) {
    machine.clear();
    const at = DATA + 4094;
    const word = encode('jal', { rd: 1, imm });
    machine.ram.setU16(at, word & 0xffff);
    machine.ram.setU16(at + 2, word >>> 16);
    machine.hart.pc = BigInt(at);
    machine.hart.step(1);
    t.is(machine.hart.pc, BigInt(at + imm));
    t.is(machine.hart.x(1), BigInt(at + 4));
  }
});

// --- code that changes -------------------------------------------------------------------------------------------

test('Code that a hart has changed itself is run after fence.i', (t) => {
  machine.clear();
  machine.hart.setX(A0, BigInt(DATA));
  machine.hart.setX(A2, BigInt(addi(A1, 2)));
  machine.code(DATA, [addi(A1, 1), encode('jalr', { rs1: 1 })]);
  // Call it, store the new word, fence.i, call again; results by way of s0 and s1
  machine.run(
    [
      encode('jalr', { rd: 1, rs1: A0 }),
      addi(8, 0, A1),
      encode('sw', { rs1: A0, rs2: A2 }),
      encode('fence.i'),
      encode('jalr', { rd: 1, rs1: A0 }),
      addi(9, 0, A1),
    ],
    10,
  );
  t.deepEqual([machine.hart.x(8), machine.hart.x(9)], [1n, 2n]);
});

test('Code that another hart has changed is run after fence.i', (t) => {
  const [first, second] = machine.clear().harts as [typeof machine.hart, typeof machine.hart];
  machine.code(DATA, [addi(A1, 1), encode('jal', { imm: -4 })]);
  first.pc = BigInt(DATA);
  first.step(4);
  t.is(first.x(A1), 1n);
  machine.code(CODE, [encode('sw', { rs1: A0, rs2: A2 })]);
  second.setX(A0, BigInt(DATA));
  second.setX(A2, BigInt(addi(A1, 2)));
  second.pc = BigInt(CODE);
  second.step(1);
  machine.code(M_HANDLER + 64, [encode('fence.i'), encode('jalr', { rs1: A0 })]);
  first.setX(A0, BigInt(DATA));
  first.pc = BigInt(M_HANDLER + 64);
  first.step(3);
  t.is(first.x(A1), 2n);
});

test('Code that a device has written is run after fence.i, by both harts', (t) => {
  machine.clear().code(DATA, [addi(A1, 1)]);
  for (const hart of machine.harts) {
    hart.pc = BigInt(DATA);
    hart.step(1);
    t.is(hart.x(A1), 1n);
  }
  machine.ram.write(DATA, new Uint8Array(Uint32Array.of(addi(A1, 2)).buffer));
  machine.code(CODE, [encode('fence.i'), encode('jalr', { rs1: A0 })]);
  for (const hart of machine.harts) {
    hart.setX(A0, BigInt(DATA));
    hart.pc = BigInt(CODE);
    hart.step(3);
    t.is(hart.x(A1), 2n);
  }
});

test('More pages of code than are kept predecoded still run right', (t) => {
  const many = new BareHart({ ramBytes: 8 << 20 });
  const pages = 1200;
  for (let page = 0; page < pages; page++) {
    many.code(DATA + page * 4096, [addi(A1, 1, A1), encode('jal', { imm: 4092 })]);
  }
  for (let round = 1; round <= 2; round++) {
    many.hart.pc = BigInt(DATA);
    many.hart.step(2 * pages);
    t.is(many.hart.x(A1), BigInt(pages * round));
  }
});

// --- LR and SC ---------------------------------------------------------------------------------------------------

for (const [suffix, size] of [
  ['w', 4],
  ['d', 8],
] as const) {
  const LR = encode(`lr.${suffix}`, { rd: A1, rs1: A0 });
  const SC = encode(`sc.${suffix}`, { rd: 13, rs1: A0, rs2: A2 });
  const value = () => (size === 8 ? machine.ram.u64(DATA) : BigInt(machine.ram.u32(DATA)));
  const prepare = (): void => {
    machine.clear();
    machine.ram.setU64(DATA, 0xffff_fff0_8000_0001n);
    machine.hart.setX(A0, BigInt(DATA));
    machine.hart.setX(A2, 7n);
    machine.hart.setX(13, 99n);
  };

  test(`sc.${suffix} succeeds after lr.${suffix} and stores; a second one fails and does not`, (t) => {
    prepare();
    machine.run([LR, SC]);
    t.is(machine.hart.x(A1), size === 8 ? 0xffff_fff0_8000_0001n : 0xffff_ffff_8000_0001n);
    t.deepEqual([machine.hart.x(13), value()], [0n, 7n]);
    machine.hart.setX(A2, 8n);
    machine.run([SC]);
    t.deepEqual([machine.hart.x(13), value()], [1n, 7n]);
    if (size === 4) t.is(machine.ram.u32(DATA + 4), 0xffff_fff0, 'the neighbour is untouched');
  });

  test(`sc.${suffix} fails without lr, at another address, and after another hart's store`, (t) => {
    prepare();
    machine.run([SC]);
    t.is(machine.hart.x(13), 1n);
    prepare();
    machine.run([LR, addi(A0, size, A0), SC]);
    t.is(machine.hart.x(13), 1n);
    prepare();
    machine.run([LR]);
    const other = machine.harts[1]!;
    other.setX(A0, BigInt(DATA));
    other.setX(A1, 5n);
    machine.code(M_HANDLER + 64, [encode('sw', { rs1: A0, rs2: A1 })]);
    other.pc = BigInt(M_HANDLER + 64);
    other.step(1);
    machine.run([SC]);
    t.deepEqual([machine.hart.x(13), machine.ram.u32(DATA)], [1n, 5]);
  });
}

test('A failed sc still needs the right to store', (t) => {
  machine.clear().set({ mode: S, menvcfg: ADUE });
  new PageTables(machine, SV39).identity().map(VA, DATA, RWX & ~PTE.W);
  machine.hart.setX(A0, VA);
  machine.run([encode('sc.w', { rd: A1, rs1: A0 })], 1);
  t.is(machine.trap?.cause, 15n);
});

test('lr needs the right to load, an AMO that to store: the fault is a store fault even where loads are not allowed', (t) => {
  for (const [name, flags, cause] of [
    ['lr.w', PTE.V | PTE.X | PTE.A, 13n],
    ['amoadd.w', PTE.V | PTE.X | PTE.A, 15n],
    ['amoadd.w', PTE.V | PTE.R | PTE.A, 15n],
  ] as const) {
    machine.clear().set({ mode: S, menvcfg: ADUE });
    new PageTables(machine, SV39).identity().map(VA, DATA, flags);
    machine.hart.setX(A0, VA);
    machine.run([encode(name, { rd: A1, rs1: A0 })], 1);
    t.is(machine.trap?.cause, cause);
  }
});

test('AMOs give the old value, sign-extended, and store the new one', (t) => {
  const MIN = 0x8000_0000;
  for (const [name, old, operand, after] of [
    ['amoadd.w', 0x7fff_ffff, 1n, MIN],
    ['amoswap.w', MIN, 5n, 5],
    ['amoand.w', 0xff, 0x0fn, 0x0f],
    ['amoor.w', 0xf0, 0x0fn, 0xff],
    ['amoxor.w', 0xff, 0x0fn, 0xf0],
    ['amomin.w', MIN, 1n, MIN],
    ['amomax.w', MIN, 1n, 1],
    ['amominu.w', MIN, 1n, 1],
    ['amomaxu.w', MIN, 1n, MIN],
    // The upper half of rs2 is not looked at
    ['amomin.w', 5, 0x7fff_ffff_ffff_fff0n, 0xffff_fff0],
    ['amomaxu.w', 5, 0x1_0000_0001n, 5],
  ] as const) {
    machine.clear();
    machine.ram.setU64(DATA, 0xaaaa_aaaa_0000_0000n | BigInt(old));
    machine.hart.setX(A0, BigInt(DATA));
    machine.hart.setX(A2, operand);
    machine.run([encode(name, { rd: A1, rs1: A0, rs2: A2 })]);
    t.is(machine.hart.x(A1), BigInt.asUintN(64, BigInt(old | 0)), name);
    t.is(machine.ram.u64(DATA), 0xaaaa_aaaa_0000_0000n | BigInt(after), name);
  }
});

// --- devices -----------------------------------------------------------------------------------------------------

test('Device accesses have their size and extend as loads do', (t) => {
  machine.clear();
  machine.hart.setX(A0, BigInt(MMIO));
  machine.hart.setX(A1, 0xffff_ffff_1234_8081n);
  for (const [store, stored] of [
    ['sb', 0x81],
    ['sh', 0x8081],
    ['sw', 0x1234_8081],
  ] as const) {
    machine.run([encode(store, { rs1: A0, rs2: A1 })]);
    t.is(machine.device, stored);
  }
  machine.device = 0x8081;
  machine.run([encode('lh', { rs1: A0, rd: A2 }), encode('lhu', { rs1: A0, rd: 13 })]);
  t.deepEqual([machine.hart.x(A2), machine.hart.x(13)], [0xffff_ffff_ffff_8081n, 0x8081n]);
});

// --- cache blocks ------------------------------------------------------------------------------------------------

const CBIE = 3n << 4n;
const CBCFE = 1n << 6n;
const CBZE = 1n << 7n;

test('cbo instructions need their bit in menvcfg below M, and in senvcfg too in U', (t) => {
  for (const [name, bit] of [
    ['cbo.inval', CBIE],
    ['cbo.clean', CBCFE],
    ['cbo.flush', CBCFE],
    ['cbo.zero', CBZE],
  ] as const) {
    const word = encode(name, { rs1: A0 });
    for (const [mode, menvcfg, senvcfg, ok] of [
      [3, 0n, 0n, true],
      [S, 0n, 0n, false],
      [S, 0xf0n & ~bit, 0xf0n, false],
      [S, bit, 0n, true],
      [U, bit, 0n, false],
      [U, 0n, bit, false],
      [U, bit, bit, true],
    ] as const) {
      machine.clear().set({ mode, menvcfg, senvcfg });
      machine.hart.setX(A0, BigInt(DATA + 5));
      machine.run([word], 1);
      if (ok) t.is(machine.trap, undefined, `${name} in mode ${mode}`);
      else t.deepEqual(machine.trap, { cause: 2n, epc: BigInt(CODE), tval: BigInt(word), mode: 'M' });
    }
  }
});

test('cbo.zero clears its 64 bytes and no other; the others change no byte', (t) => {
  for (const name of ['cbo.zero', 'cbo.inval', 'cbo.clean', 'cbo.flush'] as const) {
    machine.clear();
    machine.ram.fill(DATA, 256, 0xaa);
    machine.hart.setX(A0, BigInt(DATA + 64 + 13));
    machine.run([encode(name, { rs1: A0 })]);
    const block = name === 'cbo.zero' ? 0 : 0xaa;
    const expected = Array.from({ length: 256 }, (_, i) => (i >= 64 && i < 128 ? block : 0xaa));
    t.deepEqual([...machine.ram.read(DATA, 256)], expected, name);
  }
});

test('A cache-block operation that may not reach its block faults as a store, with the address as given', (t) => {
  for (const name of ['cbo.zero', 'cbo.inval', 'cbo.clean', 'cbo.flush']) {
    machine.clear().set({ mode: S, menvcfg: ADUE | 0xf0n });
    new PageTables(machine, SV39).identity();
    machine.hart.setX(A0, VA + 7n);
    machine.run([encode(name, { rs1: A0 })], 1);
    t.deepEqual(machine.trap, { cause: 15n, epc: BigInt(CODE), tval: VA + 7n, mode: 'M' }, name);
  }
  // A page that can be read only is enough for all but zero
  machine.clear().set({ mode: S, menvcfg: ADUE | 0xf0n });
  new PageTables(machine, SV39).identity().map(VA, DATA, RWX & ~PTE.W);
  machine.hart.setX(A0, VA);
  machine.run([encode('cbo.clean', { rs1: A0 }), encode('cbo.zero', { rs1: A0 })]);
  t.deepEqual(machine.trap, { cause: 15n, epc: BigInt(CODE + 4), tval: VA, mode: 'M' });
});

test('peek64 gives what a load would, and nothing where one would fault', (t) => {
  machine.clear().set({ mode: S, menvcfg: ADUE });
  new PageTables(machine, SV39).identity().map(VA, DATA, RWX);
  machine.ram.setU64(DATA + 8, PATTERN);
  t.is(machine.hart.peek64(VA + 8n), PATTERN);
  t.is(machine.hart.peek64(VA + 4092n), undefined, 'across pages');
  t.is(machine.hart.peek64(0x7000_0000n), undefined);
  t.is(machine.hart.get32(H.HART_TRAPPED), 0);
});
