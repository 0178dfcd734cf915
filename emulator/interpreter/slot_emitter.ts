import type {
  Emitter, FpName, I32, I64, IntegerKind, LoadWidth, Precision, StoreWidth, SystemName,
} from '../isa/emitter.ts'; // biome-ignore format: one list
import { SYSTEM_NAMES } from '../isa/emitter.ts';
import { StackEmitter, WIDE, WORD } from '../isa/stack_emitter.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { FunctionBody } from '../wasm/module_builder.ts';
import {
  ATOMIC_FENCE,
  F32,
  F64,
  LOAD64,
  I32 as OP32,
  I64 as OP64,
  STORE64,
  TYPE_I32,
  TYPE_I64,
} from '../wasm/opcodes.ts';

/** Order is the `kind` argument of the kernel's loadSlow */
const LOAD_KINDS: readonly LoadWidth[] = ['b', 'bu', 'h', 'hu', 'w', 'wu', 'd'];
const LOAD_BYTES: Record<LoadWidth, number> = { b: 1, bu: 1, h: 2, hu: 2, w: 4, wu: 4, d: 8 };
const STORE_BYTES: Record<StoreWidth, number> = { b: 1, h: 2, w: 4, d: 8 };

const I32_LOAD = 0x28;
const I32_LOAD8_U = 0x2d;
const I32_LOAD16_U = 0x2f;
const I32_STORE = 0x36;
const I32_STORE8 = 0x3a;
const F32_LOAD = 0x2a;
const F64_LOAD = 0x2b;
const I64_EXTEND_I32_U = 0xad;
const I32_WRAP = 0xa7;
const I64_REINTERPRET_F64 = 0xbd;
const I32_REINTERPRET_F32 = 0xbc;
/** rd x0, rs1 ra, as a slot holds them */
const RETURN_OPERANDS = H.HART_X_DISCARD | (8 << 16);

/** Locals and labels of the run loop that every handler may use. */
export interface RunFrame {
  /** Base address of the hart in memory; all hart fields are constant offsets */
  readonly hart: number;
  /** `dirtyShift + (host >>> 12)` is the page's dirty byte; added as a constant offset */
  readonly dirtyOffset: number;
  /** i32: address of the current slot, and of its page's first */
  readonly slot: number;
  readonly base: number;
  /** i32: 32768 where branches inside the page may be taken directly, 0 where not (straddling instruction) */
  readonly limit: number;
  /** i64: virtual address of the page */
  readonly page: number;
  /** i64: where a far jump goes */
  readonly target: number;
  /** i32: data TLB of the mode */
  readonly dtlb: number;
  /** i32: fuel left */
  readonly fuel: number;
  /** i32: how the run ends, 0 to go on */
  readonly exit: number;
  /** Function indices */
  readonly call: (name: string) => number;
  /** Next instruction; far jump to `target`; go on at HART_PC; the run ends if `exit` is not 0, else as reload */
  readonly next: number;
  /** The next instruction is at `slot`, after a jump that counts as a visit */
  readonly count: number;
  /** i32: 1 where the far jump under way counts as a visit */
  readonly counted: number;
  readonly far: number;
  readonly reload: number;
}

/** Emits semantics for the interpreter: operands come from the current slot, registers from linear memory. */
export class SlotEmitter extends StackEmitter implements Emitter {
  readonly #frame: RunFrame;
  /** Slot bytes that this instruction takes: 16 or 32 */
  #step = 32;
  #jumped = false;

  constructor(f: FunctionBody, frame: RunFrame) {
    super(f);
    this.#frame = frame;
  }

  /** Starts an instruction of 2 or 4 bytes. */
  begin(lengthBytes: 2 | 4): void {
    this.#step = (lengthBytes / 2) * H.SLOT_BYTES;
    this.resetTemporaries();
    this.#jumped = false;
  }

  /** Ends it: unless it jumped, goes to the next slot. */
  finish(): void {
    if (this.#jumped) return;
    this.#advance();
    this.f.br(this.#frame.next);
  }

  #advance(): void {
    this.f.get(this.#frame.slot).i32(this.#step).op(OP32.add).set(this.#frame.slot);
  }

  protected override loadHart(opcode: number, offset: number): FunctionBody {
    return this.f.i32(this.#frame.hart).mem(opcode, offset);
  }
  protected override storeHart(opcode: number, offset: number, push: () => void): void {
    this.f.i32(this.#frame.hart);
    push();
    this.f.mem(opcode, offset);
  }
  protected override helper(name: string): number {
    return this.#frame.call(name);
  }

  // --- operands ---------------------------------------------------------------------------------------------

  #slotByte(offset: number): void {
    this.f.get(this.#frame.slot).mem(I32_LOAD8_U, offset);
  }
  #register(slotOffset: number, opcode: number, file: number): void {
    this.#slotByte(slotOffset);
    this.f.mem(opcode, this.#frame.hart + file);
  }

  rs1(): I64 {
    this.#register(H.SLOT_RS1, LOAD64.d, H.HART_X);
    return WIDE;
  }
  rs2(): I64 {
    this.#register(H.SLOT_RS2, LOAD64.d, H.HART_X);
    return WIDE;
  }
  rs1w(): I32 {
    this.#register(H.SLOT_RS1, I32_LOAD, H.HART_X);
    return WORD;
  }
  rs2w(): I32 {
    this.#register(H.SLOT_RS2, I32_LOAD, H.HART_X);
    return WORD;
  }
  imm(): I64 {
    this.f.get(this.#frame.slot).mem(LOAD64.d, H.SLOT_IMM);
    return WIDE;
  }
  imm32(): I32 {
    this.f.get(this.#frame.slot).mem(I32_LOAD, H.SLOT_IMM);
    return WORD;
  }
  pc(): I64 {
    this.#pcPlus(0);
    return WIDE;
  }
  nextPc(): I64 {
    this.#pcPlus(this.#step);
    return WIDE;
  }
  /** page + (slot + step − base) / 8: two bytes of code have sixteen of slot */
  #pcPlus(step: number): void {
    const { page, slot, base } = this.#frame;
    this.f.get(page).get(slot);
    if (step !== 0) this.f.i32(step).op(OP32.add);
    this.f.get(base).op(OP32.sub).i32(3).op(OP32.shr_u).op(I64_EXTEND_I32_U).op(OP64.add);
  }

  setRd(_value: I64): void {
    const value = this.temp64();
    this.f.set(value).get(this.#frame.slot).mem(I32_LOAD16_U, H.SLOT_RD);
    this.f.get(value).mem(STORE64.d, this.#frame.hart + H.HART_X);
  }

  // --- memory -----------------------------------------------------------------------------------------------

  #storePc(): void {
    this.f.i32(this.#frame.hart);
    this.#pcPlus(0);
    this.f.mem(STORE64.d, H.HART_PC);
  }

  /** For calls that may reach a device: the time that it tells follows from the fuel where `-icount` is used */
  #storePcAndFuel(): void {
    this.#storePc();
    this.f.i32(this.#frame.hart).get(this.#frame.fuel).mem(I32_STORE, H.HART_FUEL);
  }

  #reloadIfTrapped(): void {
    this.f.i32(this.#frame.hart).mem(I32_LOAD, H.HART_TRAPPED).brIf(this.#frame.reload);
  }

  /** Leaves i32 1 where the TLB entry of `va` has it; `entry` then points at it. */
  #probe(va: number, entry: number, bytes: number, tagOffset: number): void {
    const f = this.f;
    f.get(va);
    // The last byte's page must be the first's: unaligned accesses inside a page stay here
    if (bytes > 1) f.i64(bytes - 1).op(OP64.add);
    f.i64(-4096).op(OP64.and);
    f.get(va)
      .op(I32_WRAP)
      .i32(7)
      .op(OP32.shr_u)
      .i32((H.DTLB_ENTRIES - 1) * H.DTLB_ENTRY_BYTES)
      .op(OP32.and);
    f.get(this.#frame.dtlb).op(OP32.add).tee(entry).mem(LOAD64.d, tagOffset).op(OP64.eq);
  }

  /** Host address of `va` by the entry */
  #host(va: number, entry: number): void {
    this.f.get(va).op(I32_WRAP).get(entry).mem(I32_LOAD, 16).op(OP32.add);
  }

  load(width: LoadWidth, _address: I64): I64 {
    const f = this.f;
    const va = this.temp64();
    const entry = this.temp32();
    const value = this.temp64();
    f.set(va);
    this.#probe(va, entry, LOAD_BYTES[width], 0);
    f.if(TYPE_I64);
    this.#host(va, entry);
    f.mem(LOAD64[width], 0);
    f.else();
    this.#storePcAndFuel();
    f.get(va).i32(LOAD_KINDS.indexOf(width)).call(this.#frame.call('loadSlow')).set(value);
    this.#reloadIfTrapped();
    f.get(value);
    f.end();
    return WIDE;
  }

  protected override markDirty(host: number): void {
    this.f.get(host).i32(12).op(OP32.shr_u).i32(0xff).mem(I32_STORE8, this.#frame.dirtyOffset);
  }

  store(width: StoreWidth, _address: I64, value: () => I64): void {
    const f = this.f;
    const va = this.temp64();
    const entry = this.temp32();
    const host = this.temp32();
    f.set(va);
    this.#probe(va, entry, STORE_BYTES[width], 8);
    f.if();
    this.#host(va, entry);
    f.tee(host);
    value();
    f.mem(STORE64[width], 0);
    this.markDirty(host);
    f.else();
    this.#storePcAndFuel();
    f.get(va).i32(STORE_BYTES[width]);
    value();
    f.call(this.#frame.call('storeSlow'));
    this.#reloadIfTrapped();
    f.end();
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
    f.get(va)
      .op(I32_WRAP)
      .i32(7)
      .op(OP32.shr_u)
      .i32((H.DTLB_ENTRIES - 1) * H.DTLB_ENTRY_BYTES)
      .op(OP32.and);
    f.get(this.#frame.dtlb)
      .op(OP32.add)
      .tee(entry)
      .mem(LOAD64.d, write ? 8 : 0)
      .op(OP64.eq);
    f.if(TYPE_I32);
    this.#host(va, entry);
    f.else();
    this.#storePc();
    f.get(va)
      .i32(bytes)
      .i32(write ? 1 : 0)
      .call(this.#frame.call('atomicAddress'));
    f.end();
    f.tee(host).op(OP32.eqz).brIf(this.#frame.reload);
    return host;
  }

  fence(): void {
    this.f.op(0xfe, ATOMIC_FENCE, 0);
  }

  // --- control ----------------------------------------------------------------------------------------------

  branch(_condition: I32): void {
    const f = this.f;
    f.if();
    this.#goRelative(false);
    f.end();
  }
  jump(): void {
    this.#goRelative(true);
    this.#jumped = true;
  }

  /** To pc + imm: inside the page by moving the slot, else by address. */
  #goRelative(counts: boolean): void {
    const f = this.f;
    const { slot, base, limit, next, count, far, target } = this.#frame;
    const offset = this.temp32();
    f.get(slot).get(base).op(OP32.sub).get(slot).mem(I32_LOAD, H.SLOT_IMM).i32(3).op(OP32.shl).op(OP32.add);
    f.tee(offset).get(limit).op(OP32.lt_u);
    f.if();
    if (counts) {
      f.get(base).get(offset).op(OP32.add).set(slot).br(count);
    } else {
      // A backward branch counts: it may close a loop
      f.get(slot).mem(I32_LOAD, H.SLOT_IMM);
      f.get(base).get(offset).op(OP32.add).set(slot);
      f.i32(0).op(OP32.lt_s).brIf(count);
      f.br(next);
    }
    f.end();
    this.#pcPlus(0);
    this.imm();
    f.op(OP64.add).set(target).i32(1).set(this.#frame.counted).br(far);
  }

  /** A return does not count; other indirect jumps do, and leave their slot for who asks where they go */
  jumpTo(_address: I64): void {
    const f = this.f;
    const { slot, target, counted, hart, far } = this.#frame;
    f.set(target);
    f.get(slot).mem(I32_LOAD, H.SLOT_RD).i32(0xff_ffff).op(OP32.and).i32(RETURN_OPERANDS).op(OP32.eq).brIf(far);
    f.i32(hart).get(slot).mem(I32_STORE, H.HART_JUMP_FROM);
    f.i32(1).set(counted).br(far);
    this.#jumped = true;
  }

  system(name: SystemName): void {
    const f = this.f;
    const { hart, fuel, slot, exit, reload } = this.#frame;
    this.#storePc();
    f.i32(hart).get(fuel).mem(I32_STORE, H.HART_FUEL);
    f.i32(SYSTEM_NAMES.indexOf(name)).get(slot).call(this.#frame.call('system')).set(exit);
    f.br(reload);
    this.#jumped = true;
  }

  /** What the decoder did not know: an illegal instruction. */
  illegal(): void {
    this.#storePc();
    this.imm();
    this.f.call(this.#frame.call('illegalInstruction'));
    this.f.br(this.#frame.reload);
    this.#jumped = true;
  }

  // --- floating point ---------------------------------------------------------------------------------------

  fpEnabled(): void {
    const f = this.f;
    const { hart, reload } = this.#frame;
    f.i32(hart).mem(I32_LOAD, H.HART_FS).op(OP32.eqz);
    f.if();
    this.#storePc();
    f.call(this.#frame.call('illegalHere')).br(reload);
    f.end();
  }

  #fpDirty(): void {
    this.f.i32(this.#frame.hart).i32(3).mem(I32_STORE, H.HART_FS);
  }

  fs1(): I64 {
    this.#register(H.SLOT_RS1, LOAD64.d, H.HART_F);
    return WIDE;
  }
  fs2(): I64 {
    this.#register(H.SLOT_RS2, LOAD64.d, H.HART_F);
    return WIDE;
  }
  #fs3(): void {
    this.#register(H.SLOT_RS3, LOAD64.d, H.HART_F);
  }

  setFd(_value: I64): void {
    const value = this.temp64();
    this.f.set(value).get(this.#frame.slot).mem(I32_LOAD16_U, H.SLOT_RD);
    this.f.get(value).mem(STORE64.d, this.#frame.hart + H.HART_F);
    this.#fpDirty();
  }
  /** The rounding mode, resolved, in a local; the instruction ends where it is illegal. */
  #rounding(): number {
    const f = this.f;
    const rm = this.temp32();
    this.#storePc();
    f.get(this.#frame.slot).mem(I32_LOAD, H.SLOT_RM).call(this.#frame.call('beginFloat')).tee(rm);
    f.i32(8).op(OP32.eq).brIf(this.#frame.reload);
    return rm;
  }

  #operand(precision: Precision, which: 1 | 2 | 3): void {
    if (which === 1) this.fs1();
    else if (which === 2) this.fs2();
    else this.#fs3();
    if (precision === 's') this.unbox();
  }
  #soft(precision: Precision, name: string): void {
    this.f.call(this.#frame.call(`f${precision === 's' ? 32 : 64}_${name}`));
  }
  #setFp(precision: Precision): void {
    if (precision === 's') this.setSingle(WORD);
    else this.setFd(WIDE);
  }

  /** Round-to-nearest with NX standing: the native result is right with its flags where its exponent is safely normal. */
  #native(precision: Precision, op: FpName, operands: 1 | 2): void {
    const f = this.f;
    const { hart, slot, next } = this.#frame;
    f.get(slot).mem(I32_LOAD, H.SLOT_RM_FAST).i32(hart).mem(I32_LOAD, H.HART_FP_FAST).op(OP32.and);
    if (precision === 's') {
      // Both boxed: the upper halves are all ones
      this.fs1();
      if (operands === 2) {
        this.fs2();
        f.op(OP64.and);
      }
      f.i64(32).op(OP64.shr_u).i64(0xffff_ffff).op(OP64.eq).op(OP32.and);
    }
    f.if();
    if (precision === 'd') {
      const bits = this.temp64();
      this.#register(H.SLOT_RS1, F64_LOAD, H.HART_F);
      if (operands === 2) this.#register(H.SLOT_RS2, F64_LOAD, H.HART_F);
      f.op(F64[op]).op(I64_REINTERPRET_F64).tee(bits);
      f.i64(52).op(OP64.shr_u).op(I32_WRAP).i32(0x7ff).op(OP32.and).i32(2).op(OP32.sub).i32(0x7fd).op(OP32.lt_u);
      f.if();
      f.get(slot)
        .mem(I32_LOAD16_U, H.SLOT_RD)
        .get(bits)
        .mem(STORE64.d, hart + H.HART_F);
    } else {
      const bits = this.temp32();
      this.#register(H.SLOT_RS1, F32_LOAD, H.HART_F);
      if (operands === 2) this.#register(H.SLOT_RS2, F32_LOAD, H.HART_F);
      f.op(F32[op]).op(I32_REINTERPRET_F32).tee(bits);
      f.i32(23).op(OP32.shr_u).i32(0xff).op(OP32.and).i32(2).op(OP32.sub).i32(0xfd).op(OP32.lt_u);
      f.if();
      f.get(slot).mem(I32_LOAD16_U, H.SLOT_RD).get(bits).op(I64_EXTEND_I32_U).i64(-0x1_0000_0000n).op(OP64.or);
      f.mem(STORE64.d, hart + H.HART_F);
    }
    this.#advance();
    f.br(next);
    f.end();
    f.end();
  }

  fpArithmetic(op: 'add' | 'sub' | 'mul' | 'div', precision: Precision): void {
    this.#native(precision, op, 2);
    const rm = this.#rounding();
    this.#operand(precision, 1);
    this.#operand(precision, 2);
    this.f.get(rm);
    this.#soft(precision, op);
    this.#setFp(precision);
  }
  fpSqrt(precision: Precision): void {
    this.#native(precision, 'sqrt', 1);
    const rm = this.#rounding();
    this.#operand(precision, 1);
    this.f.get(rm);
    this.#soft(precision, 'sqrt');
    this.#setFp(precision);
  }
  fpFused(negateProduct: boolean, negateAddend: boolean, precision: Precision): void {
    const rm = this.#rounding();
    const negate = (yes: boolean): void => {
      if (!yes) return;
      if (precision === 's') this.f.i32(0x8000_0000 | 0).op(OP32.xor);
      else this.f.i64(1n << 63n).op(OP64.xor);
    };
    this.#operand(precision, 1);
    negate(negateProduct);
    this.#operand(precision, 2);
    this.#operand(precision, 3);
    negate(negateAddend);
    this.f.get(rm);
    this.#soft(precision, 'fma');
    this.#setFp(precision);
  }
  fpMinMax(op: 'min' | 'max', precision: Precision): void {
    this.fpEnabled();
    this.#operand(precision, 1);
    this.#operand(precision, 2);
    this.#soft(precision, op);
    this.#setFp(precision);
  }
  fpCompare(op: 'eq' | 'lt' | 'le', precision: Precision): void {
    this.fpEnabled();
    this.#operand(precision, 1);
    this.#operand(precision, 2);
    this.#soft(precision, op);
    this.f.op(I64_EXTEND_I32_U);
    this.setRd(WIDE);
    this.#fpDirty();
  }
  fpClass(precision: Precision): void {
    this.fpEnabled();
    this.#operand(precision, 1);
    this.#soft(precision, 'class');
    this.f.op(I64_EXTEND_I32_U);
    this.setRd(WIDE);
  }
  fpToInteger(precision: Precision, to: IntegerKind): void {
    const rm = this.#rounding();
    this.#operand(precision, 1);
    this.f.get(rm);
    this.#soft(precision, `to_${to}`);
    this.setRd(WIDE);
  }
  integerToFp(from: IntegerKind, precision: Precision): void {
    const rm = this.#rounding();
    this.rs1();
    this.f.get(rm).call(this.#frame.call(`${from}_to_f${precision === 's' ? 32 : 64}`));
    this.#setFp(precision);
  }
  fpConvert(from: Precision, to: Precision): void {
    const rm = this.#rounding();
    this.#operand(from, 1);
    if (from === 'd') this.f.get(rm);
    this.#soft(from, to === 's' ? 'to_f32' : 'to_f64');
    this.#setFp(to);
  }
}
