import type { Hart } from '../hart/hart.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { GuestMemory } from '../memory/guest_memory.ts';
import type { SharedHartSignals } from './hart_signals.ts';
import type { SharedDevices } from './shared_devices.ts';

export interface HartSbiOptions {
  readonly hart: Hart;
  readonly signals: SharedHartSignals;
  readonly memory: GuestMemory;
  readonly devices: SharedDevices;
  /** Answers fences that other harts ask of this one, while it waits for theirs */
  readonly serveFences: () => void;
}
export class HartSbi {
  readonly #o: HartSbiOptions;
  constructor(options: HartSbiOptions) { this.#o = options; }
  enterIfStarted(): boolean { return Atomics.load(this.#o.signals.words, this.#o.hart.word(H.HART_HSM)) === 0; }
  startPending(): boolean { return false; }
  call(): void {}
}
