import test from 'ava';
import fc from 'fast-check';
import { disassemble, encode, findInstruction, INSTRUCTIONS } from '../../../emulator/isa/mod.ts';

// Words as GNU as assembles the text
const GOLDEN: readonly (readonly [string, Parameters<typeof encode>[1], number, string])[] = [
  ['addi', { rd: 10, rs1: 11, imm: -3 }, 0xffd5_8513, 'addi a0,a1,-3'],
  ['add', { rd: 5, rs1: 6, rs2: 7 }, 0x0073_02b3, 'add t0,t1,t2'],
  ['lui', { rd: 10, imm: 0x1234_5000 }, 0x1234_5537, 'lui a0,0x12345'],
  ['auipc', { rd: 1, imm: -0x1000 }, 0xffff_f097, 'auipc ra,0xfffff'],
  ['ld', { rd: 8, rs1: 2, imm: 40 }, 0x0281_3403, 'ld s0,40(sp)'],
  ['sd', { rs2: 9, rs1: 2, imm: -8 }, 0xfe91_3c23, 'sd s1,-8(sp)'],
  ['beq', { rs1: 10, rs2: 0, imm: -4 }, 0xfe05_0ee3, 'beq a0,zero,0xffc'],
  ['bgeu', { rs1: 10, rs2: 11, imm: 4094 }, 0x7eb5_7fe3, 'bgeu a0,a1,0x1ffe'],
  ['jal', { rd: 1, imm: 2048 }, 0x0010_00ef, 'jal ra,0x1800'],
  ['jal', { rd: 0, imm: -2 }, 0xffff_f06f, 'jal zero,0xffe'],
  ['jalr', { rd: 0, rs1: 1 }, 0x0000_8067, 'jalr zero,0(ra)'],
  ['srai', { rd: 10, rs1: 10, imm: 63 }, 0x43f5_5513, 'srai a0,a0,0x3f'],
  ['sraiw', { rd: 10, rs1: 10, imm: 31 }, 0x41f5_551b, 'sraiw a0,a0,0x1f'],
  ['csrrw', { rd: 5, rs1: 6, csr: 0x340 }, 0x3403_12f3, 'csrrw t0,0x340,t1'],
  ['csrrsi', { rd: 0, rs1: 2, csr: 0x300 }, 0x3001_6073, 'csrrsi zero,0x300,2'],
  ['sfence.vma', { rs1: 10, rs2: 11 }, 0x12b5_0073, 'sfence.vma a0,a1'],
  ['amoadd.w', { rd: 10, rs1: 12, rs2: 11 }, 0x00b6_252f, 'amoadd.w a0,a1,(a2)'],
  ['lr.d', { rd: 10, rs1: 12 }, 0x1006_352f, 'lr.d a0,(a2)'],
  ['fadd.d', { rd: 10, rs1: 11, rs2: 12 }, 0x02c5_f553, 'fadd.d fa0,fa1,fa2'],
  ['fmadd.s', { rd: 0, rs1: 1, rs2: 2, rs3: 3, rm: 1 }, 0x1820_9043, 'fmadd.s ft0,ft1,ft2,ft3,rtz'],
  ['fcvt.w.d', { rd: 10, rs1: 10, rm: 1 }, 0xc205_1553, 'fcvt.w.d a0,fa0,rtz'],
  ['fsd', { rs2: 8, rs1: 2, imm: 16 }, 0x0081_3827, 'fsd fs0,16(sp)'],
  ['flw', { rd: 15, rs1: 10, imm: 4 }, 0x0045_2787, 'flw fa5,4(a0)'],
  ['cbo.zero', { rs1: 10 }, 0x0045_200f, 'cbo.zero (a0)'],
  ['mret', {}, 0x3020_0073, 'mret'],
  ['fence', {}, 0x0000_000f, 'fence'],
];
for (const [name, operands, word, text] of GOLDEN) {
  test(`encode() and disassemble() agree with the assembler: ${text}`, (t) => {
    t.is(encode(name, operands), word);
    t.is(disassemble(word, 0x1000n), text);
  });
}

test('encode() gives a word of the named row for all operands', (t) => {
  const register = fc.integer({ min: 0, max: 31 });
  const operands = fc.record({ rd: register, rs1: register, rs2: register, rs3: register, rm: fc.constant(7) });
  fc.assert(
    fc.property(fc.constantFrom(...INSTRUCTIONS), operands, (row, chosen) => {
      const word = encode(row.name, chosen);
      return findInstruction(word) === row && disassemble(word).split(' ')[0] === row.name;
    }),
    { numRuns: 5000, seed: 1 },
  );
  t.pass();
});

test('disassemble() shows a 16-bit word by what it stands for, and words that are nothing as data', (t) => {
  t.is(disassemble(0x4501), 'c: addi a0,zero,0');
  t.is(disassemble(0x8082), 'c: jalr zero,0(ra)');
  t.is(disassemble(0), '.half 0x0');
  t.is(disassemble(0xffff_ffff), '.word 0xffffffff');
});

for (const [what, name, operands] of [
  ['an unknown name', 'addq', {}],
  ['register 32', 'add', { rd: 32 }],
  ['an immediate of 13 bits', 'addi', { imm: 2048 }],
  ['an odd branch', 'beq', { imm: 3 }],
  ['a shift of a word by 32', 'slliw', { imm: 32 }],
] as const) {
  test(`encode() refuses ${what}`, (t) => {
    t.throws(() => encode(name, operands), { instanceOf: RangeError });
  });
}
