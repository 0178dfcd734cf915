import test from 'ava';
import { encode } from '../../../emulator/isa/mod.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { BareHart, CODE, INTERRUPT, M, M_HANDLER, S, S_HANDLER, U } from '../../fixtures/bare_hart.ts';

const machine = new BareHart();
const NOP = encode('addi');
const WFI = encode('wfi');
const SSI = 1;
const MSI = 3;
const STI = 5;
const MTI = 7;
const SEI = 9;
const MEI = 11;
const ALL = 0xaaan;
const SUPERVISOR = 0x222n;
const MIE = 1n << 3n;
const SIE = 1n << 1n;
const STCE = 1n << 63n;
const A0 = 10;
const bit = (index: number): bigint => 1n << BigInt(index);

/** What the machine takes before it runs the next instruction */
function go(): bigint | undefined {
  machine.hart.run(0);
  const { trap } = machine;
  return trap === undefined ? undefined : trap.cause & ~INTERRUPT;
}

test('Interrupts are taken in the order of the specification, whatever came first', (t) => {
  const order = [MEI, MSI, MTI, SEI, SSI, STI];
  for (const [index, expected] of order.entries()) {
    machine.clear().set({ mstatus: MIE, mie: ALL });
    for (const pending of order.slice(index)) machine.pin(pending, true);
    machine.code(CODE, [NOP]);
    machine.hart.run(1);
    t.deepEqual(machine.trap, {
      cause: INTERRUPT | BigInt(expected),
      epc: BigInt(CODE),
      tval: 0n,
      mode: 'M',
    });
  }
});

test('An interrupt for M is taken before one for S that has a higher number in the order', (t) => {
  machine.clear().set({ mode: S, mstatus: SIE, mie: ALL, mideleg: SUPERVISOR }).pin(SEI, true).pin(MTI, true);
  t.is(go(), BigInt(MTI));
  t.is(machine.mode, M);
});

test('An interrupt for M needs MIE in M-mode, and nothing below', (t) => {
  for (const [mode, mstatus, taken] of [
    [M, 0n, false],
    [M, MIE, true],
    [S, 0n, true],
    [U, 0n, true],
  ] as const) {
    machine
      .clear()
      .set({ mode, mstatus, mie: bit(MTI) })
      .pin(MTI, true);
    t.is(go() !== undefined, taken, `mode ${mode}, mstatus ${mstatus}`);
  }
});

test('A delegated interrupt is never taken in M-mode; in S it needs SIE, in U nothing', (t) => {
  for (const [mode, mstatus, taken] of [
    [M, MIE | SIE, false],
    [S, MIE, false],
    [S, SIE, true],
    [U, 0n, true],
  ] as const) {
    machine.clear().set({ mode, mstatus, mie: ALL, mideleg: SUPERVISOR }).pin(SEI, true);
    const cause = go();
    t.is(cause !== undefined, taken, `mode ${mode}, mstatus ${mstatus}`);
    if (taken) t.is(machine.trap?.mode, 'S');
  }
});

test('A pending interrupt that mie does not enable is not taken', (t) => {
  for (const code of [SSI, MSI, STI, MTI, SEI, MEI]) {
    machine
      .clear()
      .set({ mode: U, mie: ALL & ~bit(code) })
      .pin(code, true);
    t.is(go(), undefined);
  }
});

test('Vectored mode enters at base plus four times the cause', (t) => {
  for (const code of [SSI, MSI, STI, MTI, SEI, MEI]) {
    machine
      .clear()
      .set({ mstatus: MIE, mie: ALL, mtvec: BigInt(M_HANDLER) | 1n })
      .pin(code, true);
    go();
    t.is(machine.hart.pc, BigInt(M_HANDLER + 4 * code));
  }
  machine
    .clear()
    .set({ mode: U, mie: ALL, mideleg: SUPERVISOR, stvec: BigInt(S_HANDLER) | 1n })
    .pin(SSI, true);
  go();
  t.is(machine.hart.pc, BigInt(S_HANDLER + 4));
});

test('The instruction that enables a pending interrupt is the last one before it', (t) => {
  for (const [csr, value, before] of [
    [0x300, MIE, { mie: ALL }],
    [0x304, ALL, { mstatus: MIE }],
  ] as const) {
    machine.clear().set(before).pin(MTI, true);
    machine.hart.setX(A0, value);
    machine.run([encode('csrrs', { rs1: A0, csr }), NOP], 1);
    t.is(machine.trap?.cause, INTERRUPT | BigInt(MTI));
    t.is(machine.get('mepc'), BigInt(CODE + 4));
  }
});

test('mret to a mode where an interrupt may be taken takes it at once', (t) => {
  machine
    .clear()
    .set({ mie: ALL, mepc: BigInt(CODE + 64) })
    .pin(MEI, true);
  machine.run([encode('mret')], 1);
  t.deepEqual(machine.trap, { cause: INTERRUPT | 11n, epc: BigInt(CODE + 64), tval: 0n, mode: 'M' });
});

test('Software may raise SSIP, STIP and SEIP in mip, but never the machine pins', (t) => {
  machine.clear();
  machine.hart.setX(A0, (1n << 64n) - 1n);
  machine.run([encode('csrrw', { rs1: A0, csr: 0x344 }), encode('csrrs', { rd: A0, csr: 0x344 })]);
  t.is(machine.hart.x(A0), SUPERVISOR);
});

test('SEIP is the pin or the software bit, and setting other bits of mip does not make the pin stick', (t) => {
  machine.clear().pin(SEI, true);
  machine.hart.setX(A0, bit(SSI));
  machine.run([encode('csrrs', { rs1: A0, csr: 0x344 })]);
  machine.pin(SEI, false);
  machine.run([encode('csrrs', { rd: A0, csr: 0x344 })]);
  t.is(machine.hart.x(A0), bit(SSI));
});

test('S-mode may write SSIP in sip alone, and only where it is delegated', (t) => {
  for (const mideleg of [0n, SUPERVISOR]) {
    machine.clear().set({ mode: S, mideleg });
    machine.hart.setX(A0, (1n << 64n) - 1n);
    machine.run([encode('csrrw', { rs1: A0, csr: 0x144 }), encode('csrrs', { rd: A0, csr: 0x144 })]);
    t.is(machine.hart.x(A0), mideleg === 0n ? 0n : bit(SSI));
  }
});

// --- wfi -------------------------------------------------------------------------------------------------------

test('wfi waits while nothing is enabled and pending, and goes on after it', (t) => {
  machine.clear().code(CODE, [WFI]);
  t.is(machine.hart.run(5), H.EXIT_WFI);
  t.is(machine.hart.pc, BigInt(CODE + 4));
  machine
    .clear()
    .set({ mie: bit(MTI) })
    .pin(MSI, true)
    .code(CODE, [WFI]);
  t.is(machine.hart.run(5), H.EXIT_WFI, 'pending, not enabled');
});

test('wfi does not wait where an enabled interrupt is pending, even if mstatus masks it', (t) => {
  machine
    .clear()
    .set({ mie: bit(MTI) })
    .pin(MTI, true)
    .code(CODE, [WFI, NOP]);
  t.is(machine.hart.run(2), H.EXIT_FUEL);
  t.is(machine.hart.pc, BigInt(CODE + 8));
  machine
    .clear()
    .set({ mie: bit(MTI), mstatus: MIE })
    .code(CODE, [WFI]);
  machine.hart.step(0);
  machine.pin(MTI, true);
  machine.hart.step(1);
  t.is(machine.trap?.cause, INTERRUPT | BigInt(MTI));
  t.is(machine.get('mepc'), BigInt(CODE + 4), 'the handler returns behind the wfi');
});

// --- Sstc ------------------------------------------------------------------------------------------------------

test('stimecmp drives STIP while menvcfg.STCE is set: at the time, not before', (t) => {
  machine.clear().set({ menvcfg: STCE });
  machine.time = 1000;
  const read = (): bigint => {
    machine.run([encode('csrrs', { rd: A0, csr: 0x344 })]);
    return machine.hart.x(A0) & bit(STI);
  };
  machine.hart.setX(A0, 1001n);
  machine.run([encode('csrrw', { rs1: A0, csr: 0x14d })]);
  t.is(read(), 0n);
  machine.hart.setX(A0, 1000n);
  machine.run([encode('csrrw', { rs1: A0, csr: 0x14d })]);
  t.is(read(), bit(STI));
  machine.hart.setX(A0, (1n << 64n) - 1n);
  machine.run([encode('csrrw', { rs1: A0, csr: 0x14d })]);
  t.is(read(), 0n, 'a later deadline takes it back');
  t.is(machine.hart.getFloat64(H.HART_STIMECMP_TICKS), Number.POSITIVE_INFINITY);
});

test('With STCE software cannot set STIP; without it stimecmp has no say', (t) => {
  machine.clear().set({ menvcfg: STCE });
  machine.hart.setX(A0, (1n << 64n) - 1n);
  machine.run([
    encode('csrrw', { rs1: A0, csr: 0x14d }),
    encode('csrrw', { rs1: A0, csr: 0x344 }),
    encode('csrrs', { rd: A0, csr: 0x344 }),
  ]);
  t.is(machine.hart.x(A0) & bit(STI), 0n);
  machine.clear().set({ menvcfg: 0n });
  machine.time = 100;
  machine.run([encode('csrrwi', { rs1: 5, csr: 0x14d }), encode('csrrs', { rd: A0, csr: 0x344 })]);
  t.is(machine.hart.x(A0) & bit(STI), 0n);
});

test('stimecmp is illegal in S-mode unless menvcfg.STCE and mcounteren.TM allow it', (t) => {
  for (const [menvcfg, mcounteren, allowed] of [
    [0n, 2, false],
    [STCE, 0, false],
    [STCE, 2, true],
  ] as const) {
    machine.clear().set({ mode: S, menvcfg });
    machine.hart.set32(H.HART_MCOUNTEREN, mcounteren);
    machine.run([encode('csrrs', { rd: A0, csr: 0x14d })]);
    t.is(machine.trap === undefined, allowed);
  }
});

test('run() asks the host before it runs, and leaves at once where the host has something else to do', (t) => {
  machine.clear().code(CODE, [NOP]);
  machine.attention = 1;
  const { polls } = machine;
  t.is(machine.hart.run(5), H.EXIT_ATTENTION);
  t.is(machine.polls, polls + 1);
  t.is(machine.hart.pc, BigInt(CODE));
});
