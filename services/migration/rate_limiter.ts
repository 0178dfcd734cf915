/** Bytes that may go ahead of the mean, as time: long enough to be smooth, short enough to be fair. */
const BURST_MS = 50;

/** A token bucket for `max-bandwidth`. Time is handed in, so that tests need not wait. */
export class RateLimiter {
  #bytesPerMs: number;
  /** Negative: this much was sent ahead */
  #tokens = 0;
  #last: number;

  /** `bytesPerSecond` 0 is no limit */
  constructor(bytesPerSecond: number, nowMs: number) {
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#last = nowMs;
  }

  set(bytesPerSecond: number): void {
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#tokens = 0;
  }

  /** Takes what is being sent now; gives how long to wait before the next, in `ms`. */
  take(bytes: number, nowMs: number): number {
    if (this.#bytesPerMs === 0) return 0;
    this.#tokens = Math.min(this.#tokens + (nowMs - this.#last) * this.#bytesPerMs, BURST_MS * this.#bytesPerMs);
    this.#last = nowMs;
    this.#tokens -= bytes;
    return this.#tokens < 0 ? -this.#tokens / this.#bytesPerMs : 0;
  }
}
