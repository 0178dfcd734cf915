// A payload for a whole machine: each case is entered in the privilege mode that it asks for, and ends in a trap to
// M-mode, whose handler records what happened. Cases are independent: CSRs are set anew for each.
import { branchOffset, Code, csrr, csrw, ECALL, jal, ld, MRET, Section, sd, WFI } from './assembler.ts';
import { emitDump } from './dump.ts';
import { type Case, CODE_BASE, DATA_BASE, type Program } from './program.ts';

const TABLES_BASE = 0x8300_0000;

export const CSR = {
  sstatus: 0x100, stvec: 0x105, scounteren: 0x106, sepc: 0x141, scause: 0x142, stval: 0x143, satp: 0x180,
  mstatus: 0x300, medeleg: 0x302, mideleg: 0x303, mie: 0x304, mtvec: 0x305, mcounteren: 0x306, menvcfg: 0x30a,
  mscratch: 0x340, mepc: 0x341, mcause: 0x342, mtval: 0x343, pmpcfg0: 0x3a0, pmpaddr0: 0x3b0, mhartid: 0xf14,
} as const; // biome-ignore format: a table

export type Mode = 'M' | 'S' | 'U';
export const MODES: readonly Mode[] = ['M', 'S', 'U'];
const MPP = { U: 0n, S: 1n << 11n, M: 3n << 11n } as const;
const MPP_MASK = 3n << 11n;

/** Doublewords that the handler records, in order */
export const RECORDED = ['mcause', 'mepc', 'mtval', 'mstatus', 'scause', 'sepc', 'stval', 'a0', 'memory'] as const;

export interface SystemCase {
  readonly name: string;
  /** Run one after the other in the mode, then an ecall */
  readonly words: readonly number[];
  readonly mode: Mode;
  /** mstatus before; MPP is set by the mode unless the case runs in M */
  readonly mstatus: bigint;
  readonly csrs?: readonly (readonly [number, bigint])[];
  readonly a0?: bigint;
  readonly a1?: bigint;
  /** Recorded afterwards */
  readonly watch?: number;
  /** Added to the address of the test to give its virtual address */
  readonly alias?: number;
  readonly about?: string;
}

export interface SystemProgram extends Program {
  readonly tables: Section;
}

export class SystemProgramBuilder implements SystemProgram {
  readonly code = new Section(CODE_BASE, 24 << 20);
  readonly data = new Section(DATA_BASE, 16 << 20);
  readonly tables = new Section(TABLES_BASE, 12 << 20);
  readonly cases: Case[] = [];
  readonly #emit = new Code(this.code);
  readonly #supervisorHandler: number;
  readonly #constants = new Map<bigint, number>();
  end: number | undefined;

  constructor() {
    this.tables.reserve(8); // a section is never empty
    const emit = this.#emit;
    // The second hart is there only so that QEMU makes atomics atomic: alone, it splits them into a load and a store,
    // and reports load faults. It sleeps.
    emit.word(csrr(5, CSR.mhartid));
    emit.word(0x0000_0063 | (5 << 15) | branchOffset(12)); // beq x5, x0
    emit.word(WFI);
    emit.word(jal(0, -4));
    const handler = emit.here + 4;
    const HANDLER_WORDS = 21;
    emit.word(jal(0, 4 + 4 * (HANDLER_WORDS + 1)));
    // Clears MPRV, too: the records are stored physically
    emit.word(0x1073 | (7 << 7) | (CSR.mstatus << 20)); // csrrw x7, mstatus, x0
    emit.word(csrr(5, CSR.mscratch));
    emit.word(sd(7, 5, 24));
    const record: readonly (readonly [number, number])[] = [
      [CSR.mcause, 0], [CSR.mepc, 8], [CSR.mtval, 16], [CSR.scause, 32], [CSR.sepc, 40], [CSR.stval, 48],
    ]; // biome-ignore format: a table
    for (const [csr, offset] of record) {
      emit.word(csrr(6, csr));
      emit.word(sd(6, 5, offset));
    }
    emit.word(sd(10, 5, 56));
    emit.word(ld(7, 5, -16));
    emit.word(ld(7, 7, 0));
    emit.word(sd(7, 5, 64));
    emit.word(ld(6, 5, -8));
    // jalr x0, 0(x6)
    emit.word(0x0000_0067 | (6 << 15));
    // 3 + 12 + 6 = 21 words up to here; the supervisor's handler is the word after
    this.#supervisorHandler = emit.here;
    if (emit.here !== handler + 4 * HANDLER_WORDS) throw new Error('Cannot lay out the handler: wrong length');
    emit.word(ECALL);
    const boot: readonly (readonly [number, bigint])[] = [
      [CSR.mtvec, BigInt(handler)],
      [CSR.pmpaddr0, (1n << 54n) - 1n],
      [CSR.pmpcfg0, 0x1fn], // NAPOT, everything, RWX
    ];
    for (const [csr, value] of boot) this.#set(csr, value);
  }

  #constant(value: bigint): number {
    const known = this.#constants.get(value);
    if (known !== undefined) return known;
    const address = this.data.reserve(8);
    this.data.u64At(address, BigInt.asUintN(64, value));
    this.#constants.set(value, address);
    return address;
  }

  #set(csr: number, value: bigint): void {
    if (value === 0n) {
      this.#emit.word(csrw(csr, 0));
      return;
    }
    this.#emit.loadX(6, this.#constant(value));
    this.#emit.word(csrw(csr, 6));
  }

  add(one: SystemCase): void {
    const emit = this.#emit;
    const { mode, alias = 0 } = one;
    const length = one.words.reduce((sum, word) => sum + ((word & 3) === 3 ? 4 : 2), 0);
    const codeFrom = emit.here;
    const frame = this.data.reserve(16 + 8 * RECORDED.length);
    const results = frame + 16;
    emit.address(5, results);
    emit.word(csrw(CSR.mscratch, 5));
    this.data.u64At(frame, BigInt(one.watch ?? frame));
    const standard: readonly (readonly [number, bigint])[] = [
      [CSR.stvec, BigInt(this.#supervisorHandler)],
      [CSR.medeleg, 0n], [CSR.mideleg, 0n], [CSR.mie, 0n], [CSR.satp, 0n],
      [CSR.scause, 0n], [CSR.stval, 0n], [CSR.mtval, 0n],
    ]; // biome-ignore format: a table
    for (const [csr, value] of [...standard, ...(one.csrs ?? [])]) this.#set(csr, value);
    if (mode !== 'M') emit.word(0x1200_0073); // sfence.vma
    emit.loadX(10, this.#constant(one.a0 ?? 0n));
    emit.loadX(11, this.#constant(one.a1 ?? 0n));
    // What follows has a known length, so that the addresses of the test and of the landing are known here
    const test = emit.here + (mode === 'M' ? 28 : 40);
    const landing = test + Math.ceil(length / 4) * 4 + 4;
    emit.loadX(6, this.#constant(BigInt(landing + alias)));
    emit.word(csrw(CSR.sepc, 6));
    if (mode !== 'M') emit.loadX(6, this.#constant(BigInt(test + alias)));
    emit.word(csrw(CSR.mepc, 6));
    const mstatus = mode === 'M' ? one.mstatus : (one.mstatus & ~MPP_MASK) | MPP[mode];
    emit.loadX(6, this.#constant(mstatus));
    emit.word(csrw(CSR.mstatus, 6));
    if (mode !== 'M') emit.word(MRET);
    if (emit.here !== test) throw new Error('Cannot lay out the case: wrong length');
    for (const word of one.words) emit.word(word);
    emit.padTo(test + Math.ceil(length / 4) * 4);
    emit.word(ECALL);
    emit.word(ECALL); // the landing: where mret and sret go
    this.data.u64At(frame + 8, BigInt(emit.here));
    const operands = `${one.about ?? ''} in ${mode} mstatus=0x${mstatus.toString(16)}`;
    this.cases.push({
      name: one.name,
      word: one.words[0]!,
      operands,
      codeFrom,
      from: frame,
      to: results + 8 * RECORDED.length,
    });
  }

  finish(): this {
    this.end = emitDump(this.#emit, this.data);
    return this;
  }
}
