import test from 'ava';
import { encode } from '../../../emulator/isa/mod.ts';
import { EXIT_SBI, HART_BUILTIN_SBI } from '../../../emulator/kernel/assembly/hart_layout.ts';
import { BareHart, CODE, DATA, M, M_HANDLER, MMIO, S, S_HANDLER, U } from '../../fixtures/bare_hart.ts';

const machine = new BareHart();
const ECALL = encode('ecall');
const EBREAK = encode('ebreak');
const C_EBREAK = 0x9002;
const MRET = encode('mret');
const SRET = encode('sret');
const WFI = encode('wfi');
const SFENCE = encode('sfence.vma');
const A0 = 10;
const A1 = 11;
const MPP = (mode: number): bigint => BigInt(mode) << 11n;
const MIE = 1n << 3n;
const MPIE = 1n << 7n;
const SIE = 1n << 1n;
const SPIE = 1n << 5n;
const SPP = 1n << 8n;
const MPRV = 1n << 17n;
const TVM = 1n << 20n;
const TW = 1n << 21n;
const TSR = 1n << 22n;
const at = (address: number | bigint) => BigInt(address);

interface Kind {
  readonly name: string;
  readonly words: readonly number[];
  readonly cause: number;
  readonly tval: number | bigint;
  readonly mode?: number;
  readonly a0?: number | bigint;
  readonly fs?: number;
}

const NOWHERE = 0x4000_0000;
const END = DATA + 0x3f_0000; // past the 4 MiB of RAM
const KINDS: readonly Kind[] = [
  { name: 'ecall from U', words: [ECALL], cause: 8, tval: 0, mode: U },
  { name: 'ecall from S', words: [ECALL], cause: 9, tval: 0, mode: S },
  { name: 'ecall from M', words: [ECALL], cause: 11, tval: 0 },
  { name: 'ebreak', words: [EBREAK], cause: 3, tval: CODE },
  { name: 'c.ebreak', words: [C_EBREAK], cause: 3, tval: CODE },
  { name: 'an illegal word', words: [0xffff_ffff], cause: 2, tval: 0xffff_ffff },
  { name: 'an illegal 16-bit word', words: [0x0000], cause: 2, tval: 0 },
  { name: 'a reserved 16-bit word', words: [0x8000], cause: 2, tval: 0x8000 },
  { name: 'a CSR that does not exist', words: [0x7c00_2573], cause: 2, tval: 0x7c00_2573 },
  { name: 'floating point while FS is Off', words: [encode('fadd.d')], cause: 2, tval: encode('fadd.d'), fs: 0 },
  { name: 'a floating-point load while FS is Off', words: [encode('fld', { rs1: A0 })], cause: 2, tval: encode('fld', { rs1: A0 }), fs: 0, a0: DATA },
  { name: 'a 16-bit floating-point store while FS is Off', words: [0xa108], cause: 2, tval: 0xa108, fs: 0, a0: DATA },
  { name: 'a reserved rounding mode', words: [encode('fadd.d', { rm: 5 })], cause: 2, tval: encode('fadd.d', { rm: 5 }), fs: 3 },
  { name: 'a load from nowhere', words: [encode('lw', { rs1: A0, imm: 4 })], cause: 5, tval: NOWHERE + 4, a0: NOWHERE },
  { name: 'a store to nowhere', words: [encode('sd', { rs1: A0, imm: -8 })], cause: 7, tval: NOWHERE - 8, a0: NOWHERE },
  { name: 'a load past RAM', words: [encode('ld', { rs1: A0 })], cause: 5, tval: END, a0: END },
  { name: 'a store past RAM', words: [encode('sb', { rs1: A0 })], cause: 7, tval: END, a0: END },
  { name: 'a load half in RAM', words: [encode('ld', { rs1: A0 })], cause: 4, tval: END - 4, a0: END - 4 },
  { name: 'a store half in RAM', words: [encode('sd', { rs1: A0 })], cause: 6, tval: END - 4, a0: END - 4 },
  { name: 'a load below ROM', words: [encode('lb', { rs1: A0 })], cause: 5, tval: 0, a0: 0 },
  { name: 'a store to ROM', words: [encode('sw', { rs1: A0 })], cause: 7, tval: 0x1000, a0: 0x1000 },
  { name: 'a load beyond 56 bits', words: [encode('lb', { rs1: A0 })], cause: 5, tval: 1n << 56n, a0: 1n << 56n },
  { name: 'a load of RAM plus 2^32', words: [encode('lb', { rs1: A0 })], cause: 5, tval: 0x1_8000_0000, a0: 0x1_8000_0000 },
  { name: 'a load of RAM sign-extended', words: [encode('lb', { rs1: A0 })], cause: 5, tval: 0xffff_ffff_8000_0000n, a0: 0xffff_ffff_8000_0000n },
  { name: 'a misaligned load of a device', words: [encode('lw', { rs1: A0 })], cause: 4, tval: MMIO + 1, a0: MMIO + 1 },
  { name: 'a misaligned store to a device', words: [encode('sh', { rs1: A0 })], cause: 6, tval: MMIO + 1, a0: MMIO + 1 },
  { name: 'a doubleword of which the device has half', words: [encode('ld', { rs1: A0 })], cause: 5, tval: MMIO, a0: MMIO },
  { name: 'a misaligned lr', words: [encode('lr.w', { rs1: A0 })], cause: 4, tval: DATA + 2, a0: DATA + 2 },
  { name: 'a misaligned sc', words: [encode('sc.d', { rs1: A0 })], cause: 6, tval: DATA + 4, a0: DATA + 4 },
  { name: 'a misaligned AMO', words: [encode('amoadd.d', { rs1: A0 })], cause: 6, tval: DATA + 1, a0: DATA + 1 },
  { name: 'lr on a device', words: [encode('lr.w', { rs1: A0 })], cause: 5, tval: MMIO, a0: MMIO },
  { name: 'sc on a device', words: [encode('sc.w', { rs1: A0 })], cause: 7, tval: MMIO, a0: MMIO },
  { name: 'an AMO on a device', words: [encode('amoswap.w', { rs1: A0 })], cause: 7, tval: MMIO, a0: MMIO },
  { name: 'an AMO on ROM', words: [encode('amoor.d', { rs1: A0 })], cause: 7, tval: 0x2000, a0: 0x2000 },
  { name: 'cbo.clean of a device', words: [encode('cbo.clean', { rs1: A0 })], cause: 7, tval: MMIO, a0: MMIO },
  { name: 'cbo.zero of ROM', words: [encode('cbo.zero', { rs1: A0 })], cause: 7, tval: 0x1008, a0: 0x1008 },
  { name: 'mret from S', words: [MRET], cause: 2, tval: MRET, mode: S },
  { name: 'sret from U', words: [SRET], cause: 2, tval: SRET, mode: U },
  { name: 'wfi from U', words: [WFI], cause: 2, tval: WFI, mode: U },
  { name: 'sfence.vma from U', words: [SFENCE], cause: 2, tval: SFENCE, mode: U },
  { name: 'sfence.inval.ir from U', words: [encode('sfence.inval.ir')], cause: 2, tval: encode('sfence.inval.ir'), mode: U },
]; // biome-ignore format: a table

for (const kind of KINDS) {
  test(`${kind.name} traps with its cause, address and value`, (t) => {
    const { words, cause, tval, mode = M, a0 = 0, fs = 0 } = kind;
    machine.clear().set({ mode, fs, mstatus: MIE });
    machine.hart.setX(A0, BigInt(a0));
    machine.hart.setX(A1, 0x55n);
    machine.run(words, 1);
    t.deepEqual(machine.trap, { cause: BigInt(cause), epc: at(CODE), tval: BigInt(tval), mode: 'M' });
    t.is(machine.mode, M);
    t.is(machine.get('mstatus'), MPIE | MPP(mode), 'MPP and MPIE remember, MIE is off');
    t.is(machine.hart.x(A1), 0x55n);
    t.is(machine.hart.x(A0), BigInt(a0));
  });
}

test('A jump to nowhere faults at the target, not at the jump', (t) => {
  machine.clear();
  machine.hart.setX(A0, BigInt(NOWHERE));
  machine.run([encode('jalr', { rd: 1, rs1: A0 })], 2);
  t.deepEqual(machine.trap, { cause: 1n, epc: at(NOWHERE), tval: at(NOWHERE), mode: 'M' });
  t.is(machine.hart.x(1), at(CODE + 4));
});

test('jalr clears bit 0 of its target, so that no fetch is misaligned', (t) => {
  machine.clear();
  machine.hart.setX(A0, at(DATA + 1));
  machine.run([encode('jalr', { rs1: A0 })], 1);
  t.is(machine.hart.pc, at(DATA));
});

test('A delegated exception from S or U goes to S-mode; sstatus remembers', (t) => {
  for (const mode of [U, S]) {
    machine.clear().set({ mode, medeleg: 1n << 2n, mstatus: SIE | MIE });
    machine.run([0xffff_ffff], 1);
    t.deepEqual(machine.trap, { cause: 2n, epc: at(CODE), tval: 0xffff_ffffn, mode: 'S' });
    t.is(machine.mode, S);
    t.is(machine.get('mstatus'), MIE | SPIE | (mode === S ? SPP : 0n));
    t.is(machine.get('mcause'), 0n);
  }
});

test('A delegated exception from M stays in M-mode', (t) => {
  machine.clear().set({ medeleg: 1n << 2n });
  machine.run([0xffff_ffff], 1);
  t.is(machine.trap?.mode, 'M');
});

test('Vectored mode moves interrupts only: exceptions go to the base', (t) => {
  machine.clear().set({ mtvec: BigInt(M_HANDLER) | 1n });
  machine.run([ECALL], 1);
  t.is(machine.hart.pc, at(M_HANDLER));
});

test('An S-mode ecall leaves the run where the built-in SBI answers it, and traps where not', (t) => {
  machine.clear().set({ mode: S });
  machine.hart.set32(HART_BUILTIN_SBI, 1);
  machine.code(CODE, [ECALL]);
  t.is(machine.hart.step(1), EXIT_SBI);
  t.is(machine.hart.pc, at(CODE + 4));
  t.is(machine.get('scause'), 0n);
});

// --- returns ---------------------------------------------------------------------------------------------------

test('mret goes to MPP with MPIE, leaves U behind and clears MPRV below M', (t) => {
  for (const mode of [U, S, M]) {
    machine.clear().set({ mstatus: MPP(mode) | MPIE | MPRV, mepc: BigInt(DATA) });
    machine.run([MRET], 1);
    t.is(machine.mode, mode);
    t.is(machine.hart.pc, at(DATA));
    t.is(machine.get('mstatus'), MIE | MPIE | (mode === M ? MPRV : 0n));
  }
});

test('sret goes to SPP with SPIE and clears MPRV', (t) => {
  for (const from of [S, M]) {
    for (const to of [U, S]) {
      machine.clear().set({ mode: from, mstatus: SPIE | MPRV | (to === S ? SPP : 0n), sepc: BigInt(DATA) });
      machine.run([SRET], 1);
      t.is(machine.mode, to);
      t.is(machine.hart.pc, at(DATA));
      t.is(machine.get('mstatus'), SIE | SPIE);
    }
  }
});

for (const [name, word, bit] of [
  ['sret', SRET, TSR],
  ['wfi', WFI, TW],
  ['sfence.vma', SFENCE, TVM],
  ['sinval.vma', encode('sinval.vma'), TVM],
  ['a read of satp', encode('csrrs', { rd: A0, csr: 0x180 }), TVM],
  ['a write of satp', encode('csrrw', { rs1: A0, csr: 0x180 }), TVM],
] as const) {
  test(`${name} in S-mode is illegal while mstatus says so, and is not in M-mode`, (t) => {
    machine.clear().set({ mode: S, mstatus: bit });
    machine.run([word], 1);
    t.deepEqual(machine.trap, { cause: 2n, epc: at(CODE), tval: BigInt(word), mode: 'M' });
    for (const [mode, mstatus] of [
      [S, 0n],
      [M, bit],
    ] as const) {
      machine.clear().set({ mode, mstatus, sepc: BigInt(DATA) });
      machine.run([word], 1);
      t.is(machine.trap, undefined);
    }
  });
}

test('MPRV gives loads and stores the rights of MPP, and fetches none of it', (t) => {
  // One entry over everything that grants nothing: M passes, as it is not locked
  machine.clear().pmp([[0x18, (1n << 54n) - 1n]]);
  machine.hart.setX(A0, BigInt(DATA));
  machine.set({ mstatus: MPRV | MPP(U) }).run([encode('ld', { rd: A1, rs1: A0 })], 1);
  t.deepEqual(machine.trap, { cause: 5n, epc: at(CODE), tval: at(DATA), mode: 'M' });
  machine.set({ mstatus: MPP(U) }).run([encode('ld', { rd: A1, rs1: A0 })], 1);
  t.is(machine.trap, undefined);
  machine.set({ mstatus: MPRV | MPP(M) }).run([encode('sd', { rs2: A1, rs1: A0 })], 1);
  t.is(machine.trap, undefined);
});

test('A trap handler that cannot be fetched uses fuel: the run ends', (t) => {
  machine.clear().set({ mtvec: BigInt(NOWHERE) });
  machine.run([ECALL], 1000);
  t.is(machine.hart.pc, at(NOWHERE));
  t.is(machine.get('mcause'), 1n);
});

test('A handler whose first instruction straddles into nowhere uses fuel: the run ends', (t) => {
  const last = DATA + 0x3f_0000 - 2;
  machine.clear().set({ mtvec: BigInt(last) - 2n });
  // mtvec is a multiple of 4: the word before is a 16-bit nop that falls into the one that straddles
  machine.code(last - 2, [0x0001]);
  machine.ram.setU16(last, 0x0013);
  machine.run([ECALL], 1000);
  t.is(machine.get('mcause'), 1n);
  t.is(machine.get('mepc'), at(last));
  t.is(machine.get('mtval'), at(last + 2));
});

test('A supervisor handler that straddles into nowhere uses fuel: the run ends', (t) => {
  // stvec points right at a straddling instruction by way of sret: sepc may be any halfword
  const last = DATA + 0x3f_0000 - 2;
  machine.clear().set({ mode: S, sepc: BigInt(last), stvec: BigInt(S_HANDLER), medeleg: 0xb3ffn });
  machine.ram.setU16(last, 0x0013);
  machine.code(S_HANDLER, [SRET]);
  machine.run([SRET], 1000);
  t.is(machine.get('scause'), 1n);
  t.is(machine.get('sepc'), at(last));
});
