// The translator's half of the instruction table: operands are constants and WebAssembly locals. Longer than most
// files, for it is one class: the other implementation of the interface that interpreter/slot_emitter.ts implements.
import type {
  Emitter, FpName, I32, I32Name, I64, IntegerKind, LoadWidth, Precision, StoreWidth, SystemName,
} from '../isa/emitter.ts'; // biome-ignore format: one list
import { BOX, StackEmitter, WIDE, WORD } from '../isa/stack_emitter.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { FunctionBody } from '../wasm/module_builder.ts';
import {
  ATOMIC_FENCE, ATOMIC_RMW, CONVERT, F32, F64, F64_MORE, LOAD64, MEMORY, I32 as OP32, I64 as OP64, STORE64,
  TYPE_F64, TYPE_I32, TYPE_I64,
} from '../wasm/opcodes.ts'; // biome-ignore format: one list
import type { AccessGroup } from './access_groups.ts';
import { type Instruction, X } from './instruction.ts';
import type { PageCachePlan } from './page_caches.ts';

const LOAD_BYTES: Record<LoadWidth, number> = { b: 1, bu: 1, h: 2, hu: 2, w: 4, wu: 4, d: 8 };
const STORE_BYTES: Record<StoreWidth, number> = { b: 1, h: 2, w: 4, d: 8 };
/** By row: the operation that does the same on words */
const BITWISE: Readonly<Record<string, I32Name>> = { and: 'and', or: 'or', xor: 'xor' };
const BITWISE_IMMEDIATE: Readonly<Record<string, I32Name>> = { andi: 'and', ori: 'or', xori: 'xor' };
/** Sign extension keeps the order, with signs and without */
const COMPARE: Readonly<Record<string, I32Name>> = {
  beq: 'eq', bne: 'ne', blt: 'lt_s', bge: 'ge_s', bltu: 'lt_u', bgeu: 'ge_u',
}; // biome-ignore format: one table
const PAGE_BYTES = 4096;
const F32_EQ = 0x5b;
const F32_LT = 0x5d;
const F32_LE = 0x5f;
const F32_NEG = 0x8c;
const TO_DOUBLE: Record<IntegerKind, number> = {
  i32: CONVERT.f64_convert_i32_s,
  u32: CONVERT.f64_convert_i32_u,
  i64: CONVERT.f64_convert_i64_s,
  u64: CONVERT.f64_convert_i64_u,
};
const TO_SINGLE: Record<IntegerKind, number> = {
  i32: CONVERT.f32_convert_i32_s,
  u32: CONVERT.f32_convert_i32_u,
  i64: CONVERT.f32_convert_i64_s,
  u64: CONVERT.f32_convert_i64_u,
};
const DROP = 0x1a;
const RM_NEAREST = 0;
const RM_ZERO = 1;
const RM_DYNAMIC = 7;
/** fence: bits of pred and succ: in, out, read, write */
const FENCE_WRITES = 0b0101;
const FENCE_READS = 0b1010;
const FENCE_TSO = 0b1000;

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
   * i64 local that was compared; see RegisterEmitter's look-up
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

/** Emits one instruction after the other into a function. */
export class RegisterEmitter extends StackEmitter implements Emitter {
  readonly #frame: EmitterFrame;
  readonly #tempsF: number[] = [];
  #usedF = 0;
  readonly #groupLocals: number[] = [];
  #usedGroup = 0;
  #instruction: Instruction | undefined;
  #group: AccessGroup | undefined;
  /** Where the code of the last rs1() begins: an address that a group knows already is taken back to there */
  #operandAt = 0;
  /**
   * i32 locals by register; and a set of those registers that now hold 32 bits, sign-extended, which their local has, too.
   * Within a block: what is made of words by words is a word, and a rotation of one is seen for what it is
   */
  readonly #wordLocals: number[] = [];
  #words = 0;
  /** Where the code of the last sign extension of a whole result ends */
  #extendedAt = -1;
  /** Of this block: 0 nothing known of mstatus.FS, 1 not Off, 2 Dirty, 3 native arithmetic stands too */
  #fpState = 0;
  /** A double stands on the stack where the table thinks of its bits */
  #doubleOnStack = false;
  /** i64 local: where a jalr goes */
  readonly target: number;

  constructor(frame: EmitterFrame) {
    super(frame.f);
    this.#frame = frame;
    this.target = frame.f.local(TYPE_I64);
  }

  beginBlock(): void {
    this.#fpState = 0;
    this.#usedGroup = 0;
    this.#words = 0;
  }

  emit(instruction: Instruction, group: AccessGroup | undefined): void {
    this.#instruction = instruction;
    this.#group = group;
    this.resetTemporaries();
    this.#usedF = 0;
    const { row } = instruction.facts;
    if (row.name.startsWith('fsgnj') && row.extension === 'D' && this.#signInject(row.name)) return;
    if (this.#onWords(row.name)) return;
    row.emit(this);
  }

  #now(): Instruction {
    return this.#instruction!;
  }
  /** Does what a 64-bit instruction does with words alone; false where its operands are none, or it makes more of them. */
  #onWords(name: string): boolean {
    const { f } = this;
    const { rs1, rs2, rd, imm } = this.#now();
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

  #groupLocal(): number {
    const index = this.#usedGroup++;
    this.#groupLocals[index] ??= this.f.local(TYPE_I32);
    return this.#groupLocals[index];
  }
  #tempF(): number {
    const index = this.#usedF++;
    this.#tempsF[index] ??= this.f.local(TYPE_F64);
    return this.#tempsF[index];
  }
  protected override loadHart(opcode: number, offset: number): FunctionBody {
    this.#frame.pushHart();
    return this.f.mem(opcode, this.#frame.field(offset));
  }

  protected override storeHart(opcode: number, offset: number, push: () => void): void {
    this.#frame.pushHart();
    push();
    this.f.mem(opcode, this.#frame.field(offset));
  }
  protected override helper(name: string): number {
    return this.#frame.call(name);
  }

  // --- operands ---------------------------------------------------------------------------------------------

  #x(register: number): void {
    if (register === 0) this.f.i64(0);
    else this.f.get(this.#frame.x(register));
  }
  rs1(): I64 {
    this.#operandAt = this.f.code.length;
    this.#x(this.#now().rs1);
    return WIDE;
  }
  rs2(): I64 {
    this.#x(this.#now().rs2);
    return WIDE;
  }
  #isWord(register: number): boolean {
    return register === 0 || ((this.#words >>> register) & 1) === 1;
  }
  #w(register: number): void {
    if (register === 0) this.f.i32(0);
    else if (this.#isWord(register)) this.f.get(this.#wordLocals[register]!);
    else this.f.get(this.#frame.x(register)).op(CONVERT.i32_wrap_i64);
  }
  rs1w(): I32 {
    this.#w(this.#now().rs1);
    return WORD;
  }
  rs2w(): I32 {
    this.#w(this.#now().rs2);
    return WORD;
  }
  override signExtend(a: I32): I64 {
    const { rd, facts } = this.#now();
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
    this.f.i64(this.#now().imm);
    return WIDE;
  }
  imm32(): I32 {
    this.f.i32(this.#now().imm);
    return WORD;
  }
  #address(at: number): void {
    this.f.get(this.#frame.base);
    if (at !== 0) this.f.i64(at).op(OP64.add);
  }
  pc(): I64 {
    this.#address(this.#now().at);
    return WIDE;
  }
  nextPc(): I64 {
    this.#address(this.#now().at + this.#now().length);
    return WIDE;
  }

  setRd(_value: I64): void {
    const { rd } = this.#now();
    if (rd === 0) {
      this.f.op(DROP);
      return;
    }
    if (this.#extendedAt === this.f.code.length) this.#words |= 1 << rd;
    else this.#words &= ~(1 << rd);
    this.#extendedAt = -1;
    this.f.set(this.#frame.x(rd));
  }

  // --- memory -----------------------------------------------------------------------------------------------

  /** Leaves the address of the TLB entry for `va` on the stack. */
  #entryOf(va: number): FunctionBody {
    this.f.get(va).op(CONVERT.i32_wrap_i64).i32(7).op(OP32.shr_u);
    this.f.i32((H.DTLB_ENTRIES - 1) * H.DTLB_ENTRY_BYTES).op(OP32.and);
    return this.f.get(this.#frame.dtlb).op(OP32.add);
  }

  /**
   * Leaves the function unless the TLB has [va, va + bytes); sets `host` to va's host address, `entry` to its entry.
   * The addend is loaded between the tag and the comparison: V8 takes a load that is next to its comparison for its
   * operand, and then does it twice, because a load might trap.
   */
  #lookUp(va: number, entry: number, host: number, bytes: number, tagOffset: number): void {
    const f = this.f;
    f.get(va);
    if (bytes > 1) f.i64(bytes - 1).op(OP64.add);
    f.i64(-4096).op(OP64.and);
    const tag = this.temp64();
    this.#entryOf(va).tee(entry).mem(LOAD64.d, tagOffset).tee(tag);
    this.#host(va, entry).set(host);
    f.op(OP64.ne);
    this.#frame.leaveIf(tag);
  }
  /** The same by what the loop remembers of the page of this instruction's pointer, where it remembers any. */
  #locate(va: number, host: number, bytes: number, loads: boolean, stores: boolean): void {
    const f = this.f;
    const entry = this.temp32();
    const window = this.#frame.window(this.#now().rs1);
    if (window !== undefined) {
      const distance = this.temp64();
      f.get(va).get(window.first).op(OP64.sub).tee(distance).get(window.reach).op(OP64.lt_u);
      f.hint(true).if();
      f.get(distance).op(CONVERT.i32_wrap_i64).get(window.host).op(OP32.add).set(host);
      f.else();
      this.#lookUpFor(va, entry, host, bytes, loads, stores);
      f.end();
      return;
    }
    const cache = this.#frame.pageCache(this.#now().rs1);
    if (cache === undefined) {
      this.#lookUpFor(va, entry, host, bytes, loads, stores);
      return;
    }
    f.get(va).get(cache.page).op(OP64.xor).get(cache.reach).op(OP64.lt_u);
    f.hint(true).if();
    f.get(va).op(CONVERT.i32_wrap_i64).get(cache.distance).op(OP32.add).set(host);
    f.else();
    this.#lookUpFor(va, entry, host, bytes, loads, stores);
    // For all that the loop does there
    const both = cache.loads && cache.stores && !(loads && stores);
    if (both) f.get(entry).mem(LOAD64.d, 0).get(entry).mem(LOAD64.d, 8).op(OP64.eq).if();
    f.get(va).i64(-4096).op(OP64.and).set(cache.page);
    f.i64(PAGE_BYTES + 1 - cache.span).set(cache.reach);
    f.get(entry).mem(MEMORY.i32_load, 16).set(cache.distance);
    if (both) f.end();
    f.end();
  }
  #lookUpFor(va: number, entry: number, host: number, bytes: number, loads: boolean, stores: boolean): void {
    this.#lookUp(va, entry, host, bytes, loads ? 0 : 8);
    if (!loads || !stores) return;
    // Readable and writable entries have equal tags
    this.f.get(entry).mem(LOAD64.d, 0).get(entry).mem(LOAD64.d, 8).op(OP64.ne);
    this.#frame.leaveIf();
  }
  /** Host address of `va` by its entry */
  #host(va: number, entry: number): FunctionBody {
    return this.f.get(va).op(CONVERT.i32_wrap_i64).get(entry).mem(MEMORY.i32_load, 16).op(OP32.add);
  }

  /** Looks the group's page up, at its first access. */
  #openGroup(group: AccessGroup): void {
    const f = this.f;
    group.hostLocal = this.#groupLocal();
    const va = this.temp64();
    this.#x(this.#now().rs1);
    if (group.min !== 0) f.i64(group.min).op(OP64.add);
    f.set(va);
    this.#locate(va, group.hostLocal, group.span, group.loads, group.stores);
    if (!group.stores) return;
    group.pageLocal = this.#groupLocal();
    f.get(group.hostLocal).i32(12).op(OP32.shr_u).set(group.pageLocal);
  }

  /** Forgets the address on the stack where a group knows it; the group, looked up. */
  #grouped(): AccessGroup | undefined {
    const group = this.#group;
    if (group === undefined) return undefined;
    this.f.code.truncate(this.#operandAt);
    if (group.hostLocal < 0) this.#openGroup(group);
    return group;
  }

  load(width: LoadWidth, _address: I64): I64 {
    const f = this.f;
    const double = this.#now().facts.row.name === 'fld';
    this.#doubleOnStack = double;
    const word = width === 'w' && !double && this.#now().facts.rd === X;
    const opcode = double ? MEMORY.f64_load : word ? MEMORY.i32_load : LOAD64[width];
    const group = this.#grouped();
    if (group !== undefined) {
      f.get(group.hostLocal).mem(opcode, this.#now().imm - group.min);
      return word ? this.signExtend(WORD) : WIDE;
    }
    const va = this.temp64();
    const host = this.temp32();
    f.set(va);
    this.#locate(va, host, LOAD_BYTES[width], true, false);
    f.get(host).mem(opcode, 0);
    return word ? this.signExtend(WORD) : WIDE;
  }

  protected override markDirty(host: number): void {
    this.f.get(host).i32(12).op(OP32.shr_u).i32(0xff).mem(MEMORY.i32_store8, this.#frame.dirtyOffset);
  }

  store(width: StoreWidth, _address: I64, value: () => I64): void {
    const f = this.f;
    const double = this.#now().facts.row.name === 'fsd';
    const opcode = double ? MEMORY.f64_store : STORE64[width];
    const push = (): void => {
      if (double) f.get(this.#frame.fp(this.#now().rs2));
      else value();
    };
    const group = this.#grouped();
    if (group !== undefined) {
      f.get(group.hostLocal);
      push();
      f.mem(opcode, this.#now().imm - group.min);
      if (group.unmarked.has(this.#now())) return;
      f.get(group.pageLocal).i32(0xff).mem(MEMORY.i32_store8, this.#frame.dirtyOffset);
      return;
    }
    const va = this.temp64();
    const host = this.temp32();
    f.set(va);
    this.#locate(va, host, STORE_BYTES[width], false, true);
    f.get(host);
    push();
    f.mem(opcode, 0);
    this.markDirty(host);
  }

  /** Host address of the aligned word that rs1 names, in a local. */
  protected override atomicHost(bytes: 4 | 8, write: boolean): number {
    const f = this.f;
    const va = this.temp64();
    const entry = this.temp32();
    const host = this.temp32();
    this.rs1();
    f.set(va);
    // An unaligned address cannot equal a tag: its low bits go into the comparison
    f.get(va)
      .i64(-4096 | (bytes - 1))
      .op(OP64.and);
    this.#entryOf(va)
      .tee(entry)
      .mem(LOAD64.d, write ? 8 : 0);
    this.#host(va, entry).set(host);
    f.op(OP64.ne);
    this.#frame.leaveIf();
    return host;
  }

  /**
   * A strongly ordered host keeps every order but that of a store before a load. The machine's main thread reads
   * queues in RAM too, so one hart alone does not make fences needless.
   */
  fence(): void {
    const word = this.#now().imm;
    const ordersStoreBeforeLoad =
      ((word >>> 24) & FENCE_WRITES) !== 0 && ((word >>> 20) & FENCE_READS) !== 0 && word >>> 28 !== FENCE_TSO;
    if (this.#frame.strongOrder && !ordersStoreBeforeLoad) {
      // The processor needs nothing, but the compiler would let a load before the fence stand for one behind it:
      // an atomic access to a word of the hart's own keeps it from that, at a tenth of atomic.fence's cost
      this.#frame.pushHart();
      this.f.i64(0).atomic(ATOMIC_RMW.add[1], 3, this.#frame.field(H.HART_X_DISCARD)).op(DROP);
      return;
    }
    this.f.op(0xfe, ATOMIC_FENCE, 0);
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

  // --- floating point ---------------------------------------------------------------------------------------

  fpEnabled(): void {
    if (this.#fpState > 0) return;
    this.#fpState = 1;
    this.loadHart(MEMORY.i32_load, H.HART_FS).op(OP32.eqz);
    this.#frame.leaveIf();
  }

  #fpDirty(): void {
    if (this.#fpState >= 2) return;
    this.#fpState = 2;
    this.#frame.pushHart();
    this.f.i32(3).mem(MEMORY.i32_store, this.#frame.field(H.HART_FS));
  }

  #double(register: number): FunctionBody {
    return this.f.get(this.#frame.fp(register));
  }
  #bits(register: number): FunctionBody {
    return this.#double(register).op(CONVERT.i64_reinterpret_f64);
  }
  fs1(): I64 {
    this.#bits(this.#now().rs1);
    return WIDE;
  }
  fs2(): I64 {
    this.#bits(this.#now().rs2);
    return WIDE;
  }

  setFd(_value: I64): void {
    if (!this.#doubleOnStack) this.f.op(CONVERT.f64_reinterpret_i64);
    this.#doubleOnStack = false;
    this.f.set(this.#frame.fp(this.#now().rd));
    this.#fpDirty();
  }
  override setSingle(value: I32): void {
    this.#doubleOnStack = false;
    super.setSingle(value);
  }

  /** Sign injection of doubles without going through integers; false where it must. */
  #signInject(name: string): boolean {
    const { rs1, rs2 } = this.#now();
    if (name === 'fsgnjx.d' && rs1 !== rs2) return false;
    this.fpEnabled();
    if (name === 'fsgnjx.d') this.#double(rs1).op(F64_MORE.abs);
    else {
      this.#double(rs1);
      if (rs1 === rs2) {
        if (name === 'fsgnjn.d') this.f.op(F64_MORE.neg);
      } else {
        this.#double(rs2);
        if (name === 'fsgnjn.d') this.f.op(F64_MORE.neg);
        this.f.op(F64_MORE.copysign);
      }
    }
    this.#doubleOnStack = true;
    this.setFd(WIDE);
    return true;
  }

  /** Arithmetic in another rounding mode is the interpreter's; gives false then. */
  #isNearest(): boolean {
    const { rm } = this.#now();
    return rm === RM_NEAREST || rm === RM_DYNAMIC;
  }
  /**
   * Leaves unless flags and rounding let native arithmetic stand: NX accrued, frm RNE, FS Dirty. Nothing in a
   * block changes that, so one look is enough for it.
   */
  #beginNative(): void {
    if (this.#fpState === 3) return;
    this.#fpState = 3;
    this.loadHart(MEMORY.i32_load, H.HART_FP_FAST).op(OP32.eqz);
    this.#frame.leaveIf();
  }
  /** To the interpreter, whatever the operands are */
  #leave(): void {
    this.f.i32(1);
    this.#frame.leaveIf();
  }
  #operand(precision: Precision, register: number): void {
    this.#bits(register);
    if (precision === 's') this.unbox();
  }
  #soft(precision: Precision, name: string): void {
    this.f.call(this.#frame.call(`f${precision === 's' ? 32 : 64}_${name}`));
  }

  /** Leaves unless the registers hold boxed singles. */
  #boxed(registers: readonly number[]): void {
    for (const [index, register] of registers.entries()) {
      this.#bits(register);
      if (index > 0) this.f.op(OP64.and);
    }
    this.f.i64(32).op(OP64.shr_u).i64(0xffff_ffff).op(OP64.ne);
    this.#frame.leaveIf();
  }
  #nativeSingle(register: number): FunctionBody {
    return this.#bits(register).op(CONVERT.i32_wrap_i64).op(CONVERT.f32_reinterpret_i32);
  }
  #native(precision: Precision, register: number): FunctionBody {
    return precision === 'd' ? this.#double(register) : this.#nativeSingle(register);
  }

  /**
   * Takes the native result from the stack as the instruction's: it is right with its flags where its exponent is
   * safely normal; where small results are exact, if it is finite. Else the interpreter does the instruction;
   * but a product is exactly zero where `zeroOperand` leaves i32 1.
   */
  #accept(precision: Precision, exactSmall: boolean, zeroOperand?: () => void): void {
    const f = this.f;
    const least = exactSmall ? 0 : 2;
    const [infinite, shift] = precision === 'd' ? [0x7ff, 52] : [0xff, 23];
    const result = precision === 'd' ? this.#tempF() : -1;
    const bits = precision === 'd' ? -1 : this.temp32();
    const { rd } = this.#now();
    if (precision === 'd') {
      f.tee(result).op(CONVERT.i64_reinterpret_f64).i64(shift).op(OP64.shr_u).op(CONVERT.i32_wrap_i64);
    } else f.op(CONVERT.i32_reinterpret_f32).tee(bits).i32(shift).op(OP32.shr_u);
    f.i32(infinite).op(OP32.and);
    if (least > 0) f.i32(least).op(OP32.sub);
    f.i32(infinite - least).op(OP32.ge_u);
    if (zeroOperand !== undefined) {
      f.hint(false).if();
      zeroOperand();
      f.op(OP32.eqz);
      this.#frame.leaveIf();
      f.end();
    } else this.#frame.leaveIf();
    if (precision === 'd') f.get(result);
    else f.get(bits).op(CONVERT.i64_extend_i32_u).i64(BOX).op(OP64.or).op(CONVERT.f64_reinterpret_i64);
    f.set(this.#frame.fp(rd));
  }

  fpArithmetic(op: 'add' | 'sub' | 'mul' | 'div', precision: Precision): void {
    if (!this.#isNearest()) {
      this.#leave();
      return;
    }
    const f = this.f;
    const { rs1, rs2 } = this.#now();
    this.#beginNative();
    if (precision === 's') this.#boxed([rs1, rs2]);
    this.#native(precision, rs1);
    this.#native(precision, rs2).op(precision === 'd' ? F64[op] : F32[op]);
    // Zero times a finite number; of two zeros or an infinity the result would not be zero
    const zeroOperand =
      op !== 'mul' || precision === 's'
        ? undefined
        : () => {
            this.#double(rs1).get(this.#frame.fp(rs2)).op(F64[op]).f64(0).op(F64_MORE.eq);
            this.#double(rs1).f64(0).op(F64_MORE.eq).get(this.#frame.fp(rs2)).f64(0).op(F64_MORE.eq);
            f.op(OP32.or).op(OP32.and);
          };
    this.#accept(precision, op === 'add' || op === 'sub', zeroOperand);
  }
  fpSqrt(precision: Precision): void {
    if (!this.#isNearest()) {
      this.#leave();
      return;
    }
    const { rs1 } = this.#now();
    const op: FpName = 'sqrt';
    this.#beginNative();
    if (precision === 's') this.#boxed([rs1]);
    this.#native(precision, rs1).op(precision === 'd' ? F64[op] : F32[op]);
    this.#accept(precision, false);
  }
  fpFused(negateProduct: boolean, negateAddend: boolean, precision: Precision): void {
    if (!this.#isNearest() || !this.#frame.fusesMultiplyAdd) {
      this.#leave();
      return;
    }
    const f = this.f;
    const { rs1, rs2, rs3 } = this.#now();
    this.#beginNative();
    if (precision === 's') this.#boxed([rs1, rs2, rs3]);
    const lanes = (register: number, negative: boolean): void => {
      this.#native(precision, register);
      if (negative) f.op(precision === 'd' ? F64_MORE.neg : F32_NEG);
      f.simd(precision === 'd' ? 0x14 : 0x13); // splat
    };
    lanes(rs1, negateProduct);
    lanes(rs2, false);
    lanes(rs3, negateAddend);
    // relaxed_madd, extract_lane 0
    if (precision === 'd') f.simd(0x107).simd(0x21, 0);
    else f.simd(0x105).simd(0x1f, 0);
    this.#accept(precision, false);
  }
  /** Leaves where an operand is a NaN: flags and canonical values are the interpreter's. */
  #ordered(precision: Precision): void {
    const { rs1, rs2 } = this.#now();
    const equal = precision === 'd' ? F64_MORE.eq : F32_EQ;
    for (const register of rs1 === rs2 ? [rs1] : [rs1, rs2]) {
      this.#native(precision, register);
      this.#native(precision, register).op(equal);
    }
    if (rs1 !== rs2) this.f.op(OP32.and);
    this.f.op(OP32.eqz);
    this.#frame.leaveIf();
  }
  fpMinMax(op: 'min' | 'max', precision: Precision): void {
    const { rs1, rs2 } = this.#now();
    this.fpEnabled();
    if (precision === 's') {
      this.#operand(precision, rs1);
      this.#operand(precision, rs2);
      this.#soft(precision, op);
      this.setSingle(WORD);
      return;
    }
    this.#ordered(precision);
    this.#double(rs1)
      .get(this.#frame.fp(rs2))
      .op(op === 'min' ? F64_MORE.min : F64_MORE.max);
    this.#doubleOnStack = true;
    this.setFd(WIDE);
  }
  fpCompare(op: 'eq' | 'lt' | 'le', precision: Precision): void {
    const f = this.f;
    const { rs1, rs2 } = this.#now();
    this.fpEnabled();
    if (precision === 's') this.#boxed([rs1, rs2]);
    this.#ordered(precision);
    this.#native(precision, rs1);
    this.#native(precision, rs2);
    f.op(precision === 'd' ? F64_MORE[op] : { eq: F32_EQ, lt: F32_LT, le: F32_LE }[op]);
    f.op(CONVERT.i64_extend_i32_u);
    this.setRd(WIDE);
    this.#fpDirty();
  }
  fpClass(precision: Precision): void {
    this.fpEnabled();
    this.#operand(precision, this.#now().rs1);
    this.#soft(precision, 'class');
    this.f.op(CONVERT.i64_extend_i32_u);
    this.setRd(WIDE);
  }

  fpToInteger(precision: Precision, to: IntegerKind): void {
    const f = this.f;
    const { rs1, rm } = this.#now();
    if (!this.#isNearest() && rm !== RM_ZERO) {
      this.#leave();
      return;
    }
    this.#beginNative();
    const value = this.#tempF();
    if (precision === 's') {
      this.#boxed([rs1]);
      this.#nativeSingle(rs1).op(CONVERT.f64_promote_f32);
    } else this.#double(rs1);
    f.op(rm === RM_ZERO ? F64_MORE.trunc : F64_MORE.nearest).tee(value);
    // Out of range, or a NaN: the interpreter saturates and says so
    const signed = to === 'i32' || to === 'i64';
    const bound = { i32: 2 ** 31, u32: 2 ** 32, i64: 2 ** 63, u64: 2 ** 64 }[to];
    if (signed) f.op(F64_MORE.abs);
    f.f64(bound).op(F64_MORE.lt);
    if (!signed) f.get(value).f64(0).op(F64_MORE.ge).op(OP32.and);
    f.op(OP32.eqz);
    this.#frame.leaveIf();
    f.get(value).op(to === 'u64' ? CONVERT.i64_trunc_f64_u : CONVERT.i64_trunc_f64_s);
    if (to === 'u32') f.op(CONVERT.i64_extend32_s);
    this.setRd(WIDE);
  }

  integerToFp(from: IntegerKind, precision: Precision): void {
    const f = this.f;
    if (!this.#isNearest()) {
      this.#leave();
      return;
    }
    this.#beginNative();
    this.#x(this.#now().rs1);
    const narrow = from === 'i32' || from === 'u32';
    if (narrow) f.op(CONVERT.i32_wrap_i64);
    const opcodes = precision === 'd' ? TO_DOUBLE : TO_SINGLE;
    f.op(opcodes[from]);
    if (precision === 'd') {
      this.#doubleOnStack = true;
      this.setFd(WIDE);
    } else {
      f.op(CONVERT.i32_reinterpret_f32);
      this.setSingle(WORD);
    }
  }

  fpConvert(from: Precision, to: Precision): void {
    const { rs1 } = this.#now();
    if (!this.#isNearest()) {
      this.#leave();
      return;
    }
    this.#beginNative();
    if (from === 's') this.#boxed([rs1]);
    this.#native(from, rs1).op(from === 's' ? CONVERT.f64_promote_f32 : CONVERT.f32_demote_f64);
    // To double is exact
    this.#accept(to, to === 'd');
  }
}
