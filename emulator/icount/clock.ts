import type { Clock } from '../devices/device.ts';
import { StateReader } from '../state/read_state.ts';
import { StateError, type Stateful, type StateValue } from '../state/state.ts';

/** Of the 10 MHz time base */
export const NS_PER_TICK = 100;

/**
 * Guest time that follows from what was executed: each instruction takes 2^shift ns, and where nothing can be
 * executed time is moved on. Nothing of the host is in it.
 */
export class InstructionClock implements Clock, Stateful {
  readonly stateName = 'clock';
  readonly stateVersion = 1;
  readonly #wallNs: bigint;
  #nsPerInstruction: number;
  /** Instructions of finished runs, of all harts */
  #instructions = 0;
  /** Time at `#since`; later instructions count from there */
  #ns = 0;
  #since = 0;

  constructor(shift: number, wallNs: bigint) {
    this.#nsPerInstruction = 2 ** shift;
    this.#wallNs = wallNs;
  }

  get instructions(): number {
    return this.#instructions;
  }

  /** In `ns` since the start, at the end of the last run */
  get ns(): number {
    return this.nsAfter(0);
  }

  /** The same, `more` instructions later */
  nsAfter(more: number): number {
    return this.#ns + (this.#instructions + more - this.#since) * this.#nsPerInstruction;
  }

  ticks(): number {
    return Math.floor(this.ns / NS_PER_TICK);
  }

  ticksAfter(more: number): number {
    return Math.floor(this.nsAfter(more) / NS_PER_TICK);
  }

  wallNs(): bigint {
    return this.#wallNs + BigInt(this.ns);
  }

  /** A run has ended. */
  count(instructions: number): void {
    this.#instructions += instructions;
  }

  /** Moves time on to `ns`; never back. */
  advanceTo(ns: number): void {
    if (ns <= this.ns) return;
    this.#ns = ns;
    this.#since = this.#instructions;
  }

  /** Instructions until the time is `ns`: 0 where it is there. */
  instructionsUntil(ns: number): number {
    return Math.max(0, Math.ceil((ns - this.ns) / this.#nsPerInstruction));
  }

  /** How long an instruction takes from now on. */
  setShift(shift: number): void {
    this.#ns = this.ns;
    this.#since = this.#instructions;
    this.#nsPerInstruction = 2 ** shift;
  }

  // Time stands by itself while nothing is executed
  start(): void {}
  stop(): void {}

  /** Only a reset sets it: to power-on. */
  setTicks(ticks: number): void {
    this.#ns = ticks * NS_PER_TICK;
    this.#since = this.#instructions;
  }

  saveState(): StateValue {
    return { instructions: this.#instructions, ns: this.ns };
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== this.stateVersion) throw new StateError(this.stateName, `version ${version}`);
    const state = new StateReader(this.stateName, value);
    const instructions = state.integer('instructions', 0, Number.MAX_SAFE_INTEGER);
    const ns = state.integer('ns', 0, Number.MAX_SAFE_INTEGER);
    return () => {
      this.#instructions = instructions;
      this.#since = instructions;
      this.#ns = ns;
    };
  }
}
