import * as H from '../kernel/assembly/hart_layout.ts';
import { type MemoryLayout, ROM_BYTES } from '../memory/layout.ts';
import { StateReader } from '../state/read_state.ts';
import { StateError, type Stateful, type StateValue } from '../state/state.ts';
import type { SeededRandom } from './random.ts';
import type { RunnerPosition } from './runner.ts';

/** What of a counted run is in no register and no device: whose turn it is, who waits, reservations, randomness. */
export class InstructionState implements Stateful {
  readonly stateName = 'icount';
  readonly stateVersion = 1;
  readonly #layout: MemoryLayout;
  readonly #view: DataView;
  readonly #random: SeededRandom;
  readonly #runner: () => { position: RunnerPosition };

  constructor(
    buffer: SharedArrayBuffer,
    layout: MemoryLayout,
    random: SeededRandom,
    runner: () => { position: RunnerPosition },
  ) {
    this.#view = new DataView(buffer);
    this.#layout = layout;
    this.#random = random;
    this.#runner = runner;
  }

  saveState(): StateValue {
    const { round, turn, left, waiting } = this.#runner().position;
    return {
      round,
      turn,
      left,
      random: this.#random.position,
      harts: waiting.map((waits, hart) => {
        const base = this.#layout.hart(hart);
        const reservation = Number(this.#view.getBigUint64(base + H.HART_RESERVATION, true));
        return {
          waiting: waits,
          // From the start of ROM: where the machine's memory lies is not its state
          reservation: reservation === 0 ? 0 : reservation - this.#layout.rom,
          reserved: this.#view.getBigUint64(base + H.HART_RESERVED_VALUE, true),
        };
      }),
    };
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== this.stateVersion) throw new StateError(this.stateName, `version ${version}`);
    const state = new StateReader(this.stateName, value);
    const { harts: count, ramBytes, rom } = this.#layout;
    const round = state.integer('round', 0, Number.MAX_SAFE_INTEGER);
    const turn = state.integer('turn', 0, count - 1);
    const left = state.integer('left', -0x7fff_ffff, 0x7fff_ffff);
    const random = state.integer('random', 0, Number.MAX_SAFE_INTEGER);
    const harts = state.list('harts', count, (item, path) => {
      const hart = new StateReader(path, item);
      const reservation = hart.integer('reservation', 0, ROM_BYTES + ramBytes - 8);
      if ((reservation & 3) !== 0) throw new StateError(`${path}.reservation`, 'not aligned');
      return { waiting: hart.boolean('waiting'), reservation, reserved: hart.u64('reserved') };
    });
    if (harts.length !== count) throw new StateError(`${this.stateName}.harts`, `${harts.length}, expected ${count}`);
    return () => {
      this.#random.position = random;
      this.#runner().position = { round, turn, left, waiting: harts.map(({ waiting }) => waiting) };
      for (const [hart, { reservation, reserved }] of harts.entries()) {
        const base = this.#layout.hart(hart);
        this.#view.setBigUint64(base + H.HART_RESERVATION, BigInt(reservation === 0 ? 0 : reservation + rom), true);
        this.#view.setBigUint64(base + H.HART_RESERVED_VALUE, reserved, true);
      }
    };
  }
}
