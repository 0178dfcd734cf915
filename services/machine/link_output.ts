import type { Duplex } from 'node:stream';

/** Output that a reader has not taken; beyond it the guest is made to wait, in `bytes` */
export const HOLD_BYTES = 65536;
/** What comes during a hold is kept up to here, in `bytes`: what a guest had under way when it was told to wait */
const MAX_UNREAD_BYTES = 1 << 20;
/** What is handed to the link at once, in `bytes`: a reader that takes so much within the patience loses nothing */
const PIECE_BYTES = 4096;

export interface LinkOutputOptions {
  /** Makes the guest wait, or no longer */
  readonly hold: (held: boolean) => void;
  /**
   * How long the guest waits for a reader that takes nothing at all, in `ms`. Then what it writes is lost, until the
   * reader goes on. Default: for ever
   */
  readonly patienceMs?: number;
}

/**
 * A guest's output on its way into a byte stream. A slow reader slows the guest; how much is kept for it is bounded,
 * and nothing is kept where the link has gone.
 */
export class LinkOutput {
  readonly #link: Duplex;
  readonly #options: LinkOutputOptions;
  /** None of them, but the last two, smaller than a piece: a guest that writes single bytes fills no list */
  #queue: Uint8Array[] = [];
  /** Of the first one, in `bytes`: handed to the link already */
  #done = 0;
  #unread = 0;
  #writing = false;
  #held = false;
  /** The reader took nothing for too long */
  #stalled = false;
  #timer: NodeJS.Timeout | undefined;
  #ended: (() => void) | undefined;

  constructor(link: Duplex, options: LinkOutputOptions) {
    this.#link = link;
    this.#options = options;
    link.on('close', () => this.#gone());
  }

  /** In `bytes`: what the reader has not taken of what was kept */
  get unreadBytes(): number {
    return this.#unread;
  }

  write(bytes: Uint8Array): void {
    if (this.#closed || bytes.length === 0) return;
    if (this.#unread > (this.#stalled ? HOLD_BYTES : MAX_UNREAD_BYTES)) return;
    const last = this.#queue.length - 1;
    const before = this.#queue[last];
    // The first one may be under way
    if (before !== undefined && last > 0 && before.length + bytes.length <= PIECE_BYTES) {
      const joined = new Uint8Array(before.length + bytes.length);
      joined.set(before);
      joined.set(bytes, before.length);
      this.#queue[last] = joined;
    } else this.#queue.push(bytes);
    this.#unread += bytes.length;
    this.#next();
    this.#look();
  }

  /** Resolves when the reader has taken everything, or has gone; then the link is ended. */
  async end(): Promise<void> {
    if (this.#unread > 0 && !this.#closed) {
      await new Promise<void>((resolve) => {
        this.#ended = resolve;
      });
    }
    if (!this.#closed) await new Promise<void>((resolve) => this.#link.end(() => resolve()));
  }

  get #closed(): boolean {
    return this.#link.destroyed || this.#link.writableEnded;
  }

  #next(): void {
    const first = this.#queue[0];
    if (this.#writing || first === undefined) return;
    const piece = first.subarray(this.#done, this.#done + PIECE_BYTES);
    this.#writing = true;
    this.#link.write(piece, (error) => {
      this.#writing = false;
      if (error || this.#queue[0] !== first) return;
      this.#done += piece.length;
      this.#unread -= piece.length;
      if (this.#done === first.length) {
        this.#queue.shift();
        this.#done = 0;
      }
      this.#stalled = false;
      this.#stopTimer();
      this.#next();
      this.#look();
      if (this.#unread === 0) this.#ended?.();
    });
  }

  #look(): void {
    this.#hold(this.#unread >= HOLD_BYTES && !this.#stalled);
    const { patienceMs } = this.#options;
    if (!this.#held || this.#timer !== undefined || patienceMs === undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#stalled = true;
      this.#hold(false);
    }, patienceMs);
    this.#timer.unref();
  }

  #hold(held: boolean): void {
    if (held === this.#held) return;
    this.#held = held;
    if (!held) this.#stopTimer();
    this.#options.hold(held);
  }

  #stopTimer(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #gone(): void {
    this.#queue = [];
    this.#done = 0;
    this.#unread = 0;
    this.#hold(false);
    this.#ended?.();
  }
}
