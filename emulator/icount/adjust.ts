import { MAX_SHIFT } from '../../protocols/replay/mod.ts';
import type { InstructionClock } from './clock.ts';

/** Instructions take 8 ns until it is known how fast they are */
export const FIRST_SHIFT = 3;
/** How often the times are compared, in `ms` */
const COMPARE_MS = 100;
const NS_PER_MS = 1_000_000;
/** Guest time may be off by so much, in `ms` */
const SLACK_MS = 20;

/** `shift=auto`: instructions take longer while guest time is late, and shorter while it is early. */
export class AutoShift {
  #shift = FIRST_SHIFT;
  #lastMs = 0;
  #lastNs = 0;
  #offMs = 0;

  look(clock: InstructionClock): void {
    const now = performance.now();
    if (this.#lastMs === 0 || now - this.#lastMs > 10 * COMPARE_MS) this.#offMs = 0;
    else if (now - this.#lastMs < COMPARE_MS) return;
    else this.#offMs += (clock.ns - this.#lastNs) / NS_PER_MS - (now - this.#lastMs);
    this.#lastMs = now;
    this.#lastNs = clock.ns;
    if (this.#offMs > SLACK_MS && this.#shift > 0) clock.setShift(--this.#shift);
    else if (this.#offMs < -SLACK_MS && this.#shift < MAX_SHIFT) clock.setShift(++this.#shift);
    else return;
    this.#offMs = 0;
  }
}
