// Single instructions at random, from the table: which registers they may write is the caller's rule.
import { encode, INSTRUCTIONS, type Row } from '../../emulator/isa/mod.ts';
import type { Random } from '../isa/random.ts';
import { randomIllegalWord } from '../isa/words.ts';
import { shortForm } from './assembly.ts';
import { CSR } from './handlers.ts';
import type { Word } from './nodes.ts';

/** Registers of the place at hand */
export interface Registers {
  /** A register that may be written */
  destination(): number;
  /** Any register */
  source(): number;
}

const INTEGER_EXTENSIONS = ['I', 'M', 'Zba', 'Zbb', 'Zbs'];
const STRAIGHT_FORMATS = ['R', 'I', 'SHIFT', 'SHIFTW', 'R2', 'U'];
const isStraight = (row: Row): boolean =>
  STRAIGHT_FORMATS.includes(row.format) && row.name !== 'jalr' && row.name !== 'fence';
const INTEGER = INSTRUCTIONS.filter((row) => INTEGER_EXTENSIONS.includes(row.extension) && isStraight(row));
/** Not known to QEMU 7.2 */
const CONDITIONAL = INSTRUCTIONS.filter((row) => row.extension === 'Zicond');
const LOADS = ['lb', 'lh', 'lw', 'ld', 'lbu', 'lhu', 'lwu'] as const;
const STORES = ['sb', 'sh', 'sw', 'sd'] as const;
const FLOAT = INSTRUCTIONS.filter(
  (row) => (row.extension === 'F' || row.extension === 'D') && row.operands !== undefined,
);
const AMO = INSTRUCTIONS.filter((row) => row.format === 'AMO' && row.name.startsWith('amo'));

export const BYTES: Readonly<Record<string, number>> = {
  lb: 1, lbu: 1, sb: 1, lh: 2, lhu: 2, sh: 2, lw: 4, lwu: 4, sw: 4, flw: 4, fsw: 4, ld: 8, sd: 8, fld: 8, fsd: 8,
}; // biome-ignore format: a table

export class Words {
  readonly #random: Random;
  /** Only what QEMU 7.2 knows and does as the specification says */
  readonly #forQemu: boolean;

  constructor(random: Random, forQemu: boolean) {
    this.#random = random;
    this.#forQemu = forQemu;
  }

  /** In 16 bits where it can be, mostly */
  #shorten(word: Word): Word {
    return this.#random.once(4) ? word : (shortForm(word) ?? word);
  }

  #immediate(limit: number): number {
    const { below, once } = { below: (n: number) => this.#random.below(n), once: (n: number) => this.#random.once(n) };
    return once(3) ? below(2 * limit) - limit : below(64) - 32;
  }

  integer(registers: Registers): Word[] {
    const random = this.#random;
    if (!this.#forQemu && random.once(20)) return [this.#integerRow(random.pick(CONDITIONAL), registers)];
    const row = random.pick(INTEGER);
    if (row.name !== 'ctzw' || !this.#forQemu) return [this.#integerRow(row, registers)];
    // QEMU 7.2 looks at 64 bits of 0
    const rd = registers.destination();
    return [encode('bseti', { rd, rs1: registers.source(), imm: 31 }), encode('ctzw', { rd, rs1: rd })];
  }

  #integerRow(row: Row, registers: Registers): Word {
    const random = this.#random;
    const rd = random.once(40) ? 0 : registers.destination();
    // Two-address forms are those that have 16 bits
    const rs1 = random.once(2) ? rd : registers.source();
    const rs2 = registers.source();
    const imm =
      row.format === 'U'
        ? random.once(2)
          ? this.#immediate(32) << 12
          : random.u32() & ~0xfff
        : row.format === 'SHIFT'
          ? random.below(64)
          : row.format === 'SHIFTW'
            ? random.below(32)
            : this.#immediate(2048);
    return this.#shorten(encode(row.name, { rd, rs1, rs2, imm }));
  }

  /** Of a given base; `bytes` is what the offset must be a multiple of, 1 for any */
  load(registers: Registers, rs1: number, imm: number, aligned: boolean): Word {
    const random = this.#random;
    if (random.once(5)) {
      const name = random.pick(['flw', 'fld'] as const);
      const at = aligned ? imm & -BYTES[name]! : imm;
      return this.#shorten(encode(name, { rd: random.below(32), rs1, imm: at }));
    }
    const name = random.pick(LOADS);
    const at = aligned ? imm & -BYTES[name]! : imm;
    return this.#shorten(encode(name, { rd: registers.destination(), rs1, imm: at }));
  }

  store(registers: Registers, rs1: number, imm: number, aligned: boolean): Word {
    const random = this.#random;
    const float = random.once(5);
    const name = float ? random.pick(['fsw', 'fsd'] as const) : random.pick(STORES);
    const at = aligned ? imm & -BYTES[name]! : imm;
    return this.#shorten(encode(name, { rs1, rs2: float ? random.below(32) : registers.source(), imm: at }));
  }

  /** Of an aligned pointer */
  amo(registers: Registers, rs1: number): Word {
    const random = this.#random;
    const row = random.pick(AMO);
    const word = encode(row.name, { rd: registers.destination(), rs1, rs2: registers.source() });
    return (word | (random.below(4) << 25)) >>> 0;
  }

  /** Doubles live in f0…f15, singles in f16…f31, with exceptions */
  #float(single: boolean): number {
    const random = this.#random;
    return random.once(25) ? random.below(32) : random.below(16) + (single ? 16 : 0);
  }

  float(registers: Registers, fusedOnly = false): Word {
    const random = this.#random;
    const row = fusedOnly ? random.pick(FLOAT.filter(({ format }) => format === 'F4')) : random.pick(FLOAT);
    const [to, ...from] = [...row.operands!];
    const single = row.extension === 'F';
    const singleTarget = row.name === 'fcvt.s.d' || (single && row.name !== 'fcvt.d.s');
    const singleSource = row.name === 'fcvt.d.s' || (single && row.name !== 'fcvt.s.d');
    const source = (index: number): number => (from[index] === 'x' ? registers.source() : this.#float(singleSource));
    const rd = to === 'x' ? registers.destination() : this.#float(singleTarget);
    // Mostly by frm, which is mostly nearest-even
    const rm = random.once(5) ? random.below(5) : 7;
    return encode(row.name, { rd, rs1: source(0), rs2: source(1), rs3: source(2), rm });
  }

  floatCsr(registers: Registers): Word[] {
    const random = this.#random;
    const rd = random.once(3) ? 0 : registers.destination();
    switch (random.below(6)) {
      case 0:
        return [encode('csrrwi', { rd, rs1: random.below(5), csr: CSR.frm })];
      case 1:
        return [encode('csrrs', { rd, csr: random.pick([CSR.fflags, CSR.frm, CSR.fcsr]) })];
      case 2:
        return [encode(random.pick(['csrrwi', 'csrrsi', 'csrrci']), { rd, rs1: random.below(32), csr: CSR.fflags })];
      case 3:
        return [encode(random.pick(['csrrw', 'csrrs', 'csrrc']), { rd, rs1: registers.source(), csr: CSR.fflags })];
      case 4: {
        // frm 0 or 4, so that the mode stays a legal one
        const value = registers.destination();
        const write = encode('csrrw', { rd, rs1: value, csr: CSR.fcsr });
        return [encode('andi', { rd: value, rs1: registers.source(), imm: 0x9f }), write];
      }
      default:
        return [encode('csrrwi', { rd, csr: CSR.fflags })];
    }
  }

  /** Traps, or is allowed and harmless, depending on the mode */
  privileged(registers: Registers, legal: { readonly sret: boolean; readonly mret: boolean }): Word {
    const random = this.#random;
    const rd = registers.destination();
    const choices: (() => Word)[] = [
      () => encode(random.pick(['csrrsi', 'csrrwi', 'csrrci']), { rd, rs1: random.below(8), csr: CSR.scounteren }),
      () => encode('csrrs', { rd, csr: random.pick([CSR.mhartid, 0x5c0, 0x7a5, 0xc80]) }),
      () => encode('csrrw', { rd, rs1: registers.source(), csr: random.pick([CSR.mhartid, 0xc00, 0x9c0]) }),
      () => encode('sfence.vma', { rs1: registers.source(), rs2: 0 }),
      () => encode('sfence.vma'),
      () => encode('ebreak'),
      () => 0x9002,
      () => 0x0000,
      () => randomIllegalWord(random),
    ];
    if (legal.sret) choices.push(() => encode('sret'));
    if (legal.mret) choices.push(() => encode('mret'));
    if (!this.#forQemu) {
      choices.push(
        () => encode('csrrs', { rd, csr: random.pick([0xc00, 0xc02, 0xb00, 0xb02, 0x343, 0x143, 0x142]) }),
        () => encode(random.pick(['cbo.zero', 'cbo.clean', 'cbo.inval', 'cbo.flush']), { rs1: 3 }),
      );
    }
    return random.pick(choices)();
  }

  fence(): Word {
    const random = this.#random;
    return random.once(3) ? encode('fence.i') : (0x0000_000f | (random.below(256) << 20)) >>> 0;
  }
}
