import type { InterruptLine } from '../device.ts';
import { SpinLock } from '../shared/mod.ts';
import { PCI_SLOTS as SLOTS } from './registers.ts';
import { SharedConfig } from './shared_config.ts';

const LINES = 4;

// Words of the shared state
const LOCK = 0;
/** For each line, one bit for each slot that pulls it */
const ASSERTED = 1;
/** For each slot, what its interrupt status register holds */
const STATUS = ASSERTED + LINES;
/** For each slot, the CPU address of that register as low and high half; both 0 where it is not decoded */
const ADDRESS = STATUS + SLOTS;
/** For each slot, the line of its pin */
const LINE = ADDRESS + SLOTS * 2;
const CONFIG = LINE + SLOTS;

/**
 * What the harts' threads share of the PCI bus: configuration space; who pulls the four INTx lines, and the status registers that a driver
 * reads at every interrupt to see why and to acknowledge (virtio 1.2 §4.1.4.5). So a hart reads them by itself, and
 * no interrupt waits for the main thread to wake. Every thread has its own object over the same words.
 */
export class PciShared {
  static readonly WORDS = CONFIG + SharedConfig.WORDS;

  readonly config: SharedConfig;
  readonly #words: Int32Array;
  readonly #lines: readonly InterruptLine[];
  readonly #lock: SpinLock;

  /** `words`: `PciShared.WORDS` of the shared memory, zero at first; `lines`: the four inputs of the controller */
  constructor(words: Int32Array, lines: readonly InterruptLine[]) {
    if (words.length < PciShared.WORDS) throw new RangeError(`Cannot share PCI state: ${PciShared.WORDS} words`);
    if (lines.length !== LINES) throw new RangeError(`Cannot wire INTx: expected ${LINES} lines`);
    this.#words = words;
    this.#lines = lines;
    this.#lock = new SpinLock(words, LOCK);
    this.config = new SharedConfig(
      words.subarray(CONFIG, CONFIG + SharedConfig.WORDS),
      (slot) => Atomics.load(words, STATUS + slot) !== 0,
    );
  }

  /** The status register of a slot. */
  status(slot: number): InterruptStatus {
    return new InterruptStatus(this.#words, STATUS + slot);
  }

  /** `level` is asked under the lock, so that the line follows the order of the states. */
  updateLine(slot: number, line: number, level: () => boolean): void {
    this.#lock.run(() => this.#setAsserted(slot, line, level()));
  }

  /** Where a hart finds the slot's status register, an address below 2^53; undefined: nowhere. */
  publish(slot: number, address: number | undefined, line: number): void {
    const at = ADDRESS + slot * 2;
    this.#lock.run(() => {
      this.#words[at] = (address ?? 0) | 0;
      this.#words[at + 1] = Math.floor((address ?? 0) / 0x1_0000_0000);
      this.#words[LINE + slot] = line;
    });
  }

  /** A hart's read: takes what the register at this address holds and lets its line go. -1 where none is there. */
  acknowledge(address: number): number {
    const low = address | 0;
    const high = Math.floor(address / 0x1_0000_0000);
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.#words[ADDRESS + slot * 2] === low && this.#words[ADDRESS + slot * 2 + 1] === high && address !== 0) {
        return this.#acknowledge(slot, low, high);
      }
    }
    return -1;
  }

  #acknowledge(slot: number, low: number, high: number): number {
    // Polling drivers find nothing most of the time, and then nothing changes
    if (Atomics.load(this.#words, STATUS + slot) === 0) return 0;
    return this.#lock.run(() => {
      const at = ADDRESS + slot * 2;
      if (this.#words[at] !== low || this.#words[at + 1] !== high) return -1; // it has just moved
      const status = Atomics.exchange(this.#words, STATUS + slot, 0);
      this.#setAsserted(slot, this.#words[LINE + slot]!, false);
      return status;
    });
  }

  #setAsserted(slot: number, line: number, level: boolean): void {
    const before = this.#words[ASSERTED + line]!;
    const after = level ? before | (1 << slot) : before & ~(1 << slot);
    this.#words[ASSERTED + line] = after;
    this.#lines[line]!.set(after !== 0);
  }
}

/** One interrupt status register: causes come from the device, a read takes them all. Any thread. */
export class InterruptStatus {
  readonly #words: Int32Array;
  readonly #index: number;

  constructor(words: Int32Array = new Int32Array(1), index = 0) {
    this.#words = words;
    this.#index = index;
  }

  get value(): number {
    return Atomics.load(this.#words, this.#index);
  }
  set value(causes: number) {
    Atomics.store(this.#words, this.#index, causes);
  }

  add(cause: number): void {
    Atomics.or(this.#words, this.#index, cause);
  }

  take(): number {
    return Atomics.exchange(this.#words, this.#index, 0);
  }
}
