/** What one session holds for its peer at the moment, in `bytes`: data of its requests, and replies that are not taken */
export type HeldBytes = () => number;

/**
 * Memory that the sessions of one peer share, in `bytes`: payloads under way and in work, and as much again for data in
 * work and replies that the peer has not taken. A peer with many connections gets no more than one with few. What is
 * taken for one request is given back whole.
 */
export class PeerBudget {
  readonly limitBytes: number;
  #used = 0;
  readonly #waiting = new Set<() => void>();
  readonly #sessions = new Set<HeldBytes>();

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

  join(session: HeldBytes): void {
    this.#sessions.add(session);
  }

  /** The session holds nothing any more. */
  leave(session: HeldBytes): void {
    this.#sessions.delete(session);
    this.wake();
  }

  /** Whether a reply of `bytes` may be made now: one always may. False: `retry` is called once, as in {@link take}. */
  admitsReply(bytes: number, retry: () => void): boolean {
    let held = 0;
    for (const session of this.#sessions) held += session();
    if (held === 0 || held + bytes <= this.limitBytes) return true;
    this.#waiting.add(retry);
    return false;
  }

  give(bytes: number): void {
    this.#used -= bytes;
    this.wake();
  }

  /** Something that was held is free. */
  wake(): void {
    if (this.#waiting.size === 0) return;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const retry of waiting) retry();
  }

  /** A session has ended: it is not woken any more. */
  forget(retry: () => void): void {
    this.#waiting.delete(retry);
  }
}
