import type { AccessSize } from '../devices/device.ts';
import { HART_MAILBOX } from '../kernel/assembly/hart_layout.ts';
import type { Bus } from './bus.ts';
import type { SharedHartSignals } from './hart_signals.ts';

// Words of a hart's mailbox
const STATE = 0;
const KIND = 1;
const ADDRESS_LOW = 2;
const ADDRESS_HIGH = 3;
const SIZE = 4;
const VALUE = 5;
const FAULT = 6;

const IDLE = 0;
const REQUESTED = 1;
const DONE = 2;

const READ = 0;
const WRITE = 1;

/** Looks at the answer before sleeping: at least as many as a main thread that is awake needs */
const FEWEST_LOOKS = 400;
/** At most: what it takes to wake one that sleeps, some fifty microseconds */
const MOST_LOOKS = 5000;
/** Every so many answers it is tried whether looking longer pays */
const TRY_EVERY = 16;

/**
 * How often to look for an answer before sleeping. To sleep and be woken costs a hart as much as the main thread's own
 * waking, so on a free processor it looks until the answer is there. Where both share one, looking only keeps the
 * main thread from answering: looks that were in vain make it sleep sooner.
 */
export class Patience {
  #looks = FEWEST_LOOKS;
  #answers = 0;

  /** For the next answer */
  get looks(): number {
    return this.#answers % TRY_EVERY === TRY_EVERY - 1 ? MOST_LOOKS : this.#looks;
  }

  /** The answer came after `used` looks of `allowed`; the same number: it did not come meanwhile. */
  learn(used: number, allowed: number): void {
    this.#answers++;
    if (used < allowed && used > FEWEST_LOOKS) this.#looks = MOST_LOOKS;
    else if (used === allowed) this.#looks = Math.max(FEWEST_LOOKS, this.#looks >> 1);
  }
}

/** The hart's end: an access to a device that lives on the main thread. Blocks until it has been served. */
export class MailboxClient {
  readonly #words: Int32Array;
  readonly #base: number;
  readonly #signals: SharedHartSignals;
  readonly #patience = new Patience();

  constructor(signals: SharedHartSignals, hart: number) {
    this.#words = signals.words;
    this.#base = signals.index(hart, HART_MAILBOX);
    this.#signals = signals;
  }

  read(address: number, size: number): number {
    this.#call(READ, address, size, 0);
    return this.#words[this.#base + FAULT] !== 0 ? -1 : this.#words[this.#base + VALUE]! >>> 0;
  }

  write(address: number, size: number, value: number): boolean {
    this.#call(WRITE, address, size, value);
    return this.#words[this.#base + FAULT] === 0;
  }

  #call(kind: number, address: number, size: number, value: number): void {
    const words = this.#words;
    const base = this.#base;
    words[base + KIND] = kind;
    words[base + ADDRESS_LOW] = address | 0;
    words[base + ADDRESS_HIGH] = Math.floor(address / 0x1_0000_0000);
    words[base + SIZE] = size;
    words[base + VALUE] = value | 0;
    Atomics.store(words, base + STATE, REQUESTED);
    this.#signals.ringMain();
    const allowed = this.#patience.looks;
    let used = 0;
    while (used < allowed && Atomics.load(words, base + STATE) !== DONE) used++;
    this.#patience.learn(used, allowed);
    while (Atomics.load(words, base + STATE) !== DONE) Atomics.wait(words, base + STATE, REQUESTED);
    Atomics.store(words, base + STATE, IDLE);
  }
}

/** Requests nearer to each other than this, in `ms`, are a burst: a driver that sets up its device or looks at it */
const BURST_GAP_MS = 0.1;
/** In a burst the next request is looked for so long before the thread sleeps, in `ms`: longer than a hart needs to wake */
const LINGER_MS = 0.06;
/** Then everything else on the main thread has its turn, in `ms` */
const MAX_BURST_MS = 1;
/** Looks between two at the clock, which costs more than they do */
const LOOKS = 32;

/**
 * The main thread's end, for its loop. To wake that thread takes some ten microseconds, and a driver makes many
 * accesses in a row: after the second of them the thread looks for the next one instead of sleeping.
 */
export class MailboxServer {
  readonly #signals: SharedHartSignals;
  readonly #bus: Bus;
  readonly #now: () => number;
  #lastMs = Number.NEGATIVE_INFINITY;

  /** `now` gives milliseconds */
  constructor(signals: SharedHartSignals, bus: Bus, now: () => number = () => performance.now()) {
    this.#signals = signals;
    this.#bus = bus;
    this.#now = now;
  }

  /** Serves what waits, and in a burst what comes. True where it has to end though more may come: let others run. */
  serve(): boolean {
    if (serveMailboxes(this.#signals, this.#bus) === 0) return false;
    const from = this.#now();
    const burst = from - this.#lastMs < BURST_GAP_MS;
    this.#lastMs = from;
    if (!burst) return false;
    for (;;) {
      let served = 0;
      for (let look = 0; look < LOOKS; look++) served += serveMailboxes(this.#signals, this.#bus);
      const now = this.#now();
      if (served > 0) this.#lastMs = now;
      if (now - from >= MAX_BURST_MS) return true;
      if (now - this.#lastMs >= LINGER_MS) return false;
    }
  }
}

/** Serves what waits. Gives how many it served. */
export function serveMailboxes(signals: SharedHartSignals, bus: Bus): number {
  const { words } = signals;
  let served = 0;
  for (let hart = 0; hart < signals.harts; hart++) {
    const base = signals.index(hart, HART_MAILBOX);
    if (Atomics.load(words, base + STATE) !== REQUESTED) continue;
    const address = (words[base + ADDRESS_LOW]! >>> 0) + words[base + ADDRESS_HIGH]! * 0x1_0000_0000;
    const size = words[base + SIZE] as AccessSize;
    let fault = false;
    if (words[base + KIND] === READ) {
      const value = bus.read(address, size);
      fault = value < 0;
      words[base + VALUE] = value | 0;
    } else {
      fault = !bus.write(address, size, words[base + VALUE]! >>> 0);
    }
    words[base + FAULT] = fault ? 1 : 0;
    Atomics.store(words, base + STATE, DONE);
    Atomics.notify(words, base + STATE);
    served++;
  }
  return served;
}
