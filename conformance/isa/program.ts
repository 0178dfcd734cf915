// A payload: straight-line code, one stretch for each case, and the data that it reads and writes.
// The same bytes run on QEMU and on our hart at the same addresses; afterwards the data sections must be equal.
//
//   case:  load f operands · set frm and fflags · load x operands · THE INSTRUCTION · store rd, sources, fcsr
import { addi, Code, csrr, csrrwi, ECALL, FCSR, fsd, Section, sd } from './assembler.ts';
import { floatValue, integerValue } from './operand_values.ts';
import type { Operands } from './operands.ts';
import type { Random } from './random.ts';

export const CODE_BASE = 0x8000_0000;
const CODE_LIMIT_BYTES = 24 << 20;
export const DATA_BASE = 0x8200_0000;
const DATA_LIMIT_BYTES = 16 << 20;
const PAGE = 4096;

export interface Case {
  readonly name: string;
  readonly word: number;
  /** What the registers held */
  readonly operands: string;
  /** Where its code begins */
  readonly codeFrom: number;
  /** Its part of the data section */
  readonly from: number;
  to: number;
}

export interface Program {
  readonly code: Section;
  readonly data: Section;
  readonly cases: readonly Case[];
  /** Page tables and pages, in programs for whole machines; they end in a wfi after `end` */
  readonly tables?: Section;
  readonly end?: number | undefined;
  /** Where our hart begins and where its traps go, for programs that expect some */
  readonly bare?: { readonly entry: number; readonly trapHandler: number };
}

export interface Setup {
  readonly x: Map<number, bigint>;
  readonly f: Map<number, bigint>;
  readonly fflags: number;
  readonly frm: number;
}

export class ProgramBuilder implements Program {
  readonly code = new Section(CODE_BASE, CODE_LIMIT_BYTES);
  readonly data = new Section(DATA_BASE, DATA_LIMIT_BYTES);
  readonly cases: Case[] = [];
  readonly random: Random;
  readonly #code = new Code(this.code);
  /** Doublewords that a model expects in the data section afterwards */
  readonly expected = new Map<number, bigint>();

  constructor(random: Random) {
    this.random = random;
  }

  finish(): this {
    finishProgram(this.#code, this.data);
    return this;
  }

  get emit(): Code {
    return this.#code;
  }

  /** A register that is none of those */
  otherThan(...registers: readonly (number | undefined)[]): number {
    for (;;) {
      const register = 1 + this.random.below(31);
      if (!registers.includes(register)) return register;
    }
  }

  /** @param from where the case's data begin, if it has some already */
  begin(name: string, word: number, setup: Setup, from = this.data.here): Case {
    const show = (prefix: string, values: Map<number, bigint>) =>
      [...values].map(([index, value]) => `${prefix}${index}=0x${value.toString(16)}`).join(' ');
    const operands = `${show('x', setup.x)} ${show('f', setup.f)} frm=${setup.frm} fflags=${setup.fflags}`;
    const started = { name, word, operands, codeFrom: this.code.here, from, to: 0 };
    this.cases.push(started);
    return started;
  }

  /** Loads the registers that `setup` names */
  load(setup: Setup): void {
    for (const [index, value] of setup.f) this.#code.loadF(index, this.constant(value), this.otherThan());
    this.#code.word(csrrwi(FCSR.frm, setup.frm));
    this.#code.word(csrrwi(FCSR.fflags, setup.fflags));
    for (const [index, value] of setup.x) if (index !== 0) this.#code.loadX(index, this.constant(value));
  }

  constant(value: bigint): number {
    const address = this.data.reserve(8);
    this.data.u64At(address, value);
    return address;
  }

  /** Stores registers and fcsr; gives where they are stored, in order */
  store(x: readonly number[], f: readonly number[]): number {
    const results = this.data.reserve(8 * (x.length + f.length + 1));
    const pointer = this.otherThan(...x);
    this.#code.address(pointer, results);
    let offset = 0;
    for (const index of x) {
      this.#code.word(sd(index, pointer, offset));
      offset += 8;
    }
    for (const index of f) {
      this.#code.word(fsd(index, pointer, offset));
      offset += 8;
    }
    const flags = this.otherThan(pointer);
    this.#code.word(csrr(flags, FCSR.fcsr));
    this.#code.word(sd(flags, pointer, offset));
    return results;
  }

  close(started: Case): void {
    started.to = this.data.here;
  }

  /** A block of random bytes for a memory operand; now and then across the end of a page */
  memoryBlock(bytes: number, align = 8): number {
    if (align === 8 && this.random.once(16)) {
      const here = this.data.here;
      const pageEnd = Math.ceil((here + bytes) / PAGE) * PAGE;
      this.data.reserve(pageEnd - (bytes >> 1) - here, 1);
    }
    const block = this.data.reserve(bytes, align);
    for (let at = block; at < block + bytes; at += 8) this.data.u64At(at, this.random.u64());
    return block;
  }

  setup(operands: Operands): Setup {
    const { random } = this;
    const x = new Map(operands.xSources.map((index) => [index, index === 0 ? 0n : integerValue(random)]));
    const f = new Map(operands.fSources.map(({ index, single }) => [index, floatValue(random, single)]));
    // rd's old value shows a write that did not happen, or a part of one
    const { rd } = operands;
    if (rd?.file === 'f' && !f.has(rd.index)) f.set(rd.index, random.u64());
    if (rd?.file === 'x' && rd.index !== 0 && !x.has(rd.index)) x.set(rd.index, random.u64());
    return { x, f, fflags: random.below(32), frm: random.below(5) };
  }
}

/** Ends with write(1, data, length), exit(0): for QEMU; our hart is stopped at the first ecall. */
export function finishProgram(code: Code, data: Section): void {
  const lengthAt = data.reserve(8);
  data.u64At(lengthAt, BigInt(data.here - data.base));
  code.address(11, data.base);
  code.loadX(12, lengthAt);
  for (const [number, argument] of [
    [64, 1],
    [93, 0],
  ] as const) {
    code.word(addi(17, 0, number));
    code.word(addi(10, 0, argument));
    code.word(ECALL);
  }
}
