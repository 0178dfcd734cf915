// Loops that read and write by several pointers while the pages under them change: entries of the page tables, by the
// program itself, by its calls and by who interrupts it; what the mode may access; pages that end between.
import { encode } from '../../emulator/isa/mod.ts';
import { CSR, SERVICES, X } from './handlers.ts';
import { DATA_PAGES, MOVING_PAGE, MOVING_PAGES, PAGE, PTE_OTHER_PAGE, WINDOW } from './layout.ts';
import { access, RANDOM_DATA_BYTES } from './memory_items.ts';
import type { Node, NodeOf, Word } from './nodes.ts';
import { type Scope, together } from './scope.ts';
import { hex, TRAP_COST, type TrapRules, trapping } from './trap_items.ts';
import type { Words } from './words.ts';

const { zero, tp, a6, a7 } = X;
const SSTATUS = 0x100;
const SUM = 1n << 18n;
const MXR = 1n << 19n;
const MIE = 8;
const MPRV = 1n << 17n;
const MPP_S = 1n << 11n;
/**
 * Of the window: one that belongs to the other mode, one that may be executed only. Between them is one without memory:
 * of an access that is half in it, which fault comes first is the implementation's choice
 */
const OTHERS_PAGE = 8;
const EXECUTE_PAGE = 10;
/** What an entry is changed by: its page; V; W; A; D; from read and write to execute */
const BITS = [PTE_OTHER_PAGE, PTE_OTHER_PAGE, PTE_OTHER_PAGE, 1, 4, 0x40, 0x80, 0xe, PTE_OTHER_PAGE | 1] as const;
const CALLS = [
  'demand',
  'readonly',
  'space',
  'sum',
  'mxr',
  'age',
  'unmap',
  'protect',
  'move',
  'move',
  'hide',
  'seal',
] as const;

export interface LoopTools {
  /** Instructions that the loop may execute */
  readonly budget: number;
  costOf(nodes: readonly Node[]): number;
  call(): Node[] | undefined;
  /** Of a function that does nothing but change pages or rights */
  change(): Node[] | undefined;
  some(): Node[];
  fold(): Node;
  loop(counter: number, rounds: number, body: Node[]): Node;
}

interface Pointer {
  readonly register: number;
  readonly start: Node;
  readonly aligned: boolean;
  readonly loadsOnly: boolean;
  /** To where nothing is without paging */
  readonly inWindow: boolean;
}

class PageLoop {
  readonly #scope: Scope;
  readonly #words: Words;
  readonly #rules: TrapRules;
  readonly #tools: LoopTools;
  readonly #pointers: readonly Pointer[];
  readonly #counter: number;
  /** Pointers that calls leave alone: one that is lost may point to code */
  readonly #calls: boolean;

  constructor(
    scope: Scope,
    words: Words,
    rules: TrapRules,
    tools: LoopTools,
    registers: { readonly counter: number; readonly pointers: readonly number[]; readonly survive: boolean },
  ) {
    this.#scope = scope;
    this.#words = words;
    this.#rules = rules;
    this.#tools = tools;
    this.#counter = registers.counter;
    this.#calls = registers.survive;
    this.#pointers = registers.pointers.map((register) => this.#pointer(register));
  }

  #pointer(register: number): Pointer {
    const { random } = this.#scope;
    const plain = { register, aligned: false, loadsOnly: false, inWindow: true };
    const at = (page: number, offset: number): Node => ({
      t: 'constant',
      rd: register,
      value: hex(WINDOW + page * PAGE + offset),
    });
    const offset = random.once(2) ? PAGE - 8 * random.below(8) : 8 * random.below(480);
    if ((this.#rules.bare && !this.#rules.borrows) || random.once(3)) {
      const page = random.below(RANDOM_DATA_BYTES / PAGE - 2);
      return { ...plain, inWindow: false, start: { t: 'data', rd: register, offset: page * PAGE + offset } };
    }
    if (random.once(4)) return { ...plain, start: at(OTHERS_PAGE, 8 * random.below(200)), aligned: true };
    if (random.once(3)) return { ...plain, start: at(EXECUTE_PAGE, 8 * random.below(200)), loadsOnly: true };
    // The second pointer is often in the page of the first
    const page = random.once(3) ? 0 : random.below(MOVING_PAGES - 2);
    return { ...plain, start: at(MOVING_PAGE + page, offset) };
  }

  #access({ register, aligned, loadsOnly }: Pointer): Word {
    const { random } = this.#scope;
    const imm = random.once(5) && !aligned && !loadsOnly ? -random.below(16) : random.below(48);
    if (loadsOnly) return this.#words.load(this.#scope, register, imm, false);
    return access(this.#scope, this.#words, register, imm, aligned);
  }
  #accesses(most: number, borrowed = false): Word[] {
    const { random } = this.#scope;
    const pointers = this.#pointers.filter(({ inWindow }) => !inWindow || borrowed || !this.#rules.borrows);
    if (pointers.length === 0) return [];
    return Array.from({ length: 1 + random.below(most) }, () => this.#access(random.pick(pointers)));
  }

  #step(): Node {
    const { random } = this.#scope;
    const { register, aligned, loadsOnly } = random.pick(this.#pointers);
    const ahead = random.pick([1, 2, 4, 8, 8, 16, 24, 56]);
    const imm = aligned ? 8 : random.once(9) && !loadsOnly ? -8 : ahead;
    return encode('addi', { rd: register, rs1: register, imm });
  }

  /** Once in so many rounds */
  #seldom(body: readonly Node[]): Node | undefined {
    const { random } = this.#scope;
    const mask = random.pick([3, 7, 15]);
    return this.#scope.reserve(1, (rd) => {
      const test = encode('andi', { rd, rs1: this.#counter, imm: mask });
      const cost = 3 + Math.ceil(this.#tools.costOf(body) / (mask + 1));
      const seldom: Node = { t: 'if', on: 'beq', rs1: rd, rs2: zero, yes: body, no: [] };
      return { t: 'group', body: [test, seldom], cost };
    });
  }

  /** Accesses with another mode's rights, where nothing interrupts: a trap there forgets whose rights they are */
  #borrowed(): Node | undefined {
    return this.#scope.reserve(1, (rd) => {
      const bits: Node = { t: 'constant', rd, value: hex(MPRV | MPP_S) };
      const [on, off] = ['csrrs', 'csrrc'].map((name) => encode(name, { rs1: rd, csr: CSR.mstatus }));
      const interrupts = (name: string) => encode(name, { rs1: MIE, csr: CSR.mstatus });
      const body = [interrupts('csrrci'), bits, on!, ...this.#accesses(4, true), off!, interrupts('csrrsi')];
      return { t: 'group', body, cost: 12 + TRAP_COST };
    });
  }

  /** As short as those whose pages translated code remembers: while there is something else around it */
  #innerLoop(): Node | undefined {
    const { random } = this.#scope;
    const make = (counter: number): Node => {
      const body = [...this.#accesses(3), this.#step(), ...(random.once(2) ? this.#accesses(2) : [])];
      return this.#tools.loop(counter, 2 + random.below(10), body);
    };
    return this.#scope.reserve(1, make, this.#scope.saves);
  }

  #part(): Node[] {
    const { random } = this.#scope;
    const found = (node: Node | undefined): Node[] => (node === undefined ? [] : [node]);
    switch (random.below(12)) {
      case 0:
        return this.#accesses(4);
      case 1:
      case 7:
        return found(this.#innerLoop());
      case 2: {
        const condition = { on: random.pick(['beq', 'bne', 'blt', 'bgeu'] as const), rs1: this.#scope.source() };
        const no = random.once(2) ? this.#accesses(3) : [];
        return [{ t: 'if', ...condition, rs2: this.#scope.source(), yes: [...this.#accesses(3), this.#step()], no }];
      }
      case 3: {
        // Another register in the same page, or the next
        const from = random.pick(this.#pointers);
        const to = random.pick(this.#pointers);
        if (from.aligned !== to.aligned || from.loadsOnly !== to.loadsOnly || from.inWindow !== to.inWindow) return [];
        return [
          encode('addi', {
            rd: to.register,
            rs1: from.register,
            imm: 8 * random.below(64) - (from.loadsOnly ? 0 : 128),
          }),
        ];
      }
      case 4:
        return this.#calls ? (this.#tools.call() ?? []) : this.#accesses(2);
      case 5:
        return this.#calls ? this.#tools.some() : this.#accesses(2);
      case 6:
        return this.#rules.borrows ? found(this.#borrowed()) : this.#accesses(3);
      case 8:
        return rightsChange(this.#scope) ?? [];
      default: {
        const change = pageChange(this.#scope, random.pick(this.#pointers).register);
        return change === undefined ? [] : found(this.#seldom(change));
      }
    }
  }

  /** What changes rights, and accesses beside it, in as few instructions as may be */
  #shortBody(): Node[] {
    const { random } = this.#scope;
    const called = this.#calls && !random.once(4) ? this.#tools.change() : undefined;
    const inner = random.once(2) ? this.#innerLoop() : undefined;
    const accesses = inner === undefined ? this.#accesses(4) : [inner];
    return [...(called ?? rightsChange(this.#scope) ?? []), ...accesses, this.#step(), this.#tools.fold()];
  }

  make(): Node[] | undefined {
    const { random } = this.#scope;
    return this.#loop(random.once(2) ? this.#shortBody() : this.#longBody());
  }

  #longBody(): Node[] {
    const { random } = this.#scope;
    const body: Node[] = [];
    const parts = random.once(2) ? 1 + random.below(3) : 3 + random.below(6);
    for (let i = 0; i < parts; i++) body.push(...this.#part());
    const change = pageChange(this.#scope, random.pick(this.#pointers).register);
    if (change !== undefined) body.push(...[this.#seldom(change)].filter((node) => node !== undefined));
    return [...body, ...this.#accesses(3), this.#step(), this.#step(), this.#tools.fold()];
  }

  #loop(body: Node[]): Node[] | undefined {
    const { random } = this.#scope;
    const most = Math.floor(this.#tools.budget / (3 + this.#tools.costOf(body)));
    if (most < 4) return undefined;
    const rounds = 4 + random.below(Math.min(most - 3, 80));
    return [together([...this.#pointers.map(({ start }) => start), this.#tools.loop(this.#counter, rounds, body)])];
  }
}

/** SUM and MXR as the hash has them: nothing leaves translated code meanwhile. A user's attempt is two traps */
function rightsChange(scope: Scope): Node[] | undefined {
  const value = hex(scope.random.pick([SUM, MXR, SUM | MXR]));
  const change = (name: string, rs1: number): Word => encode(name, { rs1, csr: SSTATUS });
  return scope.reserve(1, (rd) =>
    trapping([
      { t: 'constant', rd, value },
      change('csrrc', rd),
      encode('and', { rd, rs1: rd, rs2: tp }),
      change('csrrs', rd),
    ]),
  );
}

/** Changes what a page is, or what the mode may do with pages */
export function pageChange(scope: Scope, pointer = 0): Node[] | undefined {
  const { random } = scope;
  switch (random.below(8)) {
    case 0: {
      if (scope.isReserved(a7) || scope.isReserved(a6)) return undefined;
      const service = SERVICES.indexOf(random.pick(CALLS));
      const which = encode('addi', { rd: a6, rs1: random.once(2) ? zero : pointer, imm: random.below(32) });
      return trapping([which, encode('addi', { rd: a7, imm: service }), encode('ecall')]);
    }
    case 1:
      // The supervisor's own doing; a user's attempt is five traps
      return scope.reserve(2, (t1, t2) => {
        const page = MOVING_PAGE + random.below(MOVING_PAGES);
        const fence = random.pick(['all', 'page', 'space', 'pageOfSpace'] as const);
        return [{ t: 'remap', page, bits: random.pick(BITS), fence, t1, t2 } satisfies NodeOf<'remap'>];
      });
    case 2:
      return [encode('sfence.vma', { rs1: random.once(2) ? 0 : pointer })];
    default:
      return rightsChange(scope);
  }
}

/** Undefined where the place has too few registers, or the budget too few instructions. */
export function pageLoop(scope: Scope, words: Words, rules: TrapRules, tools: LoopTools): Node[] | undefined {
  const { random } = scope;
  return scope.reserve(
    1,
    (counter) => {
      const count = 2 + random.below(DATA_PAGES - 1);
      const make =
        (survive: boolean) =>
        (...pointers: number[]) =>
          new PageLoop(scope, words, rules, tools, { counter, pointers, survive }).make();
      const saved = random.once(4) ? undefined : scope.reserve(count, make(true), scope.saves);
      return saved ?? scope.reserve(count, make(false));
    },
    scope.saves,
  );
}
