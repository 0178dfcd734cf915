import type { AccessSize } from '../device.ts';
import { PCI_CONFIG_BYTES, PCI_SLOTS, PCI_STATUS, PCI_STATUS_INTERRUPT } from './registers.ts';

const SLOT_WORDS = PCI_CONFIG_BYTES / 4;
const STATUS_WORD = PCI_STATUS & ~3;

// Words of the shared state
/** One bit for each slot that has a function */
const PRESENT = 0;
/** For each slot, one bit for each of its 64 registers that only the main thread reads */
const ACTIVE = 1;
const CONFIG = ACTIVE + PCI_SLOTS * 2;

/**
 * Configuration space of bus 0 in shared words. It is changed on the main thread alone, and a write is seen before the
 * hart that wrote goes on; harts read it by themselves. Every thread has its own object over the same words.
 */
export class SharedConfig {
  static readonly WORDS = CONFIG + PCI_SLOTS * SLOT_WORDS;

  readonly #words: Int32Array;
  readonly #view: DataView;
  readonly #interrupt: (slot: number) => boolean;

  /** `words`: `SharedConfig.WORDS` of them, zero at first; `interrupt`: whether a slot's function pulls its pin now */
  constructor(words: Int32Array, interrupt: (slot: number) => boolean) {
    this.#words = words;
    this.#view = new DataView(words.buffer, words.byteOffset);
    this.#interrupt = interrupt;
  }

  /** A slot gets a function; `active`: offsets of registers whose reading does more than give what is stored. */
  add(slot: number, active: readonly number[]): void {
    for (const offset of active) {
      const word = offset >>> 2;
      this.#words[ACTIVE + slot * 2 + (word >>> 5)]! |= 1 << (word & 31);
    }
    Atomics.or(this.#words, PRESENT, 1 << slot);
  }

  /** The configuration space of a slot, for its function: 256 bytes, without the interrupt bit of the status register. */
  bytes(slot: number): Uint8Array {
    return new Uint8Array(this.#words.buffer, this.#at(slot), PCI_CONFIG_BYTES);
  }

  /** What an access to the ECAM window reads; -1 where the main thread has to be asked. */
  read(offset: number, size: AccessSize): number {
    if (offset % size !== 0) return -1;
    const register = offset & 0xfff;
    const slot = (offset >>> 15) & (PCI_SLOTS - 1);
    // Bus 0, function 0; conventional functions have no extended configuration space
    const exists = offset < 1 << 20 && ((offset >>> 12) & 7) === 0 && register < PCI_CONFIG_BYTES;
    if (!exists || (Atomics.load(this.#words, PRESENT) & (1 << slot)) === 0) return 2 ** (8 * size) - 1;
    const word = register >>> 2;
    if ((this.#words[ACTIVE + slot * 2 + (word >>> 5)]! & (1 << (word & 31))) !== 0) return -1;
    let value = this.#view.getUint32(this.#at(slot) - this.#words.byteOffset + word * 4, true);
    if (word * 4 === STATUS_WORD && this.#interrupt(slot)) value |= PCI_STATUS_INTERRUPT << (8 * (PCI_STATUS & 3));
    const shifted = value >>> (8 * (register & 3));
    return size === 4 ? shifted : shifted & (2 ** (8 * size) - 1);
  }

  #at(slot: number): number {
    return this.#words.byteOffset + (CONFIG + slot * SLOT_WORDS) * 4;
  }
}
