import type { Stateful } from '../state/state.ts';

/** In `bytes`. The bus splits 8-byte accesses into two, low word first. */
export type AccessSize = 1 | 2 | 4;

/**
 * A window of registers in guest physical space. The bus guarantees: `offset` is inside the window and a
 * multiple of `size`; `value` is unsigned. The guest controls everything else, in any order, at any time.
 */
export interface MmioDevice {
  /** As in `info qtree` of QEMU */
  readonly name: string;
  /** Unsigned; registers that do not exist read 0 */
  read(offset: number, size: AccessSize): number;
  /** Registers that do not exist ignore writes */
  write(offset: number, size: AccessSize, value: number): void;
}

/** One level-triggered input of the interrupt controller. */
export interface InterruptLine {
  set(level: boolean): void;
}

/** A device with guest-visible state: registers, reset, and the save contract. */
export interface Device extends Stateful {
  /** To power-on values; requests in flight are dropped when they complete */
  reset(): void;
}

/**
 * Local interrupt and wake-up lines of the harts, callable from any thread.
 * `bit` is the bit number in `mip`: 1 SSIP, 3 MSIP, 7 MTIP, 9 SEIP, 11 MEIP.
 */
export interface HartSignals {
  readonly harts: number;
  setPending(hart: number, bit: number, level: boolean): void;
  /** Makes the hart look at its timers and requests soon, also out of WFI */
  kick(hart: number): void;
}

/** Guest time. Stands still while the machine is stopped; continues across migration. */
export interface Clock {
  /** `mtime`: ticks of 10 MHz since power-on, an integer below 2^53 */
  ticks(): number;
  /** Wall clock, in `ns` since 1970 */
  wallNs(): bigint;
}
