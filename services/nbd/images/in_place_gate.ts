import { performance } from 'node:perf_hooks';
import { AdaptiveTry } from '../../shared/adaptive_try.ts';
import type { SlowReason } from './slow_reason.ts';

/** Where nobody else waits, what is faster than the way to the pool and back may run in place, however slow: so may this */
const ALONE_MS = 2;
const SLOW_MS_PER_BYTE = 0.0007 / 1024;
/** The pool's threads have to be woken, and others may be before us there */
const POOL_MS = 0.2;
/** What an access in place saves while its data is cached: the way to a thread and back, where both are awake at once */
const SAVED_MS = 0.02;
/** Fast ones that may pay for slow ones: older ones are forgotten, and so is what was slow before them */
const MAX_SAVERS = 64;
const FIRST_PENALTY = 8;
const MAX_PENALTY = 256;
/** So many slow ones without a reason that anybody knows are one reason, unless this many fast ones come between two */
const SUSPECTS = 4;
const CLEARED_AFTER = 16;
/** Of the pool, slow ones between two looks at why, and all that there have to be for a share that says something */
const LOOKED_AT_AFTER = 16;
const SHARE_OF = 64;
/** However slow the pool is */
const RETRIED_AFTER = 1024;

const ALWAYS: SlowReason = { slowMs: 0.04, share: () => 1 };

/**
 * Decides whether the next access may run in place on the event loop or goes to the thread pool. In place saves
 * about 20 µs a request while the data is cached; on cold storage it would stop every other peer. So: time what
 * runs in place. A slow one is paid for by the fast ones before it, with what those have saved: an image that has a page
 * missing here and there goes on in place. One that is not paid for sends the next N to the pool, N doubling from 8 to 256
 * while slow ones go on, and forgotten after 64 fast ones.
 *
 * Where the pool's accesses are timed, too, N of them have to be fast in a row: a disk that stays cold is not tried on the
 * event loop again and again. But they are slow as well where threads wait for each other or for cores, for as long as
 * that goes on. So `reason` is asked what part of their data came from storage: if waiting for that part would cost the
 * event loop less than the pool does, the next ones run in place.
 *
 * On a host that is busy a cached access is slow now and then, because somebody else has the core. `reason` knows these,
 * and few of them change nothing.
 */
export class InPlaceGate {
  readonly #reason: SlowReason;
  readonly #now: () => number;
  readonly #alone = new AdaptiveTry({ cost: 8, maxCredit: 64, pause: [FIRST_PENALTY, MAX_PENALTY] });
  /** The access that runs in place does so because nobody else waits */
  #isAlone = false;
  #away = 0;
  #penalty = FIRST_PENALTY;
  #fast = 0;
  #suspects = 0;
  #startedMs = 0;
  /** Fast ones in place whose saving no slow one has used up */
  #savers = 0;
  /** About what a slow one in place waits; the shorter ones count more, as a busy host makes some of them longer */
  #waitMs = 0;
  /** Accessed since the last look at the reason */
  #bytes = 0;
  /** Accesses since the last one in place */
  #elsewhere = 0;
  /** How many of these there have to be before the next look at why the pool is slow */
  #lookAt = SHARE_OF;
  /** Slow ones of the pool since the last look at why */
  #slowElsewhere = 0;

  constructor(reason: SlowReason = ALWAYS, now: () => number = () => performance.now()) {
    this.#reason = reason;
    this.#now = now;
  }

  /**
   * True: run in place, and tell {@link done} afterwards. False: use the pool this time. `alone`: there is nobody whom a
   * slow access would keep waiting.
   */
  enter(alone = false): boolean {
    if (alone && this.#alone.enter()) {
      this.#isAlone = true;
      this.#startedMs = this.#now();
      return true;
    }
    if (this.#away > 0 && ++this.#elsewhere < RETRIED_AFTER) {
      this.#away--;
      return false;
    }
    this.#away = 0;
    this.#elsewhere = 0;
    this.#lookAt = SHARE_OF;
    this.#startedMs = this.#now();
    return true;
  }

  done(lengthBytes: number): void {
    const tookMs = this.#now() - this.#startedMs;
    this.#bytes += lengthBytes;
    if (this.#isAlone) {
      this.#isAlone = false;
      if (tookMs <= ALONE_MS + lengthBytes * SLOW_MS_PER_BYTE) this.#alone.succeeded();
      else this.#alone.failed();
      return;
    }
    // A cached access costs 1 µs and 0.1 µs a KiB, and up to 0.6 µs a KiB where the kernel itself runs under a
    // hypervisor without help of the processor; a cold one 80 µs and more.
    if (tookMs <= this.#reason.slowMs + lengthBytes * SLOW_MS_PER_BYTE) {
      this.#fast++;
      if (this.#fast === CLEARED_AFTER) this.#suspects = 0;
      this.#savers = Math.min(this.#savers + 1, MAX_SAVERS);
      if (this.#savers === MAX_SAVERS) this.#penalty = FIRST_PENALTY;
      return;
    }
    this.#fast = 0;
    if (this.#look() === 0 && (this.#reason.acquits === true || ++this.#suspects < SUSPECTS)) return;
    const waitedMs = tookMs - lengthBytes * SLOW_MS_PER_BYTE;
    const longer = waitedMs - this.#waitMs;
    this.#waitMs += this.#waitMs === 0 || longer < 0 ? longer : longer / 8;
    this.#savers -= waitedMs / SAVED_MS;
    if (this.#savers >= 0) return;
    this.#savers = 0;
    this.#away = this.#penalty;
    this.#penalty = Math.min(this.#penalty * 2, MAX_PENALTY);
  }

  /** An access of the pool has taken `elapsedMs`. */
  pooled(lengthBytes: number, elapsedMs: number): void {
    this.#bytes += lengthBytes;
    if (this.#away === 0 || elapsedMs <= POOL_MS + lengthBytes * SLOW_MS_PER_BYTE) return;
    this.#away = Math.max(this.#away, this.#penalty);
    if (++this.#slowElsewhere < LOOKED_AT_AFTER || this.#elsewhere < this.#lookAt) return;
    this.#slowElsewhere = 0;
    this.#lookAt = this.#elsewhere + SHARE_OF;
    if (this.#look() * this.#waitMs < SAVED_MS) this.#away = 0;
  }

  /** What part came from storage of all that was accessed since the last look */
  #look(): number {
    const share = this.#reason.share(this.#bytes);
    this.#bytes = 0;
    return share;
  }
}
