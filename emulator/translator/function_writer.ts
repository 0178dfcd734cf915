// Writes one region as one WebAssembly function: (address, argument, hart) → where to go on. Longer than most files,
// for it is one walk: what is written at one place says what the next may take for granted. What is around it is in
// function_frame.ts.
import { SYSTEM_NAMES, type SystemName } from '../isa/emitter.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { FunctionBody } from '../wasm/module_builder.ts';
import { CONVERT, LOAD64, MEMORY, I32 as OP32, I64 as OP64, STORE64, TYPE_I32, TYPE_I64 } from '../wasm/opcodes.ts';
import { groupAccesses } from './access_groups.ts';
import { type Analysis, analyse, type BlockFacts, writesF, writesX } from './analysis.ts';
import { type FlowEdge, type FlowNode, structure } from './flow.ts';
import { ARGUMENT, ARGUMENT_DEPTH_SHIFT, type EntryPoint, PC, type WriterContext } from './function_context.ts';
import { FunctionFrame } from './function_frame.ts';
import { placeOf } from './inlining.ts';
import type { EmitterFrame, PageCache } from './operand_emitter.ts';
import { planPageCaches } from './page_caches.ts';
import type { Block, Region } from './region.ts';
import { RegisterEmitter } from './register_emitter.ts';
import { chainSets, type RegisterSet, setKey } from './register_sets.ts';
import { isNear, SITE_GO_ON, site } from './sites.ts';

const RA = 1;

/** Appends the region's code to `f`; gives its entry points. */
export function writeFunction(f: FunctionBody, region: Region, context: WriterContext): readonly EntryPoint[] {
  return new FunctionWriter(f, region, context).write();
}

class FunctionWriter extends FunctionFrame {
  readonly #region: Region;
  readonly #flow;
  readonly #analysis: Analysis;
  readonly #emitter: RegisterEmitter;
  /** By register; and of each block in a loop that uses them, the registers */
  readonly #pageCaches = new Map<number, PageCache>();
  readonly #cached: ReadonlyMap<number, ReadonlySet<number>>;
  /** Label by which the function ends, registers stored; by set of registers that are still to be stored */
  #leave = 0;
  readonly #leaveBy = new Map<string, number>();
  readonly #mergeLabels = new Map<FlowNode, number>();
  readonly #loopLabels = new Map<FlowNode, number>();
  readonly #dispatchLocals = new Map<FlowNode, number>();
  /** Of the instruction being written: its place, registers newer than memory, instructions before it not yet counted */
  #at = 0;
  /** Start of the block being written */
  #blockAt = 0;
  #dirtyX = 0;
  #dirtyF = 0;
  #spent = 0;

  constructor(f: FunctionBody, region: Region, context: WriterContext) {
    super(f, region, context);
    this.#region = region;
    this.#flow = structure(region);
    this.#analysis = analyse(this.#flow);
    const { plans, registers } = planPageCaches(this.#flow, context.windowRegisters);
    this.#cached = registers;
    for (const [register, plan] of plans) {
      const [page, reach, distance] = [f.local(TYPE_I64), f.local(TYPE_I64), f.local(TYPE_I32)];
      this.#pageCaches.set(register, { ...plan, page, reach, distance });
    }
    const frame: EmitterFrame = {
      f,
      x: (register) => this.registerX(register),
      fp: (register) => this.registerF(register),
      base: this.base,
      dtlb: this.dtlb,
      pushHart: () => this.pushHart(),
      field: (offset) => this.field(offset),
      dirtyOffset: context.dirtyOffset,
      fusesMultiplyAdd: context.fusesMultiplyAdd,
      strongOrder: context.strongOrder,
      call: (name) => context.call(name),
      window: (register) => (((context.windowRegisters >>> register) & 1) === 1 ? this.window : undefined),
      leaveIf: (looked) => {
        f.hint(false).if();
        if (looked !== undefined) f.get(looked).set(this.result);
        f.i32(site(this.#at, this.#spent, true)).set(this.site);
        f.br(this.#leaveWith(this.#dirtyX, this.#dirtyF));
        f.end();
      },
      pageCache: (register) =>
        this.#cached.get(this.#blockAt)?.has(register) === true ? this.#pageCaches.get(register) : undefined,
    };
    this.#emitter = new RegisterEmitter(frame);
  }

  write(): readonly EntryPoint[] {
    const f = this.f;
    this.#leave = f.block();
    const chains = chainSets(this.#collectSets());
    for (const chain of chains) for (const { key } of chain) this.#leaveBy.set(key, f.block());
    this.#prologue();
    this.#tree(this.#flow.root);
    // A set stores what the next smaller does not, and goes on there
    for (const chain of chains.toReversed()) {
      for (let i = chain.length - 1; i >= 0; i--) {
        const { x, fp } = chain[i]!;
        const { x: thenX, fp: thenF } = chain[i - 1] ?? { x: 0, fp: 0 };
        f.end();
        this.store(x & ~thenX, fp & ~thenF);
      }
      f.br(this.#leave);
    }
    f.end();
    this.goOnElsewhere();
    return this.#flow.entries.map((at, number) => ({ at, number, leastFuel: this.#facts(at).ahead }));
  }

  #facts(at: number): BlockFacts {
    return this.#analysis.get(at)!;
  }

  /** Sets of registers that some way out of the function stores, as their keys */
  #collectSets(): RegisterSet[] {
    const sets = new Map<string, RegisterSet>();
    const add = (x: number, fp: number): void => {
      if (x === 0 && fp === 0) return;
      const key = setKey(x, fp);
      if (!sets.has(key)) sets.set(key, { key, x, fp });
    };
    for (const { block } of this.#flow.nodes) {
      if (block === undefined) continue;
      let { dirtyInX: x, dirtyInF: fp } = this.#facts(block.at);
      for (const instruction of block.instructions) {
        if (instruction.facts.leaves) add(x, fp);
        x |= writesX(instruction);
        fp |= writesF(instruction);
      }
      add(x, fp);
    }
    return [...sets.values()];
  }
  #leaveWith(x: number, fp: number): number {
    if (x === 0 && fp === 0) return this.#leave;
    const label = this.#leaveBy.get(setKey(x, fp));
    if (label === undefined) throw new Error(`No way out stores the registers ${x.toString(16)}, ${fp.toString(16)}`);
    return label;
  }

  /** Leaves with `result` where the fuel word does not reach for what lies ahead of the sync block at `at`. */
  #checkFuel(at: number): void {
    this.f.get(this.fuel).i32(this.#facts(at).ahead).op(OP32.lt_s).hint(false).brIf(this.#leave);
  }

  /** Where the function's pages are, whether they are what was translated, and whether it may go deeper. */
  #prologue(): void {
    const f = this.f;
    const ready = f.block();
    const bail = f.block();
    f.get(PC).i64(-4096).op(OP64.and);
    if (this.#flow.entries.some((at) => at >> 12 !== 0)) {
      f.get(ARGUMENT).i32(16).op(OP32.shl).i32(24).op(OP32.shr_s).op(CONVERT.i64_extend_i32_s);
      f.i64(12).op(OP64.shl).op(OP64.sub);
    }
    f.set(this.base);
    f.get(ARGUMENT)
      .i32(-1 << ARGUMENT_DEPTH_SHIFT)
      .op(OP32.and)
      .i32(1 << ARGUMENT_DEPTH_SHIFT)
      .op(OP32.sub);
    f.tee(this.deeper).i32(0).op(OP32.lt_s).hint(false).brIf(bail);
    for (const number of this.#region.pages.keys()) {
      const key = this.context.keyOf(number);
      this.load(LOAD64.d, H.HART_EXEC_CELLS + key * 8);
      // Between load and comparison: see MemoryEmitter's look-up
      this.load(MEMORY.i32_load, H.HART_FUEL).set(this.fuel);
      this.address(number * 4096).op(OP64.ne);
      f.hint(false).if();
      f.i32(key);
      this.address(number * 4096)
        .call(this.context.call('validateCode'))
        .op(OP32.eqz)
        .brIf(bail);
      f.end();
    }
    f.br(ready);
    f.end();
    f.get(PC).ret();
    f.end();
  }

  // --- structure ------------------------------------------------------------------------------------------------

  #tree(node: FlowNode): void {
    if (!node.isLoop) {
      this.#within(node, 0);
      return;
    }
    this.#loopLabels.set(node, this.f.loop());
    this.#within(node, 0);
    this.f.end();
    this.f.op(0x00);
  }
  #within(node: FlowNode, merge: number): void {
    const merged = node.merges[merge];
    if (merged === undefined) {
      this.#content(node);
      return;
    }
    this.#mergeLabels.set(merged, this.f.block());
    this.#within(node, merge + 1);
    this.f.end();
    this.#tree(merged);
  }
  #go(edge: FlowEdge): void {
    for (const { node, value } of edge.labels) this.f.i32(value).set(this.#dispatchLocal(node));
    if (edge.to.order <= edge.from.order) this.f.br(this.#loopLabels.get(edge.to)!);
    else if (edge.to.isMerge) this.f.br(this.#mergeLabels.get(edge.to)!);
    else this.#tree(edge.to);
  }
  #dispatchLocal(node: FlowNode): number {
    let local = this.#dispatchLocals.get(node);
    if (local === undefined) {
      local = this.f.local(TYPE_I32);
      this.#dispatchLocals.set(node, local);
    }
    return local;
  }
  /** Goes on by the edge whose number `push` pushes. */
  #select(edges: readonly FlowEdge[], push: () => void, before: (edge: FlowEdge) => void): void {
    const f = this.f;
    if (edges.length === 1) {
      before(edges[0]!);
      this.#go(edges[0]!);
      return;
    }
    const labels: number[] = [];
    for (let i = edges.length - 1; i >= 0; i--) labels[i] = f.block();
    push();
    f.brTable(labels.slice(0, -1), labels.at(-1)!);
    for (const edge of edges) {
      f.end();
      before(edge);
      this.#go(edge);
    }
  }

  #content(node: FlowNode): void {
    const f = this.f;
    if (node.kind === 'dispatch') {
      this.#select(
        node.edges,
        () => f.get(this.#dispatchLocal(node)),
        () => {},
      );
      return;
    }
    if (node.kind === 'entry') {
      this.#select(
        node.edges,
        () => f.get(ARGUMENT).i32(0xff).op(OP32.and),
        ({ target }) => {
          f.get(PC).set(this.result);
          this.#checkFuel(target);
          this.reload(this.#facts(target));
        },
      );
      return;
    }
    this.#block(node, node.block!);
  }

  // --- blocks ---------------------------------------------------------------------------------------------------

  #block(node: FlowNode, block: Block): void {
    const its = this.#facts(block.at);
    const groups = groupAccesses(block.instructions);
    this.#dirtyX = its.dirtyInX;
    this.#dirtyF = its.dirtyInF;
    this.#spent = its.spent;
    this.#blockAt = block.at;
    this.#emitter.beginBlock();
    for (const instruction of block.instructions) {
      this.#at = instruction.at;
      if (instruction.facts.flow !== 'system') this.#emitter.emit(instruction, groups.get(instruction));
      this.#spent++;
      this.#dirtyX |= writesX(instruction);
      this.#dirtyF |= writesF(instruction);
    }
    const { end } = block;
    switch (end.kind) {
      case 'next':
        this.#edge(node, block, end.to);
        break;
      case 'branch':
        // The branch has left its condition on the stack
        this.f.if();
        this.#edge(node, block, end.taken);
        this.f.end();
        this.#edge(node, block, end.to);
        break;
      case 'leave':
        this.#exitTo(block, end.to);
        break;
      case 'register':
        this.#register(node, block, end.targets);
        break;
      case 'system':
        this.#system(node, block, end.to);
        break;
      case 'call':
        this.#callAndReturn(node, block, end.target, end.back);
        break;
      case 'guess':
        this.f.get(this.#emitter.target);
        this.address(end.target).op(OP64.eq).hint(true).if();
        this.#edge(node, block, end.to);
        this.f.end();
        this.#callAndReturn(node, block, undefined, end.back);
        break;
    }
  }

  /** Leaves the function for a known place. */
  #exitTo(block: Block, to: number): void {
    const { dirtyX, dirtyF, spent } = this.#facts(block.at);
    const uncounted = spent + block.instructions.length;
    const at = placeOf(to);
    if (isNear(at)) this.f.i32(site(at, uncounted, false)).set(this.site);
    else {
      this.storeFuel(() => this.f.i32(uncounted));
      this.address(at).set(this.result);
      this.f.i32(SITE_GO_ON).set(this.site);
    }
    this.f.br(this.#leaveWith(dirtyX, dirtyF));
  }

  #edge(node: FlowNode, block: Block, to: number): void {
    const f = this.f;
    const edge = node.edges.find(({ target }) => target === to);
    if (edge === undefined) {
      this.#exitTo(block, to);
      return;
    }
    const its = this.#facts(block.at);
    const spent = its.spent + block.instructions.length;
    const target = this.#facts(to);
    if (target.isSync) {
      f.get(this.fuel).i32(spent).op(OP32.sub).tee(this.fuel);
      f.i32(target.ahead).op(OP32.lt_s).hint(false).if();
      f.i32(site(placeOf(to), 0, false))
        .set(this.site)
        .br(this.#leaveWith(its.dirtyX, its.dirtyF));
      f.end();
    } else if (target.spent > spent) {
      // The shorter of two ways counts what the longer did
      f.get(this.fuel)
        .i32(target.spent - spent)
        .op(OP32.add)
        .set(this.fuel);
    }
    this.#go(edge);
  }

  /** A jump by register: a return, a tail call, a switch */
  #register(node: FlowNode, block: Block, targets: readonly number[]): void {
    const f = this.f;
    const jump = block.instructions.at(-1)!;
    if (node.edges.length > 0) {
      if (jump.rs1 === RA) this.#returnTo(node, block, targets[0]!);
      else this.#switch(node, block, targets);
    }
    if (jump.rs1 !== RA) {
      // Who asks where this jump goes finds its host address there
      const page = this.#region.pages.get(jump.at >> 12)!;
      this.pushHart();
      f.i32(page.host + (jump.at & 0xfff)).mem(MEMORY.i32_store, this.field(H.HART_JUMP_FROM));
    }
    const { dirtyX, dirtyF, spent } = this.#facts(block.at);
    this.storeFuel(() => f.i32(spent + block.instructions.length));
    f.get(this.#emitter.target).set(this.result);
    if (jump.rs1 !== RA) f.i32(SITE_GO_ON).set(this.site);
    f.br(this.#leaveWith(dirtyX, dirtyF));
  }

  /** Goes on behind a call in the same function, if that is where the register says. */
  #returnTo(node: FlowNode, block: Block, back: number): void {
    const f = this.f;
    f.get(this.#emitter.target);
    this.address(placeOf(back)).op(OP64.eq).hint(true).if();
    this.#edge(node, block, back);
    f.end();
  }

  /** Goes to the known targets by a table of bytes, one for each halfword of the code that they span. */
  #switch(node: FlowNode, block: Block, targets: readonly number[]): void {
    const f = this.f;
    const { edges } = node;
    const low = Math.min(...targets);
    const high = Math.max(...targets);
    const bytes = new Uint8Array(((high - low) >> 1) + 1).fill(edges.length);
    for (const [index, { target }] of edges.entries()) bytes[(target - low) >> 1] = index;
    const table = this.context.byteTable(bytes);
    if (table === undefined) return;
    const distance = f.local(TYPE_I64);
    const elsewhere = f.block();
    f.get(this.#emitter.target);
    this.address(low)
      .op(OP64.sub)
      .tee(distance)
      .i64(high - low)
      .op(OP64.gt_u)
      .hint(false)
      .brIf(elsewhere);
    const labels: number[] = [];
    for (let i = edges.length - 1; i >= 0; i--) labels[i] = f.block();
    f.get(distance).op(CONVERT.i32_wrap_i64).i32(1).op(OP32.shr_u).mem(MEMORY.i32_load8_u, table);
    f.brTable(labels, elsewhere);
    for (const { target } of edges) {
      f.end();
      this.#edge(node, block, target);
    }
    f.end();
  }

  #callAndReturn(node: FlowNode, block: Block, target: number | undefined, back: number): void {
    const f = this.f;
    const { dirtyX, dirtyF, spent } = this.#facts(block.at);
    const link = target === undefined ? undefined : this.context.link(target);
    if (target !== undefined && link === undefined) {
      this.#exitTo(block, target);
      return;
    }
    this.store(dirtyX, dirtyF);
    this.storeFuel(() => f.i32(spent + block.instructions.length));
    if (target !== undefined) {
      this.address(target);
      f.get(this.deeper);
      this.passHart();
      if (link!.kind === 'direct') f.call(link!.index);
      else f.i32(link!.index).callIndirect(this.context.functionType);
    } else this.callRegister(this.#emitter.target);
    f.tee(this.result);
    this.address(placeOf(back)).op(OP64.ne).hint(false).brIf(this.#leave);
    this.#goOn(node, back);
  }
  /** After a call or the kernel: `result` is the address of the block at `to`, registers are in memory, fuel is counted. */
  #goOn(node: FlowNode, to: number): void {
    const f = this.f;
    const edge = node.edges.find(({ target }) => target === to);
    if (edge === undefined) {
      f.br(this.#leave);
      return;
    }
    this.load(MEMORY.i32_load, H.HART_FUEL).set(this.fuel);
    this.#checkFuel(to);
    this.reload(this.#facts(to));
    // Who had control may not have changed mappings, but what they may be used for; at an entry, locals are 0
    for (const { reach } of this.#pageCaches.values()) f.i64(0).set(reach);
    this.#go(edge);
  }

  /** Has the kernel do the CSR instruction that ends the block; it may trap or take an interrupt. */
  #system(node: FlowNode, block: Block, to: number): void {
    const f = this.f;
    const { dirtyX, dirtyF, spent } = this.#facts(block.at);
    const instruction = block.instructions.at(-1)!;
    this.store(dirtyX, dirtyF);
    this.storeFuel(() => f.i32(spent + block.instructions.length));
    this.pushHart();
    this.address(instruction.at).mem(STORE64.d, this.field(H.HART_PC));
    f.i32(SYSTEM_NAMES.indexOf(instruction.facts.row.name as SystemName)).i64(instruction.imm >>> 0);
    f.i32(instruction.length).call(this.context.call('systemWord')).op(0x1a);
    this.load(LOAD64.d, H.HART_PC).tee(this.result);
    this.address(to).op(OP64.ne).hint(false).if();
    // In another mode now: odd, so that no caller takes it for its own return
    f.get(this.result).i64(1).op(OP64.or).set(this.result).br(this.#leave);
    f.end();
    this.#goOn(node, to);
  }
}
