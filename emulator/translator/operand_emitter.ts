// Operands of the instruction that is written: guest registers in WebAssembly locals, their lower halves beside them.
import type { I32, I32Name, I64, SystemName } from '../isa/emitter.ts';
import { StackEmitter, WIDE, WORD } from '../isa/stack_emitter.ts';
import type { FunctionBody } from '../wasm/module_builder.ts';
import { CONVERT, I32 as OP32, I64 as OP64, TYPE_I32, TYPE_I64 } from '../wasm/opcodes.ts';
import { type Instruction, X } from './instruction.ts';
import type { PageCachePlan } from './page_caches.ts';

/** By row: the operation that does the same on words */
const BITWISE: Readonly<Record<string, I32Name>> = { and: 'and', or: 'or', xor: 'xor' };
const BITWISE_IMMEDIATE: Readonly<Record<string, I32Name>> = { andi: 'and', ori: 'or', xori: 'xor' };
/** Sign extension keeps the order, with signs and without */
const COMPARE: Readonly<Record<string, I32Name>> = {
  beq: 'eq', bne: 'ne', blt: 'lt_s', bge: 'ge_s', bltu: 'lt_u', bgeu: 'ge_u',
}; // biome-ignore format: one table
const DROP = 0x1a;

/** What an emitter of one function works with. */
export interface EmitterFrame {
  readonly f: FunctionBody;
  /** Local of register x1…x31 (i64), f0…f31 (f64) */
  x(register: number): number;
  fp(register: number): number;
  /** Local with the address of the base page; with the data TLB's address */
  readonly base: number;
  readonly dtlb: number;
  /** Pushes the base of hart fields; `field` is what is then the constant offset of one */
  pushHart(): void;
  field(offset: number): number;
  /** `(host >>> 12) + dirtyOffset` is the page's dirty byte */
  readonly dirtyOffset: number;
  /** Fused multiply-add of the host is one rounding */
  readonly fusesMultiplyAdd: boolean;
  /** Plain loads and stores of the host are ordered as x86 orders them */
  readonly strongOrder: boolean;
  call(name: string): number;
  /**
   * Leaves the function before this instruction if the i32 on the stack is not 0: the interpreter does it. `looked`:
   * i64 local that was compared; see MemoryEmitter's look-up
   */
  leaveIf(looked?: number): void;
  /** The window, where what a register points to is looked for there first */
  window(register: number): Window | undefined;
  /** What the loop that is being written remembers of the page that a register points into */
  pageCache(register: number): PageCache | undefined;
}

/** Locals of kernel/assembly/window.ts: its first address (i64), how far into it an access may begin (i64), the first's host address (i32) */
export interface Window {
  readonly first: number;
  readonly reach: number;
  readonly host: number;
}

/**
 * Locals: a page's address (i64), how far into it an access may begin (i64; 0 where nothing is remembered, which no
 * address would say), and what takes a guest address there to the host's (i32).
 */
export interface PageCache extends PageCachePlan {
  readonly page: number;
  readonly reach: number;
  readonly distance: number;
}

/** Integer operands, results and control; memory and floating point are added by the classes that extend it. */
export abstract class OperandEmitter extends StackEmitter {
  protected readonly frame: EmitterFrame;
  protected instruction: Instruction | undefined;
  /** Where the code of the last rs1() begins: an address that a group knows already is taken back to there */
  protected operandAt = 0;
  /**
   * i32 locals by register; and a set of those registers that now hold 32 bits, sign-extended, which their local has, too.
   * Within a block: what is made of words by words is a word, and a rotation of one is seen for what it is
   */
  readonly #wordLocals: number[] = [];
  #words = 0;
  /** Where the code of the last sign extension of a whole result ends */
  #extendedAt = -1;
  /** i64 local: where a jalr goes */
  readonly target: number;

  constructor(frame: EmitterFrame) {
    super(frame.f);
    this.frame = frame;
    this.target = frame.f.local(TYPE_I64);
  }

  beginBlock(): void {
    this.#words = 0;
  }

  protected now(): Instruction {
    return this.instruction!;
  }
  /** Does what a 64-bit instruction does with words alone; false where its operands are none, or it makes more of them. */
  protected onWords(name: string): boolean {
    const { f } = this;
    const { rs1, rs2, rd, imm } = this.now();
    const bitwise = BITWISE[name];
    if (bitwise !== undefined) {
      if (rd === 0 || !this.#isWord(rs1) || !this.#isWord(rs2)) return false;
      this.rs1w();
      this.rs2w();
      this.setRd(this.signExtend(this.i32(bitwise, WORD, WORD)));
      return true;
    }
    const immediate = BITWISE_IMMEDIATE[name];
    if (immediate !== undefined) {
      if (rd === 0 || !this.#isWord(rs1)) return false;
      this.rs1w();
      this.setRd(this.signExtend(this.i32(immediate, WORD, this.imm32())));
      return true;
    }
    const compare = COMPARE[name];
    if (compare !== undefined) {
      if (!this.#isWord(rs1) || !this.#isWord(rs2) || rs1 === rs2) return false;
      this.rs1w();
      this.rs2w();
      f.op(OP32[compare]);
      return true;
    }
    const isMove = name === 'add' ? rs1 === 0 : name === 'addi' && (imm === 0 || rs1 === 0);
    if (!(isMove || name === 'lui') || rd === 0) return false;
    if (name === 'lui' || (name === 'addi' && rs1 === 0)) f.i32(imm);
    else {
      const from = name === 'add' ? rs2 : rs1;
      if (!this.#isWord(from)) return false;
      this.#w(from);
    }
    this.setRd(this.signExtend(WORD));
    return true;
  }
  protected override loadHart(opcode: number, offset: number): FunctionBody {
    this.frame.pushHart();
    return this.f.mem(opcode, this.frame.field(offset));
  }

  protected override storeHart(opcode: number, offset: number, push: () => void): void {
    this.frame.pushHart();
    push();
    this.f.mem(opcode, this.frame.field(offset));
  }
  protected override helper(name: string): number {
    return this.frame.call(name);
  }

  // --- operands ---------------------------------------------------------------------------------------------

  protected x(register: number): void {
    if (register === 0) this.f.i64(0);
    else this.f.get(this.frame.x(register));
  }
  rs1(): I64 {
    this.operandAt = this.f.code.length;
    this.x(this.now().rs1);
    return WIDE;
  }
  rs2(): I64 {
    this.x(this.now().rs2);
    return WIDE;
  }
  #isWord(register: number): boolean {
    return register === 0 || ((this.#words >>> register) & 1) === 1;
  }
  #w(register: number): void {
    if (register === 0) this.f.i32(0);
    else if (this.#isWord(register)) this.f.get(this.#wordLocals[register]!);
    else this.f.get(this.frame.x(register)).op(CONVERT.i32_wrap_i64);
  }
  rs1w(): I32 {
    this.#w(this.now().rs1);
    return WORD;
  }
  rs2w(): I32 {
    this.#w(this.now().rs2);
    return WORD;
  }
  override signExtend(a: I32): I64 {
    const { rd, facts } = this.now();
    if (facts.rd !== X || rd === 0) return super.signExtend(a);
    this.#wordLocals[rd] ??= this.f.local(TYPE_I32);
    // The register keeps its old value until it is set
    this.#words &= ~(1 << rd);
    this.f.tee(this.#wordLocals[rd]);
    super.signExtend(a);
    this.#extendedAt = this.f.code.length;
    return WIDE;
  }
  imm(): I64 {
    this.f.i64(this.now().imm);
    return WIDE;
  }
  imm32(): I32 {
    this.f.i32(this.now().imm);
    return WORD;
  }
  protected address(at: number): void {
    this.f.get(this.frame.base);
    if (at !== 0) this.f.i64(at).op(OP64.add);
  }
  pc(): I64 {
    this.address(this.now().at);
    return WIDE;
  }
  nextPc(): I64 {
    this.address(this.now().at + this.now().length);
    return WIDE;
  }

  setRd(_value: I64): void {
    const { rd } = this.now();
    if (rd === 0) {
      this.f.op(DROP);
      return;
    }
    if (this.#extendedAt === this.f.code.length) this.#words |= 1 << rd;
    else this.#words &= ~(1 << rd);
    this.#extendedAt = -1;
    this.f.set(this.frame.x(rd));
  }
  // --- control: the function's writer makes the jump ------------------------------------------------------------

  /** Leaves the condition on the stack. */
  branch(_condition: I32): void {}
  jump(): void {}
  jumpTo(_address: I64): void {
    this.f.set(this.target);
  }
  system(name: SystemName): void {
    throw new Error(`${name} is left to the interpreter`);
  }
}
