import { performance } from 'node:perf_hooks';
import type { SlowReason } from './slow_reason.ts';

/** What takes longer was not in memory */
const SLOW_MS = 0.12;
const SLOW_MS_PER_BYTE = 0.0007 / 1024;
/** The pool's threads have to be woken, and others may be before us there */
const POOL_MS = 0.2;
const FIRST_PENALTY = 8;
const MAX_PENALTY = 256;
/** Fast ones after which the past is forgotten */
const FORGIVEN_AFTER = 64;
/** So many slow ones without a reason that anybody knows are one reason, unless this many fast ones come between two */
const SUSPECTS = 4;
const CLEARED_AFTER = 16;
/** Of the pool, slow ones between two looks at why */
const LOOKED_AT_AFTER = 64;
/** However slow the pool is */
const RETRIED_AFTER = 8192;

const ALWAYS: SlowReason = { since: () => true };

/**
 * Decides whether the next access may run in place on the event loop or goes to the thread pool. In place saves
 * about 20 µs a request while the data is cached; on cold storage it would stop every other peer. So: time what
 * runs in place; a slow one sends the next N to the pool, N doubling from 8 to 256 while slow ones go on,
 * and forgotten after 64 fast ones. Where the pool's accesses are timed, too, N of them have to be fast in a row: a disk
 * that stays cold is not tried on the event loop again and again.
 *
 * On a host that is busy a cached access is slow now and then, because somebody else has the core. `reason` knows these,
 * and few of them change nothing.
 */
export class InPlaceGate {
  readonly #reason: SlowReason;
  #away = 0;
  #penalty = FIRST_PENALTY;
  #fast = 0;
  #suspects = 0;
  #startedMs = 0;
  /** Accesses since the last one in place */
  #elsewhere = 0;
  /** Slow ones of the pool since the last look at why */
  #slowElsewhere = 0;

  constructor(reason: SlowReason = ALWAYS) {
    this.#reason = reason;
  }

  /** True: run in place, and tell {@link done} afterwards. False: use the pool this time. */
  enter(): boolean {
    if (this.#away > 0 && ++this.#elsewhere < RETRIED_AFTER) {
      this.#away--;
      return false;
    }
    this.#away = 0;
    this.#elsewhere = 0;
    this.#startedMs = performance.now();
    return true;
  }

  done(lengthBytes: number): void {
    // A cached access costs 1 µs and 0.1 µs a KiB, and up to 0.6 µs a KiB where the kernel itself runs under a
    // hypervisor without help of the processor; a cold one 80 µs and more.
    if (performance.now() - this.#startedMs <= SLOW_MS + lengthBytes * SLOW_MS_PER_BYTE) {
      this.#fast++;
      if (this.#fast === CLEARED_AFTER) this.#suspects = 0;
      if (this.#fast === FORGIVEN_AFTER) this.#penalty = FIRST_PENALTY;
      return;
    }
    this.#fast = 0;
    if (!this.#reason.since() && ++this.#suspects < SUSPECTS) return;
    this.#away = this.#penalty;
    this.#penalty = Math.min(this.#penalty * 2, MAX_PENALTY);
  }

  /** An access of the pool has taken `elapsedMs`. */
  pooled(lengthBytes: number, elapsedMs: number): void {
    if (this.#away === 0 || elapsedMs <= POOL_MS + lengthBytes * SLOW_MS_PER_BYTE) return;
    this.#away = Math.max(this.#away, this.#penalty);
    if (++this.#slowElsewhere < LOOKED_AT_AFTER) return;
    this.#slowElsewhere = 0;
    // The pool waits for cores: in place nobody has to.
    if (!this.#reason.since()) this.#away = 0;
  }
}
