import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';
import type { AccessSize, Clock, Device, HartSignals, MmioDevice } from '../device.ts';
import { SpinLock } from '../shared/mod.ts';
import { clintRegister, SETSSIP_BASE } from './registers.ts';

const MAX_HARTS = 8;
const MASK_64 = 0xffff_ffff_ffff_ffffn;

// Words of the shared state
const LOCK = 0;
/** One bit for each hart */
const MSIP = 1;
/** 64 bits: what a write of `mtime` added to the clock */
const OFFSET = 2;
/** 64 bits for each hart */
const MTIMECMP = 4;

/** `mip` bits */
const SSIP = 1;
const MSIP_BIT = 3;
const MTIP = 7;

/**
 * Machine timer and machine software interrupts of the `virt` machine. Every thread has its own object over the
 * same shared words. A write tells the hart at once whether its timer has expired; that a timer expires later is
 * found by the hart's own loop, which asks {@link ticksUntilTimer} before it runs or sleeps.
 */
export class Aclint implements MmioDevice, Device {
  static readonly WORDS = MTIMECMP + MAX_HARTS * 2;

  readonly name = 'riscv.aclint';
  readonly stateName = 'aclint0';
  readonly stateVersion = 1;
  readonly #words: Int32Array;
  readonly #doubles: BigInt64Array;
  readonly #signals: HartSignals;
  readonly #clock: Clock;
  readonly #harts: number;
  readonly #lock: SpinLock;

  /** `words`: this device's own `Aclint.WORDS` words of the shared memory, 8-byte aligned; call `reset()` once */
  constructor(words: Int32Array, signals: HartSignals, clock: Clock) {
    if (words.length < Aclint.WORDS || words.byteOffset % 8 !== 0) {
      throw new RangeError(`Cannot make an ACLINT: it needs ${Aclint.WORDS} words, aligned to 8 bytes`);
    }
    if (signals.harts < 1 || signals.harts > MAX_HARTS) throw new RangeError(`Cannot serve ${signals.harts} harts`);
    this.#words = words;
    this.#doubles = new BigInt64Array(words.buffer, words.byteOffset, Aclint.WORDS / 2);
    this.#signals = signals;
    this.#clock = clock;
    this.#harts = signals.harts;
    this.#lock = new SpinLock(words, LOCK);
  }

  /** `mtime` as a guest reads it, also in its `time` CSR: unsigned, 64 bits */
  mtime(): bigint {
    return (BigInt(this.#clock.ticks()) + this.timeOffset()) & MASK_64;
  }

  /** What a guest's write of `mtime` added to the clock: 0 unless one did, 64 bits, wrapping */
  timeOffset(): bigint {
    return BigInt.asUintN(64, Atomics.load(this.#doubles, OFFSET / 2));
  }

  /** Unsigned, 64 bits */
  mtimecmp(hart: number): bigint {
    return BigInt.asUintN(64, Atomics.load(this.#doubles, MTIMECMP / 2 + hart));
  }

  /**
   * The same as a float, for the hart's own loop, which looks every few microseconds: no allocation. A read that
   * races a write may be torn; the write wakes the hart, which then looks again.
   */
  mtimecmpTicks(hart: number): number {
    const at = MTIMECMP + hart * 2;
    return (this.#words[at + 1]! >>> 0) * 0x1_0000_0000 + (this.#words[at]! >>> 0);
  }

  /** Until `mtime >= mtimecmp`, in ticks: 0 when the timer has expired, up to 2^64 (as a float) when it is far. */
  ticksUntilTimer(hart: number): number {
    const left = this.mtimecmp(hart) - this.mtime();
    return left > 0n ? Number(left) : 0;
  }

  read(offset: number, size: AccessSize): number {
    const register = size === 4 ? clintRegister(offset, this.#harts) : undefined;
    switch (register?.kind) {
      case 'msip':
        return (Atomics.load(this.#words, MSIP) >>> register.hart) & 1;
      case 'mtimecmp':
        return Atomics.load(this.#words, MTIMECMP + register.hart * 2 + (register.high ? 1 : 0)) >>> 0;
      case 'mtime':
        return this.#mtimeHalf(register.high);
      default:
        return 0;
    }
  }

  write(offset: number, size: AccessSize, value: number): void {
    const register = size === 4 ? clintRegister(offset, this.#harts) : undefined;
    switch (register?.kind) {
      case 'msip':
        this.#lock.run(() => this.#setMsip(register.hart, (value & 1) !== 0));
        break;
      case 'mtimecmp':
        Atomics.store(this.#words, MTIMECMP + register.hart * 2 + (register.high ? 1 : 0), value | 0);
        this.#timerChanged(register.hart);
        break;
      case 'mtime':
        this.#lock.run(() => {
          const wanted = withHalf(this.mtime(), register.high, value);
          this.#setOffset((wanted - BigInt(this.#clock.ticks())) & MASK_64);
        });
        for (let hart = 0; hart < this.#harts; hart++) this.#timerChanged(hart);
        break;
    }
  }

  /** Arms a hart's timer, in ticks of `mtime`: 64 bits, unsigned. For firmware that is not the guest's. */
  setMtimecmp(hart: number, deadline: bigint): void {
    Atomics.store(this.#doubles, MTIMECMP / 2 + hart, BigInt.asIntN(64, deadline));
    this.#timerChanged(hart);
  }

  reset(): void {
    this.#lock.run(() => {
      this.#setOffset(0n);
      for (let hart = 0; hart < this.#harts; hart++) {
        // The specification leaves mtimecmp undefined at reset; all ones is a timer that never fires
        Atomics.store(this.#doubles, MTIMECMP / 2 + hart, -1n);
        this.#setMsip(hart, false);
      }
    });
    for (let hart = 0; hart < this.#harts; hart++) this.#timerChanged(hart);
  }

  saveState(): StateValue {
    const harts = Array.from({ length: this.#harts }, (_, hart) => hart);
    return {
      offset: this.timeOffset(),
      msip: Atomics.load(this.#words, MSIP),
      mtimecmp: harts.map((hart) => this.mtimecmp(hart)),
    };
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== 1) throw new StateError(this.stateName, `version ${version}, expected 1`);
    const state = new StateReader(this.stateName, value);
    const offset = state.u64('offset');
    const msip = state.integer('msip', 0, (1 << this.#harts) - 1);
    const mtimecmp = state.list('mtimecmp', this.#harts, (item, path) => {
      // Small 64-bit integers may come back from the wire as numbers
      const deadline = typeof item === 'number' && Number.isSafeInteger(item) ? BigInt(item) : item;
      if (typeof deadline !== 'bigint' || deadline < 0n || deadline > MASK_64) {
        throw new StateError(path, 'expected an unsigned 64-bit integer');
      }
      return deadline;
    });
    if (mtimecmp.length !== this.#harts) throw new StateError(`${this.stateName}.mtimecmp`, `expected ${this.#harts}`);
    return () => {
      this.#lock.run(() => {
        this.#setOffset(offset);
        for (let hart = 0; hart < this.#harts; hart++) this.#setMsip(hart, ((msip >>> hart) & 1) !== 0);
      });
      for (const [hart, deadline] of mtimecmp.entries()) this.setMtimecmp(hart, deadline);
    };
  }

  #setMsip(hart: number, level: boolean): void {
    if (level) Atomics.or(this.#words, MSIP, 1 << hart);
    else Atomics.and(this.#words, MSIP, ~(1 << hart));
    this.#signals.setPending(hart, MSIP_BIT, level);
  }

  #setOffset(offset: bigint): void {
    Atomics.store(this.#doubles, OFFSET / 2, BigInt.asIntN(64, offset));
  }

  /** Whether nobody has written `mtime`: then it is the clock, and numbers do instead of 64-bit integers. */
  get #clockIsTime(): boolean {
    return (Atomics.load(this.#words, OFFSET) | Atomics.load(this.#words, OFFSET + 1)) === 0;
  }

  #mtimeHalf(high: boolean): number {
    if (!this.#clockIsTime) return half(this.mtime(), high);
    const ticks = this.#clock.ticks();
    return high ? Math.floor(ticks / 0x1_0000_0000) : ticks >>> 0;
  }

  #timerChanged(hart: number): void {
    // A float holds deadlines below 2^53 exactly, and those above are beyond any tick of the clock in any case
    const due = this.#clockIsTime ? this.mtimecmpTicks(hart) <= this.#clock.ticks() : this.ticksUntilTimer(hart) === 0;
    // At once, so that a handler which arms the next timer and returns is not interrupted by the old one
    this.#signals.setPending(hart, MTIP, due);
    this.#signals.kick(hart);
  }
}

/** Supervisor software interrupts: a store of bit 0 raises SSIP, and the hart clears it itself. No state. */
export class AclintSswi implements MmioDevice {
  readonly name = 'riscv.aclint.sswi';
  readonly #signals: HartSignals;

  constructor(signals: HartSignals) {
    this.#signals = signals;
  }

  read(): number {
    return 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    const hart = (offset - SETSSIP_BASE) / 4;
    if (size === 4 && hart < this.#signals.harts && (value & 1) !== 0) this.#signals.setPending(hart, SSIP, true);
  }
}

function half(value: bigint, high: boolean): number {
  return Number((high ? value >> 32n : value) & 0xffff_ffffn);
}

function withHalf(value: bigint, high: boolean, word: number): bigint {
  return high
    ? (BigInt(word >>> 0) << 32n) | (value & 0xffff_ffffn)
    : (value & 0xffff_ffff_0000_0000n) | BigInt(word >>> 0);
}
