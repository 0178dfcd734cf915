import test from 'ava';
import { encode } from '../../../emulator/isa/encode.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { BareHart, CODE, DATA, RAM } from '../../fixtures/bare_hart.ts';

const HOT_AFTER = 4;
const fresh = (): BareHart => new BareHart({ engine: 'translator', hotAfter: HOT_AFTER });
const translated = ({ hart }: BareHart): number => Number(hart.get64(H.COUNT_TRANSLATED_FUNCTIONS));
const jal = (rd: number, imm: number): number => encode('jal', { rd, imm });
const addi = (rd: number, rs1: number, imm: number): number => encode('addi', { rd, rs1, imm });

/** x10 counts up for ever */
const COUNT = [addi(10, 10, 1), jal(0, -4)];

test('A loop is translated once it was gone round often, and its fuel stays exact', (t) => {
  const machine = fresh();
  machine.code(CODE, COUNT);
  machine.hart.step(2 * HOT_AFTER - 2);
  t.is(translated(machine), 0);
  machine.hart.step(1001);
  t.is(translated(machine), 1);
  t.is(machine.hart.x(10), BigInt((2 * HOT_AFTER - 2 + 1001 + 1) >> 1));
  for (let fuel = 1; fuel < 20; fuel++) {
    const before = machine.hart.get64(H.HART_INSTRET_END) - BigInt(machine.hart.get32(H.HART_FUEL));
    machine.hart.step(fuel);
    const after = machine.hart.get64(H.HART_INSTRET_END) - BigInt(machine.hart.get32(H.HART_FUEL));
    t.is(after - before, BigInt(fuel));
  }
});

test('Code that is overwritten is executed as it is after fence.i, not as it was translated', (t) => {
  const machine = fresh();
  machine.code(CODE, COUNT);
  machine.hart.step(1000);
  const counted = machine.hart.x(10);
  machine.code(CODE, [addi(10, 10, -1)]);
  machine.hart.flushInstructions();
  machine.hart.pc = BigInt(CODE);
  machine.hart.step(1000);
  t.is(BigInt.asIntN(64, machine.hart.x(10)), counted - 500n);
  t.is(translated(machine), 2, 'and translated again');
});

test('A translation of a page is not entered for another page at the same address', (t) => {
  // Sv39: CODE's virtual page leads first to one physical page, then to another with other code
  const machine = fresh();
  const [root, other] = [RAM + 0x4_0000, RAM + 0x8000];
  const va = 0x1000;
  const tables = [root + 0x1000, root + 0x2000];
  const entry = (address: number, bits: number): bigint => (BigInt(address >>> 12) << 10n) | BigInt(bits);
  machine.ram.setU64(root, entry(tables[0]!, 1));
  machine.ram.setU64(tables[0]!, entry(tables[1]!, 1));
  const map = (page: number): void => machine.ram.setU64(tables[1]! + 8, entry(page, 0xcf));
  machine.code(CODE, COUNT).code(other, [addi(10, 10, -3), jal(0, -4)]);
  map(CODE);
  const { hart } = machine;
  hart.set32(H.HART_PRIV, 1);
  hart.set64(H.HART_SATP, (8n << 60n) | BigInt(root >>> 12));
  machine.hart.refresh();
  hart.pc = BigInt(va);
  hart.step(1000);
  t.is(hart.x(10), 500n);
  map(other);
  hart.flushTranslations();
  hart.pc = BigInt(va);
  hart.step(1000);
  t.is(BigInt.asIntN(64, hart.x(10)), 500n - 1500n);
  map(CODE);
  hart.flushTranslations();
  hart.pc = BigInt(va);
  const before = translated(machine);
  hart.step(1000);
  t.is(BigInt.asIntN(64, hart.x(10)), 500n - 1500n + 500n);
  t.is(translated(machine), before, 'the first translation serves again');
});

test('A call farther than a quarter of a MiB reaches code that is not translated', (t) => {
  const machine = fresh();
  const far = RAM + 0x20_0000;
  const distance = far - (CODE + 4);
  // auipc, jalr as compilers write them; the callee returns by a trap-free jump
  machine.code(CODE, [
    addi(10, 10, 1),
    encode('auipc', { rd: 1, imm: (distance + 0x800) & ~0xfff }),
    encode('jalr', { rd: 1, rs1: 1, imm: ((distance & 0xfff) ^ 0x800) - 0x800 }),
    jal(0, -12),
  ]);
  machine.code(far, [addi(11, 11, 1), encode('jalr', { rd: 0, rs1: 1, imm: 0 })]);
  machine.hart.step(6 * 500);
  t.is(machine.hart.x(10), 500n);
  t.is(machine.hart.x(11), 500n);
});

test('A load that misses, crosses a page or faults in a translated loop does what the interpreter does', (t) => {
  const results = (['interpreter', 'translator'] as const).map((engine) => {
    const machine = new BareHart({ engine, hotAfter: HOT_AFTER });
    for (let i = 0; i < 0x3000; i += 4) machine.ram.setU32(DATA + i, i * 0x9e37);
    // Eight bytes every 6 bytes, over three pages, then far beyond the end of RAM
    machine.code(CODE, [encode('ld', { rd: 11, rs1: 12, imm: 0 }), encode('add', { rd: 10, rs1: 10, rs2: 11 }),
      addi(12, 12, 6), encode('blt', { rs1: 12, rs2: 13, imm: -12 }), encode('ld', { rd: 11, rs1: 14, imm: 8 })]); // biome-ignore format: one program
    machine.hart.setX(12, BigInt(DATA));
    machine.hart.setX(13, BigInt(DATA + 0x2f00));
    machine.hart.setX(14, 0x7fff_0000_0000n);
    machine.hart.step(0x2f00);
    return [machine.hart.x(10), machine.hart.x(12), machine.hart.pc, machine.hart.get64(H.HART_MTVAL)];
  });
  t.deepEqual(results[1], results[0]);
  t.is(results[0]![3], 0x7fff_0000_0008n);
});

test('A guest that makes new code for ever only makes the tables be emptied', (t) => {
  t.timeout(60_000);
  const machine = fresh();
  const { hart, bytes } = machine;
  let flushes = 0;
  // Each round another loop in another place; entries are limited, and so is what they are kept in
  for (let round = 0; round < 3000 && flushes === 0; round++) {
    const at = RAM + 0x10_0000 + (round % 700) * 4096;
    const words: number[] = [];
    for (let loop = 0; loop < 14; loop++)
      words.push(addi(5, 5, round % 1000), addi(6, 0, 9), addi(6, 6, -1), encode('bne', { rs1: 6, rs2: 0, imm: -4 }));
    words.push(jal(0, 0));
    machine.code(at, words);
    bytes.fill(0, hart.base + H.HART_VISITS, hart.base + H.HART_VISITS + 2 * H.VISIT_COUNTERS);
    hart.flushInstructions();
    hart.pc = BigInt(at);
    hart.setX(5, 0n);
    hart.step(14 * 20 + 60);
    if (hart.x(5) !== BigInt(14 * (round % 1000))) t.fail(`round ${round}`);
    flushes = Number(hart.get64(H.COUNT_TRANSLATION_FLUSHES));
  }
  t.true(flushes > 0);
});
