// The 16-bit forms by name, from the specification's tables and not from the expansion under test. The first match wins.

export interface CompressedForm {
  readonly name: string;
  readonly mask: number;
  readonly match: number;
}

const form = (name: string, mask: number, match: number): CompressedForm => ({ name, mask, match });

export const COMPRESSED_FORMS: readonly CompressedForm[] = [
  form('c.addi4spn', 0xe003, 0x0000),
  form('c.fld', 0xe003, 0x2000),
  form('c.lw', 0xe003, 0x4000),
  form('c.ld', 0xe003, 0x6000),
  form('c.fsd', 0xe003, 0xa000),
  form('c.sw', 0xe003, 0xc000),
  form('c.sd', 0xe003, 0xe000),
  form('c.nop', 0xef83, 0x0001),
  form('c.addi', 0xe003, 0x0001),
  form('c.addiw', 0xe003, 0x2001),
  form('c.li', 0xe003, 0x4001),
  form('c.addi16sp', 0xef83, 0x6101),
  form('c.lui', 0xe003, 0x6001),
  form('c.srli', 0xec03, 0x8001),
  form('c.srai', 0xec03, 0x8401),
  form('c.andi', 0xec03, 0x8801),
  form('c.sub', 0xfc63, 0x8c01),
  form('c.xor', 0xfc63, 0x8c21),
  form('c.or', 0xfc63, 0x8c41),
  form('c.and', 0xfc63, 0x8c61),
  form('c.subw', 0xfc63, 0x9c01),
  form('c.addw', 0xfc63, 0x9c21),
  form('c.j', 0xe003, 0xa001),
  form('c.beqz', 0xe003, 0xc001),
  form('c.bnez', 0xe003, 0xe001),
  form('c.slli', 0xe003, 0x0002),
  form('c.fldsp', 0xe003, 0x2002),
  form('c.lwsp', 0xe003, 0x4002),
  form('c.ldsp', 0xe003, 0x6002),
  form('c.jr', 0xf07f, 0x8002),
  form('c.mv', 0xf003, 0x8002),
  form('c.ebreak', 0xffff, 0x9002),
  form('c.jalr', 0xf07f, 0x9002),
  form('c.add', 0xf003, 0x9002),
  form('c.fsdsp', 0xe003, 0xa002),
  form('c.swsp', 0xe003, 0xc002),
  form('c.sdsp', 0xe003, 0xe002),
];

export const formOf = (word: number): CompressedForm | undefined =>
  COMPRESSED_FORMS.find(({ mask, match }) => (word & mask) === match);

/** Every 16-bit word that is not the beginning of a longer one */
export function* compressedWords(): Generator<number> {
  for (let word = 0; word < 0x1_0000; word++) if ((word & 3) !== 3) yield word;
}
