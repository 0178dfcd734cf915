import { waitForWord } from '../devices/shared/mod.ts';
import { HART_RUN_STATE } from '../kernel/assembly/hart_layout.ts';
import type { SharedHartSignals } from './hart_signals.ts';
import { MAIN_DOORBELL, RUN_STATE_RUNNING } from './words.ts';

/** How long to wait for a doorbell before the harts are looked at again, in `ms` */
const LOOK_MS = 100;

/** All harts of a machine at once, from the main thread. */
export class HartGroup {
  readonly #signals: SharedHartSignals;
  readonly #harts: number;

  constructor(signals: SharedHartSignals, harts: number) {
    this.#signals = signals;
    this.#harts = harts;
  }

  request(attention: number): void {
    for (let hart = 0; hart < this.#harts; hart++) this.#signals.request(hart, attention);
  }

  clear(attention: number): void {
    for (let hart = 0; hart < this.#harts; hart++) this.#signals.clear(hart, attention);
  }

  /** Resolves when each stands at an instruction boundary, or has ended. `serve`: what they may wait for meanwhile */
  async stand(serve: () => void): Promise<void> {
    for (;;) {
      const seen = Atomics.load(this.#signals.words, MAIN_DOORBELL >> 2);
      if (this.#standing()) return;
      serve();
      await waitForWord(this.#signals.words, MAIN_DOORBELL >> 2, seen, LOOK_MS);
    }
  }

  #standing(): boolean {
    for (let hart = 0; hart < this.#harts; hart++) {
      if (Atomics.load(this.#signals.words, this.#signals.index(hart, HART_RUN_STATE)) === RUN_STATE_RUNNING)
        return false;
    }
    return true;
  }
}
