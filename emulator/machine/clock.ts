import type { Clock } from '../devices/device.ts';
import { StateReader } from '../state/read_state.ts';
import { StateError, type Stateful, type StateValue } from '../state/state.ts';
import { TIME_EPOCH, TIME_FROZEN, TIME_OFFSET, TIME_RUNNING } from './words.ts';

const TICKS_PER_MS = 10_000;

/**
 * Guest time for any thread: host milliseconds since a common epoch, scaled, plus an offset that stopping and
 * migration adjust. `performance.timeOrigin` differs between threads; the sum with `now()` does not.
 */
export class SharedClock implements Clock, Stateful {
  readonly stateName = 'clock';
  readonly stateVersion = 1;
  readonly #f64: Float64Array;
  readonly #i32: Int32Array;
  readonly #shiftMs: number;

  /** The first thread calls {@link SharedClock.create}; the others attach. */
  constructor(buffer: SharedArrayBuffer) {
    this.#f64 = new Float64Array(buffer);
    this.#i32 = new Int32Array(buffer);
    this.#shiftMs = performance.timeOrigin - this.#f64[TIME_EPOCH / 8]!;
  }

  static create(buffer: SharedArrayBuffer): SharedClock {
    new Float64Array(buffer)[TIME_EPOCH / 8] = performance.timeOrigin;
    return new SharedClock(buffer);
  }

  #hostTicks(): number {
    return (this.#shiftMs + performance.now()) * TICKS_PER_MS;
  }

  ticks(): number {
    if (this.#i32[TIME_RUNNING / 4] === 0) return this.#f64[TIME_FROZEN / 8]!;
    return Math.floor(this.#hostTicks() + this.#f64[TIME_OFFSET / 8]!);
  }

  wallNs(): bigint {
    return BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n;
  }

  /** Time goes on from where it stood. Only while no hart runs. */
  start(): void {
    if (Atomics.load(this.#i32, TIME_RUNNING / 4) === 1) return;
    this.#f64[TIME_OFFSET / 8] = this.#f64[TIME_FROZEN / 8]! - this.#hostTicks();
    Atomics.store(this.#i32, TIME_RUNNING / 4, 1);
  }

  stop(): void {
    const ticks = this.ticks();
    this.#f64[TIME_FROZEN / 8] = ticks;
    Atomics.store(this.#i32, TIME_RUNNING / 4, 0);
  }

  saveState(): StateValue {
    return { ticks: this.ticks() };
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== this.stateVersion) throw new StateError(this.stateName, `version ${version}`);
    const ticks = new StateReader(this.stateName, value).integer('ticks', 0, Number.MAX_SAFE_INTEGER);
    return () => this.setTicks(ticks);
  }

  /** While stopped: where time goes on. */
  setTicks(ticks: number): void {
    this.#f64[TIME_FROZEN / 8] = ticks;
  }
}
