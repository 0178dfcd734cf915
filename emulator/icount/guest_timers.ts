import type { Hart } from '../hart/hart.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { SharedDevices } from '../machine/shared_devices.ts';
import { type InstructionClock, NS_PER_TICK } from './clock.ts';

const MTIP = 1 << 7;
const STIP = 1 << 5;
const NS_PER_MS = 1_000_000;

/** Timers of harts and the alarm, on a clock that follows from instructions. */
export class GuestTimers {
  readonly #clock: InstructionClock;
  readonly #devices: SharedDevices;
  readonly #words: Int32Array;
  /** Of mtime to the clock, in ticks */
  #offset = 0;

  constructor(clock: InstructionClock, devices: SharedDevices, words: Int32Array) {
    this.#clock = clock;
    this.#devices = devices;
    this.#words = words;
  }

  /** In ticks, `used` instructions after the last run */
  now(used: number): number {
    return this.#clock.ticksAfter(used) + this.#offset;
  }

  /** Raises and clears a hart's timer interrupts. `used` as for now() */
  poll(hart: Hart, used: number): void {
    const { aclint } = this.#devices;
    this.#offset = Number(BigInt.asIntN(64, aclint.timeOffset()));
    const now = this.now(used);
    const mip = hart.word(H.HART_MIP);
    const current = this.#words[mip]!;
    const machineDue = aclint.mtimecmpTicks(hart.id) <= now;
    if (machineDue !== ((current & MTIP) !== 0)) {
      if (machineDue) Atomics.or(this.#words, mip, MTIP);
      else Atomics.and(this.#words, mip, ~MTIP);
    }
    // stimecmp only ever raises here; a write to it clears (kernel csr.ts)
    if (hart.getFloat64(H.HART_STIMECMP_TICKS) <= now) Atomics.or(this.#words, mip, STIP);
  }

  /** When the next timer of any hart, or the alarm, is due: in `ns`, infinity where none is. */
  deadline(lanes: readonly { readonly hart: Hart }[]): number {
    const now = this.#clock.ticks() + this.#offset;
    let next = Number.POSITIVE_INFINITY;
    for (const { hart } of lanes) {
      for (const ticks of [this.#devices.aclint.mtimecmpTicks(hart.id), hart.getFloat64(H.HART_STIMECMP_TICKS)]) {
        if (ticks > now && ticks < next) next = ticks;
      }
    }
    // 2^53 ns are a hundred days; deadlines beyond it are none
    const timers = (next - this.#offset) * NS_PER_TICK;
    const alarmMs = this.#devices.rtc.checkAlarm();
    const alarm = alarmMs === undefined ? Number.POSITIVE_INFINITY : this.#clock.ns + Math.max(1, alarmMs) * NS_PER_MS;
    const deadline = Math.min(timers, alarm);
    return deadline < Number.MAX_SAFE_INTEGER ? deadline : Number.POSITIVE_INFINITY;
  }
}
