// The driver of an image, in M-mode: for each leg it restores the window, sets the mode, and starts the program; at the
// program's end it stores the registers. After the last leg it powers off.
import { Assembly, assemble } from './assembly.ts';
import { CSR, emitHandler, X } from './handlers.ts';
import {
  CODE_PAGES,
  DATA_PAGES,
  DESCRIPTORS,
  LEG,
  LEG_BYTES,
  PAGE,
  RAM_BASE,
  RECORD,
  RECORD_BYTES,
  RECORDS,
  SCRATCH,
  SCRATCH_WORDS,
  STATE,
  STATE_WORDS,
  WINDOW_ENTRIES,
  WINDOW_PAGES,
  WINDOW_PRISTINE,
} from './layout.ts';
import type { PageTables } from './page_tables.ts';

const { zero, sp, t0, t1, t2, t3, t4, t5, t6 } = X;
const TEST_DEVICE = 0x10_0000;
const POWER_OFF = 0x5555;
const FS_DIRTY = 3n << 13n;
const MTIE_SSIE = (1n << 7n) | 2n;
const SAVED_IN_FRAME = [t0, t1, t2, X.t3, X.t4] as const;

/** Code and constants of the runtime, from RAM_BASE on. */
export function assembleRuntime(pages: PageTables): Uint8Array {
  const a = new Assembly('.r');
  emitBoot(a);
  emitNextLeg(a, pages);
  emitFinish(a, pages);
  a.label('finishS').op('ecall');
  const targets = { finish: 'finish', finishS: 'finishS' };
  emitHandler(a, 'M', pages, targets);
  emitHandler(a, 'S', pages, targets);
  const { bytes } = assemble(RAM_BASE, a.pieces).sections[0];
  if (RAM_BASE + bytes.length > STATE) throw new RangeError('Cannot assemble the runtime: too long');
  return bytes;
}

function emitBoot(a: Assembly): void {
  const set = (csr: number, value: bigint | number | string): void => {
    if (typeof value === 'string') a.address(t0, value);
    else a.constant(t0, value);
    a.op('csrrw', { rs1: t0, csr });
  };
  // A second hart is there only so that QEMU makes atomics atomic. It sleeps.
  a.op('csrrs', { rd: t0, csr: CSR.mhartid }).branch('beq', t0, zero, 'boot');
  a.label('sleep').op('wfi').jump('sleep');
  a.label('boot');
  set(CSR.mtvec, 'handlerM');
  set(CSR.stvec, 'handlerS');
  set(CSR.pmpaddr0, (1n << 54n) - 1n);
  set(CSR.pmpcfg0, 0x1f);
  set(CSR.mcounteren, 7);
  set(CSR.mideleg, 0x222);
  set(CSR.mie, MTIE_SSIE);
  set(CSR.mscratch, SCRATCH + SCRATCH_WORDS.frameM);
  // The first timer interrupt is due at once, and each asks for the next
  a.constant(t0, 0x200_4000).op('sd', { rs1: t0, rs2: zero });
}

/** Copies `bytes`, a multiple of 32, from t0 to t1 */
function emitCopy(a: Assembly, bytes: number): void {
  const loop = a.fresh('copy');
  a.constant(t2, bytes).op('add', { rd: t2, rs1: t2, rs2: t0 }).label(loop);
  for (const [index, rd] of [t3, t4, t5, t6].entries()) a.op('ld', { rd, rs1: t0, imm: 8 * index });
  for (const [index, rs2] of [t3, t4, t5, t6].entries()) a.op('sd', { rs1: t1, rs2, imm: 8 * index });
  a.op('addi', { rd: t0, rs1: t0, imm: 32 }).op('addi', { rd: t1, rs1: t1, imm: 32 }).branch('bltu', t0, t2, loop);
}

/** Page tables' window entries stand behind the pages in the pristine copy */
export const pristineEntries = (space: number): number =>
  WINDOW_PRISTINE + (DATA_PAGES + 1) * PAGE + space * WINDOW_ENTRIES * 8;
export const PRISTINE_SHARED_CODE = WINDOW_PRISTINE + DATA_PAGES * PAGE;

function emitNextLeg(a: Assembly, pages: PageTables): void {
  const s0 = 8;
  const s1 = 9;
  const copy = (from: number, to: number, bytes: number): void => {
    a.constant(t0, from).constant(t1, to);
    emitCopy(a, bytes);
  };
  a.label('nextLeg').constant(s0, STATE);
  a.op('ld', { rd: t0, rs1: s0, imm: STATE_WORDS.leg }).op('ld', { rd: t1, rs1: s0, imm: STATE_WORDS.legs });
  a.branch('bgeu', t0, t1, 'powerOff');
  a.constant(t2, LEG_BYTES)
    .op('mul', { rd: t2, rs1: t2, rs2: t0 })
    .constant(s1, DESCRIPTORS)
    .op('add', { rd: s1, rs1: s1, rs2: t2 });
  a.constant(t2, RECORD_BYTES)
    .op('mul', { rd: t2, rs1: t2, rs2: t0 })
    .constant(t3, RECORDS)
    .op('add', { rd: t3, rs1: t3, rs2: t2 });
  a.op('sd', { rs1: s0, rs2: t3, imm: STATE_WORDS.record });
  for (const word of [STATE_WORDS.trapCount, STATE_WORDS.trapHash, STATE_WORDS.aborted]) {
    a.op('sd', { rs1: s0, rs2: zero, imm: word });
  }
  for (const word of ['trapLimit', 'finishPc', 'slot', 'entriesS', 'entriesU', 'moves'] as const) {
    a.op('ld', { rd: t0, rs1: s1, imm: LEG[word] }).op('sd', { rs1: s0, rs2: t0, imm: STATE_WORDS[word] });
  }
  // The window as it was at first
  copy(WINDOW_PRISTINE, WINDOW_PAGES, DATA_PAGES * PAGE);
  copy(PRISTINE_SHARED_CODE, WINDOW_PAGES + CODE_PAGES.shared * PAGE, PAGE);
  for (const [space, table] of pages.windows.entries()) copy(pristineEntries(space), table, WINDOW_ENTRIES * 8);
  a.op('ld', { rd: t0, rs1: s1, imm: LEG.windowA }).constant(t1, WINDOW_PAGES + CODE_PAGES.a * PAGE);
  emitCopy(a, PAGE);
  a.op('ld', { rd: t0, rs1: s1, imm: LEG.windowB }).constant(t1, WINDOW_PAGES + CODE_PAGES.b * PAGE);
  emitCopy(a, PAGE);
  a.op('fence.i');
  for (const [csr, offset] of [
    [CSR.satp, LEG.satp],
    [CSR.medeleg, LEG.medeleg],
    [CSR.mstatus, LEG.mstatus],
    [CSR.mepc, LEG.entry],
  ] as const) {
    a.op('ld', { rd: t0, rs1: s1, imm: offset }).op('csrrw', { rs1: t0, csr });
  }
  a.constant(t0, SCRATCH + SCRATCH_WORDS.frameS).op('csrrw', { rs1: t0, csr: CSR.sscratch });
  a.op('csrrwi', { csr: CSR.fcsr }).op('sfence.vma').op('mret');

  a.label('powerOff').constant(t0, TEST_DEVICE).constant(t1, POWER_OFF).op('sw', { rs1: t0, rs2: t1 });
  a.label('ended').op('wfi').jump('ended');
}

/** From the M handler: t0…t4 are in its frame at sp, the program's sp in mscratch. */
function emitFinish(a: Assembly, pages: PageTables): void {
  a.label('finish').constant(t1, STATE).op('ld', { rd: t0, rs1: t1, imm: STATE_WORDS.record });
  for (let r = 1; r < 32; r++) {
    if (r !== sp && !(SAVED_IN_FRAME as readonly number[]).includes(r))
      a.op('sd', { rs1: t0, rs2: r, imm: RECORD.x + 8 * r });
  }
  for (const r of SAVED_IN_FRAME) {
    a.op('ld', { rd: t2, rs1: sp, imm: 8 * r }).op('sd', { rs1: t0, rs2: t2, imm: RECORD.x + 8 * r });
  }
  a.op('csrrw', { rd: t2, rs1: sp, csr: CSR.mscratch }).op('sd', { rs1: t0, rs2: t2, imm: RECORD.x + 8 * sp });
  a.constant(t2, FS_DIRTY).op('csrrs', { rs1: t2, csr: CSR.mstatus });
  for (let f = 0; f < 32; f++) a.op('fsd', { rs1: t0, rs2: f, imm: RECORD.f + 8 * f });
  a.op('csrrs', { rd: t2, csr: CSR.fcsr }).op('sd', { rs1: t0, rs2: t2, imm: RECORD.fcsr });
  a.op('csrrs', { rd: t2, csr: CSR.satp }).op('sd', { rs1: t0, rs2: t2, imm: RECORD.satp });
  for (const [from, to] of [
    [STATE_WORDS.trapCount, RECORD.trapCount],
    [STATE_WORDS.trapHash, RECORD.trapHash],
    [STATE_WORDS.aborted, RECORD.aborted],
  ] as const) {
    a.op('ld', { rd: t2, rs1: t1, imm: from }).op('sd', { rs1: t0, rs2: t2, imm: to });
  }
  // What became of the window: its pages, and its entries with their A and D bits
  a.op('addi', { rd: t6, imm: 0 });
  const hash = (from: number, bytes: number): void => {
    const loop = a.fresh('hash');
    a.constant(t2, from)
      .constant(t3, from + bytes)
      .label(loop);
    a.op('ld', { rd: t4, rs1: t2 }).op('rori', { rd: t6, rs1: t6, imm: 5 }).op('add', { rd: t6, rs1: t6, rs2: t4 });
    a.op('addi', { rd: t2, rs1: t2, imm: 8 }).branch('bltu', t2, t3, loop);
  };
  hash(WINDOW_PAGES, (CODE_PAGES.shared + 1) * PAGE);
  for (const table of pages.windows) hash(table, WINDOW_ENTRIES * 8);
  a.op('sd', { rs1: t0, rs2: t6, imm: RECORD.windowHash });
  a.op('addi', { rd: t2, imm: 1 }).op('sd', { rs1: t0, rs2: t2, imm: RECORD.done });
  a.op('ld', { rd: t2, rs1: t1, imm: STATE_WORDS.leg }).op('addi', { rd: t2, rs1: t2, imm: 1 });
  a.op('sd', { rs1: t1, rs2: t2, imm: STATE_WORDS.leg }).jump('nextLeg');
}
