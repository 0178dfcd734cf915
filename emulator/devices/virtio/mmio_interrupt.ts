import type { AccessSize, InterruptLine, MmioDevice } from '../device.ts';
import { SpinLock } from '../shared/mod.ts';

/** Of InterruptStatus in a slot's window; InterruptACK follows (virtio 1.2 §4.2.2) */
export const MMIO_INTERRUPT_OFFSET = 0x60;
/** Both registers, in `bytes` */
export const MMIO_INTERRUPT_BYTES = 8;
const ACKNOWLEDGE = 4;

// Words of the shared state
const LOCK = 0;
const STATUS = 1;

/**
 * InterruptStatus and InterruptACK of one virtio-mmio slot, in shared words: a driver reads the one and writes the other
 * at every interrupt, so harts serve themselves, and no interrupt waits for the main thread to wake. Every thread has
 * its own object over the same words.
 */
export class MmioInterrupt implements MmioDevice {
  static readonly WORDS = 2;

  readonly name = 'virtio-mmio';
  readonly #words: Int32Array;
  readonly #line: InterruptLine;
  readonly #lock: SpinLock;

  constructor(line: InterruptLine, words: Int32Array = new Int32Array(MmioInterrupt.WORDS)) {
    if (words.length < MmioInterrupt.WORDS)
      throw new RangeError(`Cannot share: ${MmioInterrupt.WORDS} words are needed`);
    this.#words = words;
    this.#line = line;
    this.#lock = new SpinLock(words, LOCK);
  }

  /** The causes that the driver has not acknowledged */
  get status(): number {
    return Atomics.load(this.#words, STATUS);
  }
  set status(causes: number) {
    this.#change(() => causes);
  }

  raise(cause: number): void {
    this.#change((before) => before | cause);
  }

  read(offset: number, size: AccessSize): number {
    return offset === 0 && size === 4 ? this.status : 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (offset === ACKNOWLEDGE && size === 4) this.#change((before) => before & ~value);
  }

  /** The line follows the order of the states, whichever thread makes them. */
  #change(next: (before: number) => number): void {
    this.#lock.run(() => {
      const causes = next(Atomics.load(this.#words, STATUS));
      Atomics.store(this.#words, STATUS, causes);
      this.#line.set(causes !== 0);
    });
  }
}
