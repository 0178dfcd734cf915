import { availableParallelism } from 'node:os';
import { performance } from 'node:perf_hooks';
import { AdaptiveTry } from '../shared/adaptive_try.ts';
import { nanosecondsWaited } from './images/slow_reason.ts';

/** Replies after which the system is asked whether others have wanted this core */
const LOOK_AFTER = 64;
/** What part of the time between two looks this thread may have waited for its core: more, and others need it */
const MAX_WAITED = 0.1;

/** What adaptive polling needs of the system; tests put theirs in its place. */
export interface PollingSystem {
  /** In `ms` */
  now(): number;
  /** How long this thread has waited for a core, in `ns`; undefined: not known */
  waitedNs(): number | undefined;
  /** Calls back after the event loop has looked for input once, without sleeping */
  soon(look: () => void): void;
  /** The client can run while this thread polls */
  readonly hasCores: boolean;
}

const SYSTEM: PollingSystem = {
  now: () => performance.now(),
  waitedNs: nanosecondsWaited,
  soon: (look) => setImmediate(look),
  hasCores: availableParallelism() > 1,
};

/**
 * QEMU's adaptive polling, as its event loops have it (`poll-max-ns`): behind the reply to a client that asks one thing
 * after the other, the event loop looks for the next request for a while before it sleeps. To put a core to sleep and to
 * wake it up costs a client 10 µs on bare metal and 25 µs under many hypervisors, half of what such a request takes.
 *
 * What finds nothing is paid for by what did: where the next request keeps coming later, polling is given up for the next
 * N replies, N doubling from 16 to 1024. The same where this thread has to wait for its core: then others have work for it.
 */
export class AdaptivePolling {
  readonly #maxMs: number;
  readonly #system: PollingSystem;
  #polling = false;
  /** The event loop will call {@link #look} */
  #isLooking = false;
  #untilMs = 0;
  /** To look in vain costs about as much as two that are found save */
  readonly #worth = new AdaptiveTry({ cost: 2, maxCredit: 32, pause: [16, 1024] });
  /** Whether this thread has its core to itself, look by look */
  readonly #core = new AdaptiveTry({ cost: 4, maxCredit: 16, pause: [64, 512] });
  #polls = 0;
  /** At the first of the polls that are counted, and how long this thread had waited until then */
  #sinceMs = 0;
  #sinceNs: number | undefined;

  /** `maxMs`: for how long to look, 0 for never */
  constructor(maxMs: number, system: PollingSystem = SYSTEM) {
    this.#maxMs = system.hasCores ? maxMs : 0;
    this.#system = system;
  }

  /** A client has its reply, and nothing else to wait for. */
  replied(): void {
    if (this.#maxMs === 0 || !this.#core.enter() || !this.#worth.enter()) return;
    const nowMs = this.#system.now();
    if (this.#polls++ === 0) {
      this.#sinceMs = nowMs;
      this.#sinceNs = this.#system.waitedNs();
    } else if (this.#polls > LOOK_AFTER) {
      this.#polls = 0;
      if (this.#isWanted(nowMs)) this.#core.failed();
      else this.#core.succeeded();
    }
    this.#untilMs = nowMs + this.#maxMs;
    this.#polling = true;
    this.#lookSoon();
  }

  /** Something has come from the client. */
  arrived(): void {
    if (!this.#polling) return;
    this.#polling = false;
    this.#worth.succeeded();
  }

  /** The client is gone. */
  stop(): void {
    this.#polling = false;
  }

  #lookSoon(): void {
    if (this.#isLooking) return;
    this.#isLooking = true;
    this.#system.soon(this.#look);
  }

  readonly #look = (): void => {
    this.#isLooking = false;
    if (!this.#polling) return;
    if (this.#system.now() < this.#untilMs) {
      this.#lookSoon();
      return;
    }
    this.#polling = false;
    this.#worth.failed();
  };

  /** Whether others have wanted this core meanwhile, as far as the system tells */
  #isWanted(nowMs: number): boolean {
    const waitedNs = this.#system.waitedNs();
    if (this.#sinceNs === undefined || waitedNs === undefined) return false;
    return (waitedNs - this.#sinceNs) / 1e6 > (nowMs - this.#sinceMs) * MAX_WAITED;
  }
}
