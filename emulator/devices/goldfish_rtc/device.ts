import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';
import type { AccessSize, Clock, Device, InterruptLine, MmioDevice } from '../device.ts';
import { SpinLock } from '../shared/mod.ts';
import * as reg from './registers.ts';

// Words of the shared state
const LOCK = 0;
/** Counts changes of the alarm: the host's timer sleeps on it */
const ALARM_NOTIFY = 1;
/** 64 bits: what a guest that set the time added to the wall clock */
const OFFSET = 2;
/** 64 bits */
const ALARM = 4;
const TIME_HIGH_LATCH = 6;
const ARMED = 7;
const PENDING = 8;
const ENABLED = 9;

const MASK_64 = 0xffff_ffff_ffff_ffffn;
const NS_PER_MS = 1_000_000n;

/**
 * The real-time clock of the `virt` machine: wall time in nanoseconds, settable by the guest, and one alarm. Every
 * thread has its own object over the same shared words; the alarm rings when somebody looks: any register access,
 * or the host's {@link RtcAlarm}.
 */
export class GoldfishRtc implements MmioDevice, Device {
  static readonly WORDS = 10;
  /** Index of the word that changes with the alarm */
  static readonly NOTIFY_WORD = ALARM_NOTIFY;

  readonly name = 'goldfish_rtc';
  readonly stateName = 'rtc0';
  readonly stateVersion = 1;
  readonly #words: Int32Array;
  readonly #doubles: BigInt64Array;
  readonly #line: InterruptLine;
  readonly #clock: Clock;
  readonly #lock: SpinLock;

  /** `words`: this device's own `GoldfishRtc.WORDS` words of the shared memory, 8-byte aligned, zero at first */
  constructor(words: Int32Array, line: InterruptLine, clock: Clock) {
    if (words.length < GoldfishRtc.WORDS || words.byteOffset % 8 !== 0) {
      throw new RangeError(`Cannot make an RTC: it needs ${GoldfishRtc.WORDS} words, aligned to 8 bytes`);
    }
    this.#words = words;
    this.#doubles = new BigInt64Array(words.buffer, words.byteOffset, GoldfishRtc.WORDS / 2);
    this.#line = line;
    this.#clock = clock;
    this.#lock = new SpinLock(words, LOCK);
  }

  get words(): Int32Array {
    return this.#words;
  }

  read(offset: number, size: AccessSize): number {
    if (size !== 4) return 0;
    return this.#lock.run(() => {
      this.#ring();
      switch (offset) {
        case reg.TIME_LOW: {
          const now = this.#now();
          this.#store(TIME_HIGH_LATCH, Number(now >> 32n));
          return Number(now & 0xffff_ffffn);
        }
        case reg.TIME_HIGH:
          return this.#load(TIME_HIGH_LATCH);
        case reg.ALARM_LOW:
          return Number(this.#load64(ALARM) & 0xffff_ffffn);
        case reg.ALARM_HIGH:
          return Number(this.#load64(ALARM) >> 32n);
        case reg.IRQ_ENABLED:
          return this.#load(ENABLED);
        case reg.ALARM_STATUS:
          return this.#load(ARMED);
        default:
          return 0;
      }
    });
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size !== 4) return;
    const word = BigInt(value >>> 0);
    this.#lock.run(() => {
      switch (offset) {
        case reg.TIME_LOW:
          this.#setTime((this.#now() & ~0xffff_ffffn) | word);
          break;
        case reg.TIME_HIGH:
          this.#setTime((this.#now() & 0xffff_ffffn) | (word << 32n));
          break;
        case reg.ALARM_LOW:
          this.#store64(ALARM, (this.#load64(ALARM) & ~0xffff_ffffn) | word);
          this.#store(ARMED, 1);
          break;
        case reg.ALARM_HIGH:
          this.#store64(ALARM, (this.#load64(ALARM) & 0xffff_ffffn) | (word << 32n));
          break;
        case reg.IRQ_ENABLED:
          this.#store(ENABLED, value & 1);
          break;
        case reg.CLEAR_ALARM:
          this.#store(ARMED, 0);
          break;
        case reg.CLEAR_INTERRUPT:
          this.#store(PENDING, 0);
          break;
        default:
          return;
      }
      this.#alarmChanged();
    });
  }

  /** Raises the interrupt if the alarm is due; gives the time until it is, in `ms`, or undefined if none is armed. */
  checkAlarm(): number | undefined {
    return this.#lock.run(() => {
      this.#ring();
      if (this.#load(ARMED) === 0) return undefined;
      // Rounded up: a timer that ends a fraction early would look again and again
      return Number((this.#load64(ALARM) - this.#now() + NS_PER_MS - 1n) / NS_PER_MS);
    });
  }

  reset(): void {
    this.#lock.run(() => {
      this.#store64(ALARM, 0n);
      for (const word of [TIME_HIGH_LATCH, ARMED, PENDING, ENABLED]) this.#store(word, 0);
      // A battery keeps the time that the guest has set
      this.#alarmChanged();
    });
  }

  saveState(): StateValue {
    return this.#lock.run(() => ({
      offset: this.#load64(OFFSET),
      alarm: this.#load64(ALARM),
      timeHigh: this.#load(TIME_HIGH_LATCH),
      armed: this.#load(ARMED) !== 0,
      pending: this.#load(PENDING) !== 0,
      enabled: this.#load(ENABLED) !== 0,
    }));
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== 1) throw new StateError(this.stateName, `version ${version}, expected 1`);
    const state = new StateReader(this.stateName, value);
    const offset = state.u64('offset');
    const alarm = state.u64('alarm');
    const timeHigh = state.u32('timeHigh');
    const armed = state.boolean('armed');
    const pending = state.boolean('pending');
    const enabled = state.boolean('enabled');
    return () =>
      this.#lock.run(() => {
        this.#store64(OFFSET, offset);
        this.#store64(ALARM, alarm);
        this.#store(TIME_HIGH_LATCH, timeHigh);
        this.#store(ARMED, armed ? 1 : 0);
        this.#store(PENDING, pending ? 1 : 0);
        this.#store(ENABLED, enabled ? 1 : 0);
        this.#alarmChanged();
      });
  }

  #now(): bigint {
    return (this.#clock.wallNs() + this.#load64(OFFSET)) & MASK_64;
  }

  #setTime(time: bigint): void {
    this.#store64(OFFSET, (time - this.#clock.wallNs()) & MASK_64);
  }

  /** Under the lock */
  #ring(): void {
    if (this.#load(ARMED) === 0 || this.#load64(ALARM) > this.#now()) return;
    this.#store(ARMED, 0);
    this.#store(PENDING, 1);
    this.#update();
  }

  #alarmChanged(): void {
    this.#ring();
    this.#update();
    Atomics.add(this.#words, ALARM_NOTIFY, 1);
    Atomics.notify(this.#words, ALARM_NOTIFY);
  }

  #update(): void {
    this.#line.set(this.#load(PENDING) !== 0 && this.#load(ENABLED) !== 0);
  }

  /** Unsigned */
  #load(index: number): number {
    return Atomics.load(this.#words, index) >>> 0;
  }

  #store(index: number, value: number): void {
    Atomics.store(this.#words, index, value | 0);
  }

  /** Unsigned; `index` is even */
  #load64(index: number): bigint {
    return BigInt.asUintN(64, Atomics.load(this.#doubles, index / 2));
  }

  #store64(index: number, value: bigint): void {
    Atomics.store(this.#doubles, index / 2, BigInt.asIntN(64, value));
  }
}
