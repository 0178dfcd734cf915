// A translated function around what its region does: the hart's fields, registers in locals, and its end.
import * as H from '../kernel/assembly/hart_layout.ts';
import type { FunctionBody } from '../wasm/module_builder.ts';
import {
  CONVERT, LOAD64, MEMORY, I32 as OP32, I64 as OP64, STORE64, TYPE_F64, TYPE_I32, TYPE_I64,
} from '../wasm/opcodes.ts'; // biome-ignore format: one list
import type { BlockFacts } from './analysis.ts';
import { ARGUMENT_DEPTH_SHIFT, HART, type WriterContext } from './function_context.ts';
import type { Window } from './operand_emitter.ts';
import type { Region } from './region.ts';
import { SITE_AT_SHIFT, SITE_GO_ON, SPENT_MASK } from './sites.ts';

export abstract class FunctionFrame {
  protected readonly f: FunctionBody;
  protected readonly context: WriterContext;
  /** i64: address of the base page */
  protected readonly base: number;
  /** i32: address of the data TLB */
  protected readonly dtlb: number;
  protected readonly usesMemory: boolean;
  protected readonly window: Window | undefined;
  /** i32: where the function is left, as site() gives it; 0 where `result` says it */
  protected readonly site: number;
  /** i64: where to go on, the fuel counted */
  protected readonly result: number;
  /** i32: the argument for calls: one less deep, entry 0 */
  protected readonly deeper: number;
  /**
   * i32: the fuel word while the function runs, for a load that waits for the store of a loop's last turn takes longer
   * than a short turn. In memory when frames are crossed
   */
  protected readonly fuel: number;
  readonly #x: number[] = [];
  readonly #fp: number[] = [];
  #lineLocal = -1;

  constructor(f: FunctionBody, region: Region, context: WriterContext) {
    this.f = f;
    this.context = context;
    this.base = f.local(TYPE_I64);
    this.result = f.local(TYPE_I64);
    this.site = f.local(TYPE_I32);
    this.deeper = f.local(TYPE_I32);
    this.fuel = f.local(TYPE_I32);
    this.dtlb = f.local(TYPE_I32);
    this.usesMemory = [...region.blocks.values()].some(({ instructions }) =>
      instructions.some(({ facts }) => facts.loads),
    );
    if (context.windowRegisters !== 0)
      this.window = { first: f.local(TYPE_I64), reach: f.local(TYPE_I64), host: f.local(TYPE_I32) };
  }

  protected registerX(register: number): number {
    this.#x[register] ??= this.f.local(TYPE_I64);
    return this.#x[register];
  }

  protected registerF(register: number): number {
    this.#fp[register] ??= this.f.local(TYPE_F64);
    return this.#fp[register];
  }

  protected pushHart(): void {
    if (this.context.hart === undefined) this.f.get(HART);
    else this.f.i32(0);
  }

  protected passHart(): void {
    if (this.context.hart === undefined) this.f.get(HART);
    else this.f.i32(this.context.hart);
  }

  protected field(offset: number): number {
    return (this.context.hart ?? 0) + offset;
  }

  protected load(opcode: number, offset: number): FunctionBody {
    this.pushHart();
    return this.f.mem(opcode, this.field(offset));
  }

  protected store(x: number, fp: number): void {
    for (let register = 1; register < 32; register++) {
      if ((x & (1 << register)) === 0) continue;
      this.pushHart();
      this.f.get(this.registerX(register)).mem(STORE64.d, this.field(H.HART_X + register * 8));
    }
    for (let register = 0; register < 32; register++) {
      if ((fp & (1 << register)) === 0) continue;
      this.pushHart();
      this.f.get(this.registerF(register)).mem(MEMORY.f64_store, this.field(H.HART_F + register * 8));
    }
  }

  /** Locals of what a block needs, from memory */
  protected reload({ liveX, liveF }: BlockFacts): void {
    for (let register = 1; register < 32; register++) {
      if ((liveX & (1 << register)) === 0) continue;
      this.load(LOAD64.d, H.HART_X + register * 8).set(this.registerX(register));
    }
    for (let register = 0; register < 32; register++) {
      if ((liveF & (1 << register)) === 0) continue;
      this.load(MEMORY.f64_load, H.HART_F + register * 8).set(this.registerF(register));
    }
    if (this.usesMemory) this.load(MEMORY.i32_load, H.HART_DTLB).set(this.dtlb);
    if (this.window !== undefined) {
      this.load(LOAD64.d, H.HART_WINDOW).set(this.window.first);
      this.load(LOAD64.d, H.HART_WINDOW_REACH).set(this.window.reach);
      this.load(MEMORY.i32_load, H.HART_WINDOW_HOST).set(this.window.host);
    }
  }

  protected address(at: number): FunctionBody {
    this.f.get(this.base);
    if (at !== 0) this.f.i64(at).op(OP64.add);
    return this.f;
  }

  /** Brings the fuel word up to date before a frame is crossed: less what `push` pushes (i32). */
  protected storeFuel(push: () => void): void {
    this.pushHart();
    this.f.get(this.fuel);
    push();
    this.f.op(OP32.sub).mem(MEMORY.i32_store, this.field(H.HART_FUEL));
  }

  protected jumpCacheLine(): number {
    if (this.#lineLocal < 0) this.#lineLocal = this.f.local(TYPE_I32);
    return this.#lineLocal;
  }

  /** Sets the line of the jump cache for the address in a local; leaves i32 1 if it is that address's. */
  protected findInJumpCache(address: number): void {
    const f = this.f;
    const line = this.jumpCacheLine();
    f.get(address)
      .op(CONVERT.i32_wrap_i64)
      .i32(1)
      .op(OP32.shr_u)
      .i32(H.JUMP_CACHE_ENTRIES - 1)
      .op(OP32.and);
    f.i32(4).op(OP32.shl);
    if (this.context.hart === undefined) f.get(HART).op(OP32.add);
    f.tee(line).mem(LOAD64.d, this.field(H.HART_JUMP_CACHE));
    f.get(address);
    this.load(LOAD64.d, H.HART_JUMP_SALT).op(OP64.xor).op(OP64.eq);
  }

  /** Calls where the jump cache says that the target's function is; else the target itself is the result. */
  protected callRegister(target: number): void {
    const f = this.f;
    const line = this.jumpCacheLine();
    this.findInJumpCache(target);
    f.hint(true).if(TYPE_I64);
    f.get(target)
      .get(this.deeper)
      .get(line)
      .mem(MEMORY.i32_load, this.field(H.HART_JUMP_CACHE + 12))
      .op(OP32.or);
    this.passHart();
    f.get(line)
      .mem(MEMORY.i32_load, this.field(H.HART_JUMP_CACHE + 8))
      .callIndirect(this.context.functionType);
    f.else();
    f.get(target);
    f.end();
  }

  /**
   * The function's end: to the interpreter, to the caller, or in place of this function to one that begins where it was
   * left. Long functions are translated in pieces, and go from one to the next that way.
   */
  protected goOnElsewhere(): void {
    const f = this.f;
    const line = this.jumpCacheLine();
    const done = f.block();
    f.get(this.site).op(OP32.eqz).brIf(done);
    f.get(this.site).i32(SITE_GO_ON).op(OP32.ne).if();
    this.storeFuel(() => {
      f.get(this.site).i32(1).op(OP32.shr_u).i32(SPENT_MASK).op(OP32.and).i32(1).op(OP32.sub);
    });
    f.get(this.base).get(this.site).i32(SITE_AT_SHIFT).op(OP32.shr_s).op(CONVERT.i64_extend_i32_s).op(OP64.add);
    f.get(this.site).i32(1).op(OP32.and).op(CONVERT.i64_extend_i32_u).op(OP64.or).set(this.result);
    f.get(this.site).i32(1).op(OP32.and).brIf(done);
    f.end();
    this.findInJumpCache(this.result);
    f.op(OP32.eqz).brIf(done);
    f.get(this.result);
    f.get(this.deeper)
      .i32(1 << ARGUMENT_DEPTH_SHIFT)
      .op(OP32.add);
    f.get(line)
      .mem(MEMORY.i32_load, this.field(H.HART_JUMP_CACHE + 12))
      .op(OP32.or);
    this.passHart();
    f.get(line).mem(MEMORY.i32_load, this.field(H.HART_JUMP_CACHE + 8));
    f.returnCallIndirect(this.context.functionType);
    f.end();
    f.get(this.result);
  }
}
