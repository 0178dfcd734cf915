/**
 * Memory that the sessions of one peer share, in `bytes`: data of requests that are worked on, and payloads under
 * way. A peer with many connections gets no more than one with few. What is taken for one request is given back whole.
 */
export class PeerBudget {
  readonly limitBytes: number;
  #used = 0;
  readonly #waiting = new Set<() => void>();

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  get usedBytes(): number {
    return this.#used;
  }

  /**
   * True: taken. One request may always be worked on, however large. False: `retry` is called once, when there is
   * more room; nobody is promised that it is enough.
   */
  take(bytes: number, retry: () => void): boolean {
    if (this.#used > 0 && this.#used + bytes > this.limitBytes) {
      this.#waiting.add(retry);
      return false;
    }
    this.#used += bytes;
    return true;
  }

  /** For what is there already, whatever the limit says. */
  add(bytes: number): void {
    this.#used += bytes;
  }

  give(bytes: number): void {
    this.#used -= bytes;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const retry of waiting) retry();
  }

  /** A session has ended: it is not woken any more. */
  forget(retry: () => void): void {
    this.#waiting.delete(retry);
  }
}
