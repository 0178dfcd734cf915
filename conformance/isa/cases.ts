// From an instruction word to a case: operands that make it meaningful, code around it where it jumps.
import { addi, C_NOP, FCSR, jal } from './assembler.ts';
import { branchOffsetOf, jumpOffsetOf, type Operands, operandsOf, rdOf, rs1Of, rs2Of } from './operands.ts';
import type { ProgramBuilder, Setup } from './program.ts';

const MEMORY_BLOCK_BYTES = 40;
const CACHE_BLOCK_BYTES = 64;

/** What rd becomes, where QEMU is not to be asked; undefined where it is */
export type Model = (setup: Setup, word: number) => bigint | undefined;

/** One case of `word`; `expansion` is the same instruction in 32 bits. False where no case can be made of it. */
export function addCase(
  program: ProgramBuilder,
  name: string,
  word: number,
  expansion: number,
  model?: Model,
): boolean {
  switch (expansion & 0x7f) {
    case 0x63:
      return addBranch(program, name, word, expansion, branchOffsetOf(expansion));
    case 0x6f:
      return addBranch(program, name, word, expansion, jumpOffsetOf(expansion));
    case 0x67:
      return addIndirectJump(program, name, word, expansion);
    case 0x73:
      return addCsr(program, name, word);
    case 0x0f:
      return addCacheBlock(program, name, word);
    default:
      return addPlain(program, name, word, expansion, model);
  }
}

const sourcesOf = (operands: Operands, setup: Setup) => ({
  x: [...new Set([...(operands.rd?.file === 'x' ? [operands.rd.index] : []), ...setup.x.keys()])],
  f: [...new Set([...(operands.rd?.file === 'f' ? [operands.rd.index] : []), ...setup.f.keys()])],
});

function addPlain(program: ProgramBuilder, name: string, word: number, expansion: number, model?: Model): boolean {
  const { random, emit } = program;
  const operands = operandsOf(expansion);
  const setup = program.setup(operands);
  const { memory } = operands;
  if (memory?.rs1 === 0) return false; // address zero
  const from = program.data.here;
  if (memory) {
    const block = program.memoryBlock(MEMORY_BLOCK_BYTES);
    const inside = memory.aligned || random.once(2) ? 16 : 8 + random.below(MEMORY_BLOCK_BYTES - 16);
    setup.x.set(memory.rs1, BigInt.asUintN(64, BigInt(block + inside - memory.offset)));
  }
  const started = program.begin(name, word, setup, from);
  program.load(setup);
  const f5 = expansion >>> 27;
  if ((expansion & 0x7f) === 0x2f && f5 === 3) reserve(program, expansion);
  emit.word(word);
  const { x, f } = sourcesOf(operands, setup);
  const results = program.store(x, f);
  const modelled = model?.(setup, expansion);
  if (modelled !== undefined) {
    for (const [i, index] of x.entries()) program.expected.set(results + 8 * i, setup.x.get(index) ?? 0n);
    if (operands.rd?.index !== 0) program.expected.set(results, modelled);
    program.expected.set(results + 8 * x.length, BigInt((setup.frm << 5) | setup.fflags));
  }
  program.close(started);
  return true;
}

/** Before SC: a reservation on its address, on another one, or one used up already */
function reserve(program: ProgramBuilder, word: number): void {
  const { emit, random } = program;
  const width = word & 0x7000;
  const lr = (rd: number, rs1: number) => 0x1000_002f | width | (rd << 7) | (rs1 << 15);
  const sc = (rd: number, rs1: number) => 0x1800_002f | width | (rd << 7) | (rs1 << 15);
  const scratch = program.otherThan(rs1Of(word), rs2Of(word));
  switch (random.below(3)) {
    case 0:
      emit.word(lr(scratch, rs1Of(word)));
      break;
    case 1:
      emit.address(scratch, program.memoryBlock(8));
      emit.word(lr(scratch, scratch));
      break;
    default: {
      emit.address(scratch, program.memoryBlock(8));
      emit.word(lr(0, scratch));
      emit.word(sc(scratch, scratch));
    }
  }
}

const MARK_FALLEN_THROUGH = 2;
const MARK_TARGET = 3;
/** addi and jal of the path that leads away */
const PATH_BYTES = 8;

/** Branches and jal: a register is marked where the target is and where it falls through. */
function addBranch(program: ProgramBuilder, name: string, word: number, expansion: number, offset: number): boolean {
  const { emit, random } = program;
  const length = (word & 3) === 3 ? 4 : 2;
  if (offset > -PATH_BYTES && offset < length + PATH_BYTES) return false; // no room for the marks
  const operands = operandsOf(expansion);
  const setup = program.setup(operands);
  const [a, b] = operands.xSources;
  if (a !== undefined && b !== undefined && a !== 0 && b !== 0 && random.once(4)) setup.x.set(a, setup.x.get(b)!);
  if (a !== undefined && b === 0 && random.once(2)) setup.x.set(a, 0n);
  const mark = program.otherThan(operands.rd?.index, ...operands.xSources);
  const started = program.begin(name, word, setup);
  program.load(setup);
  emit.word(addi(mark, 0, 1));
  if (random.once(2)) emit.word(C_NOP); // alignment to two bytes
  if (offset > 0) {
    const target = emit.here + offset;
    emit.word(word);
    emit.word(addi(mark, mark, MARK_FALLEN_THROUGH));
    emit.word(jal(0, target + 4 - emit.here));
    emit.padTo(target);
    emit.word(addi(mark, mark, MARK_TARGET));
  } else {
    const target = emit.here + 4;
    const at = target - offset;
    emit.word(jal(0, at - emit.here));
    emit.word(addi(mark, mark, MARK_TARGET));
    emit.word(jal(0, at + length + 4 - emit.here));
    emit.padTo(at);
    emit.word(word);
    emit.word(addi(mark, mark, MARK_FALLEN_THROUGH));
  }
  const { x } = sourcesOf(operands, setup);
  program.store([...x, mark], []);
  program.close(started);
  return true;
}

/** jalr: the target is some way ahead, bit 0 of the sum is to be ignored */
function addIndirectJump(program: ProgramBuilder, name: string, word: number, expansion: number): boolean {
  const { emit, random } = program;
  const operands = operandsOf(expansion);
  const rs1 = rs1Of(expansion);
  if (rs1 === 0) return false;
  const offset = (expansion | 0) >> 20;
  const setup = program.setup(operands);
  setup.x.delete(rs1);
  const mark = program.otherThan(rdOf(expansion), rs1);
  const started = program.begin(name, word, setup);
  program.load(setup);
  emit.word(addi(mark, 0, 1));
  // rs1 = target − offset, or one more; the code up to the instruction is 8 bytes of auipc and addi
  const target = emit.here + 8 + 16 + 2 * random.below(24);
  emit.address(rs1, target + random.below(2) - offset);
  emit.word(word);
  emit.word(addi(mark, mark, MARK_FALLEN_THROUGH));
  emit.word(jal(0, target + 4 - emit.here));
  emit.padTo(target);
  emit.word(addi(mark, mark, MARK_TARGET));
  program.store([...new Set([rdOf(expansion), rs1, mark])], []);
  program.close(started);
  return true;
}

/** csrr*: on fflags, frm and fcsr, the CSRs that user mode may write */
function addCsr(program: ProgramBuilder, name: string, word: number): boolean {
  const { random, emit } = program;
  const csr = random.pick(Object.values(FCSR));
  const instruction = ((word & 0x000f_ffff) | (csr << 20)) >>> 0;
  const operands = operandsOf(instruction);
  const setup = { ...program.setup(operands), frm: random.below(8) };
  const started = program.begin(name, instruction, setup);
  program.load(setup);
  emit.word(instruction);
  const { x } = sourcesOf(operands, setup);
  program.store(x, []);
  program.close(started);
  return true;
}

/** fence, fence.i, cbo.*: whatever happens to the block around the address, and to nothing else */
function addCacheBlock(program: ProgramBuilder, name: string, word: number): boolean {
  const { random, emit } = program;
  const isCbo = (word & 0x707f) === 0x200f;
  const rs1 = rs1Of(word);
  if (isCbo && rs1 === 0) return false;
  const setup = program.setup({ rd: undefined, xSources: [], fSources: [], memory: undefined });
  const from = program.data.here;
  const block = program.memoryBlock(3 * CACHE_BLOCK_BYTES, CACHE_BLOCK_BYTES) + CACHE_BLOCK_BYTES;
  if (rs1 !== 0) setup.x.set(rs1, BigInt(block + random.below(CACHE_BLOCK_BYTES)));
  const started = program.begin(name, word, setup, from);
  program.load(setup);
  emit.word(word);
  const registers = rs1 === 0 ? [] : [rs1];
  const results = program.store(registers, []);
  if (isCbo) {
    const zeroes = word >>> 20 === 4;
    if (zeroes) for (let at = block; at < block + CACHE_BLOCK_BYTES; at += 8) program.expected.set(at, 0n);
    program.expected.set(results, setup.x.get(rs1)!);
    program.expected.set(results + 8, BigInt((setup.frm << 5) | setup.fflags));
  }
  program.close(started);
  return true;
}
