import { setTimeout as sleep } from 'node:timers/promises';

/** One of the rates, in units a second; 0 or absent: no limit */
export interface ThrottleRate {
  readonly average: number;
  /** Reached for `burstSeconds` before the average counts (default: a tenth of a second of the average is let through) */
  readonly burst?: number;
  /** Default 1 */
  readonly burstSeconds?: number;
}

/** QEMU's limits of one disk: operations and bytes a second, of all or of one direction. */
export interface ThrottleLimits {
  readonly opsTotal?: ThrottleRate;
  readonly opsRead?: ThrottleRate;
  readonly opsWrite?: ThrottleRate;
  readonly bytesTotal?: ThrottleRate;
  readonly bytesRead?: ThrottleRate;
  readonly bytesWrite?: ThrottleRate;
  /** A larger request counts as several operations, in `bytes` (default: each is one) */
  readonly opBytes?: number;
}

/** What passes unhindered where no burst is given, in `s` of the rate */
const SLACK_SECONDS = 0.1;
/** Who has waited so long asks again, in `ms`: timers of more than 2^31 ms fire at once */
const MAX_WAIT_MS = 86_400_000;

/**
 * A bucket that what passes fills, and that leaks at the rate: who finds it above its brim waits until it is not. With
 * a burst, the brim is that of the burst's whole length, and a second bucket holds the burst itself to its own rate.
 */
export class TokenBucket {
  readonly #leaks: readonly { readonly perSecond: number; readonly brim: number }[];
  readonly #levels: number[];
  #atMs: number;

  constructor({ average, burst, burstSeconds = 1 }: ThrottleRate, nowMs: number) {
    this.#leaks =
      burst === undefined || burst <= average
        ? [{ perSecond: average, brim: average * SLACK_SECONDS }]
        : [
            { perSecond: average, brim: burst * burstSeconds },
            { perSecond: burst, brim: burst * SLACK_SECONDS },
          ];
    this.#levels = this.#leaks.map(() => 0);
    this.#atMs = nowMs;
  }

  /** How long the next request has to wait, in `ms`; at most a day, then it asks again */
  waitMs(nowMs: number): number {
    const passed = Math.max(0, nowMs - this.#atMs) / 1000;
    this.#atMs = nowMs;
    let longest = 0;
    for (const [index, { perSecond, brim }] of this.#leaks.entries()) {
      const level = Math.max(0, this.#levels[index]! - perSecond * passed);
      this.#levels[index] = level;
      longest = Math.max(longest, ((level - brim) / perSecond) * 1000);
    }
    return Math.min(longest, MAX_WAIT_MS);
  }

  fill(units: number): void {
    for (const index of this.#levels.keys()) this.#levels[index]! += units;
  }
}

interface Limit {
  readonly bucket: TokenBucket;
  readonly bytes: boolean;
  readonly directions: readonly ('read' | 'write')[];
}

/** Holds the requests of one disk to its limits, each direction in the order of asking. */
export class Throttle {
  readonly limits: ThrottleLimits;
  readonly #limits: readonly Limit[];
  readonly #turns = { read: Promise.resolve(), write: Promise.resolve() };
  readonly #nowMs: () => number;

  constructor(limits: ThrottleLimits, nowMs: () => number = () => performance.now()) {
    this.limits = limits;
    this.#nowMs = nowMs;
    const all = ['read', 'write'] as const;
    const made = (rate: ThrottleRate | undefined, bytes: boolean, directions: Limit['directions']): Limit[] =>
      rate === undefined || rate.average <= 0 ? [] : [{ bucket: new TokenBucket(rate, nowMs()), bytes, directions }];
    this.#limits = [
      ...made(limits.opsTotal, false, all),
      ...made(limits.opsRead, false, ['read']),
      ...made(limits.opsWrite, false, ['write']),
      ...made(limits.bytesTotal, true, all),
      ...made(limits.bytesRead, true, ['read']),
      ...made(limits.bytesWrite, true, ['write']),
    ];
  }

  get limitless(): boolean {
    return this.#limits.length === 0;
  }

  /** Resolves when the request may go on. */
  take(direction: 'read' | 'write', bytes: number): Promise<void> {
    const turn = this.#turns[direction].then(() => this.#pass(direction, bytes));
    this.#turns[direction] = turn;
    return turn;
  }

  async #pass(direction: 'read' | 'write', bytes: number): Promise<void> {
    const limits = this.#limits.filter(({ directions }) => directions.includes(direction));
    for (;;) {
      const nowMs = this.#nowMs();
      const waitMs = Math.max(0, ...limits.map(({ bucket }) => bucket.waitMs(nowMs)));
      if (waitMs <= 0) break;
      await sleep(Math.ceil(waitMs));
    }
    const { opBytes } = this.limits;
    const operations = opBytes === undefined || opBytes === 0 ? 1 : Math.max(1, Math.ceil(bytes / opBytes));
    for (const limit of limits) limit.bucket.fill(limit.bytes ? bytes : operations);
  }
}
