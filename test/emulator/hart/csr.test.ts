import test from 'ava';
import { encode } from '../../../emulator/isa/mod.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { BareHart, CODE, M, S, U } from '../../fixtures/bare_hart.ts';

const machine = new BareHart();
const A0 = 10;
const A1 = 11;
const ONES = (1n << 64n) - 1n;
const hex = (value: number): string => `0x${value.toString(16)}`;

const read = (csr: number): number => encode('csrrs', { rd: A0, csr });
const write = (csr: number): number => encode('csrrw', { rs1: A1, csr });

/** True where the instruction is legal; the rest is as it was */
function allowed(word: number): boolean {
  machine.hart.pc = BigInt(CODE);
  machine.run([word], 1);
  const { trap } = machine;
  return trap === undefined || (trap.cause & (1n << 63n)) !== 0n;
}

/** What reads back after `value` was written, in M-mode */
function writeThenRead(csr: number, value: bigint): bigint {
  machine.hart.setX(A1, value);
  machine.run([write(csr), read(csr)]);
  return machine.hart.x(A0);
}

const EXISTING = [
  0x001, 0x002, 0x003, 0xc00, 0xc01, 0xc02, 0x100, 0x104, 0x105, 0x106, 0x10a, 0x140, 0x141, 0x142, 0x143, 0x144, 0x14d,
  0x180, 0x300, 0x301, 0x302, 0x303, 0x304, 0x305, 0x306, 0x30a, 0x320, 0x340, 0x341, 0x342, 0x343, 0x344, 0xb00, 0xb02,
  0xf11, 0xf12, 0xf13, 0xf14, 0xf15,
  ...Array.from({ length: 29 }, (_, i) => 0xb03 + i),
  ...Array.from({ length: 29 }, (_, i) => 0xc03 + i),
  ...Array.from({ length: 29 }, (_, i) => 0x323 + i),
  ...Array.from({ length: 64 }, (_, i) => 0x3b0 + i),
  ...Array.from({ length: 8 }, (_, i) => 0x3a0 + 2 * i),
]; // biome-ignore format: a list

test('Exactly the listed CSRs exist, each from the privilege in its number upwards', (t) => {
  const listed = new Set(EXISTING);
  for (const mode of [U, S, M]) {
    machine.clear().set({ mode, fs: 3, menvcfg: 1n << 63n });
    machine.hart.set32(H.HART_MCOUNTEREN, 0xffff_ffff);
    machine.hart.set32(H.HART_SCOUNTEREN, 0xffff_ffff);
    for (let csr = 0; csr < 4096; csr++) {
      const ok = listed.has(csr) && ((csr >> 8) & 3) <= mode;
      t.is(allowed(read(csr)), ok, `${hex(csr)} in mode ${mode}`);
      machine.set({ mode });
    }
  }
});

test('A write to a read-only CSR is illegal, and reading it by csrrs with x0 or by an immediate of 0 is not', (t) => {
  for (const csr of [0xc00, 0xc02, 0xf11, 0xf14]) {
    machine.clear();
    t.false(allowed(write(csr)), hex(csr));
    t.false(allowed(encode('csrrs', { rs1: A1, csr })), hex(csr));
    t.false(allowed(encode('csrrwi', { rs1: 0, csr })), hex(csr));
    t.false(allowed(encode('csrrci', { rs1: 1, csr })), hex(csr));
    t.true(allowed(encode('csrrc', { rd: A0, csr })), hex(csr));
    t.true(allowed(encode('csrrsi', { rd: A0, csr })), hex(csr));
  }
});

test('csrrw, csrrs and csrrc swap, set and clear; the immediate forms do the same', (t) => {
  const csr = 0x340;
  machine.clear();
  const step = (name: string, rs1: number): bigint[] => {
    machine.run([encode(name, { rd: A0, rs1, csr }), encode('csrrs', { rd: 12, csr })]);
    return [machine.hart.x(A0), machine.hart.x(12)];
  };
  machine.hart.setX(A1, 0xf0n);
  t.deepEqual(step('csrrw', A1), [0n, 0xf0n]);
  machine.hart.setX(A1, 0x0fn);
  t.deepEqual(step('csrrs', A1), [0xf0n, 0xffn]);
  machine.hart.setX(A1, 0x3cn);
  t.deepEqual(step('csrrc', A1), [0xffn, 0xc3n]);
  t.deepEqual(step('csrrwi', 21), [0xc3n, 21n]);
  t.deepEqual(step('csrrsi', 10), [21n, 31n]);
  t.deepEqual(step('csrrci', 1), [31n, 30n]);
  machine.hart.setX(A0, 7n);
  machine.run([encode('csrrw', { rd: A0, rs1: A0, csr }), encode('csrrs', { rd: 12, csr })]);
  t.deepEqual([machine.hart.x(A0), machine.hart.x(12)], [30n, 7n], 'rd and rs1 may be one register');
});

for (const [csr, after, name] of [
  [0x300, 0x8000_000a_007e_79aan, 'mstatus'],
  [0x302, 0xb3ffn, 'medeleg'],
  [0x303, 0x222n, 'mideleg'],
  [0x304, 0xaaan, 'mie'],
  [0x306, 0xffff_ffffn, 'mcounteren'],
  [0x106, 0xffff_ffffn, 'scounteren'],
  [0x30a, 0xe000_0000_0000_00f1n, 'menvcfg'],
  [0x10a, 0xf1n, 'senvcfg'],
  [0x320, 0xffff_fffdn, 'mcountinhibit'],
  [0x341, ONES - 1n, 'mepc'],
  [0x141, ONES - 1n, 'sepc'],
  [0x340, ONES, 'mscratch'],
  [0x343, ONES, 'mtval'],
  [0x301, (2n << 62n) | 0x14112dn, 'misa'],
  [0x003, 0xffn, 'fcsr'],
  [0x002, 7n, 'frm'],
  [0x001, 31n, 'fflags'],
  [0x3b0, (1n << 54n) - 1n, 'pmpaddr0'],
  [0x3c0, 0n, 'pmpaddr16'],
  [0x3a4, 0n, 'pmpcfg4'],
  [0xb03, 0n, 'mhpmcounter3'],
  [0x323, 0n, 'mhpmevent3'],
] as const) {
  test(`${name} keeps the bits that exist when all are written`, (t) => {
    machine.clear().set({ fs: 3 });
    t.is(writeThenRead(csr, ONES), after);
  });
}

test('Reserved values leave WARL fields as they were: satp mode, tvec mode, MPP, CBIE, W without R', (t) => {
  machine.clear();
  t.is(writeThenRead(0x180, 8n << 60n), 8n << 60n);
  for (const mode of [1n, 7n, 11n, 15n]) t.is(writeThenRead(0x180, (mode << 60n) | 5n), 8n << 60n);
  t.is(writeThenRead(0x305, 0x8000_0001n), 0x8000_0001n);
  t.is(writeThenRead(0x305, 0x9000_0002n), 0x8000_0001n);
  t.is(writeThenRead(0x105, 0x9000_0003n), BigInt(machine.get('stvec')));
  t.is(writeThenRead(0x300, 3n << 11n) & (3n << 11n), 3n << 11n);
  t.is(writeThenRead(0x300, 2n << 11n) & (3n << 11n), 3n << 11n);
  t.is(writeThenRead(0x30a, 2n << 4n), 0n);
  t.is(writeThenRead(0x10a, 2n << 4n), 0n);
  t.is(writeThenRead(0x3a0, 0x02n), 0n);
});

test('sstatus shows and writes its own fields of mstatus, nothing of M', (t) => {
  machine.clear();
  t.is(writeThenRead(0x100, ONES), 0x8000_0002_000c_6122n);
  machine.run([read(0x300)]);
  t.is(machine.hart.x(A0), 0x8000_000a_000c_6122n);
  machine.clear().set({ mstatus: 0x7e_19aan });
  writeThenRead(0x100, 0n);
  machine.run([read(0x300)]);
  t.is(machine.hart.x(A0), 0xa_0072_1888n);
});

test('sie shows what is delegated and changes nothing else', (t) => {
  machine.clear().set({ mideleg: 0x20n, mie: 0xa8an });
  machine.run([read(0x104)]);
  t.is(machine.hart.x(A0), 0n);
  t.is(writeThenRead(0x104, ONES), 0x20n);
  t.is(machine.get('mie'), 0xaaan);
  writeThenRead(0x104, 0n);
  t.is(machine.get('mie'), 0xa8an);
});

test('FS Off makes every floating-point CSR illegal; a write makes FS Dirty and SD follow', (t) => {
  for (const csr of [1, 2, 3]) {
    machine.clear().set({ fs: 0 });
    t.false(allowed(read(csr)));
    t.false(allowed(write(csr)));
    machine.clear().set({ fs: 1 });
    t.true(allowed(read(csr)));
    t.is(machine.hart.get32(H.HART_FS), 1, 'reading is clean');
    t.true(allowed(write(csr)));
    t.is(machine.hart.get32(H.HART_FS), 3);
    machine.run([read(0x300)]);
    t.is(machine.hart.x(A0) >> 63n, 1n);
  }
});

test('A floating-point instruction that writes makes FS Dirty, one that only reads does not', (t) => {
  machine.clear().set({ fs: 1 });
  machine.run([encode('fmv.x.d', { rd: A0 })]);
  t.is(machine.hart.get32(H.HART_FS), 1);
  machine.run([encode('fmv.d.x', { rd: 1 })]);
  t.is(machine.hart.get32(H.HART_FS), 3);
});

// --- counters --------------------------------------------------------------------------------------------------

test('cycle, time and instret need mcounteren in S, and scounteren too in U', (t) => {
  for (const [index, csr] of [0xc00, 0xc01, 0xc02].entries()) {
    for (const m of [0, 1 << index]) {
      for (const s of [0, 1 << index]) {
        for (const [mode, ok] of [
          [S, m !== 0],
          [U, m !== 0 && s !== 0],
          [M, true],
        ] as const) {
          machine.clear().set({ mode });
          machine.hart.set32(H.HART_MCOUNTEREN, m);
          machine.hart.set32(H.HART_SCOUNTEREN, s);
          t.is(allowed(read(csr)), ok, `${hex(csr)} mode ${mode} m ${m} s ${s}`);
        }
      }
    }
  }
});

test('time reads the clock', (t) => {
  machine.clear();
  machine.time = 123_456_789;
  machine.run([read(0xc01)]);
  t.is(machine.hart.x(A0), 123_456_789n);
});

test('minstret counts what retired before the instruction that reads it', (t) => {
  machine.clear();
  const nop = encode('addi');
  machine.run([nop, nop, read(0xb02), nop, encode('csrrs', { rd: A1, csr: 0xb02 })]);
  t.is(machine.hart.x(A0), 2n);
  t.is(machine.hart.x(A1), 4n);
  machine.hart.pc = BigInt(CODE);
  machine.hart.step(3);
  t.is(machine.hart.x(A0), 7n, 'it goes on from run to run');
});

test('The instruction after a write of minstret or mcycle reads what was written', (t) => {
  for (const csr of [0xb00, 0xb02]) {
    machine.clear();
    t.is(writeThenRead(csr, 1000n), 1000n);
    t.is(writeThenRead(csr, ONES), ONES);
    machine.run([encode('addi'), read(csr)]);
    t.is(machine.hart.x(A0), 1n, 'it wraps');
  }
});

test('An instruction that traps does not count as retired, wherever it trapped', (t) => {
  const words = [
    encode('ecall'),
    0xffff_ffff,
    encode('lb', { rs1: 5 }),
    read(0x7c0),
    encode('sret'),
    encode('jalr', { rs1: 6 }),
  ];
  for (const [index, word] of words.entries()) {
    machine.clear().set({ mode: index === 4 ? U : S });
    machine.code(Number(machine.get('mtvec')), [read(0xb02)]);
    machine.hart.setX(6, 0x4000_0000n);
    // The jump itself retires, the fetch at its target does not
    machine.run([encode('addi'), word], index === 5 ? 4 : 3);
    t.is(machine.hart.x(A0), index === 5 ? 2n : 1n, `word ${index}`);
  }
});

test('mcountinhibit stops the counters it names, and they go on from there', (t) => {
  const nop = encode('addi');
  for (const [bit, csr, other] of [
    [1, 0xb00, 0xb02],
    [4, 0xb02, 0xb00],
  ] as const) {
    machine.clear();
    machine.run([
      nop,
      encode('csrrwi', { rs1: bit, csr: 0x320 }),
      nop,
      nop,
      read(csr),
      encode('csrrs', { rd: A1, csr: other }),
      encode('csrrwi', { rs1: 0, csr: 0x320 }),
      nop,
      encode('csrrs', { rd: 12, csr }),
    ]);
    t.is(machine.hart.x(A0), 1n);
    t.is(machine.hart.x(A1), 5n);
    t.is(machine.hart.x(12), 2n);
    t.is(writeThenRead(csr, 50n), 50n);
  }
});

test('A CSR instruction that is illegal changes no register', (t) => {
  machine.clear().set({ mode: U });
  machine.hart.setX(A0, 1n);
  machine.run([encode('csrrw', { rd: A0, rs1: A0, csr: 0x340 })], 1);
  t.is(machine.hart.x(A0), 1n);
  t.is(machine.trap?.tval, BigInt(encode('csrrw', { rd: A0, rs1: A0, csr: 0x340 })));
  t.is(machine.hart.get64(H.HART_MSCRATCH), 0n);
});
