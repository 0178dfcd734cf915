// From the tree to pieces of code.
import { encode } from '../../emulator/isa/mod.ts';
import { Assembly, type Piece } from './assembly.ts';
import { X } from './handlers.ts';
import {
  CODE_PAGE_INDEX,
  FAR_PIECES,
  farBase,
  JUMP_BUFFER_BYTES,
  JUMP_BUFFERS,
  JUMP_SLOTS,
  jumpTablesAt,
  LOCALS_BYTES,
  PAGE,
  WINDOW,
} from './layout.ts';
import { type FunctionPlan, type Node, type NodeOf, type ProgramPlan, WINDOW_FUNCTION_BYTES } from './nodes.ts';
import { pageTables, SUPERVISOR_SPACES } from './page_tables.ts';
import { COUNTERS } from './scope.ts';

const { zero, ra, sp, tp, t0, t1, t6 } = X;
interface Loop {
  readonly next: string;
  readonly end: string;
}

export const functionLabel = (index: number): string => `function${index}`;

/** At sp, above what the function may use: the return address, then the registers that it saves */
function frameBytes(saves: readonly number[]): number {
  return LOCALS_BYTES + Math.ceil((saves.length + 2) / 2) * 16;
}
const routineLabel = (what: 'save' | 'load' | 'loadAndReturn', saves: readonly number[]): string =>
  `${what}${saves.map((register) => `.${register}`).join('')}`;

/** Emits one function after the other; tables go behind the function that uses them, or to their own page. */
export class Lowering {
  readonly code = new Assembly('.l');
  readonly #plan: ProgramPlan;
  #loops: Loop[] = [];
  /** Tables of the function at hand */
  #tables: Piece[] = [];
  /** Of jumpTable nodes */
  readonly #jumpTables: Piece[] = [];

  constructor(plan: ProgramPlan) {
    this.#plan = plan;
  }

  functions(): this {
    const { functions, slot } = this.#plan;
    const place = (far: number | undefined) => {
      for (const [index, plan] of functions.entries()) if (plan && plan.far === far) this.#function(index, plan);
    };
    place(undefined);
    this.#routines();
    for (let piece = 0; piece < FAR_PIECES; piece++) {
      this.code.add({ section: farBase(slot, piece) });
      place(piece);
    }
    this.code.add({ section: jumpTablesAt(slot) }, ...this.#jumpTables);
    return this;
  }

  /** What functions call through t0 instead of doing it themselves */
  #routines(): void {
    const a = this.code;
    const lists = new Map<string, readonly number[]>();
    for (const plan of this.#plan.functions) if (plan?.outlined) lists.set(plan.saves.join(), plan.saves);
    for (const saves of lists.values()) {
      a.label(routineLabel('save', saves));
      this.#save(saves, ra);
      a.op('jalr', { rs1: t0 });
      a.label(routineLabel('load', saves));
      this.#load(saves, ra);
      a.op('jalr', { rs1: t0 });
      a.label(routineLabel('loadAndReturn', saves));
      this.#load(saves, ra);
      a.op('jalr', { rs1: ra });
    }
    a.label('skip').op('addi', { rd: ra, rs1: ra, imm: 4 }).op('jalr', { rs1: t0 });
    a.label('maybeSkip').op('slli', { rd: t6, rs1: tp, imm: 2 }).op('andi', { rd: t6, rs1: t6, imm: 4 });
    a.op('add', { rd: ra, rs1: ra, rs2: t6 }).op('jalr', { rs1: t0 });
  }
  #save(saves: readonly number[], link: number, keepsRa = false): void {
    const a = this.code;
    const at = (index: number): number => LOCALS_BYTES + 8 * index;
    a.op('addi', { rd: sp, rs1: sp, imm: -frameBytes(saves) }).op('sd', { rs1: sp, rs2: link, imm: at(0) });
    for (const [i, rs2] of saves.entries()) a.op('sd', { rs1: sp, rs2, imm: at(i + 1) });
    if (keepsRa) a.op('sd', { rs1: sp, rs2: ra, imm: at(saves.length + 1) });
  }
  #load(saves: readonly number[], link: number, keepsRa = false): void {
    const a = this.code;
    const at = (index: number): number => LOCALS_BYTES + 8 * index;
    for (const [i, rd] of saves.entries()) a.op('ld', { rd, rs1: sp, imm: at(i + 1) });
    if (keepsRa) a.op('ld', { rd: ra, rs1: sp, imm: at(saves.length + 1) });
    a.op('ld', { rd: link, rs1: sp, imm: at(0) }).op('addi', { rd: sp, rs1: sp, imm: frameBytes(saves) });
  }

  #function(index: number, plan: FunctionPlan): void {
    const a = this.code;
    const { saves, leaf, millicode, recursion, outlined, keepsRa } = plan;
    const link = millicode ? t0 : ra;
    a.add({ align: plan.align }).label(functionLabel(index));
    const framed = !leaf || saves.length > 0;
    const again = `${functionLabel(index)}.again`;
    if (recursion) {
      const { counter, depth } = recursion;
      a.op('addi', { rd: sp, rs1: sp, imm: -16 })
        .op('sd', { rs1: sp, rs2: ra })
        .op('sd', { rs1: sp, rs2: counter, imm: 8 });
      a.op('addi', { rd: counter, imm: depth }).jump(again, ra);
      this.#skipped(plan);
      a.op('ld', { rd: ra, rs1: sp })
        .op('ld', { rd: counter, rs1: sp, imm: 8 })
        .op('addi', { rd: sp, rs1: sp, imm: 16 });
      this.#return(plan, ra);
      a.label(again);
    }
    if (framed && outlined?.saves) a.jump(routineLabel('save', saves), t0);
    else if (framed) this.#save(saves, link, keepsRa);
    a.label(`${functionLabel(index)}.slot`).add(encode('addi'));
    this.#body(plan.body);
    if (recursion) {
      const over = a.fresh('over');
      const { counter, twice } = recursion;
      for (let call = 0; call < (twice ? 2 : 1); call++) {
        a.op('addi', { rd: counter, rs1: counter, imm: -1 }).branch('bge', zero, counter, over).jump(again, ra);
        this.#skipped(plan);
      }
      a.label(over);
    }
    const tail = plan.tail === undefined ? undefined : this.#plan.functions[plan.tail];
    const restores = framed ? (outlined?.restores ?? 'no') : 'no';
    if (restores === 'tail' && !tail && !plan.skips) this.#goTo(routineLabel('loadAndReturn', saves), plan.far);
    else {
      if (restores !== 'no') a.jump(routineLabel('load', saves), t0);
      else if (framed) this.#load(saves, link, keepsRa);
      if (tail) this.#goTo(functionLabel(plan.tail!), plan.far, tail.far);
      else this.#return(plan, link);
    }
    a.add({ align: 8 }, ...this.#tables);
    this.#tables = [];
  }

  /** Without coming back; t1 is lost where it is far */
  #goTo(label: string, from: number | undefined, to?: number): void {
    if (from === to) this.code.jump(label);
    else this.code.add({ farCall: label, rd: zero, via: t1 });
  }
  #return({ skips }: FunctionPlan, link: number): void {
    if (skips === 'outlined' || skips === 'maybe') this.code.jump(skips === 'maybe' ? 'maybeSkip' : 'skip', t0);
    else if (skips) this.code.op('addi', { rd: link, rs1: link, imm: 4 });
    this.code.op('jalr', { rs1: link });
  }

  /** What a function that skips does not return to */
  #skipped({ skips }: FunctionPlan): void {
    if (skips) this.code.add(encode('addi', { rd: tp, rs1: tp, imm: 1000 }));
  }

  #body(nodes: readonly Node[]): void {
    for (const node of nodes) this.#node(node);
  }

  #node(node: Node): void {
    if (typeof node === 'number') {
      this.code.add(node);
      return;
    }
    switch (node.t) {
      case 'group':
        this.#body(node.body);
        return;
      case 'constant':
        this.code.constant(node.rd, BigInt(node.value));
        return;
      case 'data':
        this.code.address(node.rd, `data+${node.offset}`);
        return;
      case 'loop':
        this.#loop(node);
        return;
      case 'if':
        this.#if(node);
        return;
      case 'leave':
        this.#leave(node);
        return;
      case 'switch':
        this.#switch(node);
        return;
      case 'jumpTable':
        this.#jumpTable(node);
        return;
      case 'threaded':
        this.#threaded(node);
        return;
      case 'call':
        this.#call(node);
        return;
      case 'windowCall': {
        const { temporary, offset } = node;
        const target = WINDOW + CODE_PAGE_INDEX * PAGE + offset * WINDOW_FUNCTION_BYTES;
        this.code.constant(temporary, target).op('jalr', { rd: ra, rs1: temporary });
        return;
      }
      case 'patch':
        this.#patch(node);
        return;
      case 'patchOther': {
        const target = `${functionLabel(node.callee)}.slot`;
        if (this.#plan.functions[node.callee]) this.#patchAt(target, node);
        return;
      }
      case 'codeData': {
        const a = this.code;
        const [words, over] = [a.fresh('words'), a.fresh('over')];
        a.address(node.t1, words).add(node.load, node.store).jump(over);
        a.add({ align: 8 }).label(words).add({ u64: 0x0123_4567_89ab_cdefn }, { u64: -1n }).label(over);
        return;
      }
      case 'remap':
        this.#remap(node);
        return;
      case 'reserve':
        this.#reserve(node);
        return;
      case 'setjmp':
        this.#setjmp(node);
        return;
      case 'longjmp':
        this.#longjmp(node);
    }
  }

  #loop({ counter, rounds, up, middle, body }: NodeOf<'loop'>): void {
    const a = this.code;
    const [top, next, end, enter] = [a.fresh('top'), a.fresh('next'), a.fresh('end'), a.fresh('enter')];
    // Upwards from −rounds, so that both directions end at zero
    a.constant(counter, BigInt(up ? -rounds : rounds));
    this.#loops.push({ next, end });
    if (middle !== undefined) a.jump(enter);
    a.label(top);
    this.#body(body.slice(0, middle));
    if (middle !== undefined) {
      a.label(enter);
      this.#body(body.slice(middle));
    }
    this.#loops.pop();
    a.label(next)
      .op('addi', { rd: counter, rs1: counter, imm: up ? 1 : -1 })
      .branch('bne', counter, zero, top);
    a.label(end);
  }

  #if({ on, rs1, rs2, yes, no }: NodeOf<'if'>): void {
    const a = this.code;
    const [taken, end] = [a.fresh('taken'), a.fresh('end')];
    a.branch(on, rs1, rs2, taken);
    this.#body(no);
    if (yes.length > 0) a.jump(end);
    a.label(taken);
    this.#body(yes);
    a.label(end);
  }

  #leave({ on, rs1, rs2, depth, next }: NodeOf<'leave'>): void {
    const loop = this.#loops[this.#loops.length - 1 - depth];
    if (loop !== undefined) this.code.branch(on, rs1, rs2, next ? loop.next : loop.end);
  }

  /** temporary = address of the label whose number is in the low bits of `index` */
  #select(index: number, temporary: number, labels: readonly string[], relative: boolean): void {
    const a = this.code;
    const table = a.fresh('table');
    // Tables of offsets are 8 bytes wide, too: what counts is that the target is computed
    this.#tables.push({ label: table });
    for (const label of labels) this.#tables.push({ u64: label });
    const scratch = temporary === t0 ? 31 : t0;
    a.op('andi', { rd: scratch, rs1: index, imm: labels.length - 1 }).address(temporary, table);
    a.op('sh3add', { rd: temporary, rs1: scratch, rs2: temporary });
    a.op('ld', { rd: temporary, rs1: temporary });
    if (relative) a.op('addi', { rd: temporary, rs1: temporary, imm: 1 });
  }

  #switch({ index, temporary, relative, cases }: NodeOf<'switch'>): void {
    const a = this.code;
    const labels = cases.map(() => a.fresh('case'));
    const end = a.fresh('end');
    this.#select(index, temporary, labels, relative);
    // Bit 0 of the sum is to be ignored
    a.op('jalr', { rs1: temporary });
    for (const [i, body] of cases.entries()) {
      a.label(labels[i]!);
      this.#body(body);
      if (i < cases.length - 1) a.jump(end);
    }
    a.label(end);
  }

  #jumpTable({ index, t1, t2, t3, t4, compared, swaps, cases }: NodeOf<'jumpTable'>): void {
    const a = this.code;
    const labels = cases.map(() => a.fresh('case'));
    const [table, end] = [a.fresh('words'), a.fresh('end')];
    this.#jumpTables.push({ label: table });
    const beyond = compared ? 0 : cases.length;
    for (const to of [...labels, ...Array.from({ length: beyond }, () => end)]) {
      this.#jumpTables.push({ distanceTo: to, from: table });
    }
    if (swaps) {
      a.op('srli', { rd: t2, rs1: tp, imm: 7 })
        .op('andi', { rd: t2, rs1: t2, imm: cases.length - 1 })
        .address(t1, table);
      a.op('sh2add', { rd: t1, rs1: t2, rs2: t1 }).address(t2, table);
      a.op('lw', { rd: t3, rs1: t1 }).op('lw', { rd: t4, rs1: t2 });
      a.op('sw', { rs1: t2, rs2: t3 }).op('sw', { rs1: t1, rs2: t4 });
    }
    a.op('andi', { rd: t2, rs1: index, imm: 2 * cases.length - 1 });
    if (compared) a.op('addi', { rd: t3, imm: cases.length }).branch('bgeu', t2, t3, end);
    a.address(t1, table).op('sh2add', { rd: t2, rs1: t2, rs2: t1 }).op('lw', { rd: t2, rs1: t2 });
    a.op('add', { rd: t2, rs1: t2, rs2: t1 }).op('jalr', { rs1: t2 });
    for (const [i, body] of cases.entries()) {
      a.label(labels[i]!);
      this.#body(body);
      if (i < cases.length - 1) a.jump(end);
    }
    a.label(end);
  }

  #remap({ page, bits, fence, t1, t2 }: NodeOf<'remap'>): void {
    const a = this.code;
    for (const table of pageTables.windows.slice(0, 2)) {
      a.constant(t1, table + 8 * page).op('ld', { rd: t2, rs1: t1 });
      a.op('xori', { rd: t2, rs1: t2, imm: bits }).op('sd', { rs1: t1, rs2: t2 });
    }
    const rs1 = fence === 'page' || fence === 'pageOfSpace' ? t1 : zero;
    a.constant(t1, WINDOW + page * PAGE + 8);
    if (fence === 'all' || fence === 'page') {
      a.op('sfence.vma', { rs1 });
      return;
    }
    for (const imm of SUPERVISOR_SPACES) a.op('addi', { rd: t2, imm }).op('sfence.vma', { rs1, rs2: t2 });
  }

  #threaded({ counter, rounds, temporary, steps }: NodeOf<'threaded'>): void {
    const a = this.code;
    const labels = steps.map(() => a.fresh('step'));
    const end = a.fresh('end');
    a.constant(counter, BigInt(rounds));
    // What leaves the loops around would leave them in the middle of a step: allowed, and the counter is then lost
    for (const [i, body] of steps.entries()) {
      a.label(labels[i]!);
      this.#body(body);
      a.op('addi', { rd: counter, rs1: counter, imm: -1 }).branch('beq', counter, zero, end);
      a.op('rori', { rd: tp, rs1: tp, imm: 1 + (i % 7) });
      this.#select(tp, temporary, labels, false);
      a.op('jalr', { rs1: temporary });
    }
    a.label(end);
  }

  #call({ callee, how, temporary, others }: NodeOf<'call'>): void {
    const a = this.code;
    const plan = this.#plan.functions[callee];
    if (!plan) return; // pruned
    const link = plan.millicode ? t0 : ra;
    const to = functionLabel(callee);
    switch (how) {
      case 'jal':
        a.jump(to, link);
        break;
      case 'far':
        a.add({ farCall: to, rd: link, via: link });
        break;
      case 'register':
        a.address(temporary, to).op('jalr', { rd: link, rs1: temporary });
        break;
      case 'table': {
        const known = [callee, ...others].filter((index) => this.#plan.functions[index]);
        while (known.length & (known.length - 1)) known.push(callee);
        this.#select(tp, temporary, known.map(functionLabel), false);
        a.op('jalr', { rd: link, rs1: temporary });
      }
    }
    this.#skipped(plan);
  }

  #patch(node: NodeOf<'patch'>): void {
    const slot = this.code.fresh('slot');
    this.#patchAt(slot, node);
    this.code.label(slot).add(encode('addi'));
  }

  #patchAt(slot: string, { index, t1, t2, words }: NodeOf<'patch' | 'patchOther'>): void {
    const a = this.code;
    const table = a.fresh('words');
    this.#tables.push({ align: 8 }, { label: table });
    for (const word of words) this.#tables.push({ u64: BigInt(word >>> 0) });
    a.op('andi', { rd: t1, rs1: index, imm: words.length - 1 }).address(t2, table);
    a.op('sh3add', { rd: t2, rs1: t1, rs2: t2 }).op('ld', { rd: t2, rs1: t2 });
    a.address(t1, slot).op('sw', { rs1: t1, rs2: t2 }).op('fence.i');
  }

  #reserve({ pointer, value, status, double, body }: NodeOf<'reserve'>): void {
    const a = this.code;
    const suffix = double ? 'd' : 'w';
    const again = a.fresh('again');
    a.label(again).op(`lr.${suffix}`, { rd: value, rs1: pointer });
    this.#body(body);
    a.op(`sc.${suffix}`, { rd: status, rs1: pointer, rs2: value }).branch('bne', status, zero, again);
  }

  /** The buffer: sp, where to go on, the counters. A zero address says that it is not armed. */
  #setjmp({ slot, t1, t2, body }: NodeOf<'setjmp'>): void {
    const a = this.code;
    const back = a.fresh('back');
    const buffer = `data+${JUMP_BUFFERS + slot * JUMP_BUFFER_BYTES}`;
    a.address(t1, buffer).address(t2, back).op('sd', { rs1: t1, rs2: t2 }).op('sd', { rs1: t1, rs2: sp, imm: 8 });
    for (const [i, rs2] of COUNTERS.entries()) a.op('sd', { rs1: t1, rs2, imm: 16 + 8 * i });
    // Nothing leaves it by a branch: the buffer would stay armed
    const loops = this.#loops;
    this.#loops = [];
    this.#body(body);
    this.#loops = loops;
    a.label(back).address(t1, buffer).op('sd', { rs1: t1, rs2: zero });
  }

  /** Where the buffer is armed and x[on] is odd */
  #longjmp({ slot, t1, t2, on }: NodeOf<'longjmp'>): void {
    const a = this.code;
    const over = a.fresh('over');
    a.op('andi', { rd: t2, rs1: on, imm: 1 }).branch('beq', t2, zero, over);
    a.address(t1, `data+${JUMP_BUFFERS}`).op('ld', { rd: t2, rs1: t1, imm: slot * JUMP_BUFFER_BYTES });
    a.branch('beq', t2, zero, over);
    // Those that were armed meanwhile are armed for frames that will be gone
    for (let i = 0; i < JUMP_SLOTS; i++) a.op('sd', { rs1: t1, rs2: zero, imm: i * JUMP_BUFFER_BYTES });
    a.op('addi', { rd: t1, rs1: t1, imm: slot * JUMP_BUFFER_BYTES }).op('ld', { rd: sp, rs1: t1, imm: 8 });
    for (const [i, rd] of COUNTERS.entries()) a.op('ld', { rd, rs1: t1, imm: 16 + 8 * i });
    a.op('jalr', { rs1: t2 }).label(over);
  }
}
