/** What takes longer was not in memory */
const SLOW_MS = 0.12;
const SLOW_MS_PER_BYTE = 0.0007 / 1024;

/**
 * Decides whether the next access may run in place on the event loop or goes to the thread pool. In place saves
 * about 20 µs a request while the data is cached; on cold storage it would stop every other peer. So: time what
 * runs in place; a slow one sends the next N to the pool, N doubling from 8 to 256 while slow ones go on,
 * and forgotten after 256 fast ones.
 */
export class InPlaceGate {
  #away = 0;
  #penalty = 8;
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
      if (++this.#fast >= 256) {
        this.#fast = 0;
        this.#penalty = 8;
      }
      return;
    }
    this.#fast = 0;
    this.#away = this.#penalty;
    this.#penalty = Math.min(this.#penalty * 2, 256);
  }
}
