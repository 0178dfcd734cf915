// From the tree to pieces of code.
import { encode } from '../../emulator/isa/mod.ts';
import { Assembly, type Piece } from './assembly.ts';
import { X } from './handlers.ts';
import { CODE_PAGE_INDEX, JUMP_BUFFER_BYTES, JUMP_BUFFERS, JUMP_SLOTS, LOCALS_BYTES, PAGE, WINDOW } from './layout.ts';
import { type FunctionPlan, type Node, type NodeOf, type ProgramPlan, WINDOW_FUNCTION_BYTES } from './nodes.ts';
import { COUNTERS } from './scope.ts';

const { zero, ra, sp, tp, t0 } = X;
interface Loop {
  readonly next: string;
  readonly end: string;
}

export const functionLabel = (index: number): string => `function${index}`;

/** Emits one function after the other; tables go behind the function that uses them. */
export class Lowering {
  readonly code = new Assembly('.l');
  readonly #plan: ProgramPlan;
  #loops: Loop[] = [];
  /** Tables of the function at hand */
  #tables: Piece[] = [];

  constructor(plan: ProgramPlan) {
    this.#plan = plan;
  }

  functions(): this {
    for (const [index, plan] of this.#plan.functions.entries()) if (plan) this.#function(index, plan);
    return this;
  }

  #function(index: number, plan: FunctionPlan): void {
    const a = this.code;
    const { saves, leaf, millicode, recursion } = plan;
    const frame = LOCALS_BYTES + Math.ceil((saves.length + 1) / 2) * 16;
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
    if (framed) {
      a.op('addi', { rd: sp, rs1: sp, imm: -frame }).op('sd', { rs1: sp, rs2: link, imm: LOCALS_BYTES });
      for (const [i, rs2] of saves.entries()) a.op('sd', { rs1: sp, rs2, imm: LOCALS_BYTES + 8 + 8 * i });
    }
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
    if (framed) {
      for (const [i, rd] of saves.entries()) a.op('ld', { rd, rs1: sp, imm: LOCALS_BYTES + 8 + 8 * i });
      a.op('ld', { rd: link, rs1: sp, imm: LOCALS_BYTES }).op('addi', { rd: sp, rs1: sp, imm: frame });
    }
    if (plan.tail === undefined || !this.#plan.functions[plan.tail]) this.#return(plan, link);
    else a.jump(functionLabel(plan.tail));
    a.add({ align: 8 }, ...this.#tables);
    this.#tables = [];
  }

  #return({ skips }: FunctionPlan, link: number): void {
    if (skips) this.code.op('addi', { rd: link, rs1: link, imm: 4 });
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
