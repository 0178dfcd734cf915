const FREE = 0;
const HELD = 1;
/** Held, and somebody may be asleep on it */
const CONTENDED = 2;

/** Tries before sleeping: a register access holds the lock for well under a microsecond */
const SPINS = 200;
/** A sleeper looks again after this, in `ms`: a lost wake-up costs no more */
const SLEEP_MS = 1;

/**
 * Mutual exclusion over one word of shared memory, for the few words of a register device. Any thread may take
 * it; sections must be short, must not throw half-way and must not take the same lock again. Devices that raise
 * an interrupt inside take the lock of the interrupt controller second, never the other way round.
 */
export class SpinLock {
  readonly #words: Int32Array;
  readonly #index: number;

  constructor(words: Int32Array, index: number) {
    this.#words = words;
    this.#index = index;
  }

  acquire(): void {
    const words = this.#words;
    const index = this.#index;
    for (let spin = 0; spin < SPINS; spin++) {
      if (Atomics.compareExchange(words, index, FREE, HELD) === FREE) return;
    }
    while (Atomics.exchange(words, index, CONTENDED) !== FREE) {
      try {
        Atomics.wait(words, index, CONTENDED, SLEEP_MS);
      } catch {
        // A browser's main thread may not sleep: it spins. The holder is another thread, so it makes progress.
      }
    }
  }

  release(): void {
    if (Atomics.exchange(this.#words, this.#index, FREE) === CONTENDED) Atomics.notify(this.#words, this.#index, 1);
  }

  /** Runs a section under the lock and gives its value. */
  run<T>(section: () => T): T {
    this.acquire();
    try {
      return section();
    } finally {
      this.release();
    }
  }
}
