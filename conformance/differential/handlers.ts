// The trap handlers of the images, for M and S: they log what happened, serve the program's calls, map pages on demand,
// skip what cannot be done, and leave everything else as it was. Interrupts are transparent.
import type { Assembly } from './assembly.ts';
import {
  DEMAND_PAGE,
  MOVING_PAGE,
  MOVING_PAGES,
  PAGE,
  PTE_OTHER_PAGE,
  SCRATCH,
  SCRATCH_WORDS,
  SLOT_PAGES,
  STATE,
  STATE_WORDS,
  TRAP_LOG,
  TRAP_LOG_ENTRIES,
  WINDOW,
} from './layout.ts';
import type { PageTables } from './page_tables.ts';

export const X = {
  zero: 0, ra: 1, sp: 2, gp: 3, tp: 4, t0: 5, t1: 6, t2: 7, a6: 16, a7: 17, t3: 28, t4: 29, t5: 30, t6: 31,
} as const; // biome-ignore format: a table
const { zero, ra, sp, t0, t1, t2, t3, t4, a6, a7 } = X;
const SAVED = [t0, t1, t2, t3, t4] as const;

/** Numbers of the CSRs that the handler of a mode works with */
const CSRS = {
  M: { status: 0x300, scratch: 0x340, epc: 0x341, cause: 0x342, tval: 0x343 },
  S: { status: 0x100, scratch: 0x140, epc: 0x141, cause: 0x142, tval: 0x143 },
} as const;
export const CSR = {
  fflags: 1, frm: 2, fcsr: 3, stvec: 0x105, scounteren: 0x106, sscratch: 0x140, sip: 0x144, satp: 0x180,
  mstatus: 0x300, medeleg: 0x302, mideleg: 0x303, mie: 0x304, mtvec: 0x305, mcounteren: 0x306, mscratch: 0x340,
  mepc: 0x341, mip: 0x344, pmpcfg0: 0x3a0, pmpaddr0: 0x3b0, mhartid: 0xf14,
} as const; // biome-ignore format: a table

const bits = (...numbers: readonly number[]): bigint => numbers.reduce((sum, bit) => sum | (1n << BigInt(bit)), 0n);
const FETCH_CAUSES = bits(0, 1);
const FAULT_CAUSES = bits(1, 4, 5, 6, 7, 12, 13, 15);
const CALL_CAUSES = bits(8, 9, 11);
const FS_DIRTY = bits(13, 14);
const SUM = bits(18);
const MXR = bits(19);
const MPRV = bits(17);
/** Bits of an entry */
const VRW = 7;
const AD = 0xc0;
const CLINT_MTIMECMP = 0x200_4000;
const CLINT_MTIME = 0x200_bff8;
const SSIP = 2;

/** Calls that change the moving page that a6 names, and what they change of its entry */
const MOVES = { move: PTE_OTHER_PAGE, hide: 1, seal: 4 } as const;
/** Calls that a program makes by `ecall`, chosen by the low bits of a7. Numbers above do nothing. */
export const SERVICES = [
  'demand', 'readonly', 'space', 'sum', 'mxr', 'frm', 'fpOff', 'medeleg', 'age', 'unmap', 'protect', 'move', 'hide', 'seal',
] as const; // biome-ignore format: a table

export interface HandlerTargets {
  /** M only: stores the registers and goes on with the next leg; t0…t4 and sp are in the frame and in mscratch */
  readonly finish: string;
  /** An ecall from S that stands for the program's end, when the end's own trap went to S */
  readonly finishS: string;
}

/** Emits the handler at label `handlerM` or `handlerS`. */
export function emitHandler(a: Assembly, mode: 'M' | 'S', pages: PageTables, targets: HandlerTargets): void {
  const csr = CSRS[mode];
  const read = (rd: number, number: number) => a.op('csrrs', { rd, csr: number });
  const write = (rs1: number, number: number) => a.op('csrrw', { rs1, csr: number });
  const label = (name: string): string => `handler${mode}.${name}`;
  /** Branches to `to` where bit t0 of `mask` is set; t3 is lost */
  const ifCauseIn = (mask: bigint, to: string): void => {
    a.constant(t3, mask).op('srl', { rd: t3, rs1: t3, rs2: t0 }).op('andi', { rd: t3, rs1: t3, imm: 1 });
    a.branch('bne', t3, zero, to);
  };

  a.add({ align: 64 }).label(`handler${mode}`);
  a.op('csrrw', { rd: sp, rs1: sp, csr: csr.scratch });
  for (const r of SAVED) a.op('sd', { rs1: sp, rs2: r, imm: 8 * r });
  read(t0, csr.cause);
  a.branch('blt', t0, zero, label('interrupt'));
  a.constant(t1, STATE);
  read(t2, csr.epc);
  a.op('ld', { rd: t3, rs1: t1, imm: STATE_WORDS.finishPc });
  a.branch('beq', t2, t3, label('finish'));
  if (mode === 'M') a.address(t3, targets.finishS).branch('beq', t2, t3, label('finish'));
  emitLog(a, csr.tval, label('finishAborted'), ifCauseIn, label('logged'));

  ifCauseIn(FETCH_CAUSES, label('fetch'));
  ifCauseIn(CALL_CAUSES, label('call'));
  a.op('addi', { rd: t3, imm: 2 }).branch('beq', t0, t3, label('illegal'));
  a.op('addi', { rd: t3, imm: 12 }).branch('bgeu', t0, t3, label('pageFault'));

  a.label(label('skip'));
  // The instruction's length, read as the program would fetch it: execute-only pages and user pages included
  a.constant(t3, mode === 'M' ? MPRV | MXR : SUM | MXR).op('csrrs', { rd: t3, rs1: t3, csr: csr.status });
  a.op('lhu', { rd: t4, rs1: t2 });
  write(t3, csr.status);
  a.op('andi', { rd: t4, rs1: t4, imm: 3 }).op('addi', { rd: t4, rs1: t4, imm: -3 });
  a.op('sltiu', { rd: t4, rs1: t4, imm: 1 })
    .op('slli', { rd: t4, rs1: t4, imm: 1 })
    .op('addi', { rd: t4, rs1: t4, imm: 2 });
  a.op('add', { rd: t2, rs1: t2, rs2: t4 });
  a.label(label('goOn'));
  write(t2, csr.epc);
  a.label(label('return'));
  for (const r of SAVED) a.op('ld', { rd: r, rs1: sp, imm: 8 * r });
  a.op('csrrw', { rd: sp, rs1: sp, csr: csr.scratch });
  a.op(mode === 'M' ? 'mret' : 'sret');

  // A jump to nowhere was a call: back to where it came from
  a.label(label('fetch')).op('addi', { rd: t2, rs1: ra }).jump(label('goOn'));

  a.label(label('illegal'));
  a.constant(t3, FS_DIRTY);
  read(t4, csr.status);
  a.op('and', { rd: t4, rs1: t4, rs2: t3 }).branch('bne', t4, zero, label('skip'));
  // Floating point was off: on, and once more
  a.op('csrrs', { rs1: t3, csr: csr.status }).jump(label('return'));

  a.label(label('pageFault'));
  emitRepair(a, csr, label);
  a.op('addi', { rd: t3, imm: 12 }).branch('beq', t0, t3, label('fetch'));
  read(t3, csr.tval);
  a.op('srli', { rd: t3, rs1: t3, imm: 12 }).constant(t4, WINDOW / PAGE + DEMAND_PAGE);
  a.branch('bne', t3, t4, label('moving'));
  a.constant(t3, pages.windows[0]!)
    .op('ld', { rd: t4, rs1: t3, imm: 8 * DEMAND_PAGE })
    .op('andi', { rd: t4, rs1: t4, imm: 1 });
  a.branch('bne', t4, zero, label('skip'));
  changeEntry(a, pages, DEMAND_PAGE, 'ori', 1);
  a.op('sfence.vma').jump(label('return'));
  emitMovingFault(a, pages, label);

  a.label(label('call'));
  a.op('addi', { rd: t2, rs1: t2, imm: 4 });
  emitServices(a, csr.status, mode, pages, label);

  a.label(label('interrupt'));
  if (mode === 'M') emitTimer(a, pages);
  else a.op('csrrci', { rs1: SSIP, csr: CSR.sip });
  a.jump(label('return'));

  a.label(label('finishAborted'));
  a.op('addi', { rd: t3, imm: 1 }).op('sd', { rs1: t1, rs2: t3, imm: STATE_WORDS.aborted });
  a.label(label('finish'));
  if (mode === 'M') a.jump(targets.finish);
  else {
    for (const r of SAVED) a.op('ld', { rd: r, rs1: sp, imm: 8 * r });
    a.op('csrrw', { rd: sp, rs1: sp, csr: csr.scratch }).jump(targets.finishS);
  }
}

/** Count and hash of cause, epc and, where both machines must agree on it, tval. t1 is STATE, t0 cause, t2 epc. */
function emitLog(
  a: Assembly,
  tval: number,
  aborted: string,
  ifCauseIn: (mask: bigint, to: string) => void,
  done: string,
): void {
  a.op('ld', { rd: t3, rs1: t1, imm: STATE_WORDS.trapCount }).op('addi', { rd: t3, rs1: t3, imm: 1 });
  a.op('sd', { rs1: t1, rs2: t3, imm: STATE_WORDS.trapCount });
  a.op('ld', { rd: t4, rs1: t1, imm: STATE_WORDS.trapLimit }).branch('bltu', t4, t3, aborted);
  // The first ones one by one, for reports
  const full = `${done}.full`;
  a.op('addi', { rd: t4, imm: TRAP_LOG_ENTRIES - 1 }).branch('bgeu', t3, t4, full);
  a.op('slli', { rd: t3, rs1: t3, imm: 5 }).constant(t4, TRAP_LOG).op('add', { rd: t4, rs1: t4, rs2: t3 });
  a.op('sd', { rs1: t4, rs2: t0 }).op('sd', { rs1: t4, rs2: t2, imm: 8 }).op('csrrs', { rd: t3, csr: tval });
  a.op('sd', { rs1: t4, rs2: t3, imm: 16 }).label(full);
  a.op('ld', { rd: t3, rs1: t1, imm: STATE_WORDS.trapHash }).op('rori', { rd: t3, rs1: t3, imm: 7 });
  a.op('add', { rd: t3, rs1: t3, rs2: t2 })
    .op('slli', { rd: t4, rs1: t0, imm: 48 })
    .op('xor', { rd: t3, rs1: t3, rs2: t4 });
  a.op('sd', { rs1: t1, rs2: t3, imm: STATE_WORDS.trapHash });
  const fault = `${done}.fault`;
  ifCauseIn(FAULT_CAUSES, fault);
  a.jump(done);
  a.label(fault).op('ld', { rd: t3, rs1: t1, imm: STATE_WORDS.trapHash }).op('csrrs', { rd: t4, csr: tval });
  a.op('rori', { rd: t3, rs1: t3, imm: 13 }).op('xor', { rd: t3, rs1: t3, rs2: t4 });
  a.op('sd', { rs1: t1, rs2: t3, imm: STATE_WORDS.trapHash });
  a.label(done);
}

/** Changes an entry of the window in all four spaces; t3 and t4 are lost */
function changeEntry(a: Assembly, pages: PageTables, index: number, op: 'ori' | 'xori', imm: number): void {
  for (const table of pages.windows) {
    a.constant(t3, table).op('ld', { rd: t4, rs1: t3, imm: 8 * index });
    a.op(op, { rd: t4, rs1: t4, imm }).op('sd', { rs1: t3, rs2: t4, imm: 8 * index });
  }
}

/** Changes bits of a moving page's entry in all four spaces. t0 is its number, times 8; t3 and t4 are lost */
function changeMoving(a: Assembly, pages: PageTables, op: 'ori' | 'xori', imm: number): void {
  for (const table of pages.windows) {
    a.constant(t3, table + 8 * MOVING_PAGE)
      .op('add', { rd: t3, rs1: t3, rs2: t0 })
      .op('ld', { rd: t4, rs1: t3 });
    a.op(op, { rd: t4, rs1: t4, imm }).op('sd', { rs1: t3, rs2: t4 });
  }
}

/** A moving page that is not mapped becomes so, and its neighbour's entry another: behind the back of who is interrupted */
function emitMovingFault(a: Assembly, pages: PageTables, label: (name: string) => string): void {
  a.label(label('moving')).op('addi', { rd: t4, rs1: t4, imm: MOVING_PAGE - DEMAND_PAGE });
  a.op('sub', { rd: t0, rs1: t3, rs2: t4 }).op('addi', { rd: t4, imm: MOVING_PAGES });
  a.branch('bgeu', t0, t4, label('skip')).op('slli', { rd: t0, rs1: t0, imm: 3 });
  a.constant(t3, pages.windows[0]! + 8 * MOVING_PAGE)
    .op('add', { rd: t3, rs1: t3, rs2: t0 })
    .op('ld', { rd: t4, rs1: t3 });
  a.op('andi', { rd: t4, rs1: t4, imm: 1 }).branch('bne', t4, zero, label('skip'));
  changeMoving(a, pages, 'ori', 1);
  a.op('xori', { rd: t0, rs1: t0, imm: 8 });
  changeMoving(a, pages, 'xori', PTE_OTHER_PAGE);
  a.op('sfence.vma').jump(label('return'));
}

/** The program's own pages become whole again, in both tables. t0 is the cause and t2 epc, before and after. */
function emitRepair(a: Assembly, csr: (typeof CSRS)['M' | 'S'], label: (name: string) => string): void {
  const [other, whole] = [label('other'), label('whole')];
  a.op('csrrs', { rd: t3, csr: csr.tval }).op('ld', { rd: t4, rs1: t1, imm: STATE_WORDS.slot });
  a.op('sub', { rd: t3, rs1: t3, rs2: t4 })
    .op('srli', { rd: t3, rs1: t3, imm: 12 })
    .op('addi', { rd: t4, imm: SLOT_PAGES });
  a.branch('bgeu', t3, t4, other).op('slli', { rd: t3, rs1: t3, imm: 3 });
  for (const word of [STATE_WORDS.entriesS, STATE_WORDS.entriesU]) {
    a.op('ld', { rd: t4, rs1: t1, imm: word }).op('add', { rd: t4, rs1: t4, rs2: t3 }).op('ld', { rd: t0, rs1: t4 });
    if (word === STATE_WORDS.entriesS) {
      a.op('andi', { rd: t2, rs1: t0, imm: VRW })
        .op('addi', { rd: t2, rs1: t2, imm: -VRW })
        .branch('beq', t2, zero, whole);
    }
    a.op('ori', { rd: t0, rs1: t0, imm: VRW }).op('sd', { rs1: t4, rs2: t0 });
  }
  a.op('sfence.vma').jump(label('return'));
  a.label(whole).op('csrrs', { rd: t0, csr: csr.cause }).op('csrrs', { rd: t2, csr: csr.epc }).label(other);
}

/** Changes of the program's own entries: of all, or of the one that a6 names. t0, t3 and t4 are lost. */
function emitOwnPages(a: Assembly, label: (name: string) => string): void {
  const tables = [STATE_WORDS.entriesS, STATE_WORDS.entriesU];
  a.label(label('age'));
  for (const word of tables) {
    const loop = a.fresh('age');
    a.op('ld', { rd: t3, rs1: t1, imm: word }).op('addi', { rd: t0, imm: SLOT_PAGES }).label(loop);
    a.op('ld', { rd: t4, rs1: t3 }).op('andi', { rd: t4, rs1: t4, imm: ~AD }).op('sd', { rs1: t3, rs2: t4 });
    a.op('addi', { rd: t3, rs1: t3, imm: 8 }).op('addi', { rd: t0, rs1: t0, imm: -1 }).branch('bne', t0, zero, loop);
  }
  a.op('sfence.vma').jump(label('goOn'));
  for (const [name, kept] of [
    ['unmap', ~1],
    ['protect', ~4],
  ] as const) {
    a.label(label(name))
      .op('andi', { rd: t0, rs1: a6, imm: SLOT_PAGES - 1 })
      .op('slli', { rd: t0, rs1: t0, imm: 3 });
    for (const word of tables) {
      a.op('ld', { rd: t3, rs1: t1, imm: word }).op('add', { rd: t3, rs1: t3, rs2: t0 }).op('ld', { rd: t4, rs1: t3 });
      a.op('andi', { rd: t4, rs1: t4, imm: kept }).op('sd', { rs1: t3, rs2: t4 });
    }
    a.op('sfence.vma').jump(label('goOn'));
  }
}

function emitServices(
  a: Assembly,
  status: number,
  mode: 'M' | 'S',
  pages: PageTables,
  label: (name: string) => string,
): void {
  a.op('andi', { rd: t3, rs1: a7, imm: 15 });
  for (const [number, name] of SERVICES.entries()) {
    a.op('addi', { rd: t4, imm: number }).branch('beq', t3, t4, label(name));
  }
  a.jump(label('goOn'));
  const toggle = (name: string, mask: bigint): void => {
    a.label(label(name)).constant(t3, mask).op('csrrs', { rd: t4, csr: status });
    a.op('xor', { rd: t4, rs1: t4, rs2: t3 }).op('csrrw', { rs1: t4, csr: status }).jump(label('goOn'));
  };
  a.label(label('demand'));
  changeEntry(a, pages, DEMAND_PAGE, 'xori', 1);
  a.op('sfence.vma').jump(label('goOn'));
  a.label(label('readonly'));
  changeEntry(a, pages, 5, 'xori', 4);
  a.op('sfence.vma').jump(label('goOn'));
  emitOwnPages(a, label);
  for (const [name, bits] of Object.entries(MOVES)) {
    a.label(label(name))
      .op('andi', { rd: t0, rs1: a6, imm: MOVING_PAGES - 1 })
      .op('slli', { rd: t0, rs1: t0, imm: 3 });
    changeMoving(a, pages, 'xori', bits);
    a.op('sfence.vma').jump(label('goOn'));
  }
  a.label(label('space')).op('csrrs', { rd: t3, csr: CSR.satp }).branch('beq', t3, zero, label('goOn'));
  // Which of the four it is: the owner follows from the root
  a.constant(t4, pages.satp('U', 0)).branch('bltu', t3, t4, label('spaceS'));
  a.constant(t4, pages.satpToggle.U).jump(label('spaceSet'));
  a.label(label('spaceS')).constant(t4, pages.satpToggle.S);
  a.label(label('spaceSet')).op('xor', { rd: t3, rs1: t3, rs2: t4 }).op('csrrw', { rs1: t3, csr: CSR.satp });
  a.op('sfence.vma').jump(label('goOn'));
  toggle('sum', SUM);
  toggle('mxr', MXR);
  // A reserved mode is set, too: dynamic rounding is illegal then
  a.label(label('frm')).constant(t3, FS_DIRTY).op('csrrs', { rs1: t3, csr: status });
  a.op('csrrw', { rs1: a6, csr: CSR.frm }).jump(label('goOn'));
  a.label(label('fpOff')).constant(t3, FS_DIRTY).op('csrrc', { rs1: t3, csr: status }).jump(label('goOn'));
  // Which traps go to S: only M can change it
  a.label(label('medeleg'));
  if (mode === 'M') {
    a.constant(t3, 0xb1ff).op('and', { rd: t3, rs1: t3, rs2: a6 }).op('csrrs', { rd: t4, csr: CSR.medeleg });
    a.op('xor', { rd: t4, rs1: t4, rs2: t3 }).op('csrrw', { rs1: t4, csr: CSR.medeleg });
  }
  a.jump(label('goOn'));
}

/**
 * The next interrupt comes a few dozen µs later; each fourth is passed on to S as a software interrupt. Each changes a
 * moving page, if the leg says so.
 */
function emitTimer(a: Assembly, pages: PageTables): void {
  const done = a.fresh('timer');
  const still = a.fresh('still');
  a.constant(t3, SCRATCH)
    .op('ld', { rd: t4, rs1: t3, imm: SCRATCH_WORDS.interrupts })
    .op('addi', { rd: t4, rs1: t4, imm: 1 });
  a.op('sd', { rs1: t3, rs2: t4, imm: SCRATCH_WORDS.interrupts });
  a.op('ld', { rd: t2, rs1: t3, imm: SCRATCH_WORDS.interval });
  a.op('slli', { rd: t3, rs1: t4, imm: 5 })
    .op('andi', { rd: t3, rs1: t3, imm: 0x7f })
    .op('add', { rd: t2, rs1: t2, rs2: t3 });
  a.constant(t3, CLINT_MTIME).op('ld', { rd: t3, rs1: t3 }).op('add', { rd: t2, rs1: t2, rs2: t3 });
  a.constant(t3, CLINT_MTIMECMP).op('sd', { rs1: t3, rs2: t2 });
  a.constant(t3, STATE).op('ld', { rd: t3, rs1: t3, imm: STATE_WORDS.moves }).branch('beq', t3, zero, still);
  a.op('addi', { rd: t1, rs1: t4 })
    .op('andi', { rd: t0, rs1: t4, imm: MOVING_PAGES - 1 })
    .op('slli', { rd: t0, rs1: t0, imm: 3 });
  changeMoving(a, pages, 'xori', PTE_OTHER_PAGE);
  a.op('sfence.vma').op('addi', { rd: t4, rs1: t1 }).label(still);
  a.op('andi', { rd: t4, rs1: t4, imm: 3 }).branch('bne', t4, zero, done);
  a.op('csrrsi', { rs1: SSIP, csr: CSR.mip });
  a.label(done);
}
