import type { AccessSize } from '../devices/device.ts';
import { addToCounter } from '../hart/counters.ts';
import { type Engine, Hart, type HartHost } from '../hart/hart.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import { type MemoryLayout, planMemory } from '../memory/layout.ts';
import { HartLog, type LogOptions } from '../trace/hart_log.ts';
import { HartSampler } from '../trace/hart_sampler.ts';
import type { WasmMemory } from '../wasm/platform.ts';
import { Bus } from './bus.ts';
import { SharedClock } from './clock.ts';
import { finishFromGuest } from './guest_request.ts';
import { HartSbi } from './hart_sbi.ts';
import { SharedHartSignals } from './hart_signals.ts';
import { MailboxClient } from './mailbox.ts';
import { attachSharedDevices, guestMemory, type SharedDevices } from './shared_devices.ts';
import {
  ATTENTION_EXIT,
  ATTENTION_FENCE,
  ATTENTION_FENCE_I,
  ATTENTION_PAUSE,
  NEVER,
  RUN_STATE_ENDED,
  RUN_STATE_PAUSED,
  RUN_STATE_RUNNING,
  THROTTLE,
} from './words.ts';

/** Instructions between looks at timers and requests: 20 µs where they are translated, 150 µs where they are not */
const QUANTUM = 32_768;
/** Translated functions call each other so deep on a thread whose stack the platform made for it */
const CALL_DEPTH = 4000;
/** The longest sleep of an idle hart, in `ms`: wake-ups end it sooner */
const MAX_SLEEP_MS = 10_000;
/** `mip` bits of the timers */
const MTIP = 1 << 7;
const STIP = 1 << 5;
const TICKS_PER_MS = 10_000;
/** Running time between two sleeps of a throttled hart, in `ms` */
const SLICE_MS = 5;

/** What a hart's thread is started with; all of it can be posted to a worker. */
export interface HartInit {
  readonly memory: WasmMemory;
  readonly harts: number;
  readonly ramBytes: number;
  readonly hart: number;
  readonly engine: Engine;
  /** The processor keeps the order of plain loads and stores as x86 does */
  readonly strongOrder?: boolean;
  /** What to log, if anything */
  readonly log?: LogOptions;
  /** Where samples for a profile go (trace/sample_ring.ts), if one is made */
  readonly samples?: SharedArrayBuffer;
}

/** What only the platform can do for a hart's thread. */
export interface HartHooks {
  /** Takes text of the log; may drop it */
  readonly writeLog?: (text: string) => void;
  /** Makes the engine give back memory that nothing refers to: this thread never ends its task, when it would by itself */
  readonly collect?: () => void;
}

/**
 * Runs one hart until it is told to end. Blocks its thread: meant for a worker. The machine's main thread speaks to
 * it through the hart's atomic words alone.
 */
export function runHart(init: HartInit, hooks: HartHooks = {}): void {
  new HartThread(init, hooks).run();
}

class HartThread {
  readonly #id: number;
  readonly #layout: MemoryLayout;
  readonly #signals: SharedHartSignals;
  readonly #clock: SharedClock;
  readonly #devices: SharedDevices;
  readonly #hart: Hart;
  readonly #sbi: HartSbi;
  readonly #log: HartLog | undefined;
  readonly #sampler: HartSampler | undefined;
  readonly #words: Int32Array;
  readonly #counters: BigUint64Array;
  /** Ticks that a guest's write of mtime added; looked at again at each poll */
  #timeOffset = 0;
  #throttleAt = 0;

  constructor(init: HartInit, hooks: HartHooks) {
    const { memory, hart: id } = init;
    const { buffer } = memory;
    this.#id = id;
    this.#layout = planMemory(init.harts, init.ramBytes);
    this.#signals = new SharedHartSignals(buffer, this.#layout, id);
    this.#words = this.#signals.words;
    this.#counters = new BigUint64Array(buffer);
    this.#clock = new SharedClock(buffer);
    this.#devices = attachSharedDevices(buffer, this.#signals, this.#clock, (request) => {
      finishFromGuest(this.#signals, id, request);
    });
    const bus = new Bus([...this.#devices.windows, ...this.#devices.insets]);
    const mailbox = new MailboxClient(this.#signals, id);
    const host: HartHost = {
      now: () => this.#clock.ticks() + this.#timeOffset,
      poll: () => this.#poll(),
      mmioRead: (address, size) => {
        const window = bus.find(address, size);
        if (window === undefined) {
          const known = this.#devices.readInside(address, size as AccessSize);
          if (known >= 0) return known;
          this.#count(H.COUNT_MAILBOX);
          const value = mailbox.read(address, size);
          if (value < 0) this.#log?.invalidAccess('read', address, size);
          this.#sampler?.check();
          return value;
        }
        return window.device.read(address - window.range.base, size as AccessSize) >>> 0;
      },
      mmioWrite: (address, size, value) => {
        const window = bus.find(address, size);
        if (window === undefined) {
          this.#count(H.COUNT_MAILBOX);
          const done = mailbox.write(address, size, value);
          if (!done) this.#log?.invalidAccess('write', address, size);
          this.#sampler?.check();
          return done;
        }
        window.device.write(address - window.range.base, size as AccessSize, value);
        return true;
      },
      log: (kind, first, second, third) => this.#log?.event(kind, first, second, third),
    };
    const { engine, strongOrder = false } = init;
    this.#hart = new Hart(memory, this.#layout, id, host, {
      engine,
      strongOrder,
      callDepth: CALL_DEPTH,
      collect: hooks.collect,
    });
    const { log } = init;
    this.#log = log === undefined ? undefined : new HartLog(this.#hart, log, hooks.writeLog ?? (() => {}));
    const { samples } = init;
    this.#sampler = samples === undefined ? undefined : new HartSampler(this.#hart, samples, buffer);
    this.#sbi = new HartSbi({
      hart: this.#hart,
      signals: this.#signals,
      memory: guestMemory(buffer, this.#layout),
      devices: this.#devices,
      serveFences: () => this.#serveFences(),
    });
  }

  run(): void {
    this.#hart.refresh();
    for (;;) {
      const attention = this.#signals.attention(this.#id);
      if (attention & ATTENTION_EXIT) {
        this.#log?.flush();
        this.#setRunState(RUN_STATE_ENDED);
        return;
      }
      if (attention & (ATTENTION_FENCE | ATTENTION_FENCE_I)) this.#serveFences();
      if (attention & ATTENTION_PAUSE) {
        this.#waitWhilePaused();
        continue;
      }
      this.#setRunState(RUN_STATE_RUNNING);
      if (!this.#sbi.enterIfStarted()) {
        if (this.#sbi.suspended) this.#waitForInterrupt();
        else this.#sleep();
        continue;
      }
      const exit = this.#log === undefined ? this.#hart.run(QUANTUM) : this.#log.run(QUANTUM);
      this.#sampler?.check();
      switch (exit) {
        case H.EXIT_WFI:
          this.#count(H.COUNT_WAITS);
          this.#waitForInterrupt();
          break;
        case H.EXIT_SBI:
          this.#count(H.COUNT_SBI);
          this.#log?.sbiCall();
          if (this.#sbi.call() === 'suspend') this.#waitForInterrupt();
          break;
        default:
          this.#throttle();
      }
    }
  }

  #count(offset: number): void {
    addToCounter(this.#counters, this.#hart.base, offset);
  }

  /** Timer bits of mip; nonzero where the thread has something else to do. */
  #poll(): number {
    const id = this.#id;
    this.#timeOffset = Number(BigInt.asIntN(64, this.#devices.aclint.timeOffset()));
    const now = this.#clock.ticks() + this.#timeOffset;
    const mip = this.#hart.word(H.HART_MIP);
    const machineDue = this.#devices.aclint.mtimecmpTicks(id) <= now;
    const supervisorDue = this.#hart.getFloat64(H.HART_STIMECMP_TICKS) <= now;
    const current = this.#words[mip]!;
    if (machineDue !== ((current & MTIP) !== 0)) {
      if (machineDue) Atomics.or(this.#words, mip, MTIP);
      else Atomics.and(this.#words, mip, ~MTIP);
    }
    // stimecmp only ever raises here; a write to it clears (kernel csr.ts)
    if (supervisorDue && (current & STIP) === 0) Atomics.or(this.#words, mip, STIP);
    return this.#signals.attention(id);
  }

  #waitForInterrupt(): void {
    const seen = Atomics.load(this.#words, this.#hart.word(H.HART_DOORBELL));
    if (this.#poll() !== 0) return;
    const pending = Atomics.load(this.#words, this.#hart.word(H.HART_MIP)) & this.#hart.get32(H.HART_MIE);
    if (pending === 0) {
      const now = this.#clock.ticks() + this.#timeOffset;
      const next = Math.min(this.#devices.aclint.mtimecmpTicks(this.#id), this.#hart.getFloat64(H.HART_STIMECMP_TICKS));
      const ms = Math.min((next - now) / TICKS_PER_MS, MAX_SLEEP_MS);
      if (ms > 0) this.#log?.flush();
      if (ms > 0) Atomics.wait(this.#words, this.#hart.word(H.HART_DOORBELL), seen, ms);
      this.#sampler?.skip();
    }
  }

  /** A stopped hart: until it is started or has something else to do. */
  #sleep(): void {
    const doorbell = this.#hart.word(H.HART_DOORBELL);
    const seen = Atomics.load(this.#words, doorbell);
    if (this.#signals.attention(this.#id) !== 0 || this.#sbi.startPending()) return;
    Atomics.wait(this.#words, doorbell, seen, MAX_SLEEP_MS);
    this.#sampler?.skip();
  }

  #waitWhilePaused(): void {
    const doorbell = this.#hart.word(H.HART_DOORBELL);
    this.#log?.flush();
    this.#setRunState(RUN_STATE_PAUSED);
    for (;;) {
      const seen = Atomics.load(this.#words, doorbell);
      const attention = this.#signals.attention(this.#id);
      if ((attention & ATTENTION_PAUSE) === 0 || (attention & ATTENTION_EXIT) !== 0) break;
      if (attention & (ATTENTION_FENCE | ATTENTION_FENCE_I)) this.#serveFences();
      Atomics.wait(this.#words, doorbell, seen);
    }
    this.#sampler?.skip();
    // State may have been loaded meanwhile
    this.#hart.refresh();
  }

  #setRunState(state: number): void {
    const index = this.#hart.word(H.HART_RUN_STATE);
    if (this.#words[index] === state) return;
    Atomics.store(this.#words, index, state);
    this.#signals.ringMain();
  }

  /** Another hart asked for a fence and waits until the bits are clear. */
  #serveFences(): void {
    const attention = this.#signals.attention(this.#id);
    if (attention & ATTENTION_FENCE) this.#hart.flushTranslations();
    if (attention & ATTENTION_FENCE_I) this.#hart.flushInstructions();
    const bits = attention & (ATTENTION_FENCE | ATTENTION_FENCE_I);
    if (bits !== 0) this.#signals.clear(this.#id, bits);
  }

  /** Auto-converge: sleeps a share of the time, in slices that a guest does not notice one by one. */
  #throttle(): void {
    const percent = this.#words[THROTTLE >> 2]!;
    if (percent <= 0) return;
    const now = performance.now();
    if (now < this.#throttleAt) return;
    // A word that never changes: this is a sleep
    Atomics.wait(this.#words, NEVER >> 2, 0, (SLICE_MS * Math.min(percent, 99)) / (100 - Math.min(percent, 99)));
    this.#throttleAt = performance.now() + SLICE_MS;
  }
}
