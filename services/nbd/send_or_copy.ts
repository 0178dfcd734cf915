import { performance } from 'node:perf_hooks';

/** How the data of a large read gets to a client's socket: sendfile(2), or by way of our memory. */
export type DataWay = 'send' | 'copy';

/** What is measured at once, in `bytes`: some ms of a client that takes all it can get */
const WINDOW_BYTES = 8 << 20;
/** The ways take turns for so many windows each; the fastest says what a way can do, as others slow some of them down */
const WINDOWS = 3;
/** Where copying is not this much faster, sending is better: it leaves our core to others */
const WORTH_COPYING = 1.2;
/** What goes the better way until the ways are measured again, the longer the more often it was the same one, in `bytes` */
const HELD_BYTES = { least: 256 << 20, most: 8 * 2 ** 30 };
/** Reads that are over further apart say something about the client or the storage, not about the ways, in `ms` */
const PAUSE_MS = 50;

/**
 * Finds out which way of large reads is faster for one client. What is sent is copied once, by the client, from the page
 * cache's memory to its own; what is copied was in a cache of the processor before. And where memory of the client begins
 * a few bytes behind the start of a page, as malloc(3) gives it, some processors (AMD Zen 3) copy from the start of a page
 * four times slower: then the client takes half of what it could. Neither is to be known but by measuring.
 */
export class SendOrCopy {
  readonly #now: () => number;
  #way: DataWay = 'send';
  /** Windows that are left of the trial; 0: the way holds for {@link #heldBytes} more */
  #windows = 2 * WINDOWS;
  #heldBytes = 0;
  #holdBytes = HELD_BYTES.least;
  #better: DataWay = 'send';
  /** The most in this trial, in `bytes/ms` */
  readonly #rates = { send: 0, copy: 0 };
  /** When the first read of this window was over; undefined: none is */
  #startMs: number | undefined;
  #lastMs = 0;
  #bytes = 0;

  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** The way of the next read */
  get way(): DataWay {
    return this.#way;
  }

  /** The last of `lengthBytes` that went `way` is with the kernel. */
  over(way: DataWay, lengthBytes: number): void {
    // What was on its way when the window began
    if (way !== this.#way) return;
    if (this.#windows === 0) {
      this.#heldBytes -= lengthBytes;
      if (this.#heldBytes <= 0) this.#try();
      return;
    }
    const nowMs = this.#now();
    if (this.#startMs === undefined || nowMs - this.#lastMs > PAUSE_MS) {
      this.#startMs = nowMs;
      this.#bytes = 0;
    } else this.#bytes += lengthBytes;
    this.#lastMs = nowMs;
    const tookMs = nowMs - this.#startMs;
    if (this.#bytes < WINDOW_BYTES || tookMs <= 0) return;
    this.#rates[way] = Math.max(this.#rates[way], this.#bytes / tookMs);
    this.#windows--;
    if (this.#windows > 0) this.#begin(way === 'send' ? 'copy' : 'send');
    else this.#hold();
  }

  #try(): void {
    this.#windows = 2 * WINDOWS;
    this.#rates.send = 0;
    this.#rates.copy = 0;
    this.#begin(this.#way);
  }

  #begin(way: DataWay): void {
    this.#way = way;
    this.#startMs = undefined;
    this.#bytes = 0;
  }

  #hold(): void {
    const { send, copy } = this.#rates;
    const better = copy > send * WORTH_COPYING ? 'copy' : 'send';
    this.#holdBytes = better === this.#better ? Math.min(this.#holdBytes * 2, HELD_BYTES.most) : HELD_BYTES.least;
    this.#better = better;
    this.#heldBytes = this.#holdBytes;
    this.#begin(better);
  }
}
