import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';
import type { AccessSize, Device, HartSignals, InterruptLine, MmioDevice } from '../device.ts';
import { SpinLock } from '../shared/mod.ts';
import { PRIORITY_MASK, plicRegister } from './registers.ts';

const SOURCES = 96;
const SOURCE_WORDS = SOURCES / 32;
const MAX_HARTS = 8;
const MAX_CONTEXTS = MAX_HARTS * 2;

// Words of the shared state
const LOCK = 0;
/** One bit for each context: what was last sent to its hart */
const OUTPUT = 1;
const LEVEL = 2;
const PENDING = LEVEL + SOURCE_WORDS;
const CLAIMED = PENDING + SOURCE_WORDS;
const PRIORITY = CLAIMED + SOURCE_WORDS;
const THRESHOLDS = PRIORITY + SOURCES;
const ENABLES = THRESHOLDS + MAX_CONTEXTS;

/** `mip` bits of the external interrupts: contexts are M, S of hart 0, M, S of hart 1, … */
const MEIP = 11;
const SEIP = 9;

/**
 * The platform-level interrupt controller of the `virt` machine: 95 level-triggered sources, and for each hart an
 * M and an S context. Every thread has its own object over the same shared words; a source's gateway forwards a
 * request while its line is high and none is in service, so a line that is still high at completion asks again.
 *
 * As in QEMU a line that falls before it is claimed takes its request back (the specification lets the gateway
 * choose); unlike QEMU 7.2, claims ignore the threshold and completions of sources that the context has not
 * enabled are ignored, as the specification says.
 */
export class Plic implements MmioDevice, Device {
  static readonly WORDS = ENABLES + MAX_CONTEXTS * SOURCE_WORDS;

  readonly name = 'riscv.sifive.plic';
  readonly stateName = 'plic0';
  readonly stateVersion = 1;
  readonly #words: Int32Array;
  readonly #signals: HartSignals;
  readonly #contexts: number;
  readonly #lock: SpinLock;

  /** `words`: this device's own `Plic.WORDS` words of the shared memory, zero at first */
  constructor(words: Int32Array, signals: HartSignals) {
    if (words.length < Plic.WORDS) throw new RangeError(`Cannot make a PLIC in ${words.length} words: ${Plic.WORDS}`);
    if (signals.harts < 1 || signals.harts > MAX_HARTS) throw new RangeError(`Cannot serve ${signals.harts} harts`);
    this.#words = words;
    this.#signals = signals;
    this.#contexts = signals.harts * 2;
    this.#lock = new SpinLock(words, LOCK);
  }

  /** The input of a source, 1..95 */
  line(source: number): InterruptLine {
    if (!Number.isInteger(source) || source < 1 || source >= SOURCES) {
      throw new RangeError(`Cannot connect to PLIC source ${source}: 1..${SOURCES - 1}`);
    }
    return { set: (level) => this.#setLevel(source, level) };
  }

  read(offset: number, size: AccessSize): number {
    // Only whole words exist ("all registers are 32-bit accessible")
    const register = size === 4 ? plicRegister(offset, SOURCES, this.#contexts) : undefined;
    switch (register?.kind) {
      case 'priority':
        return this.#load(PRIORITY + register.source);
      case 'pending':
        return this.#load(PENDING + register.word);
      case 'enable':
        return this.#load(ENABLES + register.context * SOURCE_WORDS + register.word);
      case 'threshold':
        return this.#load(THRESHOLDS + register.context);
      case 'claim':
        return this.#lock.run(() => this.#claim(register.context));
      default:
        return 0;
    }
  }

  write(offset: number, size: AccessSize, value: number): void {
    const register = size === 4 ? plicRegister(offset, SOURCES, this.#contexts) : undefined;
    if (register === undefined || register.kind === 'pending') return;
    this.#lock.run(() => {
      switch (register.kind) {
        case 'priority':
          this.#store(PRIORITY + register.source, value & PRIORITY_MASK);
          break;
        case 'enable':
          // Source 0 does not exist: its enable bit is hard-wired to zero
          this.#store(
            ENABLES + register.context * SOURCE_WORDS + register.word,
            register.word === 0 ? value & ~1 : value,
          );
          break;
        case 'threshold':
          this.#store(THRESHOLDS + register.context, value & PRIORITY_MASK);
          break;
        case 'claim':
          this.#complete(register.context, value);
          break;
      }
      this.#update();
    });
  }

  reset(): void {
    this.#lock.run(() => {
      for (let index = PENDING; index < Plic.WORDS; index++) this.#store(index, 0);
      // Lines belong to the devices: a line that is high stays high
      for (let word = 0; word < SOURCE_WORDS; word++) this.#store(PENDING + word, this.#load(LEVEL + word));
      this.#update();
    });
  }

  saveState(): StateValue {
    return this.#lock.run(() => ({
      harts: this.#contexts / 2,
      level: this.#list(LEVEL, SOURCE_WORDS),
      pending: this.#list(PENDING, SOURCE_WORDS),
      claimed: this.#list(CLAIMED, SOURCE_WORDS),
      priority: this.#list(PRIORITY, SOURCES),
      threshold: this.#list(THRESHOLDS, this.#contexts),
      enable: this.#list(ENABLES, this.#contexts * SOURCE_WORDS),
    }));
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== 1) throw new StateError(this.stateName, `version ${version}, expected 1`);
    const state = new StateReader(this.stateName, value);
    state.integer('harts', this.#contexts / 2, this.#contexts / 2);
    const words = (field: string, count: number, max: number): number[] => {
      const list = state.list(field, count, (item, path) => {
        if (typeof item !== 'number' || !Number.isInteger(item) || item < 0 || item > max) {
          throw new StateError(path, `expected an integer in 0..${max}`);
        }
        return item;
      });
      if (list.length !== count) throw new StateError(`${this.stateName}.${field}`, `expected ${count} words`);
      return list;
    };
    const sections: [number, number[]][] = [
      [LEVEL, words('level', SOURCE_WORDS, 0xffff_ffff)],
      [PENDING, words('pending', SOURCE_WORDS, 0xffff_ffff)],
      [CLAIMED, words('claimed', SOURCE_WORDS, 0xffff_ffff)],
      [PRIORITY, words('priority', SOURCES, PRIORITY_MASK)],
      [THRESHOLDS, words('threshold', this.#contexts, PRIORITY_MASK)],
      [ENABLES, words('enable', this.#contexts * SOURCE_WORDS, 0xffff_ffff)],
    ];
    for (const [base, list] of sections) {
      const first = list[0]!;
      if (base !== THRESHOLDS && (base === PRIORITY ? first : first & 1) !== 0) {
        throw new StateError(this.stateName, 'source 0 does not exist, found it in use');
      }
    }
    return () =>
      this.#lock.run(() => {
        for (const [base, list] of sections) {
          for (const [index, word] of list.entries()) this.#store(base + index, word);
        }
        // The harts' own state says what is pending there; start from nothing and send all lines again
        this.#resend();
      });
  }

  #setLevel(source: number, level: boolean): void {
    const index = LEVEL + (source >>> 5);
    const bit = 1 << (source & 31);
    // A line that does not change costs no lock; each line has one owner, so nobody can change it meanwhile
    if (((Atomics.load(this.#words, index) & bit) !== 0) === level) return;
    this.#lock.run(() => {
      const pending = PENDING + (source >>> 5);
      if (level) {
        Atomics.or(this.#words, index, bit);
        if ((this.#load(CLAIMED + (source >>> 5)) & bit) === 0) Atomics.or(this.#words, pending, bit);
      } else {
        Atomics.and(this.#words, index, ~bit);
        Atomics.and(this.#words, pending, ~bit);
      }
      this.#update();
    });
  }

  /** Under the lock: the best pending source of a context above `threshold`; 0 when there is none. */
  #best(context: number, threshold: number): number {
    let best = 0;
    let bestPriority = threshold;
    for (let word = 0; word < SOURCE_WORDS; word++) {
      let bits = this.#load(PENDING + word) & this.#load(ENABLES + context * SOURCE_WORDS + word);
      while (bits !== 0) {
        const bit = 31 - Math.clz32(bits & -bits);
        const source = word * 32 + bit;
        const priority = this.#load(PRIORITY + source);
        // Equal priorities: the lowest source wins, and it comes first
        if (priority > bestPriority) {
          best = source;
          bestPriority = priority;
        }
        bits &= bits - 1;
      }
    }
    return best;
  }

  #claim(context: number): number {
    const source = this.#best(context, 0);
    if (source !== 0) {
      Atomics.and(this.#words, PENDING + (source >>> 5), ~(1 << (source & 31)));
      Atomics.or(this.#words, CLAIMED + (source >>> 5), 1 << (source & 31));
      this.#update();
    }
    return source;
  }

  #complete(context: number, source: number): void {
    if (source < 1 || source >= SOURCES) return;
    const word = source >>> 5;
    const bit = 1 << (source & 31);
    if ((this.#load(ENABLES + context * SOURCE_WORDS + word) & bit) === 0) return;
    if ((this.#load(CLAIMED + word) & bit) === 0) return;
    Atomics.and(this.#words, CLAIMED + word, ~bit);
    if ((this.#load(LEVEL + word) & bit) !== 0) Atomics.or(this.#words, PENDING + word, bit);
  }

  /** Under the lock, so that signals leave in the order of the states they tell of. */
  #update(): void {
    const before = this.#load(OUTPUT);
    let after = 0;
    for (let context = 0; context < this.#contexts; context++) {
      if (this.#best(context, this.#load(THRESHOLDS + context)) !== 0) after |= 1 << context;
    }
    this.#store(OUTPUT, after);
    for (let changed = before ^ after; changed !== 0; changed &= changed - 1) {
      const context = 31 - Math.clz32(changed & -changed);
      this.#send(context, (after & (1 << context)) !== 0);
    }
  }

  #resend(): void {
    this.#store(OUTPUT, 0);
    for (let context = 0; context < this.#contexts; context++) this.#send(context, false);
    this.#update();
  }

  #send(context: number, level: boolean): void {
    this.#signals.setPending(context >>> 1, (context & 1) === 0 ? MEIP : SEIP, level);
  }

  #list(base: number, count: number): number[] {
    return Array.from({ length: count }, (_, index) => this.#load(base + index));
  }

  /** Unsigned */
  #load(index: number): number {
    return Atomics.load(this.#words, index) >>> 0;
  }

  #store(index: number, value: number): void {
    Atomics.store(this.#words, index, value | 0);
  }
}
