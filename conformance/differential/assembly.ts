// A small assembler with labels: pieces of code and data become bytes at an address. Branches and jumps grow until
// they reach; 16-bit forms are found by looking the expansion up backwards.
import { encode, expandCompressed, type Operands } from '../../emulator/isa/mod.ts';

export type BranchName = 'beq' | 'bne' | 'blt' | 'bge' | 'bltu' | 'bgeu';

/** One thing to place. Labels are local to the assembly unless `symbols` has them. */
export type Piece =
  /** An instruction of 16 or 32 bits, as its low two bits say */
  | number
  | { readonly label: string }
  | { readonly branch: BranchName; readonly rs1: number; readonly rs2: number; readonly to: string }
  | { readonly jump: string; readonly rd: number }
  /** auipc and addi: rd = the label's address */
  | { readonly address: string; readonly rd: number }
  /** auipc and jalr, which reach everywhere */
  | { readonly farCall: string; readonly rd: number; readonly via: number }
  /** rd = a constant, loaded from a pool behind the code */
  | { readonly constant: bigint; readonly rd: number }
  | { readonly u64: bigint | string }
  | { readonly u32: number }
  /** 32 bits: how far one label is from another */
  | { readonly distanceTo: string; readonly from: string }
  | { readonly align: number }
  /** What follows is at an address of its own */
  | { readonly section: number };

/** Addresses of labels that lie outside */
export type Symbols = (label: string) => number | undefined;

const SHORT_FORMS: ReadonlyMap<number, number> = (() => {
  const forms = new Map<number, number>();
  for (let word = 0xffff; word >= 0; word--) {
    if ((word & 3) === 3) continue;
    const expansion = expandCompressed(word);
    if (expansion !== 0) forms.set(expansion >>> 0, word);
  }
  return forms;
})();

/** The 16-bit form of an instruction, if it has one */
export const shortForm = (word: number): number | undefined => SHORT_FORMS.get(word >>> 0);

const INVERSE: Readonly<Record<BranchName, BranchName>> = {
  beq: 'bne', bne: 'beq', blt: 'bge', bge: 'blt', bltu: 'bgeu', bgeu: 'bltu',
}; // biome-ignore format: a table

const BRANCH_REACH = 4094;
const JUMP_REACH = 0xf_fffe;
const POOL_ALIGN = 8;

export interface Section {
  readonly base: number;
  readonly bytes: Uint8Array;
}

export interface Assembled {
  /** The first one has the constants at its end */
  readonly sections: readonly [Section, ...Section[]];
  readonly labels: ReadonlyMap<string, number>;
  /** Where each instruction begins, for listings */
  readonly starts: readonly number[];
}

/** Collects pieces with less to write than the pieces themselves. */
export class Assembly {
  readonly pieces: Piece[] = [];
  #unique = 0;
  readonly #prefix: string;

  constructor(prefix = '.') {
    this.#prefix = prefix;
  }

  /** A label that nobody else has */
  fresh(about = ''): string {
    return `${this.#prefix}${about}${this.#unique++}`;
  }
  add(...pieces: readonly Piece[]): this {
    for (const piece of pieces) this.pieces.push(piece);
    return this;
  }
  /** An instruction of the table */
  op(name: string, operands: Operands = {}): this {
    return this.add(encode(name, operands));
  }
  label(label: string): this {
    return this.add({ label });
  }
  branch(branch: BranchName, rs1: number, rs2: number, to: string): this {
    return this.add({ branch, rs1, rs2, to });
  }
  jump(to: string, rd = 0): this {
    return this.add({ jump: to, rd });
  }
  address(rd: number, of: string): this {
    return this.add({ address: of, rd });
  }
  constant(rd: number, value: bigint | number): this {
    return this.add({ constant: BigInt(value), rd });
  }
}

/** Lengths of what is not settled by itself; everything else has one length */
type Length = 2 | 4 | 8;

class Layout {
  readonly #pieces: readonly Piece[];
  readonly #base: number;
  readonly #symbols: Symbols;
  readonly #short: boolean;
  readonly lengths: number[] = [];
  readonly addresses: number[] = [];
  readonly labels = new Map<string, number>();
  readonly pool = new Map<bigint, number>();
  ends: { readonly base: number; end: number }[] = [];

  constructor(base: number, pieces: readonly Piece[], symbols: Symbols, short: boolean) {
    this.#pieces = pieces;
    this.#base = base;
    this.#symbols = symbols;
    this.#short = short;
    for (const piece of pieces) this.lengths.push(this.#smallest(piece));
    while (this.#place()) this.labels.clear();
  }

  addressOf(label: string): number {
    const address = this.labels.get(label) ?? this.#symbols(label);
    if (address === undefined) throw new RangeError(`Cannot assemble: no label ${label}`);
    return address;
  }

  #smallest(piece: Piece): number {
    if (typeof piece === 'number') return (piece & 3) === 3 ? 4 : 2;
    if ('branch' in piece || 'jump' in piece) return this.#short ? 2 : 4;
    if ('address' in piece || 'farCall' in piece || 'constant' in piece || 'u64' in piece) return 8;
    return 'u32' in piece || 'distanceTo' in piece ? 4 : 0;
  }

  /** Gives addresses to all; true where something had to grow, so that addresses have to be given again */
  #place(): boolean {
    let at = this.#base;
    this.ends = [{ base: at, end: 0 }];
    for (const [index, piece] of this.#pieces.entries()) {
      if (typeof piece === 'object') {
        if ('section' in piece) {
          this.ends.at(-1)!.end = at;
          at = piece.section;
          this.ends.push({ base: at, end: at });
        } else if ('align' in piece) {
          const padded = Math.ceil(at / piece.align) * piece.align;
          this.lengths[index] = padded - at;
        } else if ('label' in piece) this.labels.set(piece.label, at);
        else if ('constant' in piece) this.pool.set(piece.constant, 0);
      }
      this.addresses[index] = at;
      at += this.lengths[index]!;
    }
    this.ends.at(-1)!.end = at;
    let pool = Math.ceil(this.ends[0]!.end / POOL_ALIGN) * POOL_ALIGN;
    for (const value of this.pool.keys()) {
      this.pool.set(value, pool);
      pool += 8;
    }
    this.ends[0]!.end = pool;
    let grew = false;
    for (const [index, piece] of this.#pieces.entries()) {
      if (typeof piece === 'number' || !('branch' in piece || 'jump' in piece)) continue;
      const needed = Math.max(this.lengths[index]!, this.#needed(piece, this.addresses[index]!));
      if (needed === this.lengths[index]) continue;
      this.lengths[index] = needed;
      grew = true;
    }
    return grew;
  }

  #needed(piece: Piece & object, at: number): Length {
    if ('branch' in piece) {
      const imm = this.addressOf(piece.to) - at;
      if (imm < -BRANCH_REACH || imm > BRANCH_REACH) return 8;
      const { rs1, rs2 } = piece;
      return this.#short && shortForm(encode(piece.branch, { rs1, rs2, imm })) !== undefined ? 2 : 4;
    }
    if (!('jump' in piece)) return 4;
    const imm = this.addressOf(piece.jump) - at;
    if (piece.rd !== 0 && (imm < -JUMP_REACH || imm > JUMP_REACH)) return 8;
    return this.#short && shortForm(encode('jal', { rd: piece.rd, imm })) !== undefined ? 2 : 4;
  }
}

/**
 * @param short branches and jumps take 16 bits where they can
 * @throws RangeError where a label is unknown or too far
 */
export function assemble(
  base: number,
  pieces: readonly Piece[],
  symbols: Symbols = () => undefined,
  short = true,
): Assembled {
  const layout = new Layout(base, pieces, symbols, short);
  const sections = layout.ends.map(({ base, end }) => ({ base, bytes: new Uint8Array(end - base) }));
  const views = sections.map(({ bytes }) => new DataView(bytes.buffer));
  let section = 0;
  const view = {
    setUint16: (at: number, value: number) => views[section]!.setUint16(at - sections[section]!.base, value, true),
    setUint32: (at: number, value: number) => views[section]!.setUint32(at - sections[section]!.base, value, true),
    setBigUint64: (at: number, value: bigint) =>
      views[section]!.setBigUint64(at - sections[section]!.base, BigInt.asUintN(64, value), true),
  };
  const starts: number[] = [];
  const word = (at: number, value: number): void => {
    starts.push(at);
    view.setUint16(at, value & 0xffff);
    if ((value & 3) === 3) view.setUint16(at + 2, value >>> 16);
  };
  /** auipc rd, then `second` with the low part */
  const far = (at: number, rd: number, target: number, second: (low: number) => number): void => {
    const delta = target - at;
    const high = (delta + 0x800) & ~0xfff;
    word(at, encode('auipc', { rd, imm: high | 0 }));
    word(at + 4, second(delta - high));
  };
  for (const [index, piece] of pieces.entries()) {
    const at = layout.addresses[index]!;
    const length = layout.lengths[index]!;
    if (typeof piece === 'number') word(at, piece);
    else if ('section' in piece) section++;
    else if ('branch' in piece) {
      const { branch, rs1, rs2 } = piece;
      const imm = layout.addressOf(piece.to) - at;
      if (length === 8) {
        word(at, encode(INVERSE[branch], { rs1, rs2, imm: 8 }));
        word(at + 4, encode('jal', { imm: imm - 4 }));
      } else {
        const long = encode(branch, { rs1, rs2, imm });
        word(at, length === 2 ? shortForm(long)! : long);
      }
    } else if ('jump' in piece) {
      const { rd } = piece;
      const target = layout.addressOf(piece.jump);
      if (length === 8) far(at, rd, target, (imm) => encode('jalr', { rd, rs1: rd, imm }));
      else {
        const long = encode('jal', { rd, imm: target - at });
        word(at, length === 2 ? shortForm(long)! : long);
      }
    } else if ('address' in piece) {
      const { rd } = piece;
      far(at, rd, layout.addressOf(piece.address), (imm) => encode('addi', { rd, rs1: rd, imm }));
    } else if ('farCall' in piece) {
      const { rd, via } = piece;
      far(at, via, layout.addressOf(piece.farCall), (imm) => encode('jalr', { rd, rs1: via, imm }));
    } else if ('constant' in piece) {
      const { rd } = piece;
      far(at, rd, layout.pool.get(piece.constant)!, (imm) => encode('ld', { rd, rs1: rd, imm }));
    } else if ('u64' in piece) {
      const value = typeof piece.u64 === 'string' ? BigInt(layout.addressOf(piece.u64)) : piece.u64;
      view.setBigUint64(at, value);
    } else if ('u32' in piece) view.setUint32(at, piece.u32);
    else if ('distanceTo' in piece)
      view.setUint32(at, layout.addressOf(piece.distanceTo) - layout.addressOf(piece.from));
  }
  section = 0;
  for (const [value, at] of layout.pool) view.setBigUint64(at, value);
  const [first, ...others] = sections;
  return { sections: [first!, ...others], labels: layout.labels, starts };
}
