// Address space numbers: what a space maps for itself is never found in another, and what is global need not be looked
// for again. A guest changes mappings and fences as the specification asks; each access must see what is mapped then.
import test from 'ava';
import fc from 'fast-check';
import { readCounters } from '../../../emulator/hart/counters.ts';
import type { Engine } from '../../../emulator/hart/hart.ts';
import { encode } from '../../../emulator/isa/mod.ts';
import {
  BareHart,
  CODE,
  PageTables,
  PTE,
  pte,
  RAM,
  RWX,
  S,
  S_HANDLER,
  SV39,
  TABLES,
} from '../../fixtures/bare_hart.ts';

const [RA, T0, A0, A1, A2] = [1, 5, 10, 11, 12];
const [SSTATUS, SEPC, SATP] = [0x100, 0x141, 0x180];
const PAGE = 4096;
/** Of a loop that calls, so that it is translated meanwhile */
const ROUNDS = 4;
const LOAD = CODE;
const CALL = CODE + 0x10;
const FENCES = CODE + 0x40;
const SWITCH = CODE + 0x80;
const TO_USER = CODE + 0x90;
const SUM = CODE + 0xa0;
/** The same code for the user */
const USER = 0x3000_0000n - BigInt(CODE);
const SPACES = 3;
const FRAMES = Array.from({ length: 6 }, (_, index) => RAM + 0x10_0000 + index * PAGE);
const SUPERPAGE = 2 << 20;
const SUPERFRAMES = [RAM, RAM + SUPERPAGE];

interface Place {
  readonly va: bigint;
  readonly user: boolean;
  readonly global: boolean;
  readonly level: 0 | 1;
}
const place = (va: bigint, kind: string): Place => ({
  va,
  user: kind.includes('user'),
  global: kind.includes('global'),
  level: kind.includes('super') ? 1 : 0,
});
/** Some share an entry of a TLB */
const PLACES: readonly Place[] = [
  place(0x4000_0000n, 'own'),
  place(0x4000_1000n, 'own'),
  place(0x4010_0000n, 'global'),
  place(0x4010_1000n, 'global'),
  place(0x4040_0000n, 'own, user'),
  place(0x4050_0000n, 'global, user'),
  place(0x5000_0000n, 'own, super'),
  place(0x5020_0000n, 'global, super'),
];
/** In a superpage: an address whose data are there in both frames */
const OFFSET = BigInt(FRAMES[2]! - RAM);
/** What is called at a place: the cache of indirect jumps tells places apart by that, so it has all of them */
const codeOffset = (index: number): number => 8 * (1 + index);

const FENCE_KINDS = ['all', 'page', 'space', 'pageOfSpace'] as const;
type FenceKind = (typeof FENCE_KINDS)[number];

class Guest {
  readonly machine: BareHart;
  readonly #entries: number[][] = [];
  readonly #roots: number[] = [];
  /** By space and place: index of the frame */
  readonly #mapped: number[][] = [];
  /** Number of each space */
  readonly #numbers: bigint[] = [1n, 2n, 0xffffn];
  current = 0;

  constructor(engine: Engine) {
    const machine = new BareHart({ engine });
    this.machine = machine;
    machine.set({ mode: S, medeleg: 1n << 8n });
    for (let space = 0; space < SPACES; space++) {
      const tables = new PageTables(machine, SV39, TABLES + space * 0x2_0000).identity(RWX | PTE.G);
      tables.map(USER + BigInt(CODE), CODE, RWX | PTE.G | PTE.U);
      this.#roots.push(tables.root);
      this.#mapped.push(PLACES.map(() => 0));
      this.#entries.push(PLACES.map((each) => tables.map(each.va, SUPERFRAMES[0]!, this.#flags(each), each.level)));
      for (const index of PLACES.keys()) this.#set(space, index, PLACES[index]!.global ? 0 : space);
    }
    machine.code(LOAD, [encode('ld', { rd: A1, rs1: A0 }), encode('ecall')]);
    machine.code(CALL, [
      encode('jalr', { rd: RA, rs1: A0 }),
      encode('addi', { rd: T0, rs1: T0, imm: -1 }),
      encode('bne', { rs1: T0, imm: -8 }),
      encode('ecall'),
    ]);
    for (const [index, kind] of FENCE_KINDS.entries()) {
      const rs1 = kind.startsWith('page') ? A0 : 0;
      const rs2 = kind.endsWith('pace') ? A2 : 0;
      machine.code(FENCES + 4 * index, [encode('sfence.vma', { rs1, rs2 })]);
    }
    machine.code(SWITCH, [encode('csrrw', { rs1: A0, csr: SATP })]);
    machine.code(TO_USER, [encode('csrrw', { rs1: A2, csr: SEPC }), encode('sret')]);
    machine.code(SUM, [encode('csrrw', { rs1: A0, csr: SSTATUS })]);
    for (const base of SUPERFRAMES) {
      for (const [index, frame] of FRAMES.entries()) {
        const number = (base === RAM ? 100 : 200) + index;
        const at = base + frame - RAM;
        machine.ram.setU64(at, BigInt(number));
        const returns = [encode('addi', { rd: A1, imm: number }), encode('jalr', { rs1: RA })];
        for (const each of PLACES.keys()) machine.code(at + codeOffset(each), returns);
      }
    }
    machine.hart.flushInstructions();
    this.switchTo(0);
  }

  #flags({ user, global }: Place): bigint {
    return RWX | (user ? PTE.U : 0n) | (global ? PTE.G : 0n);
  }
  #set(space: number, index: number, frame: number): void {
    const each = PLACES[index]!;
    const frames = each.level === 1 ? SUPERFRAMES : FRAMES;
    this.#mapped[space]![index] = frame % frames.length;
    this.machine.ram.setU64(this.#entries[space]![index]!, pte(frames[frame % frames.length]!, this.#flags(each)));
  }
  #run(pc: number, registers: Readonly<Record<number, bigint>>, steps: number): void {
    const { hart } = this.machine;
    for (const [register, value] of Object.entries(registers)) hart.setX(Number(register), value);
    hart.pc = BigInt(pc);
    hart.step(steps);
  }

  /** What an access gives, by its mode's own code, and what is mapped there */
  access(how: 'load' | 'call', index: number): { readonly found: bigint; readonly mapped: bigint } {
    const { va, user, level } = PLACES[index]!;
    const address = va + (level === 1 ? OFFSET : 0n) + (how === 'call' ? BigInt(codeOffset(index)) : 0n);
    const [pc, steps] = how === 'call' ? [CALL, 5 * ROUNDS] : [LOAD, 1];
    const registers = { [A0]: address, [A1]: 0n, [T0]: BigInt(ROUNDS), [A2]: USER + BigInt(pc) };
    if (user) this.#run(TO_USER, registers, 2 + steps + 1);
    else this.#run(pc, registers, steps);
    if (user && this.machine.hart.pc !== BigInt(S_HANDLER)) throw new Error('The user did not come back');
    const frame = this.#mapped[this.current]![index]!;
    const mapped = level === 1 ? 100 * (1 + frame) + 2 : 100 + frame;
    return { found: this.machine.hart.x(A1), mapped: BigInt(mapped) };
  }

  switchTo(space: number): void {
    this.current = space;
    this.#run(
      SWITCH,
      { [A0]: (SV39 << 60n) | (this.#numbers[space]! << 44n) | (BigInt(this.#roots[space]!) >> 12n) },
      1,
    );
  }
  #fence(kind: FenceKind, address: bigint, number: bigint): void {
    // What is above the number's sixteen bits is ignored
    this.#run(FENCES + 4 * FENCE_KINDS.indexOf(kind), { [A0]: address, [A2]: number | (0x77n << 16n) }, 1);
  }

  /** Maps something else, in one space or where it is global in all, and fences as it must. */
  map(space: number, index: number, frame: number, kind: FenceKind): void {
    const { va, global } = PLACES[index]!;
    for (let each = 0; each < SPACES; each++) if (global || each === space) this.#set(each, index, frame);
    // A fence of one space does not order what is global
    const needed = global && kind === 'space' ? 'all' : global && kind === 'pageOfSpace' ? 'page' : kind;
    this.#fence(needed, va + 0x123n, this.#numbers[space]!);
  }
  /** Two spaces change their numbers: both are fenced. */
  exchange(one: number, other: number): void {
    const [a, b] = [this.#numbers[one]!, this.#numbers[other]!];
    [this.#numbers[one], this.#numbers[other]] = [b, a];
    this.switchTo(this.current);
    for (const number of [a, b]) this.#fence('space', 0n, number);
  }
  sum(on: boolean): void {
    this.#run(SUM, { [A0]: on ? 1n << 18n : 0n }, 1);
  }
  count(name: string): number {
    const { memory, hart } = this.machine;
    return Number(readCounters(memory.buffer as SharedArrayBuffer, hart.base).get(name)!);
  }
}

const space = fc.nat(SPACES - 1);
const index = fc.nat(PLACES.length - 1);
const step = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('access' as const), index, calls: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('switch' as const), space }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('map' as const),
      here: fc.boolean(),
      calls: fc.boolean(),
      space,
      index,
      frame: fc.nat(FRAMES.length - 1),
      fence: fc.constantFrom(...FENCE_KINDS),
    }),
  },
  fc.record({ kind: fc.constant('exchange' as const), one: space, other: space }),
  fc.record({ kind: fc.constant('sum' as const), on: fc.boolean() }),
);

for (const engine of ['interpreter', 'translator'] as const) {
  test(`each access sees what its own space maps, whatever fences were needed for that (${engine})`, (t) => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 20, maxLength: 120 }), (steps) => {
        const guest = new Guest(engine);
        const isRight = (how: 'load' | 'call', at: number): boolean => {
          const { found, mapped } = guest.access(how, at);
          return found === mapped;
        };
        for (const each of steps) {
          if (each.kind === 'access') {
            if (!isRight(each.calls ? 'call' : 'load', each.index)) return false;
          } else if (each.kind === 'switch') guest.switchTo(each.space);
          else if (each.kind === 'map') {
            // What is known by then is what must be forgotten
            const how = each.calls ? 'call' : 'load';
            if (!isRight(how, each.index)) return false;
            guest.map(each.here ? guest.current : each.space, each.index, each.frame, each.fence);
            if (!isRight(how, each.index)) return false;
          } else if (each.kind === 'exchange') guest.exchange(each.one, each.other);
          else guest.sum(each.on);
        }
        return PLACES.every((_, at) => isRight('load', at) && isRight('call', at));
      }),
      { numRuns: 60 },
    );
    t.pass();
  });
}

const OWN = 0;
const GLOBAL = 2;

test('a space with another number leaves what is global, and fences of a space that is not the current one all', (t) => {
  const guest = new Guest('translator');
  const misses = () => ['data-tlb-misses', 'fetch-tlb-misses'].map((name) => guest.count(name));
  const accessAll = (places: readonly number[]) => {
    for (const at of places) for (const how of ['load', 'call'] as const) guest.access(how, at);
  };
  accessAll([OWN, GLOBAL]);
  guest.switchTo(1);
  accessAll([GLOBAL]);
  const before = misses();
  accessAll([GLOBAL]);
  t.deepEqual(misses(), before);
  guest.access('load', OWN);
  t.is(guest.count('data-tlb-misses'), before[0]! + 1);
  const then = misses();
  guest.map(0, OWN, 3, 'space');
  guest.map(0, OWN, 4, 'pageOfSpace');
  guest.access('load', OWN);
  accessAll([GLOBAL]);
  t.deepEqual(misses(), then, 'of the other space there was nothing');
});

test('another table under the same number, and no translation at all, leave nothing', (t) => {
  const guest = new Guest('translator');
  const { machine } = guest;
  guest.access('load', GLOBAL);
  const flushes = guest.count('tlb-flushes');
  const write = (satp: bigint) => {
    machine.hart.setX(A0, satp);
    machine.hart.pc = BigInt(SWITCH);
    machine.hart.step(1);
  };
  const satp = machine.get('satp');
  write(satp + 0x20n);
  t.is(guest.count('tlb-flushes'), flushes + 1);
  write(0n);
  t.is(guest.count('tlb-flushes'), flushes + 2);
  write(satp);
  t.is(guest.count('tlb-flushes'), flushes + 3);
});

test('code that is global at one address and not at another is forgotten with its space', (t) => {
  const guest = new Guest('translator');
  // Both are mapped to the first frame in space 0: the same code key
  t.deepEqual(guest.access('call', GLOBAL), { found: 100n, mapped: 100n });
  t.deepEqual(guest.access('call', OWN), { found: 100n, mapped: 100n });
  guest.switchTo(1);
  t.deepEqual(guest.access('call', OWN), { found: 101n, mapped: 101n });
});

test('all code that a space maps for itself is forgotten with it', (t) => {
  const guest = new Guest('translator');
  const own = [...PLACES.keys()].filter((at) => !PLACES[at]!.global && !PLACES[at]!.user && PLACES[at]!.level === 0);
  const callAll = () => own.map((at) => guest.access('call', at).found);
  for (const at of own) {
    guest.map(0, at, 2 + at, 'page');
    guest.map(1, at, 4 + at, 'page');
  }
  for (let round = 0; round < 3; round++) {
    guest.switchTo(0);
    t.deepEqual(callAll(), [102n, 103n]);
    guest.switchTo(1);
    t.deepEqual(callAll(), [104n, 105n]);
  }
});
