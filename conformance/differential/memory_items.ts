// Loads, stores and atomics on the program's own memory.
import { encode } from '../../emulator/isa/mod.ts';
import { X } from './handlers.ts';
import { LOCALS_BYTES, PAGE } from './layout.ts';
import type { Node, Word } from './nodes.ts';
import { type Scope, together } from './scope.ts';
import type { Words } from './words.ts';

const { gp, sp } = X;
/** Of the data: what random loads and stores reach, and where the floating-point values are */
export const RANDOM_DATA_BYTES = 0x8000;
export const FLOAT_POOL = 0x8000;
export const FLOAT_POOL_BYTES = 0x4000;
/** Where gp points: at the border of two pages */
export const GP_OFFSET = 0x1000;

export function access(scope: Scope, words: Words, base: number, imm: number, aligned = false): Word {
  return scope.random.once(2) ? words.load(scope, base, imm, aligned) : words.store(scope, base, imm, aligned);
}

export function memoryItems(scope: Scope, words: Words): Node[] | undefined {
  const { random } = scope;
  const several = (make: () => Node): Node[] => Array.from({ length: 1 + random.below(5) }, make);
  switch (random.below(5)) {
    case 0: // off gp, to both sides of a page's border
      return several(() => access(scope, words, gp, random.once(4) ? -random.below(8) : random.below(4088) - 2048));
    case 1:
      return several(() => access(scope, words, sp, random.below(LOCALS_BYTES - 7), random.once(2)));
    case 2: // aligned, near each other
      return several(() => access(scope, words, gp, 8 * random.below(16), true));
    case 3:
      return codeData(scope, words);
    default:
      return computed(scope, words);
  }
}

/** By a register's value: within 256 bytes, 8 KiB, 32 KiB, or around a page's border */
function computed(scope: Scope, words: Words): Node[] | undefined {
  const { random } = scope;
  return scope.reserve(2, (pointer, offset) => {
    const across = random.once(4);
    const bits = across ? 60 : random.pick([56, 51, 49]);
    const start = across
      ? PAGE * (1 + random.below(6)) - 16
      : random.below(2) * (RANDOM_DATA_BYTES - (1 << (64 - bits)));
    const address: Word[] = [
      encode('slli', { rd: offset, rs1: scope.source(), imm: bits }),
      encode('srli', { rd: offset, rs1: offset, imm: bits }),
      encode('add', { rd: pointer, rs1: pointer, rs2: offset }),
    ];
    const accesses = Array.from({ length: 1 + random.below(5) }, () => access(scope, words, pointer, random.below(32)));
    return [together([{ t: 'data', rd: pointer, offset: start }, ...address, ...accesses])];
  });
}

/** What a loop that walks through memory with a pointer does in each round, and where the pointer begins */
export function walkItems(scope: Scope, words: Words, pointer: number): { start: Node; body: Node[] } {
  const { random } = scope;
  const stride = random.pick([1, 2, 4, 8, 8, 16, 40, -8, -24]);
  const offset = stride > 0 ? random.below(0x4000) : 0x3000 + random.below(0x4000);
  const accesses = Array.from({ length: 1 + random.below(4) }, () => access(scope, words, pointer, random.below(24)));
  const step = encode('addi', { rd: pointer, rs1: pointer, imm: stride });
  return { start: { t: 'data', rd: pointer, offset }, body: [...accesses, step] };
}

function codeData(scope: Scope, words: Words): Node[] | undefined {
  const { random } = scope;
  return scope.reserve(2, (t1, t2) => [
    {
      t: 'codeData',
      t1,
      t2,
      load: words.load(scope, t1, random.below(8), false),
      store: words.store(scope, t1, random.below(8), false),
    },
  ]);
}

export function atomicItems(scope: Scope, words: Words): Node[] | undefined {
  const { random } = scope;
  return scope.reserve(3, (pointer, value, status) => {
    const base: Node = { t: 'data', rd: pointer, offset: 8 * random.below(0x200) };
    if (random.once(2)) {
      const some = Array.from({ length: 1 + random.below(3) }, () => words.amo(scope, pointer));
      return [together([base, ...some])];
    }
    const change = encode(random.pick(['add', 'xor', 'max', 'sub']), { rd: value, rs1: value, rs2: scope.source() });
    const loop: Node = { t: 'reserve', pointer, value, status, double: random.once(2), body: [change] };
    // A second SC has no reservation any more
    const failing = encode('sc.d', { rd: status, rs1: pointer, rs2: value });
    return [together([base, loop, ...(random.once(3) ? [failing] : [])])];
  });
}

/** Fresh floating-point values out of the pool, chosen by a register */
export function floatLoads(scope: Scope): Node[] | undefined {
  const { random } = scope;
  return scope.reserve(2, (pointer, offset) => {
    const loads = Array.from({ length: 1 + random.below(4) }, () => {
      const rd = random.below(16) + (random.once(2) ? 16 : 0);
      return encode(random.pick(['fld', 'fld', 'flw']), { rd, rs1: pointer, imm: 8 * random.below(128) });
    });
    const base: Node = { t: 'data', rd: pointer, offset: FLOAT_POOL + random.below(8) * 0x600 };
    const select: Word[] = [
      encode('andi', { rd: offset, rs1: scope.source(), imm: 0x3f8 }),
      encode('add', { rd: pointer, rs1: pointer, rs2: offset }),
    ];
    return [together([base, ...select, ...loads])];
  });
}
