// The few instructions that carry a case, encoded by hand: nothing here comes from the table under test.

export const ECALL = 0x0000_0073;
export const C_NOP = 0x0001;
export const FCSR = { fflags: 1, frm: 2, fcsr: 3 } as const;

export const addi = (rd: number, rs1: number, imm: number): number => 0x13 | (rd << 7) | (rs1 << 15) | (imm << 20);
const auipc = (rd: number, high: number): number => 0x17 | (rd << 7) | (high << 12);
export const ld = (rd: number, rs1: number, imm: number): number => 0x3003 | (rd << 7) | (rs1 << 15) | (imm << 20);
const fld = (rd: number, rs1: number, imm: number): number => 0x3007 | (rd << 7) | (rs1 << 15) | (imm << 20);
const storeBits = (rs1: number, rs2: number, imm: number): number =>
  ((imm & 31) << 7) | (rs1 << 15) | (rs2 << 20) | ((imm >> 5) << 25);
export const sd = (rs2: number, rs1: number, imm: number): number => 0x3023 | storeBits(rs1, rs2, imm);
export const fsd = (rs2: number, rs1: number, imm: number): number => 0x3027 | storeBits(rs1, rs2, imm);
export const csrrwi = (csr: number, value: number): number => 0x5073 | (value << 15) | (csr << 20);
export const csrr = (rd: number, csr: number): number => 0x2073 | (rd << 7) | (csr << 20);
export const csrw = (csr: number, rs1: number): number => 0x1073 | (rs1 << 15) | (csr << 20);
export const MRET = 0x3020_0073;
export const WFI = 0x1050_0073;

/** Immediate fields of a branch */
export const branchOffset = (offset: number): number =>
  (((offset >> 11) & 1) << 7) |
  (((offset >> 1) & 15) << 8) |
  (((offset >> 5) & 63) << 25) |
  (((offset >> 12) & 1) << 31);
/** Immediate fields of jal */
export const jumpOffset = (offset: number): number =>
  (((offset >> 12) & 255) << 12) |
  (((offset >> 11) & 1) << 20) |
  (((offset >> 1) & 1023) << 21) |
  (((offset >> 20) & 1) << 31);
export const jal = (rd: number, offset: number): number => 0x6f | (rd << 7) | jumpOffset(offset);

/** Bytes at a fixed address, growing to a limit. */
export class Section {
  readonly base: number;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #length = 0;

  constructor(base: number, limitBytes: number) {
    this.base = base;
    this.#bytes = new Uint8Array(limitBytes);
    this.#view = new DataView(this.#bytes.buffer);
  }

  /** Address of the next byte */
  get here(): number {
    return this.base + this.#length;
  }

  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  /** Address of `size` zero bytes, aligned */
  reserve(size: number, align = 8): number {
    this.#length = Math.ceil(this.#length / align) * align;
    const address = this.here;
    this.#length += size;
    if (this.#length > this.#bytes.length) throw new RangeError(`Cannot place ${size} bytes: section is full`);
    return address;
  }

  u64At(address: number, value: bigint): void {
    this.#view.setBigUint64(address - this.base, value, true);
  }

  readU64(address: number): bigint {
    return this.#view.getBigUint64(address - this.base, true);
  }

  halfAt(address: number, value: number): void {
    this.#view.setUint16(address - this.base, value, true);
  }
}

/** Emits code; addresses are reached relative to pc, so that no register is the harness's own. */
export class Code {
  readonly section: Section;

  constructor(section: Section) {
    this.section = section;
  }

  get here(): number {
    return this.section.here;
  }

  /** 16 or 32 bits, as the low two bits say */
  word(word: number): void {
    const address = this.section.reserve((word & 3) === 3 ? 4 : 2, 2);
    this.section.halfAt(address, word & 0xffff);
    if ((word & 3) === 3) this.section.halfAt(address + 2, word >>> 16);
  }

  /** auipc, giving the low part that is left to add */
  #high(rd: number, address: number): number {
    const delta = address - this.here;
    const high = (delta + 0x800) >> 12;
    this.word(auipc(rd, high));
    return delta - (high << 12);
  }

  /** rd = address */
  address(rd: number, address: number): void {
    const low = this.#high(rd, address);
    this.word(addi(rd, rd, low));
  }

  /** x[rd] = the doubleword at `address` */
  loadX(rd: number, address: number): void {
    const low = this.#high(rd, address);
    this.word(ld(rd, rd, low));
  }

  /** f[rd] = the doubleword at `address`, by way of x[temporary] */
  loadF(rd: number, address: number, temporary: number): void {
    const low = this.#high(temporary, address);
    this.word(fld(rd, temporary, low));
  }

  /** Halfwords of c.nop up to `address` */
  padTo(address: number): void {
    if (address < this.here) throw new RangeError('Cannot pad backwards');
    while (this.here < address) this.word(C_NOP);
  }
}
