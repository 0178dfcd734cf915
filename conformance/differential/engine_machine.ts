// Our side: one hart on its engine, RAM, and as much of a machine as the images need: a timer that the harness rings,
// and the power switch.
import { installDecodeTables } from '../../emulator/hart/decode_tables.ts';
import { Hart, type HartHost } from '../../emulator/hart/hart.ts';
import {
  DIRTY_CODE_BIT,
  EXIT_ATTENTION,
  EXIT_FUEL,
  EXIT_WFI,
  HART_FUEL,
  HART_INSTRET_END,
  HART_MIP,
  HART_STATE_BYTES,
} from '../../emulator/kernel/assembly/hart_layout.ts';
import { type MemoryLayout, planMemory } from '../../emulator/memory/layout.ts';
import { wasm } from '../../emulator/wasm/platform.ts';
import type { Image } from './image.ts';
import { PAGE, RAM_BASE, RAM_BYTES, STATE, STATE_WORDS } from './layout.ts';

export const ENGINES = ['interpreter', 'translator'] as const;
export type Engine = (typeof ENGINES)[number];

const MTIP = 1 << 7;
const CLINT = 0x200_0000;
const CLINT_BYTES = 0x1_0000;
const MTIMECMP = CLINT + 0x4000;
const TEST_DEVICE = 0x10_0000;

/** Jumps to a place after which it is translated: early, since programs are short */
const HOT_AFTER = 8;

export class EngineMachine {
  readonly hart: Hart;
  readonly layout: MemoryLayout;
  readonly bytes: Uint8Array;
  /** One byte a page of RAM */
  readonly dirty: Uint8Array;
  poweredOff = false;
  /** The last run ended in a wait for an interrupt */
  waited = false;

  constructor(engine: Engine) {
    this.layout = planMemory(1, RAM_BYTES);
    const { wasmPages } = this.layout;
    const memory = new wasm.Memory({ initial: wasmPages, maximum: wasmPages, shared: true });
    installDecodeTables(memory);
    this.bytes = new Uint8Array(memory.buffer);
    this.dirty = this.bytes.subarray(this.layout.dirty, this.layout.dirty + RAM_BYTES / PAGE);
    const host: HartHost = {
      now: () => 0,
      poll: () => (this.poweredOff ? 1 : 0),
      mmioRead: (address) => (address >= CLINT && address < CLINT + CLINT_BYTES ? 0 : -1),
      mmioWrite: (address) => this.#write(address),
    };
    this.hart = new Hart(memory, this.layout, 0, host, { engine, hotAfter: HOT_AFTER, leastWindow: 1 });
  }

  #write(address: number): boolean {
    if (address === MTIMECMP) this.#pin(MTIP, false);
    else if (address === TEST_DEVICE) this.poweredOff = true;
    return address === TEST_DEVICE || (address >= CLINT && address < CLINT + CLINT_BYTES);
  }

  #pin(bit: number, on: boolean): void {
    const { hart } = this;
    if (on) Atomics.or(hart.words, hart.word(HART_MIP), bit);
    else Atomics.and(hart.words, hart.word(HART_MIP), ~bit);
  }

  /** The timer is due: an interrupt when it is enabled next */
  ringTimer(): void {
    this.#pin(MTIP, true);
  }

  /** RAM is zeroed but for the image, and the hart as at power-on */
  load(image: Image): void {
    const ram = this.ram;
    ram.fill(0);
    for (const { base, bytes } of image.sections) ram.set(bytes, base - RAM_BASE);
    this.dirty.fill(DIRTY_CODE_BIT);
    this.poweredOff = false;
    this.#pin(-1, false);
    const { hart } = this;
    hart.reset({ pc: RAM_BASE, a0: 0, a1: 0, supervisor: false });
    hart.flushTranslations();
    hart.flushInstructions();
  }

  get ram(): Uint8Array {
    return this.bytes.subarray(this.layout.ram, this.layout.ram + RAM_BYTES);
  }

  get state(): Uint8Array {
    return this.bytes.subarray(this.hart.base, this.hart.base + HART_STATE_BYTES);
  }

  /** Which leg the runtime is at */
  get leg(): number {
    return new DataView(this.ram.buffer, this.ram.byteOffset).getUint32(STATE - RAM_BASE + STATE_WORDS.leg, true);
  }

  /** Instructions retired since power-on */
  get retired(): bigint {
    return this.hart.get64(HART_INSTRET_END) - BigInt(this.hart.get32(HART_FUEL));
  }

  /** Up to `instructions`; false where the program has ended. Waits for interrupts end at once. */
  run(instructions: number): boolean {
    const exit = this.hart.run(instructions);
    this.waited = exit === EXIT_WFI;
    if (this.poweredOff) return false;
    if (this.waited) this.ringTimer();
    else if (exit !== EXIT_FUEL && exit !== EXIT_ATTENTION)
      throw new Error(`Cannot go on: the hart ended by exit ${exit}`);
    return true;
  }
}
