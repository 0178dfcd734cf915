import { performance } from 'node:perf_hooks';

/** What takes longer was not in memory */
const SLOW_MS = 0.12;
const SLOW_MS_PER_BYTE = 0.0007 / 1024;
const FIRST_PENALTY = 8;
/** On a disk that stays cold every try in place is a stop of the whole event loop: a tenth of a second between two */
const MAX_PENALTY = 2048;
/** Fast ones after which the past is forgotten: a busy host makes a cached access slow now and then, too */
const FORGIVEN_AFTER = 64;

/**
 * Decides whether the next access may run in place on the event loop or goes to the thread pool. In place saves
 * about 20 µs a request while the data is cached; on cold storage it would stop every other peer. So: time what
 * runs in place; a slow one sends the next N to the pool, N doubling from 8 to 2048 while slow ones go on,
 * and forgotten after 64 fast ones.
 */
export class InPlaceGate {
  #away = 0;
  #penalty = FIRST_PENALTY;
  #fast = 0;
  #startedMs = 0;

  /** True: run in place, and tell {@link done} afterwards. False: use the pool this time. */
  enter(): boolean {
    if (this.#away > 0) {
      this.#away--;
      return false;
    }
    this.#startedMs = performance.now();
    return true;
  }

  done(lengthBytes: number): void {
    const elapsedMs = performance.now() - this.#startedMs;
    // A cached access costs 1 µs and 0.1 µs a KiB, and up to 0.6 µs a KiB where the kernel itself runs under a
    // hypervisor without help of the processor; a cold one 80 µs and more.
    if (elapsedMs <= SLOW_MS + lengthBytes * SLOW_MS_PER_BYTE) {
      if (++this.#fast >= FORGIVEN_AFTER) {
        this.#fast = 0;
        this.#penalty = FIRST_PENALTY;
      }
      return;
    }
    this.#fast = 0;
    this.#away = this.#penalty;
    this.#penalty = Math.min(this.#penalty * 2, MAX_PENALTY);
  }
}
