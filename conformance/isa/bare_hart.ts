// Our side: one hart in M-mode without devices, running the payload until its first ecall.
import { installDecodeTables } from '../../emulator/hart/decode_tables.ts';
import { Hart } from '../../emulator/hart/hart.ts';
import {
  DIRTY_CODE_BIT,
  EXIT_WFI,
  HART_FS,
  HART_MCAUSE,
  HART_MEPC,
  HART_MTVAL,
  HART_MTVEC,
} from '../../emulator/kernel/assembly/hart_layout.ts';
import { planMemory } from '../../emulator/memory/layout.ts';
import { wasm } from '../../emulator/wasm/platform.ts';
import { type Section, WFI } from './assembler.ts';
import { TEST_DEVICE, UART_LSR, UART_LSR_EMPTY, UART_THR } from './dump.ts';
import type { Program } from './program.ts';

const RAM_BASE = 0x8000_0000;
const RAM_BYTES = 64 << 20;
const PAGE_BYTES = 4096;
const FUEL = 1 << 26;
const CAUSE_ECALL_M = 11n;

export class BareHart {
  readonly #bytes: Uint8Array;
  readonly #hart: Hart;
  readonly #dirty: Uint8Array;
  readonly #ram: number;

  constructor() {
    const layout = planMemory(1, RAM_BYTES);
    const memory = new wasm.Memory({ initial: layout.wasmPages, maximum: layout.wasmPages, shared: true });
    installDecodeTables(memory);
    this.#bytes = new Uint8Array(memory.buffer);
    this.#ram = layout.ram;
    this.#dirty = this.#bytes.subarray(layout.dirty, layout.dirty + RAM_BYTES / PAGE_BYTES);
    this.#hart = new Hart(memory, layout, 0, {
      now: () => 0,
      poll: () => 0,
      mmioRead: (address) => (address === UART_LSR ? UART_LSR_EMPTY : -1),
      mmioWrite: (address) => address === UART_THR || address === TEST_DEVICE,
    });
  }

  #place({ base, bytes }: { base: number; bytes: Uint8Array }): void {
    const offset = base - RAM_BASE;
    this.#bytes.set(bytes, this.#ram + offset);
    this.#dirty.fill(DIRTY_CODE_BIT, offset / PAGE_BYTES, Math.ceil((offset + bytes.length) / PAGE_BYTES));
  }

  #read({ base, bytes }: Section): Uint8Array {
    const at = this.#ram + base - RAM_BASE;
    return this.#bytes.slice(at, at + bytes.length);
  }

  /** Runs the program and gives its data section as it was at the end. */
  run(program: Program): Uint8Array {
    const hart = this.#hart;
    const end = RAM_BASE + RAM_BYTES - PAGE_BYTES;
    this.#place(program.code);
    this.#place(program.data);
    if (program.tables) this.#place(program.tables);
    this.#place({ base: end, bytes: Uint8Array.of(WFI & 255, (WFI >> 8) & 255, (WFI >> 16) & 255, WFI >>> 24) });
    hart.reset({ pc: program.bare?.entry ?? program.code.base, a0: 0, a1: 0, supervisor: false });
    hart.set64(HART_MTVEC, BigInt(program.bare?.trapHandler ?? end));
    hart.set32(HART_FS, 3);
    hart.refresh();
    hart.flushTranslations();
    hart.flushInstructions();
    const exit = hart.step(FUEL);
    const cause = hart.get64(HART_MCAUSE);
    const ended =
      program.tables === undefined ? cause === CAUSE_ECALL_M : hart.pc > (program.end ?? Number.POSITIVE_INFINITY);
    if (exit !== EXIT_WFI || !ended) {
      const mepc = Number(hart.get64(HART_MEPC));
      const where = program.cases.findLast((started) => started.codeFrom <= mepc);
      const word = (where?.word ?? 0).toString(16).padStart(8, '0');
      throw new Error(
        `Cannot finish the program: exit ${exit}, mcause ${cause}, mtval 0x${hart.get64(HART_MTVAL).toString(16)}, ` +
          `mepc 0x${mepc.toString(16)}, pc 0x${hart.pc.toString(16)}; case ${where?.name} 0x${word} ${where?.operands}`,
      );
    }
    return this.#read(program.data);
  }
}
