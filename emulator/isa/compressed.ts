// C: each 16-bit form is another spelling of one 32-bit instruction (unprivileged specification, "C").

const field = (word: number, from: number, width: number): number => (word >>> from) & ((1 << width) - 1);
/** Moves `width` bits from `from` to `to` */
const move = (word: number, from: number, width: number, to: number): number => field(word, from, width) << to;
const signed = (value: number, bits: number): number => (value << (32 - bits)) >> (32 - bits);

const SP = 2;
const iType = (op: number, f3: number, rd: number, rs1: number, imm: number): number =>
  (op | (rd << 7) | (f3 << 12) | (rs1 << 15) | ((imm & 0xfff) << 20)) >>> 0;
const rType = (op: number, f3: number, f7: number, rd: number, rs1: number, rs2: number): number =>
  (op | (rd << 7) | (f3 << 12) | (rs1 << 15) | (rs2 << 20) | (f7 << 25)) >>> 0;
const sType = (op: number, f3: number, rs1: number, rs2: number, imm: number): number =>
  (op | ((imm & 31) << 7) | (f3 << 12) | (rs1 << 15) | (rs2 << 20) | ((imm >> 5) << 25)) >>> 0;
const bType = (f3: number, rs1: number, imm: number): number =>
  (0x63 |
    (((imm >> 11) & 1) << 7) |
    (((imm >> 1) & 15) << 8) |
    (f3 << 12) |
    (rs1 << 15) |
    (((imm >> 5) & 63) << 25) |
    (((imm >> 12) & 1) << 31)) >>>
  0;
const jType = (rd: number, imm: number): number =>
  (0x6f |
    (rd << 7) |
    (((imm >> 12) & 255) << 12) |
    (((imm >> 11) & 1) << 20) |
    (((imm >> 1) & 1023) << 21) |
    (((imm >> 20) & 1) << 31)) >>>
  0;

/** The 32-bit instruction that a 16-bit word stands for; 0 where it is illegal or reserved. */
export function expandCompressed(word: number): number {
  const quadrant = word & 3;
  const f3 = field(word, 13, 3);
  if (quadrant === 0) return expandQuadrant0(word, f3);
  if (quadrant === 1) return expandQuadrant1(word, f3);
  if (quadrant === 2) return expandQuadrant2(word, f3);
  return 0;
}

/** Bits 6..2 and 12..7 of a 16-bit form: its registers and immediates */
const LOW_FIELDS = 0x007c;
const LOW_STEP = 0x0004;
const HIGH_FIELDS = 0x1f80;
const HIGH_STEP = 0x0080;

/**
 * {@link expandCompressed} of every 16-bit word, indexed by it. To call that 65 536 times takes 40 ms of a start: but
 * each bit of a field sets bits of its own, so an expansion is the exclusive-or of three others, unless it is
 * one of a special case.
 */
export function expandAllCompressed(): Uint32Array<ArrayBuffer> {
  const all = new Uint32Array(65536);
  // Words of quadrant 3 are no 16-bit forms, and stand for nothing
  for (let f3 = 0; f3 < 8; f3++) for (let quadrant = 0; quadrant < 3; quadrant++) expandForms(f3, quadrant, all);
  return all;
}

function expandForms(f3: number, quadrant: number, all: Uint32Array): void {
  const form = (f3 << 13) | quadrant;
  // c.srli to c.addw, c.jr to c.add: the fields say which instruction it is
  const isGroup = f3 === 4 && quadrant !== 0;
  const whole = expandCompressed(form | HIGH_FIELDS | LOW_FIELDS);
  const lows = new Uint32Array(LOW_FIELDS + 1);
  for (let low = 0; low <= LOW_FIELDS; low += LOW_STEP) lows[low] = expandCompressed(form | HIGH_FIELDS | low) ^ whole;
  for (let high = 0; high <= HIGH_FIELDS; high += HIGH_STEP) {
    // x0 and sp make another instruction of some forms, as an immediate of 0 does
    const rd = high >>> 7;
    const isSpecial = isGroup || (rd & 31) === 0 || (rd & 31) === SP;
    const rest = expandCompressed(form | high | LOW_FIELDS);
    for (let low = 0; low <= LOW_FIELDS; low += LOW_STEP) {
      const word = form | high | low;
      all[word] = isSpecial || low === 0 ? expandCompressed(word) : rest ^ lows[low]!;
    }
  }
}

function expandQuadrant0(word: number, f3: number): number {
  const rdShort = 8 + field(word, 2, 3);
  const rs1Short = 8 + field(word, 7, 3);
  const wordOffset = move(word, 10, 3, 3) | move(word, 6, 1, 2) | move(word, 5, 1, 6);
  const doubleOffset = move(word, 10, 3, 3) | move(word, 5, 2, 6);
  switch (f3) {
    case 0: {
      const imm = move(word, 11, 2, 4) | move(word, 7, 4, 6) | move(word, 6, 1, 2) | move(word, 5, 1, 3);
      return imm === 0 ? 0 : iType(0x13, 0, rdShort, SP, imm); // c.addi4spn
    }
    case 1:
      return iType(0x07, 3, rdShort, rs1Short, doubleOffset); // c.fld
    case 2:
      return iType(0x03, 2, rdShort, rs1Short, wordOffset); // c.lw
    case 3:
      return iType(0x03, 3, rdShort, rs1Short, doubleOffset); // c.ld
    case 5:
      return sType(0x27, 3, rs1Short, rdShort, doubleOffset); // c.fsd
    case 6:
      return sType(0x23, 2, rs1Short, rdShort, wordOffset); // c.sw
    case 7:
      return sType(0x23, 3, rs1Short, rdShort, doubleOffset); // c.sd
    default:
      return 0;
  }
}

function expandQuadrant1(word: number, f3: number): number {
  const rd = field(word, 7, 5);
  const imm6 = signed(move(word, 12, 1, 5) | move(word, 2, 5, 0), 6);
  const rs1Short = 8 + field(word, 7, 3);
  switch (f3) {
    case 0:
      return iType(0x13, 0, rd, rd, imm6); // c.addi, c.nop
    case 1:
      return rd === 0 ? 0 : iType(0x1b, 0, rd, rd, imm6); // c.addiw
    case 2:
      return iType(0x13, 0, rd, 0, imm6); // c.li
    case 3: {
      if (rd === SP) {
        const imm = signed(
          move(word, 12, 1, 9) | move(word, 6, 1, 4) | move(word, 5, 1, 6) | move(word, 3, 2, 7) | move(word, 2, 1, 5),
          10,
        );
        return imm === 0 ? 0 : iType(0x13, 0, SP, SP, imm); // c.addi16sp
      }
      return imm6 === 0 ? 0 : (0x37 | (rd << 7) | (imm6 << 12)) >>> 0; // c.lui
    }
    case 4:
      return expandArithmetic(word, rs1Short, imm6);
    case 5: {
      const imm = signed(
        move(word, 12, 1, 11) |
          move(word, 11, 1, 4) |
          move(word, 9, 2, 8) |
          move(word, 8, 1, 10) |
          move(word, 7, 1, 6) |
          move(word, 6, 1, 7) |
          move(word, 3, 3, 1) |
          move(word, 2, 1, 5),
        12,
      );
      return jType(0, imm); // c.j
    }
    default: {
      const imm = signed(
        move(word, 12, 1, 8) | move(word, 10, 2, 3) | move(word, 5, 2, 6) | move(word, 3, 2, 1) | move(word, 2, 1, 5),
        9,
      );
      return bType(f3 - 6, rs1Short, imm); // c.beqz, c.bnez
    }
  }
}

function expandArithmetic(word: number, rd: number, imm6: number): number {
  const rs2 = 8 + field(word, 2, 3);
  const shamt = imm6 & 63;
  switch (field(word, 10, 2)) {
    case 0:
      return iType(0x13, 5, rd, rd, shamt); // c.srli
    case 1:
      return iType(0x13, 5, rd, rd, shamt | 0x400); // c.srai
    case 2:
      return iType(0x13, 7, rd, rd, imm6); // c.andi
    default: {
      const op = field(word, 12, 1);
      const f2 = field(word, 5, 2);
      if (op === 0) {
        const [f3, f7] = (
          [
            [0, 0x20],
            [4, 0],
            [6, 0],
            [7, 0],
          ] as const
        )[f2]!;
        return rType(0x33, f3, f7, rd, rd, rs2); // c.sub c.xor c.or c.and
      }
      if (f2 === 0) return rType(0x3b, 0, 0x20, rd, rd, rs2); // c.subw
      if (f2 === 1) return rType(0x3b, 0, 0, rd, rd, rs2); // c.addw
      return 0;
    }
  }
}

function expandQuadrant2(word: number, f3: number): number {
  const rd = field(word, 7, 5);
  const rs2 = field(word, 2, 5);
  const loadDouble = move(word, 12, 1, 5) | move(word, 5, 2, 3) | move(word, 2, 3, 6);
  const loadWord = move(word, 12, 1, 5) | move(word, 4, 3, 2) | move(word, 2, 2, 6);
  const storeDouble = move(word, 10, 3, 3) | move(word, 7, 3, 6);
  const storeWord = move(word, 9, 4, 2) | move(word, 7, 2, 6);
  switch (f3) {
    case 0:
      return iType(0x13, 1, rd, rd, move(word, 12, 1, 5) | rs2); // c.slli
    case 1:
      return iType(0x07, 3, rd, SP, loadDouble); // c.fldsp
    case 2:
      return rd === 0 ? 0 : iType(0x03, 2, rd, SP, loadWord); // c.lwsp
    case 3:
      return rd === 0 ? 0 : iType(0x03, 3, rd, SP, loadDouble); // c.ldsp
    case 4:
      if (field(word, 12, 1) === 0) {
        if (rs2 === 0) return rd === 0 ? 0 : iType(0x67, 0, 0, rd, 0); // c.jr
        return rType(0x33, 0, 0, rd, 0, rs2); // c.mv
      }
      if (rs2 === 0) return rd === 0 ? 0x0010_0073 : iType(0x67, 0, 1, rd, 0); // c.ebreak, c.jalr
      return rType(0x33, 0, 0, rd, rd, rs2); // c.add
    case 5:
      return sType(0x27, 3, SP, rs2, storeDouble); // c.fsdsp
    case 6:
      return sType(0x23, 2, SP, rs2, storeWord); // c.swsp
    default:
      return sType(0x23, 3, SP, rs2, storeDouble); // c.sdsp
  }
}
