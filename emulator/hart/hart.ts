import { generateInterpreter } from '../interpreter/interpreter.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import { KERNEL_WASM_BASE64 } from '../kernel/kernel_wasm.ts';
import {
  CODE_PAGES,
  type MemoryLayout,
  ROM_BYTES,
  TABLE_BUCKETS,
  TABLE_COMPRESSED,
  TABLE_ENTRIES,
} from '../memory/layout.ts';
import { ARGUMENT_DEPTH_SHIFT } from '../translator/function_context.ts';
import { TABLE_SIZE } from '../translator/installed_code.ts';
import { Translator, type TranslatorKernel } from '../translator/translator.ts';
import { type WasmMemory, type WasmModule, wasm } from '../wasm/platform.ts';
import { type HartStart, resetHartRegisters } from './reset.ts';

/** What a hart's thread gives it. Called from wasm: cheap, and never throwing on guest input. */
export interface HartHost {
  /** mtime, an integer number of 10 MHz ticks */
  now(): number;
  /** Updates timer bits in HART_MIP; nonzero ends the run (EXIT_ATTENTION) */
  poll(): number;
  /** Gives the value, or -1 where no device is (an access fault); `address` below 2^53 */
  mmioRead(address: number, size: number): number;
  /** False where no device is */
  mmioWrite(address: number, size: number, value: number): boolean;
  /** What HART_LOG asks for: `kind` is one LOG_ bit, the values are described there */
  log?(kind: number, first: bigint, second: bigint, third: number): void;
}

export type ExitCode = typeof H.EXIT_FUEL | typeof H.EXIT_ATTENTION | typeof H.EXIT_WFI | typeof H.EXIT_SBI;

interface KernelExports extends TranslatorKernel {
  pollHart(): number;
  refuel(fuel: number): void;
  interruptHart(): void;
  refreshDerived(): void;
  updateModes(): void;
  updatePmp(): void;
  updateSupervisorTimer(): void;
  flushAll(): void;
  peekAddress(va: bigint, size: number): number;
}

/** For a thread whose stack has the usual size */
const CALL_DEPTH = 200;
/** Jumps to one place after which it is translated */
const HOT_AFTER = 4000;

export type Engine = 'interpreter' | 'translator';

export interface HartOptions {
  /** `translator`: what is run often is compiled; the interpreter does the rest */
  readonly engine?: Engine;
  readonly hotAfter?: number;
  /** The processor keeps the order of plain loads and stores as x86 does */
  readonly strongOrder?: boolean;
  /** How deep translated functions call each other before they return to the interpreter: a frame takes up to 1 KB or so */
  readonly callDepth?: number;
  /** What translated code may take in the engine, in `bytes`; default: the hart's share of the machine's */
  readonly codeBytes?: number;
  /** Windows (kernel/assembly/window.ts) of fewer `bytes` are left alone */
  readonly leastWindow?: number;
  /** Makes the engine give back memory that nothing refers to; see code_memory.ts */
  readonly collect?: (() => void) | undefined;
}

let kernelModule: WasmModule | undefined;
function compiledKernel(): WasmModule {
  if (kernelModule === undefined) {
    const binary = atobPortable(KERNEL_WASM_BASE64);
    kernelModule = new wasm.Module(binary);
  }
  return kernelModule;
}

/** Base64 without Buffer or atob: both exist everywhere, but neither is in this folder's types. */
function atobPortable(text: string): Uint8Array {
  const bytes = new Uint8Array((text.length * 3) >> 2);
  let at = 0;
  let bits = 0;
  let held = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    const value =
      code >= 97
        ? code - 71
        : code >= 65
          ? code - 65
          : code === 43
            ? 62
            : code === 47
              ? 63
              : code === 61
                ? -1
                : code + 4;
    if (value < 0) break;
    held = (held << 6) | value;
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      bytes[at++] = (held >> bits) & 255;
    }
  }
  return bytes.subarray(0, at);
}

/**
 * One hart: its kernel and interpreter instances over the shared memory. Lives on one thread; other threads
 * touch only its atomic words. State is in memory, so saving it needs no call here.
 */
export class Hart {
  readonly id: number;
  readonly base: number;
  readonly #kernel: KernelExports;
  readonly #run: (fuel: number) => number;
  readonly #translator: Translator | undefined;
  readonly #view: DataView;
  readonly #i32: Int32Array;

  constructor(memory: WasmMemory, layout: MemoryLayout, id: number, host: HartHost, options: HartOptions = {}) {
    this.id = id;
    this.base = layout.hart(id);
    this.#view = new DataView(memory.buffer);
    this.#i32 = new Int32Array(memory.buffer);
    const code = layout.code(id);
    const dirtyRom = layout.dirty - ROM_BYTES / 4096;
    const i32 = (value: number) => new wasm.Global({ value: 'i32', mutable: false }, value | 0);
    const faultAt = this.base + H.HART_MMIO_FAULT;
    const kernel = new wasm.Instance(compiledKernel(), {
      env: {
        memory,
        HART: i32(this.base),
        CODE_PAGES_AT: i32(code.pages),
        CODE_META_AT: i32(code.meta),
        CODE_INDEX_AT: i32(code.index),
        CODE_PAGE_COUNT: i32(CODE_PAGES),
        DIRTY_AT: i32(dirtyRom),
        CODE_VERSION_AT: i32(layout.codeVersion),
        ROM_AT: i32(layout.rom),
        RAM_AT: i32(layout.ram),
        RAM_BYTES: i32(layout.ramBytes),
        TABLE_BUCKETS: i32(TABLE_BUCKETS),
        TABLE_ENTRIES: i32(TABLE_ENTRIES),
        TABLE_COMPRESSED: i32(TABLE_COMPRESSED),
        CODE_KEYS_AT: i32(code.keys),
        ENTRIES_AT: i32(code.entries),
        CALL_DEPTH: i32((options.callDepth ?? CALL_DEPTH) << ARGUMENT_DEPTH_SHIFT),
        now: () => host.now(),
        poll: () => host.poll(),
        mmioRead: (low: number, high: number, size: number) => {
          const value = host.mmioRead((high >>> 0) * 0x1_0000_0000 + (low >>> 0), size);
          if (value < 0) this.#view.setUint32(faultAt, 1, true);
          return value | 0;
        },
        mmioWrite: (low: number, high: number, size: number, value: number) => {
          const mask = size === 4 ? 0xffff_ffff : (1 << (size * 8)) - 1;
          if (!host.mmioWrite((high >>> 0) * 0x1_0000_0000 + (low >>> 0), size, (value & mask) >>> 0)) {
            this.#view.setUint32(faultAt, 1, true);
          }
        },
        log: (kind: number, first: bigint, second: bigint, third: number) => host.log?.(kind, first, second, third),
      },
    });
    this.#kernel = kernel.exports as unknown as KernelExports;
    const { engine = 'interpreter', hotAfter = HOT_AFTER } = options;
    const translating = engine === 'translator';
    const table = new wasm.Table({ element: 'anyfunc', initial: 1 });
    const bytes = generateInterpreter({
      hart: this.base,
      dirty: dirtyRom,
      rom: layout.rom,
      hotAfter: translating ? hotAfter : 0,
    });
    const interpreter = new wasm.Instance(new wasm.Module(bytes), {
      env: { memory, table, hot: (slot: number) => this.#translator?.hot(slot >>> 0), ...kernel.exports },
    });
    if (translating) {
      const { leave } = interpreter.exports;
      table.grow(TABLE_SIZE - 1, leave);
      this.#translator = new Translator({
        memory,
        layout,
        hart: id,
        table,
        imports: kernel.exports,
        kernel: this.#kernel,
        leave,
        strongOrder: options.strongOrder ?? false,
        calleeVisits: hotAfter >> 2,
        codeBytes: options.codeBytes,
        leastWindow: options.leastWindow,
        collect: options.collect,
      });
    }
    this.#run = interpreter.exports.run as (fuel: number) => number;
  }

  /** Power-on values, then the entry point; other threads' words stay. */
  reset(entry: Omit<HartStart, 'id'>): void {
    const { buffer } = this.#view;
    new Uint8Array(buffer).fill(0, this.base, this.base + H.HART_STATE_BYTES);
    resetHartRegisters(buffer as SharedArrayBuffer, this.base, { ...entry, id: this.id });
    this.refresh();
  }

  /** After registers were changed from outside: flushes what was derived from them. */
  refresh(): void {
    this.#kernel.updatePmp();
    this.#kernel.updateModes();
    this.#kernel.refreshDerived();
    this.#kernel.updateSupervisorTimer();
  }

  /** Timers, requests and interrupts, then up to `fuel` instructions. */
  run(fuel: number): ExitCode {
    const attention = this.#kernel.pollHart();
    if (attention !== H.EXIT_FUEL) return attention as ExitCode;
    this.#kernel.refuel(fuel);
    return this.#run(fuel) as ExitCode;
  }

  /** Exactly `fuel` instructions without looking at interrupts: for tests and comparisons. */
  step(fuel: number): ExitCode {
    this.#kernel.refuel(fuel);
    return this.#run(fuel) as ExitCode;
  }

  /** Gives the next run its fuel already: what asks for the count before it begins sees none of it used. */
  refuel(fuel: number): void {
    this.#kernel.refuel(fuel);
  }

  updateSupervisorTimer(): void {
    this.#kernel.updateSupervisorTimer();
  }
  updatePmp(): void {
    this.#kernel.updatePmp();
  }
  flushTranslations(): void {
    this.#kernel.flushAll();
  }
  flushInstructions(): void {
    this.#kernel.flushInstructions();
  }

  /** Eight bytes by the hart's own translation; undefined where a load would fault. */
  peek64(va: bigint): bigint | undefined {
    const host = this.#kernel.peekAddress(BigInt.asIntN(64, va), 8) >>> 0;
    return host === 0 ? undefined : this.#view.getBigUint64(host, true);
  }

  /** Host address of `size` bytes in one page by the hart's own translation; 0 where a load would fault. */
  peekHost(va: bigint, size: number): number {
    return this.#kernel.peekAddress(BigInt.asIntN(64, va), size) >>> 0;
  }

  // --- registers, for SBI, state, debuggers and tests -------------------------------------------------------

  x(index: number): bigint {
    return index === 0 ? 0n : this.#view.getBigUint64(this.base + H.HART_X + index * 8, true);
  }
  setX(index: number, value: bigint): void {
    if (index !== 0) this.#view.setBigUint64(this.base + H.HART_X + index * 8, BigInt.asUintN(64, value), true);
  }
  f(index: number): bigint {
    return this.#view.getBigUint64(this.base + H.HART_F + index * 8, true);
  }
  setF(index: number, value: bigint): void {
    this.#view.setBigUint64(this.base + H.HART_F + index * 8, BigInt.asUintN(64, value), true);
  }
  get pc(): bigint {
    return this.#view.getBigUint64(this.base + H.HART_PC, true);
  }
  set pc(value: bigint) {
    this.#view.setBigUint64(this.base + H.HART_PC, BigInt.asUintN(64, value), true);
  }
  /** A 64-bit or 32-bit field by its HART_ offset */
  get64(offset: number): bigint {
    return this.#view.getBigUint64(this.base + offset, true);
  }
  set64(offset: number, value: bigint): void {
    this.#set64(offset, value);
  }
  get32(offset: number): number {
    return this.#view.getUint32(this.base + offset, true);
  }
  set32(offset: number, value: number): void {
    this.#set32(offset, value);
  }
  getFloat64(offset: number): number {
    return this.#view.getFloat64(this.base + offset, true);
  }
  /** The atomic word at a HART_ offset: index for Atomics on `words` */
  word(offset: number): number {
    return (this.base + offset) >> 2;
  }
  get words(): Int32Array {
    return this.#i32;
  }

  #set64(offset: number, value: number | bigint): void {
    this.#view.setBigUint64(this.base + offset, BigInt.asUintN(64, BigInt(value)), true);
  }
  #set32(offset: number, value: number): void {
    this.#view.setUint32(this.base + offset, value >>> 0, true);
  }
}
