import type { ExitCode, Hart } from '../hart/hart.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { LogItem } from './log_items.ts';
import {
  codeHeader,
  codeLine,
  executionLine,
  invalidAccessLine,
  registerDump,
  translationLines,
  trapLine,
} from './log_text.ts';
import { type SymbolData, SymbolTable } from './symbols.ts';

/** Plain data: posted to the hart's thread. */
export interface LogOptions {
  readonly items: readonly LogItem[];
  readonly symbols?: SymbolData;
}

/** Text that is gathered before it is written, in UTF-16 units */
const BUFFER_LENGTH = 1 << 14;
const PAGE_MASK = 0xfffn;
const LAST_HALFWORD = 0xffen;
const MAX_STRADDLING = 4096;
const ECALL_FROM_S = 9n;
const ECALL_BYTES = 4n;

/**
 * The log of one hart, on its thread. The kernel calls {@link HartLog.event} for what HART_LOG asks, at places that
 * every engine passes: traps, page walks, first decoding. Nothing of it costs anything while the word is zero.
 */
export class HartLog {
  readonly #hart: Hart;
  readonly #items: ReadonlySet<LogItem>;
  readonly #symbols: SymbolTable | undefined;
  readonly #write: (text: string) => void;
  /** Shows each instruction: the hart runs one at a time */
  readonly steps: boolean;
  #buffer = '';
  /** Where the next decoded instruction would continue the last piece */
  #nextPc = -1n;
  /** Instructions that straddle two pages are decoded each time they run; they are shown once */
  readonly #straddling = new Set<bigint>();

  constructor(hart: Hart, options: LogOptions, write: (text: string) => void) {
    this.#hart = hart;
    this.#items = new Set(options.items);
    this.#symbols = options.symbols === undefined ? undefined : new SymbolTable(options.symbols);
    this.#write = write;
    this.steps = this.#items.has('exec') || this.#items.has('cpu');
    let flags = 0;
    if (this.#items.has('int')) flags |= H.LOG_INT;
    if (this.#items.has('mmu')) flags |= H.LOG_MMU;
    if (this.#items.has('in_asm')) flags |= H.LOG_IN_ASM;
    hart.set32(H.HART_LOG, flags);
  }

  /** Runs up to `fuel` instructions, showing each before it is executed where that is asked. */
  run(fuel: number): ExitCode {
    if (!this.steps) return this.#hart.run(fuel);
    // Looks at interrupts first, so that what is shown is what is executed
    const attention = this.#hart.run(0);
    if (attention !== H.EXIT_FUEL) return attention;
    this.show();
    return this.#hart.step(1);
  }

  /** The instruction that comes next, and the registers before it. */
  show(): void {
    const { pc } = this.#hart;
    if (this.#items.has('exec')) {
      this.#put(executionLine(this.#hart.id, pc, this.#hart.get32(H.HART_PRIV), this.#symbol(pc)));
    }
    if (this.#items.has('cpu')) this.#put(registerDump(this.#hart, this.#items.has('fpu')));
  }

  /** From the kernel: `kind` is one LOG_ bit. */
  event(kind: number, first: bigint, second: bigint, third: number): void {
    const hart = this.#hart;
    if (kind === H.LOG_INT) this.#put(trapLine(hart.id, BigInt.asUintN(64, first), hart.pc, second));
    else if (kind === H.LOG_MMU) {
      this.#put(translationLines(BigInt.asUintN(64, first), BigInt.asUintN(64, second), third));
    } else if (kind === H.LOG_IN_ASM) this.#code(hart.pc, Number(first | (second << 16n)));
  }

  /** The built-in SBI answers a call: no trap is taken, so that it is told here. HART_PC is behind the ecall. */
  sbiCall(): void {
    if (!this.#items.has('int')) return;
    this.#put(trapLine(this.#hart.id, ECALL_FROM_S, this.#hart.pc - ECALL_BYTES, 0n));
  }

  invalidAccess(kind: 'read' | 'write', address: number, size: number): void {
    if (this.#items.has('guest_errors')) this.#put(invalidAccessLine(kind, address, size));
  }

  /** Writes what is gathered; before the hart waits or ends. */
  flush(): void {
    if (this.#buffer === '') return;
    this.#write(this.#buffer);
    this.#buffer = '';
  }

  #code(pc: bigint, word: number): void {
    if ((pc & PAGE_MASK) === LAST_HALFWORD) {
      if (this.#straddling.has(pc)) return;
      if (this.#straddling.size >= MAX_STRADDLING) this.#straddling.clear();
      this.#straddling.add(pc);
    }
    if (pc !== this.#nextPc) this.#put(codeHeader(this.#symbol(pc), this.#hart.get32(H.HART_PRIV)));
    this.#put(codeLine(pc, word));
    this.#nextPc = pc + ((word & 3) === 3 ? 4n : 2n);
  }

  #symbol(pc: bigint): string {
    return this.#symbols?.find(pc)?.name ?? '';
  }

  #put(text: string): void {
    this.#buffer += text;
    if (this.#buffer.length >= BUFFER_LENGTH) this.flush();
  }
}
