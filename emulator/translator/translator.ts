// Decides what is translated, and has it written and compiled: one for each hart's thread.
import { addToCounter } from '../hart/counters.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { MemoryLayout } from '../memory/layout.ts';
import { type WasmMemory, type WasmTable, wasm } from '../wasm/platform.ts';
import { ChangingPages } from './changing_pages.ts';
import { CodeMemory } from './code_memory.ts';
import { inlineCalls, MAX_INLINED, sizeOf } from './inlining.ts';
import { type EntryKernel, InstalledCode } from './installed_code.ts';
import { readSlot } from './instruction.ts';
import { JumpTargets } from './jump_targets.ts';
import { belongingToStart } from './loops.ts';
import { type ModulePart, writeModule } from './module_writer.ts';
import { type CodePage, findRegion, type Region, type RegionSource } from './region.ts';
import { LEAST_WINDOW, windowRegisters } from './windows.ts';

/** Instructions that one module may hold before callees are left out */
const MODULE_INSTRUCTIONS = 4000;
const PAGE = 4096;

/** What the kernel of the hart does for the translator */
export interface TranslatorKernel extends EntryKernel {
  /** Slots of the page at `va`, if it is mapped for execution and was run; else 0 */
  codePage(va: bigint): number;
}

export interface TranslatorOptions {
  readonly memory: WasmMemory;
  readonly layout: MemoryLayout;
  readonly hart: number;
  readonly table: WasmTable;
  /** What modules import beside memory and table */
  readonly imports: Record<string, unknown>;
  readonly kernel: TranslatorKernel;
  /** What stands in empty places of the table */
  readonly leave: unknown;
  readonly strongOrder: boolean;
  /** A callee that was entered so often is translated with its caller */
  readonly calleeVisits: number;
  /** What translations may take in the engine (code_memory.ts), in `bytes`; default: this hart's share */
  readonly codeBytes?: number | undefined;
  /** Windows of fewer `bytes` are left alone; default: windows.ts */
  readonly leastWindow?: number | undefined;
  /** Makes the engine give back what is forgotten */
  readonly collect?: (() => void) | undefined;
}

/** One region that is part of a module, where it is in guest memory now */
interface Candidate {
  readonly region: Region;
  /** Page of the region's start, as it is mapped now */
  readonly va: bigint;
  readonly host: number;
}

export class Translator {
  readonly #options: TranslatorOptions;
  readonly #view: DataView;
  readonly #words: BigUint64Array;
  readonly #hart: number;
  readonly #code: ReturnType<MemoryLayout['code']>;
  readonly #fuses: boolean;
  readonly #installed: InstalledCode;
  readonly #jumps: JumpTargets;
  readonly #memory: CodeMemory;
  readonly #changing = new ChangingPages();

  constructor(options: TranslatorOptions) {
    this.#options = options;
    this.#view = new DataView(options.memory.buffer);
    this.#words = new BigUint64Array(options.memory.buffer);
    this.#hart = options.layout.hart(options.hart);
    this.#code = options.layout.code(options.hart);
    this.#fuses = fusesMultiplyAdd();
    const { layout, hart, table, leave, kernel } = options;
    this.#installed = new InstalledCode({ view: this.#view, layout, hart, table, leave, kernel });
    this.#jumps = new JumpTargets(this.#view, this.#hart);
    this.#memory = new CodeMemory({
      limitBytes: options.codeBytes ?? CodeMemory.limitFor(options.layout.harts),
      collect: options.collect,
    });
    this.#view.setUint32(this.#hart + H.HART_TRANSLATING, 1, true);
  }

  /** The interpreter has gone to this slot often; HART_PC is its address. */
  hot(slot: number): void {
    const host = this.#hostOf(slot);
    if (host === 0) return;
    this.#rememberJump(host);
    const privilege = this.#view.getUint32(this.#hart + H.HART_PRIV, true);
    if (!this.#installed.isTranslated(host, privilege)) this.#translateAt(host, privilege);
    // Counted from nothing again: what is translated now may be dropped when its page changes
    this.#view.setUint16(this.#counterOf(slot), 0, true);
  }

  #translateAt(host: number, privilege: number): void {
    const retired = this.#view.getBigUint64(this.#hart + H.HART_INSTRET_END, true);
    if (!this.#changing.mayTranslate(host & -PAGE, this.#installed.version(host), retired)) {
      this.#count(H.COUNT_TRANSLATIONS_DEFERRED, 1);
      return;
    }
    const started = performance.now();
    const pc = this.#view.getBigUint64(this.#hart + H.HART_PC, true);
    const parts = this.#collect(pc, privilege);
    if (parts.length > 0) this.#translate(parts, privilege, started);
  }

  /** Forgets everything translated. No translated function may be running. */
  flush(): void {
    this.#count(H.COUNT_TRANSLATION_FLUSHES, 1);
    this.#installed.clear();
    this.#memory.drop();
  }

  /** How often the interpreter counted a jump to a slot */
  #visits(slot: number): number {
    return this.#view.getUint16(this.#counterOf(slot), true);
  }
  #counterOf(slot: number): number {
    return this.#hart + H.HART_VISITS + ((slot >>> 3) & ((H.VISIT_COUNTERS - 1) << 1));
  }

  // --- guest code -------------------------------------------------------------------------------------------------

  /** Host address of a slot's instruction; 0 where the slot is none of a page. */
  #hostOf(slot: number): number {
    const { pages, meta } = this.#code;
    const index = Math.floor((slot - pages) / H.CODE_PAGE_BYTES);
    if (slot < pages || slot >= meta) return 0;
    const page = this.#view.getUint32(meta + index * H.CODE_META_BYTES, true);
    return page + ((slot - (pages + index * H.CODE_PAGE_BYTES)) >> 3);
  }

  /** The page that `slots` belong to */
  #page(slots: number): CodePage {
    const index = (slots - this.#code.pages) / H.CODE_PAGE_BYTES;
    return { slots, host: this.#view.getUint32(this.#code.meta + index * H.CODE_META_BYTES, true) };
  }

  /** The place that got hot may be where the last indirect jump of all went. */
  #rememberJump(host: number): void {
    const at = this.#hart + H.HART_JUMP_FROM;
    const from = this.#view.getUint32(at, true);
    this.#view.setUint32(at, 0, true);
    const jump = from >= this.#options.layout.rom ? from : this.#hostOf(from);
    if (jump !== 0) this.#jumps.remember(jump, host);
  }

  /** The region at `pc`, and those that it calls and that are not translated yet. */
  #collect(pc: bigint, privilege: number): Candidate[] {
    const found: Candidate[] = [];
    const seen = new Set<bigint>();
    const work = [pc];
    let instructions = 0;
    for (let at = work.shift(); at !== undefined && instructions < MODULE_INSTRUCTIONS; at = work.shift()) {
      if (seen.has(at)) continue;
      seen.add(at);
      const va = BigInt.asUintN(64, at & -4096n);
      const slots = this.#options.kernel.codePage(BigInt.asIntN(64, va)) >>> 0;
      if (slots === 0) continue;
      const offset = Number(at & 0xfffn);
      if (at !== pc && this.#visits(slots + offset * 8) < this.#options.calleeVisits) continue;
      const { host } = this.#page(slots);
      if (this.#installed.isTranslated(host + offset, privilege)) continue;
      const source = this.#source(va);
      const whole = findRegion(source, offset);
      if (whole === undefined) continue;
      const own =
        at === pc && !this.#wasCalled(pc)
          ? belongingToStart(whole, (at) => this.#isEntered(whole, at, privilege))
          : whole;
      const region = inlineCalls(own, {
        at: (target) => this.#callee(source, target, privilege),
        guess: (call, region) => this.#jumps.guess(call, region, va),
      });
      found.push({ region, va, host });
      instructions += sizeOf(region);
      for (const { end } of region.blocks.values()) {
        if (end.kind === 'call' && end.target !== undefined) work.push(va + BigInt(end.target));
      }
    }
    return found;
  }

  /** What is called at `target`, an offset from the source's base page, if it is small and was called often. */
  #callee(source: RegionSource, target: number, privilege: number): Region | undefined {
    const page = source.page(target >> 12);
    if (page === undefined) return undefined;
    const offset = target & 0xfff;
    const isHot =
      this.#visits(page.slots + offset * 8) >= this.#options.calleeVisits ||
      this.#installed.isTranslated(page.host + offset, privilege);
    return isHot ? findRegion(source, target, MAX_INLINED + 1) : undefined;
  }

  /** Whether a translated function may be entered at a place of the region. */
  #isEntered(region: Region, at: number, privilege: number): boolean {
    return this.#installed.isEntered(region.pages.get(at >> 12)!.host + (at & 0xfff), privilege);
  }

  /** Whether the return address is that of a call to `pc`, which then is where a function starts. */
  #wasCalled(pc: bigint): boolean {
    const back = this.#view.getBigUint64(this.#hart + H.HART_X + 8, true);
    // A call alone, and one with the upper half of its distance before it
    return [4n, 8n].some((distance) => {
      const at = BigInt.asUintN(64, back - distance);
      const slots = this.#options.kernel.codePage(BigInt.asIntN(64, at & -4096n)) >>> 0;
      const call = slots === 0 ? undefined : readSlot(this.#view, slots + Number(at & 0xfffn) * 8, 0);
      if (call === undefined || call === 'illegal') return false;
      if (call.facts.flow === 'jal') return at + BigInt(call.imm) === pc;
      if (call.facts.row.name !== 'auipc' || (at & 0xfffn) > 0xff8n) return false;
      const jump = readSlot(this.#view, slots + Number((at & 0xfffn) + 4n) * 8, 0);
      return jump !== undefined && jump !== 'illegal' && at + BigInt(call.imm + jump.imm) === pc;
    });
  }

  /** Code as it is mapped around the page at `va` */
  #source(va: bigint): RegionSource {
    return {
      view: this.#view,
      page: (number) => {
        const slots = this.#options.kernel.codePage(BigInt.asIntN(64, va + BigInt(number * PAGE))) >>> 0;
        return slots === 0 ? undefined : this.#page(slots);
      },
      jumpTargets: (host) => this.#jumps.of(host),
    };
  }

  // --- modules ------------------------------------------------------------------------------------------------------

  #translate(candidates: readonly Candidate[], privilege: number, started: number): void {
    if (this.#memory.isFull || !this.#installed.hasRoomFor(candidates.map(({ region }) => region))) this.flush();
    const { layout, memory, table } = this.#options;
    const partAt = new Map(candidates.map(({ va, region }, index) => [va + BigInt(region.start), index]));
    const tableAt = this.#installed.takePlaces(candidates.length);
    const parts = candidates.map(({ region, va }): ModulePart => {
      return {
        region,
        windowRegisters: this.#windowRegisters(region),
        keyOf: (number) => this.#installed.keyOf(region.pages.get(number)!.host, privilege),
        link: (target) => {
          const at = va + BigInt(target);
          const part = partAt.get(at);
          if (part !== undefined) return { part };
          const slots = this.#options.kernel.codePage(BigInt.asIntN(64, at & -4096n)) >>> 0;
          if (slots === 0) return undefined;
          return { table: this.#installed.linkOf(this.#page(slots).host + Number(at & 0xfffn), privilege) };
        },
        byteTable: (bytes) => this.#installed.byteTable(bytes),
      };
    });
    const written = writeModule(parts, tableAt, {
      hart: layout.harts === 1 ? this.#hart : undefined,
      dirtyOffset: layout.dirty - (layout.ram >>> 12),
      fusesMultiplyAdd: this.#fuses,
      strongOrder: this.#options.strongOrder,
    });
    const generated = performance.now();
    const module = new wasm.Module(written.bytes);
    this.#memory.add(written.bytes.length);
    new wasm.Instance(module, { env: { memory, table, ...this.#options.imports } });
    for (const [index, { region, host }] of candidates.entries()) {
      this.#installed.install(region, host, privilege, tableAt + index, written.entries[index]!);
    }
    const instructions = candidates.reduce((sum, { region }) => sum + sizeOf(region), 0);
    this.#count(H.COUNT_TRANSLATED_MODULES, 1);
    this.#count(H.COUNT_TRANSLATED_FUNCTIONS, candidates.length);
    this.#count(H.COUNT_TRANSLATED_INSTRUCTIONS, instructions);
    this.#count(H.COUNT_TRANSLATED_BYTES, written.bytes.length);
    this.#count(H.COUNT_TRANSLATE_TIME, (generated - started) * 1000);
    this.#count(H.COUNT_COMPILE_TIME, (performance.now() - generated) * 1000);
  }

  #windowRegisters(region: Region): number {
    const word = (offset: number): bigint => this.#view.getBigUint64(this.#hart + offset, true);
    const bytes = word(H.HART_WINDOW_REACH);
    if (bytes < (this.#options.leastWindow ?? LEAST_WINDOW)) return 0;
    return windowRegisters(region, (register) => word(H.HART_X + register * 8), { first: word(H.HART_WINDOW), bytes });
  }

  #count(counter: number, by: number): void {
    addToCounter(this.#words, this.#hart, counter, BigInt(Math.round(by)));
  }
}

/** Whether the host's relaxed multiply-add rounds once: (1 + ε)² − (1 + 2ε + ε²) tells. */
function fusesMultiplyAdd(): boolean {
  // (func (export "f") (param f64 f64 f64) (result f64) …splat each, f64x2.relaxed_madd, extract_lane 0)
  const code = [0x20, 0, 0xfd, 0x14, 0x20, 1, 0xfd, 0x14, 0x20, 2, 0xfd, 0x14, 0xfd, 0x87, 2, 0xfd, 0x21, 0, 0x0b];
  const bytes = new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 8, 1, 0x60, 3, 0x7c, 0x7c, 0x7c, 1, 0x7c, 3, 2, 1, 0, 7, 5, 1, 1, 0x66, 0, 0,
    10, code.length + 3, 1, code.length + 1, 0, ...code,
  ]); // biome-ignore format: one module
  if (!wasm.validate(bytes)) return false;
  const f = new wasm.Instance(new wasm.Module(bytes), {}).exports.f as (a: number, b: number, c: number) => number;
  const e = 2 ** -30;
  return f(1 + e, 1 + e, -(1 + 2 * e)) === e * e;
}
