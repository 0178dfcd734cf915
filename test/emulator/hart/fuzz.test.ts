// Random programs over random machine state. Nothing a guest does may trap the host's wasm, spin without using fuel,
// or write anywhere but its RAM, the dirty map and code versions of that RAM, and its own hart's area and code cache.
import process from 'node:process';
import test from 'ava';
import { encode, INSTRUCTIONS } from '../../../emulator/isa/mod.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { CODE_PAGES, ROM_BYTES } from '../../../emulator/memory/layout.ts';
import { BareHart, CODE, DATA, MMIO, PTE, RAM, RWX, TABLES } from '../../fixtures/bare_hart.ts';

/** More by the environment; seeds go on, so that a longer run contains the shorter */
const ROUNDS = Number(process.env.CAISSON_FUZZ_ROUNDS ?? 700);
const FUEL = 400;
/** Runs that a program is cut into: causes are looked at between them */
const PARTS = 20;
const CANARY = 0xc5;
const RAM_BYTES = 1 << 20;

/** Deterministic: a failure is repeated by its seed */
class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = Math.imul(seed, 0x85eb_ca6b) | 1;
    for (let i = 0; i < 8; i++) this.u32();
  }

  u32(): number {
    // xorshift32
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return this.#state >>> 0;
  }

  below(limit: number): number {
    return this.u32() % limit;
  }

  u64(): bigint {
    return (BigInt(this.u32()) << 32n) | BigInt(this.u32());
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }
}

// The canary hart is the second one: its area and code cache may not be touched by the first
const machine = new BareHart({ harts: 2, ramBytes: RAM_BYTES });
const { layout, bytes } = machine;

/** Where something interesting begins or ends, as a guest would see it */
const EDGES = [
  0, 0x1000, 0x1_0000, RAM, RAM + RAM_BYTES, RAM + RAM_BYTES - 4, MMIO, CODE, DATA, DATA + 4096, TABLES, TABLES + 4096,
  0x1_0000_0000, 0x1_8000_0000,
].map(BigInt); // biome-ignore format: a list

function address(random: Random): bigint {
  switch (random.below(12)) {
    case 0:
      return random.u64();
    case 1:
      return BigInt.asUintN(64, BigInt(random.u32() | 0));
    case 2:
      return (random.u64() & 0xffn) << BigInt(random.below(57));
    case 3:
    case 4:
    case 5:
    case 6:
    case 7:
      return BigInt(DATA + random.below(0x1_0000));
    default: {
      const near = random.below(3) === 0 ? 0n : BigInt(random.below(64) - 32);
      return BigInt.asUintN(64, random.pick(EDGES) + near);
    }
  }
}

const CSRS = [
  0x001, 0x002, 0x003, 0x100, 0x104, 0x105, 0x106, 0x10a, 0x140, 0x141, 0x142, 0x144, 0x14d, 0x180, 0x300, 0x302, 0x303,
  0x304, 0x305, 0x306, 0x30a, 0x320, 0x341, 0x344, 0x3a0, 0x3a2, 0x3b0, 0x3b1, 0x3b7, 0x3bf, 0xb00, 0xb02, 0xc00, 0xc01,
]; // biome-ignore format: a list

function instruction(random: Random): number {
  if (random.below(16) === 0) return random.u32();
  if (random.below(4) === 0) return random.u32() & 0xffff;
  const { name } = random.pick(INSTRUCTIONS);
  const operand = () => (random.below(3) === 0 ? random.below(32) : 8 + random.below(8));
  const word = encode(name, { rd: operand(), rs1: operand(), rs2: operand(), rs3: operand(), rm: random.below(8) });
  const csr = name.startsWith('csrr') ? random.pick(CSRS) << 20 : 0;
  // Immediates by hand: any bits that the row leaves open
  const row = INSTRUCTIONS.find((candidate) => candidate.name === name)!;
  const open = ['I', 'LOAD', 'S', 'B', 'J', 'FLOAD'].includes(row.format) && random.below(2) === 0;
  return (word | csr | (open ? random.u32() & ~row.mask & 0xfff0_0f80 : 0)) >>> 0;
}

function pageTableEntry(random: Random): bigint {
  const target = random.pick([RAM, CODE, DATA, DATA + 4096, TABLES, TABLES + 4096, TABLES + 8192, 0x1000, MMIO]);
  const flags = random.below(3) === 0 ? 1 : random.u32() & 0xff;
  const high = random.below(8) === 0 ? random.u64() & 0xffc0_0000_0000_0000n : 0n;
  if (random.below(16) === 0) return random.u64();
  return high | (BigInt(target >>> 12) << 10n) | BigInt(flags | (random.below(8) === 0 ? 0 : 1));
}

/** Maps the gigabyte that RAM is in to itself, so that translated code gets further than its first fetch */
function mapRam(levels: number, flags: bigint): void {
  for (let level = 0; level < levels - 3; level++) {
    machine.ram.setU64(TABLES + level * 4096, (BigInt(TABLES + (level + 1) * 4096) >> 2n) | PTE.V);
  }
  machine.ram.setU64(TABLES + (levels - 3) * 4096 + 2 * 8, (BigInt(RAM) >> 2n) | flags);
}

/** Random code, tables, registers and CSRs, within what the specification's fields can hold */
function prepare(random: Random): void {
  machine.clear();
  const { hart, ram } = machine;
  for (const page of [CODE, CODE + 4096, CODE + 8192, RAM + RAM_BYTES - 4096]) {
    for (let at = page; at < page + 256; ) {
      const word = instruction(random);
      machine.code(at, [word]);
      at += (word & 3) === 3 ? 4 : 2;
    }
  }
  // The first instruction may straddle two pages
  machine.code(CODE + 4094, [instruction(random) | 3]);
  for (let page = 0; page < 4; page++) {
    for (let entry = 0; entry < 512; entry += 1 + random.below(3)) {
      ram.setU64(TABLES + page * 4096 + entry * 8, pageTableEntry(random));
    }
  }
  for (let i = 1; i < 32; i++) {
    hart.setX(i, address(random));
    hart.setF(i, random.below(2) === 0 ? random.u64() : random.u64() | 0xffff_ffff_0000_0000n);
  }
  for (let entry = 0; entry < 16; entry++) {
    const used = random.below(4) === 0;
    bytes[hart.base + H.HART_PMPCFG + entry] = used ? random.u32() & 0x9f : 0;
    const at = address(random) >> 2n;
    hart.set64(
      H.HART_PMPADDR + entry * 8,
      (random.below(2) === 0 ? at : at | ((1n << BigInt(random.below(54))) - 1n)) & ((1n << 54n) - 1n),
    );
  }
  if (random.below(4) !== 0) bytes.fill(0, hart.base + H.HART_PMPCFG, hart.base + H.HART_PMPCFG + 16);
  const tvec = () => (random.below(4) === 0 ? address(random) & ~2n : BigInt(CODE + random.below(64) * 4));
  const privilege = random.pick([0, 1, 3]);
  const mode = random.pick([0n, 0n, 8n, 9n, 10n]);
  const mapped = random.below(4) !== 0;
  if (mode !== 0n && mapped)
    mapRam(Number(mode) - 5, random.pick([RWX, RWX & ~PTE.W, RWX & ~PTE.D]) | (privilege === 0 ? PTE.U : 0n));
  machine.set({
    mode: privilege,
    fs: random.below(4),
    mstatus: (random.u64() & 0x7e_01aan) | random.pick([0n, 1n << 11n, 3n << 11n]),
    mie: random.u64() & 0xaaan,
    mideleg: random.u64() & 0x222n,
    medeleg: random.u64() & 0xb3ffn,
    mtvec: tvec(),
    stvec: tvec(),
    mepc: address(random) & ~1n,
    sepc: address(random) & ~1n,
    menvcfg: random.u64() & 0xe000_0000_0000_00d1n,
    senvcfg: random.u64() & 0xd1n,
    satp: mode === 0n ? 0n : (mode << 60n) | BigInt((TABLES >>> 12) + (mapped ? 0 : random.below(3))),
  });
  Atomics.store(hart.words, hart.word(H.HART_MIP), random.u32() & 0xaaa);
  hart.set32(H.HART_FRM, random.below(8));
  hart.set32(H.HART_MCOUNTEREN, random.u32());
  hart.refresh();
  hart.pc = random.pick([BigInt(CODE), BigInt(CODE + 4094), address(random) & ~1n, BigInt(RAM + RAM_BYTES - 4096)]);
}

/** Behind the last thing that a hart keeps in its own area */
const END_OF_HART = H.HART_ENTRY_PAGES + (1 << H.ENTRY_PAGES_BITS);

/** Everything that this hart may not write: by start and end in the shared memory */
function forbidden(): readonly (readonly [number, number, string])[] {
  const own = layout.code(0);
  const pages = (ROM_BYTES + RAM_BYTES) / 4096;
  const ownEnd = own.index + pages * 2;
  const romDirty = layout.dirty - ROM_BYTES / 4096;
  return [
    // The kernel's soft float keeps a little static data below the tables
    [0, 0x1_0000, 'address 0'],
    [0x2_0000, layout.hart(0), 'decode tables, device and machine words'],
    [layout.hart(0) + END_OF_HART, layout.hart(1) + H.HART_STRIDE, 'the next hart'],
    [layout.hart(1) + H.HART_STRIDE, own.pages, 'the other harts'],
    [own.pages + CODE_PAGES * H.CODE_PAGE_BYTES, own.meta, 'between code pages and their metadata'],
    [ownEnd, romDirty, "the next hart's code cache"],
    [layout.dirty + RAM_BYTES / 4096, layout.codeVersion, 'behind the dirty map'],
    [layout.codeVersion + pages * 4, layout.rom, 'behind the code versions'],
    [layout.rom, layout.ram, 'ROM'],
    [layout.ram + RAM_BYTES, layout.wasmPages * 65536, 'behind RAM'],
  ];
}

const WORDS = new Uint32Array(bytes.buffer);
/** Translations that brokenHart has looked at */
let translations = 0;

/** What is wrong with the hart's own area: a translation that leads out of RAM and ROM, slots of nowhere, an x0 */
function brokenHart(): string | undefined {
  const { base } = machine.hart;
  if (machine.hart.get64(H.HART_X) !== 0n) return 'x0 was written';
  const words = WORDS;
  const empty = (at: number): boolean => words[at >> 2] === 0xffff_ffff && words[(at >> 2) + 1] === 0xffff_ffff;
  const used = machine.hart.get32(H.HART_TLB_USED);
  for (let set = 0; set < 4; set++) {
    if ((used & (1 << set)) === 0) continue;
    const first = base + H.HART_DTLB_SETS + set * H.DTLB_SET_BYTES;
    for (let at = first; at < first + H.DTLB_SET_BYTES; at += H.DTLB_ENTRY_BYTES) {
      for (const [tag, from] of [
        [at, layout.rom],
        [at + 8, layout.ram],
      ] as const) {
        if (empty(tag)) continue;
        translations++;
        const host = (words[tag >> 2]! + words[(at + 16) >> 2]!) >>> 0;
        if (host < from || host + 4096 > layout.ram + RAM_BYTES || host % 4096 !== 0) return `data TLB → ${host}`;
      }
    }
  }
  if (machine.hart.get32(H.HART_ITLB_COUNT) > H.ITLB_LIST_LENGTH) return 'the list of the fetch TLB is too long';
  const { pages } = layout.code(0);
  for (
    let at = base + H.HART_ITLB_SETS;
    at < base + H.HART_ITLB_SETS + 4 * H.ITLB_SET_BYTES;
    at += H.ITLB_ENTRY_BYTES
  ) {
    if (empty(at)) continue;
    const slots = words[(at + 8) >> 2]! - pages;
    if (slots < 0 || slots % H.CODE_PAGE_BYTES !== 0 || slots >= CODE_PAGES * H.CODE_PAGE_BYTES)
      return `fetch TLB → ${slots}`;
  }
  return undefined;
}

/** FNV-like over words: any changed byte changes it */
function digest(from: number, to: number): number {
  const words = new Int32Array(bytes.buffer, from, (to - from) >> 2);
  let hash = 17;
  for (const word of words) hash = (Math.imul(hash, 31) + word) | 0;
  return hash;
}

test('Random programs over random tables, registers, CSRs and PMP stay inside their RAM and their fuel', (t) => {
  bytes.fill(CANARY, layout.rom, layout.ram);
  const areas = forbidden().filter(([from, to]) => to > from);
  // Unused memory says nothing when zero is stored to it
  for (const [from, to, name] of areas) {
    if (['behind RAM', 'behind the dirty map', 'behind the code versions', 'address 0'].includes(name)) {
      bytes.fill(CANARY, from, to);
    }
  }
  const before = areas.map(([from, to]) => digest(from, to));
  const causes = new Set<bigint>();
  let retired = 0n;
  const started = performance.now();
  for (let round = 0; round < ROUNDS; round++) {
    const seed = 0x9e37_79b9 + round * 7919;
    prepare(new Random(seed));
    try {
      // Interrupts are looked at by run; a wait or a request is an end like any other
      for (let part = 0; part < PARTS; part++) {
        machine.hart.run(FUEL / PARTS);
        causes.add(machine.get('mcause'));
        causes.add(machine.get('scause'));
        const broken = brokenHart();
        if (broken !== undefined) {
          t.fail(`seed ${seed}: ${broken}`);
          return;
        }
      }
    } catch (error) {
      t.fail(`seed ${seed}: the host trapped: ${(error as Error).message}`);
      return;
    }
    retired += machine.hart.get64(H.HART_INSTRET_END) - BigInt(machine.hart.get32(H.HART_FUEL));
    // Cheap enough to name the round only where it is near; the others are found by halving ROUNDS
    if (round % 100 !== 99) continue;
    for (const [index, [from, to, name]] of areas.entries()) {
      if (digest(from, to) !== before[index]) {
        t.fail(`${name} was written by a seed up to ${seed}`);
        return;
      }
    }
  }
  t.log(
    `${ROUNDS} programs, ${retired} instructions retired, ${causes.size} different causes (${[...causes].map((c) => c.toString(16))}), ${Math.round(performance.now() - started)} ms`,
  );
  // A fuzz that runs nothing, or sees one kind of trap only, shows nothing
  t.true(retired > BigInt(ROUNDS) * 20n, `${retired} instructions`);
  t.true(translations > ROUNDS, `${translations} translations`);
  for (const cause of [1n, 2n, 3n, 5n, 7n, 12n, 13n, 15n]) t.true(causes.has(cause), `cause ${cause}`);
});

test('Every store in random programs is in the dirty map', (t) => {
  for (let round = 0; round < 200; round++) {
    const seed = 0x1234_567 + round * 104_729;
    prepare(new Random(seed));
    const copy = bytes.slice(layout.ram, layout.ram + RAM_BYTES);
    bytes.fill(0, layout.dirty, layout.dirty + RAM_BYTES / 4096);
    for (let part = 0; part < PARTS; part++) machine.hart.run(FUEL / PARTS);
    for (let page = 0; page < RAM_BYTES / 4096; page++) {
      if ((bytes[layout.dirty + page]! & 1) !== 0) continue;
      const now = Buffer.from(bytes.buffer, layout.ram + page * 4096, 4096);
      if (now.compare(copy, page * 4096, (page + 1) * 4096) !== 0) {
        t.fail(`seed ${seed}: page ${page} was stored to and is clean`);
        return;
      }
    }
  }
  t.pass();
});
