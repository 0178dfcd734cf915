import { TYPE_VOID } from './opcodes.ts';

/** Bytes that grow; LEB128 where the binary format wants it. */
export class ByteSink {
  #bytes = new Uint8Array(1024);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  byte(value: number): this {
    if (this.#length === this.#bytes.length) {
      const grown = new Uint8Array(this.#bytes.length * 2);
      grown.set(this.#bytes);
      this.#bytes = grown;
    }
    this.#bytes[this.#length++] = value;
    return this;
  }

  raw(values: Iterable<number>): this {
    for (const value of values) this.byte(value);
    return this;
  }

  /** Unsigned LEB128 of a 32-bit value */
  u(value: number): this {
    let rest = value >>> 0;
    while (rest > 0x7f) {
      this.byte((rest & 0x7f) | 0x80);
      rest >>>= 7;
    }
    return this.byte(rest);
  }

  /** Signed LEB128 of a 32-bit value */
  s32(value: number): this {
    let rest = value | 0;
    for (;;) {
      const low = rest & 0x7f;
      rest >>= 7;
      if ((rest === 0 && (low & 0x40) === 0) || (rest === -1 && (low & 0x40) !== 0)) return this.byte(low);
      this.byte(low | 0x80);
    }
  }

  /** Signed LEB128 of a 64-bit value */
  s64(value: bigint): this {
    let rest = BigInt.asIntN(64, value);
    for (;;) {
      const low = Number(rest & 0x7fn);
      rest >>= 7n;
      if ((rest === 0n && (low & 0x40) === 0) || (rest === -1n && (low & 0x40) !== 0)) return this.byte(low);
      this.byte(low | 0x80);
    }
  }

  name(text: string): this {
    this.u(text.length);
    for (let i = 0; i < text.length; i++) this.byte(text.charCodeAt(i));
    return this;
  }

  finish(): Uint8Array<ArrayBuffer> {
    return this.#bytes.slice(0, this.#length);
  }
}

/** One function's code: opcodes are appended in evaluation order. */
export class FunctionBody {
  readonly code = new ByteSink();
  readonly #locals: number[] = [];
  readonly #parameters: number;
  /** Open blocks, for branch depths by label */
  #depth = 0;

  constructor(parameters: number) {
    this.#parameters = parameters;
  }

  local(type: number): number {
    this.#locals.push(type);
    return this.#parameters + this.#locals.length - 1;
  }

  op(...bytes: number[]): this {
    this.code.raw(bytes);
    return this;
  }
  i32(value: number): this {
    this.code.byte(0x41).s32(value);
    return this;
  }
  i64(value: bigint | number): this {
    this.code.byte(0x42).s64(BigInt(value));
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
  call(index: number): this {
    this.code.byte(0x10).u(index);
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

  finish(): Uint8Array {
    const body = new ByteSink();
    body.u(this.#locals.length);
    for (const type of this.#locals) body.u(1).byte(type);
    body.raw(this.code.finish()).byte(0x0b);
    return body.finish();
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
  readonly #functions: { name: string; type: number; body: FunctionBody }[] = [];

  #type(type: FunctionType): number {
    const key = JSON.stringify(type);
    const known = this.#types.findIndex((other) => JSON.stringify(other) === key);
    if (known >= 0) return known;
    return this.#types.push(type) - 1;
  }

  /** All imports come before the first function; gives the function index. */
  import(name: string, type: FunctionType): number {
    return this.#imports.push({ name, type: this.#type(type) }) - 1;
  }

  function(name: string, type: FunctionType): FunctionBody {
    const body = new FunctionBody(type.params.length);
    this.#functions.push({ name, type: this.#type(type), body });
    return body;
  }

  finish(): Uint8Array<ArrayBuffer> {
    const out = new ByteSink();
    out.raw([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]);
    section(out, 1, (s) => {
      s.u(this.#types.length);
      for (const type of this.#types) {
        s.byte(0x60).u(type.params.length).raw(type.params).u(type.results.length).raw(type.results);
      }
    });
    section(out, 2, (s) => {
      s.u(this.#imports.length + 1);
      // Any shared memory that the machine makes fits these limits: 1 page … 4 GiB
      s.name('env').name('memory').byte(2).byte(3).u(1).u(65536);
      for (const { name, type } of this.#imports) s.name('env').name(name).byte(0).u(type);
    });
    section(out, 3, (s) => {
      s.u(this.#functions.length);
      for (const { type } of this.#functions) s.u(type);
    });
    section(out, 7, (s) => {
      s.u(this.#functions.length);
      for (const [index, { name }] of this.#functions.entries())
        s.name(name)
          .byte(0)
          .u(this.#imports.length + index);
    });
    section(out, 10, (s) => {
      s.u(this.#functions.length);
      for (const { body } of this.#functions) {
        const bytes = body.finish();
        s.u(bytes.length).raw(bytes);
      }
    });
    return out.finish();
  }
}

function section(out: ByteSink, id: number, write: (sink: ByteSink) => void): void {
  const body = new ByteSink();
  write(body);
  const bytes = body.finish();
  out.byte(id).u(bytes.length).raw(bytes);
}
