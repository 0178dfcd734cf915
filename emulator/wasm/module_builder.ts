import { ByteSink } from './byte_sink.ts';
import { TYPE_I32, TYPE_VOID } from './opcodes.ts';

const MAX_I32 = 0x7fff_ffff;

/** One function's code: opcodes are appended in evaluation order. */
export class FunctionBody {
  readonly code = new ByteSink();
  readonly #locals: number[] = [];
  readonly #parameters: number;
  /** Open blocks, for branch depths by label */
  #depth = 0;
  /** Pairs: offset of an `if` or `br_if` in the code, 1 likely or 0 unlikely */
  readonly #hints: number[] = [];

  constructor(parameters: number) {
    this.#parameters = parameters;
  }

  local(type: number): number {
    this.#locals.push(type);
    return this.#parameters + this.#locals.length - 1;
  }

  /** One opcode; `op2` and `op3` for those of several bytes */
  op(opcode: number, op2?: number, op3?: number): this {
    this.code.byte(opcode);
    if (op2 !== undefined) this.code.byte(op2);
    if (op3 !== undefined) this.code.byte(op3);
    return this;
  }
  i32(value: number): this {
    this.code.byte(0x41).s32(value);
    return this;
  }
  i64(value: bigint | number): this {
    this.code.byte(0x42);
    if (typeof value === 'number' && value <= MAX_I32 && value >= -MAX_I32) this.code.s32(value);
    else this.code.s64(BigInt(value));
    return this;
  }
  f64(value: number): this {
    this.code.byte(0x44).raw(new Uint8Array(new Float64Array([value]).buffer));
    return this;
  }
  get(local: number): this {
    this.code.byte(0x20).u(local);
    return this;
  }
  set(local: number): this {
    this.code.byte(0x21).u(local);
    return this;
  }
  tee(local: number): this {
    this.code.byte(0x22).u(local);
    return this;
  }
  /** A load or store; alignment 0 claims nothing and costs nothing */
  mem(opcode: number, offset: number): this {
    this.code.byte(opcode).u(0).u(offset);
    return this;
  }
  /** Atomics trap unless they claim natural alignment: `alignLog2` */
  atomic(opcode: number, alignLog2: number, offset: number): this {
    this.code.byte(0xfe).byte(opcode).u(alignLog2).u(offset);
    return this;
  }
  /** An opcode of the SIMD proposals */
  simd(opcode: number, lane?: number): this {
    this.code.byte(0xfd).u(opcode);
    if (lane !== undefined) this.code.byte(lane);
    return this;
  }
  call(index: number): this {
    this.code.byte(0x10).u(index);
    return this;
  }
  /** Through the imported table; the index is on the stack */
  callIndirect(type: number): this {
    this.code.byte(0x11).u(type).u(0);
    return this;
  }
  /** The same in place of the function itself: its frame is gone then */
  returnCallIndirect(type: number): this {
    this.code.byte(0x13).u(type).u(0);
    return this;
  }

  /** The next `if` or `br_if` is nearly always, or nearly never, taken (branch hinting proposal). */
  hint(likely: boolean): this {
    this.#hints.push(this.code.length, likely ? 1 : 0);
    return this;
  }

  /** Opens a block and gives its label. */
  block(type = TYPE_VOID): number {
    this.code.byte(0x02).byte(type);
    return ++this.#depth;
  }
  loop(type = TYPE_VOID): number {
    this.code.byte(0x03).byte(type);
    return ++this.#depth;
  }
  if(type = TYPE_VOID): number {
    this.code.byte(0x04).byte(type);
    return ++this.#depth;
  }
  else(): this {
    this.code.byte(0x05);
    return this;
  }
  end(): this {
    this.code.byte(0x0b);
    this.#depth--;
    return this;
  }
  br(label: number): this {
    this.code.byte(0x0c).u(this.#depth - label);
    return this;
  }
  brIf(label: number): this {
    this.code.byte(0x0d).u(this.#depth - label);
    return this;
  }
  brTable(labels: readonly number[], fallback: number): this {
    this.code.byte(0x0e).u(labels.length);
    for (const label of labels) this.code.u(this.#depth - label);
    this.code.u(this.#depth - fallback);
    return this;
  }
  ret(): this {
    this.code.byte(0x0f);
    return this;
  }

  /** Declarations of locals, runs of one type together */
  #declarations(): ByteSink {
    const sink = new ByteSink(64);
    const runs: number[] = [];
    for (const type of this.#locals) {
      if (runs.at(-1) === type) runs[runs.length - 2]!++;
      else runs.push(1, type);
    }
    sink.u(runs.length / 2);
    for (let i = 0; i < runs.length; i += 2) sink.u(runs[i]!).byte(runs[i + 1]!);
    return sink;
  }

  /** Appends size and body; gives the branch hints with offsets from the body's start, in order. */
  writeTo(out: ByteSink): readonly number[] {
    const declarations = this.#declarations();
    out.u(declarations.length + this.code.length + 1);
    out.append(declarations).append(this.code).byte(0x0b);
    return this.#hints.map((value, index) => (index % 2 === 0 ? value + declarations.length : value));
  }
}

export interface FunctionType {
  readonly params: readonly number[];
  readonly results: readonly number[];
}
export const signature = (params: readonly number[], ...results: number[]): FunctionType => ({ params, results });

/** Assembles a module that imports the machine's memory and some functions, and exports functions. */
export class ModuleBuilder {
  readonly #types: FunctionType[] = [];
  readonly #imports: { name: string; type: number }[] = [];
  readonly #globals: string[] = [];
  readonly #functions: { name: string | undefined; type: number; body: FunctionBody }[] = [];
  #table = false;
  #elements: { at: number; functions: readonly number[] } | undefined;

  /** Index of a function type, for `call_indirect` too */
  type(type: FunctionType): number {
    const same = (a: readonly number[], b: readonly number[]) => a.length === b.length && a.every((t, i) => t === b[i]);
    const known = this.#types.findIndex(
      ({ params, results }) => same(params, type.params) && same(results, type.results),
    );
    if (known >= 0) return known;
    return this.#types.push(type) - 1;
  }

  /** All imports come before the first function; gives the function index. */
  importFunction(name: string, type: FunctionType): number {
    return this.#imports.push({ name, type: this.type(type) }) - 1;
  }
  /** An immutable i32; gives the global's index */
  importGlobal(name: string): number {
    return this.#globals.push(name) - 1;
  }
  importTable(): void {
    this.#table = true;
  }
  /** Fills the imported table from `at` when instantiated. */
  elements(at: number, functions: readonly number[]): void {
    this.#table = true;
    this.#elements = { at, functions };
  }
  get importedFunctions(): number {
    return this.#imports.length;
  }

  /** Exported under `name`, if it is given */
  function(name: string | undefined, type: FunctionType): FunctionBody {
    const body = new FunctionBody(type.params.length);
    this.#functions.push({ name, type: this.type(type), body });
    return body;
  }

  finish(): Uint8Array<ArrayBuffer> {
    const code = new ByteSink(4096);
    code.u(this.#functions.length);
    const hints = this.#functions.map(({ body }) => body.writeTo(code));

    const out = new ByteSink(code.length + 4096);
    out.raw([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]);
    section(out, 1, (s) => {
      s.u(this.#types.length);
      for (const type of this.#types) {
        s.byte(0x60).u(type.params.length).raw(type.params).u(type.results.length).raw(type.results);
      }
    });
    section(out, 2, (s) => {
      s.u(this.#imports.length + this.#globals.length + (this.#table ? 2 : 1));
      // Any shared memory that the machine makes fits these limits: 1 page … 4 GiB
      s.name('env').name('memory').byte(2).byte(3).u(1).u(65536);
      if (this.#table) s.name('env').name('table').byte(1).byte(0x70).byte(0).u(0);
      for (const name of this.#globals) s.name('env').name(name).byte(3).byte(TYPE_I32).byte(0);
      for (const { name, type } of this.#imports) s.name('env').name(name).byte(0).u(type);
    });
    section(out, 3, (s) => {
      s.u(this.#functions.length);
      for (const { type } of this.#functions) s.u(type);
    });
    section(out, 7, (s) => {
      const exported = [...this.#functions.entries()].filter(([, { name }]) => name !== undefined);
      s.u(exported.length);
      for (const [index, { name }] of exported)
        s.name(name!)
          .byte(0)
          .u(this.#imports.length + index);
    });
    const elements = this.#elements;
    if (elements !== undefined) {
      section(out, 9, (s) => {
        s.u(1).u(0).byte(0x41).s32(elements.at).byte(0x0b).u(elements.functions.length);
        for (const index of elements.functions) s.u(index);
      });
    }
    this.#writeHints(out, hints);
    out.byte(10).u(code.length).append(code);
    return out.finish();
  }

  /** Custom section "metadata.code.branch_hint" (branch hinting proposal), before the code it speaks of */
  #writeHints(out: ByteSink, hints: readonly (readonly number[])[]): void {
    const hinted = [...hints.entries()].filter(([, list]) => list.length > 0);
    if (hinted.length === 0) return;
    section(out, 0, (s) => {
      s.name('metadata.code.branch_hint').u(hinted.length);
      for (const [index, list] of hinted) {
        s.u(this.#imports.length + index).u(list.length / 2);
        for (let i = 0; i < list.length; i += 2)
          s.u(list[i]!)
            .u(1)
            .byte(list[i + 1]!);
      }
    });
  }
}

function section(out: ByteSink, id: number, write: (sink: ByteSink) => void): void {
  const body = new ByteSink();
  write(body);
  out.byte(id).u(body.length).append(body);
}
