// What stands in a function: random items within a budget of executed instructions.
import { encode } from '../../emulator/isa/mod.ts';
import type { Random } from '../isa/random.ts';
import { type BranchName, shortForm } from './assembly.ts';
import { CSR, X } from './handlers.ts';
import { JUMP_SLOTS } from './layout.ts';
import { atomicItems, floatLoads, memoryItems, walkItems } from './memory_items.ts';
import { type Node, WINDOW_FUNCTIONS, type Word } from './nodes.ts';
import { pageChange, pageLoop } from './page_loops.ts';
import { isCounter, Scope, together } from './scope.ts';
import { TRAP_COST, type TrapRules, trapItems } from './trap_items.ts';
import { Words } from './words.ts';

const { tp } = X;
/** Of bodies in bodies */
const MAX_DEPTH = 4;
/** Of a function: programs must fit their slot */
const MAX_NODES = 600;
const BRANCHES: readonly BranchName[] = ['beq', 'bne', 'blt', 'bge', 'bltu', 'bgeu'];

/** How often the kinds of items come; a program's own, so that programs differ */
export interface Weights {
  readonly integer: number;
  readonly float: number;
  readonly memory: number;
  readonly control: number;
  readonly loop: number;
  readonly call: number;
  readonly system: number;
  readonly trap: number;
  readonly atomic: number;
  readonly patch: number;
  readonly pages: number;
}

export interface BodyRules extends TrapRules {
  readonly random: Random;
  readonly forQemu: boolean;
  readonly weights: Weights;
  /** What a call of a later function costs; calls go only to those that are known already */
  readonly costs: ReadonlyMap<number, number>;
  /** Functions of the same kind can be called from the same place */
  readonly kindOf: (index: number) => string;
  /** Functions that do nothing but change pages or rights */
  readonly changers: Set<number>;
  /** Functions that a place may call without saving ra */
  readonly keepRa: Set<number>;
}

export class BodyGenerator {
  readonly #rules: BodyRules;
  readonly #words: Words;
  readonly #scope: Scope;
  #loops = 0;
  #depth = 0;
  #size = 0;
  #jumpSlot: number | undefined;
  readonly #leaf: boolean;

  /** @param saves callee-saved registers that the function may use */
  constructor(rules: BodyRules, saves: readonly number[], options: { leaf: boolean; millicode: boolean }) {
    this.#rules = rules;
    this.#leaf = options.leaf;
    this.#words = new Words(rules.random, rules.forQemu);
    this.#scope = new Scope(rules.random, saves, options);
  }

  /** @param budget instructions that may be executed */
  items(count: number, budget: number): Node[] {
    const nodes: Node[] = [];
    let cost = 0;
    this.#depth++;
    for (let i = 0; i < count && cost < budget && this.#size < MAX_NODES; i++) {
      const made = this.#item(budget - cost);
      if (made === undefined) continue;
      this.#size += made.length;
      nodes.push(...made);
      cost += this.costOf(made);
    }
    this.#depth--;
    return nodes;
  }

  /** Part of the hash: a result that is nowhere else must not be lost */
  fold(): Node {
    const { random } = this.#rules;
    const rotate = encode('rori', { rd: tp, rs1: tp, imm: 1 + random.below(63) });
    const mix = encode(random.pick(['xor', 'add', 'sub']), { rd: tp, rs1: tp, rs2: this.#scope.source() });
    const body: Word[] = [rotate, mix];
    if (random.once(3)) {
      const rd = this.#scope.destination();
      const from = random.once(4)
        ? encode('csrrs', { rd, csr: random.once(3) ? CSR.fcsr : CSR.fflags })
        : encode('fmv.x.d', { rd, rs1: random.below(32) });
      body.push(from, encode('add', { rd: tp, rs1: tp, rs2: rd }));
    }
    return { t: 'group', body };
  }

  /** Instructions that nodes execute, about and at most */
  costOf(nodes: readonly Node[]): number {
    let sum = 0;
    for (const node of nodes) sum += typeof node === 'number' ? 1 : this.#nodeCost(node);
    return sum;
  }

  #nodeCost(node: Node & object): number {
    const worst = (bodies: readonly (readonly Node[])[]) => Math.max(...bodies.map((body) => this.costOf(body)));
    switch (node.t) {
      case 'group':
        return node.cost ?? this.costOf(node.body);
      case 'loop':
        return 2 + node.rounds * (2 + this.costOf(node.body));
      case 'if':
        return 2 + worst([node.yes, node.no]);
      case 'switch':
        return 7 + worst(node.cases);
      case 'jumpTable':
        return 17 + worst(node.cases);
      case 'remap':
        return 5 * TRAP_COST;
      case 'threaded':
        return node.rounds * (8 + worst(node.steps));
      case 'call':
        return 8 + Math.max(...[node.callee, ...node.others].map((index) => this.#rules.costs.get(index) ?? 0));
      case 'windowCall':
        return TRAP_COST;
      case 'setjmp':
        return 24 + this.costOf(node.body);
      case 'longjmp':
        return 24;
      case 'reserve':
        return 4 + this.costOf(node.body);
      case 'patch':
      case 'patchOther':
        return 12;
      default:
        return 4;
    }
  }

  #item(budget: number): Node[] | undefined {
    const { random, weights } = this.#rules;
    const kinds = (Object.keys(weights) as (keyof Weights)[]).filter(
      (kind) => this.#depth <= MAX_DEPTH || (kind !== 'control' && kind !== 'loop' && kind !== 'pages'),
    );
    let at = random.below(kinds.reduce((sum, kind) => sum + weights[kind], 0));
    const kind = kinds.find((name) => {
      at -= weights[name];
      return at < 0;
    })!;
    switch (kind) {
      case 'integer':
        return Array.from({ length: 1 + random.below(6) }, () => together(this.#words.integer(this.#scope)));
      case 'float':
        return this.#float();
      case 'memory':
        return random.once(6) ? this.#walk() : memoryItems(this.#scope, this.#words);
      case 'control':
        return this.#control(budget);
      case 'loop':
        return this.#loop(budget);
      case 'call':
        return this.#call(budget);
      case 'system':
        return [random.once(4) ? this.#words.fence() : together(this.#words.floatCsr(this.#scope))];
      case 'trap':
        return budget < 2 * TRAP_COST ? undefined : trapItems(this.#scope, this.#words, this.#rules, !this.#leaf);
      case 'atomic':
        return atomicItems(this.#scope, this.#words);
      case 'patch':
        return this.#patch();
      case 'pages':
        return this.#pages(budget);
    }
  }

  #float(): Node[] {
    const { random } = this.#rules;
    const fused = random.once(4);
    const loads = random.once(3) ? (floatLoads(this.#scope) ?? []) : [];
    const arithmetic = Array.from({ length: 1 + random.below(6) }, () => this.#words.float(this.#scope, fused));
    if (!random.once(3)) return [...loads, ...arithmetic];
    // With nothing but "inexact" accrued, as the fast ways want it, another flag is seen before it is lost among others
    const rd = this.#scope.destination();
    const before = encode('csrrwi', { rs1: random.once(4) ? 0 : 1, csr: CSR.fflags });
    const after = [encode('csrrs', { rd, csr: CSR.fflags }), encode('add', { rd: tp, rs1: tp, rs2: rd })];
    return [...loads, together([before, ...arithmetic, ...after])];
  }

  #walk(): Node[] | undefined {
    if (this.#loops > 1) return undefined;
    return this.#scope.reserve(
      1,
      (counter) =>
        this.#scope.reserve(1, (pointer) => {
          const { start, body } = walkItems(this.#scope, this.#words, pointer);
          body.push(this.fold());
          return [together([start, this.#makeLoop(counter, 8 + this.#rules.random.below(64), body)])];
        }),
      this.#scope.saves,
    );
  }

  #makeLoop(counter: number, rounds: number, body: Node[]): Node {
    const { random } = this.#rules;
    const loop = { t: 'loop', counter, rounds, up: random.once(3), body } as const;
    return random.once(8) && body.length > 1 ? { ...loop, middle: 1 + random.below(body.length - 1) } : loop;
  }

  #some(budget: number): Node[] {
    return this.items(1 + this.#rules.random.below(4), budget);
  }

  #control(budget: number): Node[] | undefined {
    const { random } = this.#rules;
    const scope = this.#scope;
    const kind = random.below(8);
    if (kind < 5) {
      const rs1 = scope.source();
      const condition = { on: random.pick(BRANCHES), rs1, rs2: random.once(3) ? 0 : scope.source() };
      if (kind === 4 && this.#loops > 0) {
        return [{ t: 'leave', ...condition, depth: random.below(this.#loops), next: random.once(2) }];
      }
      const yes = this.#some(budget / 3);
      return [{ t: 'if', ...condition, yes, no: random.once(2) ? this.#some(budget / 3) : [] }];
    }
    const count = random.pick(this.#depth > 2 ? [2, 4] : [2, 4, 8, 16]);
    const makeCases = () => Array.from({ length: count }, () => [...this.#some(budget / 4), this.fold()]);
    const index = scope.source();
    if (random.once(2)) {
      return scope.reserve(4, (t1, t2, t3, t4) => {
        const how = { compared: random.once(2), swaps: random.once(2) };
        return [{ t: 'jumpTable', index: random.once(2) ? tp : index, t1, t2, t3, t4, ...how, cases: makeCases() }];
      });
    }
    return scope.reserve(1, (temporary) => [
      { t: 'switch', index, temporary, relative: random.once(2), cases: makeCases() },
    ]);
  }

  #loop(budget: number): Node[] | undefined {
    const { random } = this.#rules;
    if (budget < 200 || this.#loops > 2) return undefined;
    return this.#scope.reserve(
      1,
      (counter) => {
        if (random.once(6) && budget > 600) return this.#threaded(counter, budget);
        this.#loops++;
        const body = [...this.items(2 + random.below(6), budget / 6), this.fold()];
        this.#loops--;
        const most = Math.floor(budget / (3 + this.costOf(body)));
        if (most < 2) return undefined;
        return [this.#makeLoop(counter, 2 + random.below(Math.min(most - 1, 400)), body)];
      },
      this.#scope.saves,
    );
  }

  #threaded(counter: number, budget: number): Node[] | undefined {
    const { random } = this.#rules;
    return this.#scope.reserve(1, (temporary) => {
      const count = random.pick([2, 4, 8]);
      const steps = Array.from({ length: count }, () => [...this.#some(budget / 20), this.fold()]);
      const worst = 8 + Math.max(...steps.map((step) => this.costOf(step)));
      const most = Math.floor(budget / worst);
      if (most < 2) return undefined;
      return [{ t: 'threaded', counter, rounds: 2 + random.below(Math.min(most - 1, 200)), temporary, steps }];
    });
  }

  #call(budget: number): Node[] | undefined {
    const { random, costs, kindOf } = this.#rules;
    const scope = this.#scope;
    if (this.#leaf) return this.#callKeeping(budget);
    if (random.once(12)) {
      // Of both pages; where the second begins, an instruction ends
      const offset = (WINDOW_FUNCTIONS + 1 + random.below(2 * WINDOW_FUNCTIONS - 1)) % (2 * WINDOW_FUNCTIONS);
      return scope.reserve(1, (temporary) => [{ t: 'windowCall', offset, temporary }]);
    }
    if (this.#jumpSlot === undefined && random.once(10)) return this.#setjmp(budget);
    if (this.#jumpSlot !== undefined && random.once(4)) return this.#longjmp(this.#jumpSlot);
    const affordable = [...costs].filter(([, cost]) => cost < budget / 2).map(([index]) => index);
    if (affordable.length === 0) return undefined;
    const callee = random.pick(affordable);
    const how = random.pick(['jal', 'jal', 'far', 'register', 'table'] as const);
    const same = affordable.filter((index) => kindOf(index) === kindOf(callee));
    const others = how === 'table' ? Array.from({ length: random.pick([1, 3, 7]) }, () => random.pick(same)) : [];
    return scope.reserve(1, (temporary) => [{ t: 'call', callee, how, temporary, others }]);
  }

  /** Of what leaves ra alone, where ra is where the function returns to */
  #callKeeping(budget: number): Node[] | undefined {
    const { random, costs, keepRa } = this.#rules;
    const affordable = [...keepRa].filter((index) => costs.get(index)! < budget / 2);
    // t0 is the way back already
    if (affordable.length === 0 || !this.#scope.writable.includes(X.t0)) return undefined;
    const callee = random.pick(affordable);
    const how = random.pick(['jal', 'far', 'register'] as const);
    return this.#scope.reserve(1, (temporary) => [{ t: 'call', callee, how, temporary, others: [] }]);
  }

  /** Of what pages are, or who may access them */
  change(): Node[] | undefined {
    return pageChange(this.#scope);
  }

  #callChanger(): Node[] | undefined {
    const { random, changers } = this.#rules;
    if (this.#leaf || changers.size === 0) return undefined;
    const call = { t: 'call', callee: random.pick([...changers]), how: 'jal', temporary: 0, others: [] } as const;
    return [call];
  }

  /** A loop whose pages change, of pointers and calls */
  #pages(budget: number): Node[] | undefined {
    if (budget < 600 || this.#loops > 1) return undefined;
    this.#loops++;
    const made = pageLoop(this.#scope, this.#words, this.#rules, {
      budget,
      costOf: (nodes) => this.costOf(nodes),
      call: () => (this.#rules.random.once(2) ? this.#callChanger() : undefined) ?? this.#call(budget / 40),
      change: () => this.#callChanger(),
      some: () => this.#some(budget / 40),
      fold: () => this.fold(),
      loop: (counter, rounds, body) => this.#makeLoop(counter, rounds, body),
    });
    this.#loops--;
    return made;
  }

  #setjmp(budget: number): Node[] | undefined {
    const { random } = this.#rules;
    return this.#scope.reserve(2, (t1, t2) => {
      const slot = random.below(JUMP_SLOTS);
      this.#jumpSlot = slot;
      const loops = this.#loops;
      this.#loops = 0;
      const body = this.items(2 + random.below(4), budget / 2);
      this.#loops = loops;
      this.#jumpSlot = undefined;
      return [{ t: 'setjmp', slot, t1, t2, body }];
    });
  }

  #longjmp(slot: number): Node[] | undefined {
    // None that it brings back
    const free = this.#scope.writable.filter((register) => !isCounter(register));
    return this.#scope.reserve(2, (t1, t2) => [{ t: 'longjmp', slot, t1, t2, on: this.#scope.source() }], free);
  }

  /** Out of whatever has armed one of the buffers */
  jumpOut(): Node[] {
    return this.#longjmp(this.#rules.random.below(JUMP_SLOTS)) ?? [];
  }

  #patch(): Node[] | undefined {
    const { random } = this.#rules;
    const callee = random.once(2) ? random.pick([...this.#rules.costs.keys(), -1]) : -1;
    // Another function's registers are not ours
    const scope = callee === -1 ? this.#scope : new Scope(random, [], { leaf: true, millicode: true });
    return this.#scope.reserve(2, (t1, t2) => {
      const words = Array.from({ length: random.pick([2, 4]) }, () => this.#patchWord(scope));
      const patch = { index: random.once(2) ? tp : this.#scope.source(), t1, t2, words };
      return [callee === -1 ? { t: 'patch', ...patch } : { t: 'patchOther', callee, ...patch }];
    });
  }

  /** 32 bits: one instruction or two short ones */
  #patchWord(scope: Scope): Word {
    const { random } = this.#rules;
    for (;;) {
      const word = random.once(4) ? this.#words.float(scope) : this.#words.integer(scope)[0]!;
      if ((word & 3) === 3) return word;
      const second = shortForm(encode('addi', { rd: 10, rs1: 10, imm: 1 + random.below(15) }));
      if (second !== undefined && !scope.isReserved(10)) return ((word & 0xffff) | (second << 16)) >>> 0;
    }
  }
}
