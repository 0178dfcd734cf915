import type { HartSignals } from '../devices/device.ts';
import { HART_ATTENTION, HART_DOORBELL, HART_MIP } from '../kernel/assembly/hart_layout.ts';
import type { MemoryLayout } from '../memory/layout.ts';
import { MAIN_DOORBELL } from './words.ts';

/** Interrupt pins and wake-ups of all harts, from any thread. */
export class SharedHartSignals implements HartSignals {
  readonly harts: number;
  readonly words: Int32Array;
  readonly #layout: MemoryLayout;
  readonly #own: number;

  /** `own`: the hart that runs on this thread, if one does */
  constructor(buffer: SharedArrayBuffer, layout: MemoryLayout, own = -1) {
    this.harts = layout.harts;
    this.words = new Int32Array(buffer);
    this.#layout = layout;
    this.#own = own;
  }

  /** Index in `words` of a hart's atomic word */
  index(hart: number, offset: number): number {
    return (this.#layout.hart(hart) + offset) >> 2;
  }

  setPending(hart: number, bit: number, level: boolean): void {
    const index = this.index(hart, HART_MIP);
    // Most are as they were: a timer that is armed anew before it is due
    if (((Atomics.load(this.words, index) >>> bit) & 1) === (level ? 1 : 0)) return;
    if (level) {
      const old = Atomics.or(this.words, index, 1 << bit);
      if ((old & (1 << bit)) === 0) this.kick(hart);
    } else {
      Atomics.and(this.words, index, ~(1 << bit));
    }
  }

  kick(hart: number): void {
    const index = this.index(hart, HART_DOORBELL);
    Atomics.add(this.words, index, 1);
    // A hart that does this itself does not sleep
    if (hart !== this.#own) Atomics.notify(this.words, index);
  }

  /** Sets attention bits and makes the hart look. */
  request(hart: number, bits: number): void {
    Atomics.or(this.words, this.index(hart, HART_ATTENTION), bits);
    this.kick(hart);
  }

  clear(hart: number, bits: number): void {
    const index = this.index(hart, HART_ATTENTION);
    Atomics.and(this.words, index, ~bits);
    Atomics.notify(this.words, index);
    this.kick(hart);
  }

  attention(hart: number): number {
    return Atomics.load(this.words, this.index(hart, HART_ATTENTION));
  }

  /** Makes the machine's main thread look. */
  ringMain(): void {
    Atomics.add(this.words, MAIN_DOORBELL >> 2, 1);
    Atomics.notify(this.words, MAIN_DOORBELL >> 2);
  }
}
