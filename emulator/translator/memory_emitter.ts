// Loads, stores and atomics: where an address is in host memory, by the window, by what a loop remembers, by the TLB.
import type { I64, LoadWidth, StoreWidth } from '../isa/emitter.ts';
import { WIDE, WORD } from '../isa/stack_emitter.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { FunctionBody } from '../wasm/module_builder.ts';
import {
  ATOMIC_FENCE, ATOMIC_RMW, CONVERT, LOAD64, MEMORY, I32 as OP32, I64 as OP64, STORE64, TYPE_I32,
} from '../wasm/opcodes.ts'; // biome-ignore format: one list
import type { AccessGroup } from './access_groups.ts';
import { X } from './instruction.ts';
import { OperandEmitter } from './operand_emitter.ts';

const LOAD_BYTES: Record<LoadWidth, number> = { b: 1, bu: 1, h: 2, hu: 2, w: 4, wu: 4, d: 8 };
const STORE_BYTES: Record<StoreWidth, number> = { b: 1, h: 2, w: 4, d: 8 };
const PAGE_BYTES = 4096;
const DROP = 0x1a;
/** fence: bits of pred and succ: in, out, read, write */
const FENCE_WRITES = 0b0101;
const FENCE_READS = 0b1010;
const FENCE_TSO = 0b1000;

export abstract class MemoryEmitter extends OperandEmitter {
  readonly #groupLocals: number[] = [];
  #usedGroup = 0;
  protected group: AccessGroup | undefined;
  /** A double stands on the stack where the table thinks of its bits */
  protected doubleOnStack = false;

  override beginBlock(): void {
    super.beginBlock();
    this.#usedGroup = 0;
  }

  #groupLocal(): number {
    const index = this.#usedGroup++;
    this.#groupLocals[index] ??= this.f.local(TYPE_I32);
    return this.#groupLocals[index];
  }
  /** Leaves the address of the TLB entry for `va` on the stack. */
  #entryOf(va: number): FunctionBody {
    this.f.get(va).op(CONVERT.i32_wrap_i64).i32(7).op(OP32.shr_u);
    this.f.i32((H.DTLB_ENTRIES - 1) * H.DTLB_ENTRY_BYTES).op(OP32.and);
    return this.f.get(this.frame.dtlb).op(OP32.add);
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
    this.frame.leaveIf(tag);
  }
  /** The same by what the loop remembers of the page of this instruction's pointer, where it remembers any. */
  #locate(va: number, host: number, bytes: number, loads: boolean, stores: boolean): void {
    const f = this.f;
    const entry = this.temp32();
    const window = this.frame.window(this.now().rs1);
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
    const cache = this.frame.pageCache(this.now().rs1);
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
    this.frame.leaveIf();
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
    this.x(this.now().rs1);
    if (group.min !== 0) f.i64(group.min).op(OP64.add);
    f.set(va);
    this.#locate(va, group.hostLocal, group.span, group.loads, group.stores);
    if (!group.stores) return;
    group.pageLocal = this.#groupLocal();
    f.get(group.hostLocal).i32(12).op(OP32.shr_u).set(group.pageLocal);
  }

  /** Forgets the address on the stack where a group knows it; the group, looked up. */
  #grouped(): AccessGroup | undefined {
    const group = this.group;
    if (group === undefined) return undefined;
    this.f.code.truncate(this.operandAt);
    if (group.hostLocal < 0) this.#openGroup(group);
    return group;
  }

  load(width: LoadWidth, _address: I64): I64 {
    const f = this.f;
    const double = this.now().facts.row.name === 'fld';
    this.doubleOnStack = double;
    const word = width === 'w' && !double && this.now().facts.rd === X;
    const opcode = double ? MEMORY.f64_load : word ? MEMORY.i32_load : LOAD64[width];
    const group = this.#grouped();
    if (group !== undefined) {
      f.get(group.hostLocal).mem(opcode, this.now().imm - group.min);
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
    this.f.get(host).i32(12).op(OP32.shr_u).i32(0xff).mem(MEMORY.i32_store8, this.frame.dirtyOffset);
  }

  store(width: StoreWidth, _address: I64, value: () => I64): void {
    const f = this.f;
    const double = this.now().facts.row.name === 'fsd';
    const opcode = double ? MEMORY.f64_store : STORE64[width];
    const push = (): void => {
      if (double) f.get(this.frame.fp(this.now().rs2));
      else value();
    };
    const group = this.#grouped();
    if (group !== undefined) {
      f.get(group.hostLocal);
      push();
      f.mem(opcode, this.now().imm - group.min);
      if (group.unmarked.has(this.now())) return;
      f.get(group.pageLocal).i32(0xff).mem(MEMORY.i32_store8, this.frame.dirtyOffset);
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
    this.frame.leaveIf();
    return host;
  }

  /**
   * A strongly ordered host keeps every order but that of a store before a load. The machine's main thread reads
   * queues in RAM too, so one hart alone does not make fences needless.
   */
  fence(): void {
    const word = this.now().imm;
    const ordersStoreBeforeLoad =
      ((word >>> 24) & FENCE_WRITES) !== 0 && ((word >>> 20) & FENCE_READS) !== 0 && word >>> 28 !== FENCE_TSO;
    if (this.frame.strongOrder && !ordersStoreBeforeLoad) {
      // The processor needs nothing, but the compiler would let a load before the fence stand for one behind it:
      // an atomic access to a word of the hart's own keeps it from that, at a tenth of atomic.fence's cost
      this.frame.pushHart();
      this.f.i64(0).atomic(ATOMIC_RMW.add[1], 3, this.frame.field(H.HART_X_DISCARD)).op(DROP);
      return;
    }
    this.f.op(0xfe, ATOMIC_FENCE, 0);
  }
}
