import { waitForWord } from '../devices/shared/mod.ts';
import { addToCounter } from '../hart/counters.ts';
import type { ExitCode, Hart } from '../hart/hart.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { Bus } from '../machine/bus.ts';
import type { SharedHartSignals } from '../machine/hart_signals.ts';
import type { SharedDevices } from '../machine/shared_devices.ts';
import {
  ATTENTION_EXIT,
  ATTENTION_PAUSE,
  RUN_STATE_ENDED,
  RUN_STATE_PAUSED,
  RUN_STATE_RUNNING,
} from '../machine/words.ts';
import type { GuestMemory } from '../memory/guest_memory.ts';
import type { MemoryLayout } from '../memory/layout.ts';
import type { HartLog, LogOptions } from '../trace/hart_log.ts';
import type { WasmMemory } from '../wasm/platform.ts';
import type { InstructionClock } from './clock.ts';
import { GuestTimers } from './guest_timers.ts';
import type { Inputs } from './inputs.ts';
import { type Lane, type LaneRun, makeLane } from './lane.ts';
import { Recording, type RecordingOptions } from './recording.ts';
import { ReplayError } from './replay_error.ts';

/** Instructions of one hart before the next has its turn */
const QUANTUM = 4096;
/** Real time between two looks at the host's events, in `ms` */
const EVENTS_MS = 4;
/** The longest sleep of an idle machine, in `ms`: arrivals end it sooner */
const MAX_SLEEP_MS = 10_000;
const NS_PER_MS = 1_000_000;

export interface RunnerOptions extends RecordingOptions {
  readonly memory: WasmMemory;
  readonly layout: MemoryLayout;
  readonly signals: SharedHartSignals;
  readonly devices: SharedDevices;
  /** All devices: nothing lives on another thread */
  readonly bus: Bus;
  /** Those of them that may have more to do after an access */
  readonly mainBus: Bus;
  readonly guest: GuestMemory;
  readonly inputs: Inputs;
  /** False: an idle machine's time moves on at once */
  readonly sleep: boolean;
  /** Keeps guest time near real time by how long an instruction takes */
  readonly adjust: ShiftAdjuster | undefined;
  readonly trace?: LogOptions;
  /** Rings for a profile, one for each hart */
  readonly samples?: readonly SharedArrayBuffer[];
  readonly writeTrace?: (text: string) => void;
  readonly soon: (task: () => void) => void;
  /** Hands on what the guest has printed */
  readonly flushOutput: () => void;
}

/** Told the time at each look at the host's events; may change the shift. */
export interface ShiftAdjuster {
  look(clock: InstructionClock): void;
}

/** Where the runner is, beyond what harts and clock know. */
export interface RunnerPosition {
  readonly round: number;
  readonly turn: number;
  readonly left: number;
  readonly waiting: readonly boolean[];
}

/**
 * Runs all harts on one thread, in turn, a counted number of instructions each. Between two runs, and only there,
 * timers are looked at, devices finish what they began, and input enters: so a run follows from its input and the
 * counts at which that came.
 */
export class InstructionRunner {
  readonly ended: Promise<Error | undefined>;
  readonly #options: RunnerOptions;
  readonly #lanes: readonly Lane[];
  readonly #timers: GuestTimers;
  readonly #recording: Recording;
  readonly #words: Int32Array;
  readonly #counters: BigUint64Array;
  #round = 0;
  #turn = 0;
  #left = QUANTUM;
  /** Fuel that the hart which runs was given; 0 between runs */
  #fuel = 0;
  #running: Hart | undefined;
  #stale = true;
  /** A device that works by promises was written to */
  #touched = false;
  #terminated = false;
  #stopAt: { readonly instructions: number; readonly resolve: () => void } | undefined;
  #eventsAt = 0;

  constructor(options: RunnerOptions) {
    this.#options = options;
    this.#words = options.signals.words;
    this.#counters = new BigUint64Array(options.memory.buffer);
    this.#timers = new GuestTimers(options.clock, options.devices, this.#words);
    this.#recording = new Recording(options);
    const fenced = () => this.#lanes;
    const run: LaneRun = {
      now: () => this.#timers.now(this.#used()),
      poll: (hart) => this.#timers.poll(hart, this.#used()),
      touch: () => {
        this.#touched = true;
      },
    };
    this.#lanes = Array.from({ length: options.layout.harts }, (_, id) => makeLane(options, id, run, fenced));
    this.ended = this.#run()
      .then(
        () => undefined,
        (error: unknown) => {
          options.inputs.abandon();
          return this.#recording.withPlace(error instanceof Error ? error : new Error(String(error)), this.#round);
        },
      )
      // Whoever waits for the harts to stand does so no longer, also where the run has failed
      .finally(() => this.#end());
  }

  terminate(): void {
    this.#terminated = true;
    this.#options.inputs.wake();
  }

  /** Registers or memory were changed from outside: translations are looked up anew. */
  invalidate(): void {
    this.#stale = true;
  }

  /** Resolves at the first look between runs at or after so many instructions; the machine is asked to pause there. */
  stopAt(instructions: number): Promise<void> {
    return new Promise((resolve) => {
      this.#stopAt = { instructions, resolve };
    });
  }

  get position(): RunnerPosition {
    return {
      round: this.#round,
      turn: this.#turn,
      left: this.#left,
      waiting: this.#lanes.map(({ waiting }) => waiting),
    };
  }
  set position({ round, turn, left, waiting }: RunnerPosition) {
    this.#round = round;
    this.#turn = turn;
    this.#left = left;
    for (const [index, lane] of this.#lanes.entries()) lane.waiting = waiting[index]!;
  }

  /** The machine was reset: harts do not wait, and the first has its turn. */
  restart(): void {
    this.#turn = 0;
    this.#left = QUANTUM;
    for (const lane of this.#lanes) lane.waiting = false;
    this.#stale = true;
  }

  /** Writes the end of a recording; the machine stands. */
  finish(): void {
    this.#recording.finish(this.#round);
  }

  /** Instructions of the run that is under way: the fuel is stored before whoever asks is called. */
  #used(): number {
    return this.#running === undefined ? 0 : this.#fuel - this.#running.get32(H.HART_FUEL);
  }

  // --- the loop -------------------------------------------------------------------------------------------------

  async #run(): Promise<void> {
    // The machine that made us is not complete yet
    await Promise.resolve();
    while (!this.#terminated) {
      const attention = this.#attention();
      if (attention & ATTENTION_EXIT) break;
      if (this.#recording.endOfReplay(this.#round)) {
        for (const { hart } of this.#lanes) this.#options.signals.request(hart.id, ATTENTION_PAUSE);
        this.#recording.tellEnd(this.#round);
        continue;
      }
      if (attention & ATTENTION_PAUSE) {
        this.#recording.checkGuestEnd(this.#round);
        await this.#waitWhilePaused();
        continue;
      }
      if (this.#stopAt !== undefined && this.#options.clock.instructions >= this.#stopAt.instructions) {
        this.#stopAt.resolve();
        this.#stopAt = undefined;
        for (const { hart } of this.#lanes) this.#options.signals.request(hart.id, ATTENTION_PAUSE);
        continue;
      }
      this.#refresh();
      this.#setRunState(RUN_STATE_RUNNING);
      if (this.#options.inputs.outputHeld) {
        await this.#sleep(MAX_SLEEP_MS);
        continue;
      }
      await this.#turnOfRound();
      if (performance.now() - this.#eventsAt > EVENTS_MS) await this.#hostEvents();
    }
  }

  #end(): void {
    for (const { log } of this.#lanes) log?.flush();
    this.#setRunState(RUN_STATE_ENDED);
    this.#stopAt?.resolve();
    this.#stopAt = undefined;
  }

  async #turnOfRound(): Promise<void> {
    const { inputs, clock, flushOutput, devices } = this.#options;
    this.#round++;
    inputs.deliver(this.#round, clock.ns);
    const lane = this.#choose();
    if (lane === undefined) await this.#idle();
    else this.#slice(lane);
    devices.rtc.checkAlarm();
    if (this.#touched || inputs.busy) {
      this.#touched = false;
      // Promises that are under way come to their end now, not when the host's events have their turn
      await new Promise<void>((resolve) => this.#options.soon(resolve));
      await inputs.settle(this.#round, clock.ns);
    }
    flushOutput();
    this.#recording.look(this.#round);
  }

  /** Whose turn it is: the same hart until its quantum is used up or it waits. */
  #choose(): Lane | undefined {
    const count = this.#lanes.length;
    if (this.#left <= 0) this.#nextTurn();
    for (let tried = 0; tried < count; tried++) {
      const lane = this.#lanes[this.#turn]!;
      if (this.#runnable(lane)) return lane;
      this.#nextTurn();
    }
    return undefined;
  }

  #nextTurn(): void {
    this.#turn = (this.#turn + 1) % this.#lanes.length;
    this.#left = QUANTUM;
  }

  #runnable(lane: Lane): boolean {
    const { hart, sbi } = lane;
    if (lane.waiting || sbi.suspended) this.#timers.poll(hart, this.#used());
    if (!sbi.enterIfStarted()) return false;
    if (!lane.waiting) return true;
    lane.waiting = (Atomics.load(this.#words, hart.word(H.HART_MIP)) & hart.get32(H.HART_MIE)) === 0;
    return !lane.waiting;
  }

  #slice(lane: Lane): void {
    const { clock } = this.#options;
    const { hart, log } = lane;
    const deadline = this.#timers.deadline(this.#lanes);
    const untilDeadline = deadline === Number.POSITIVE_INFINITY ? this.#left : clock.instructionsUntil(deadline);
    this.#fuel = Math.max(1, Math.min(this.#left, untilDeadline));
    // What a run before left over was not executed; run() begins with looking at the time
    hart.refuel(this.#fuel);
    this.#running = hart;
    const exit = log?.steps === true ? this.#step(hart, log, this.#fuel) : hart.run(this.#fuel);
    this.#running = undefined;
    const used = this.#fuel - hart.get32(H.HART_FUEL);
    lane.sampler?.check();
    this.#left -= used;
    clock.count(used);
    if (exit === H.EXIT_WFI) {
      addToCounter(this.#counters, hart.base, H.COUNT_WAITS);
      lane.waiting = true;
    } else if (exit === H.EXIT_SBI) {
      addToCounter(this.#counters, hart.base, H.COUNT_SBI);
      log?.sbiCall();
      if (lane.sbi.call() === 'suspend') lane.waiting = true;
    }
  }

  /** The same run, one instruction at a time, so that each can be shown before. */
  #step(hart: Hart, log: HartLog, fuel: number): ExitCode {
    this.#fuel = 0;
    let exit = hart.run(0);
    while (this.#fuel < fuel && exit === H.EXIT_FUEL) {
      log.show();
      this.#fuel++;
      exit = hart.step(1);
    }
    return exit;
  }

  async #idle(): Promise<void> {
    const { clock, log, sleep, inputs } = this.#options;
    const deadline = this.#timers.deadline(this.#lanes);
    const due = deadline !== Number.POSITIVE_INFINITY;
    for (const lane of this.#lanes) lane.log?.flush();
    if (log.mode === 'replay') {
      const next = log.peek();
      if (next?.kind === 'wake' && next.round === this.#round) {
        log.take('wake', this.#round);
        clock.advanceTo(next.ns);
      } else if (due) clock.advanceTo(deadline);
      else if (next === undefined || next.kind !== 'end' || next.round !== this.#round) {
        throw new ReplayError(
          `Cannot replay: the guest waits for input in round ${this.#round}, the recording has none`,
        );
      }
      return;
    }
    if (due && !sleep) {
      clock.advanceTo(deadline);
      return;
    }
    const from = clock.ns;
    const started = performance.now();
    const ms = due ? (deadline - from) / NS_PER_MS : MAX_SLEEP_MS;
    if (!inputs.waiting && this.#attention() === 0) await this.#sleep(Math.min(ms, MAX_SLEEP_MS));
    for (const lane of this.#lanes) lane.sampler?.skip();
    const elapsed = Math.floor((performance.now() - started) * NS_PER_MS);
    if (due && from + elapsed >= deadline) {
      clock.advanceTo(deadline);
      return;
    }
    // Something came in between, or the sleep was cut: that time was then is known by the recording alone
    clock.advanceTo(from + elapsed);
    log.record({ kind: 'wake', round: this.#round, ns: clock.ns });
  }

  /** Until input arrives, somebody asks for attention, or the time is up. */
  async #sleep(ms: number): Promise<void> {
    const doorbell = this.#lanes[0]!.hart.word(H.HART_DOORBELL);
    const seen = Atomics.load(this.#words, doorbell);
    if (this.#attention() !== 0) return;
    // This may end at once, so it does not count as a look at the host's events
    await Promise.race([this.#options.inputs.arrival(), waitForWord(this.#words, doorbell, seen, ms)]);
  }

  async #hostEvents(): Promise<void> {
    await new Promise<void>((resolve) => this.#options.soon(resolve));
    this.#eventsAt = performance.now();
    this.#options.adjust?.look(this.#options.clock);
  }

  // --- pausing ----------------------------------------------------------------------------------------------------

  #attention(): number {
    let all = 0;
    for (const { hart } of this.#lanes) all |= this.#options.signals.attention(hart.id);
    return all;
  }

  async #waitWhilePaused(): Promise<void> {
    for (const { log } of this.#lanes) log?.flush();
    this.#setRunState(RUN_STATE_PAUSED);
    const doorbell = this.#lanes.at(-1)!.hart.word(H.HART_DOORBELL);
    while (!this.#terminated) {
      const seen = Atomics.load(this.#words, doorbell);
      const attention = this.#attention();
      if ((attention & ATTENTION_PAUSE) === 0 || (attention & ATTENTION_EXIT) !== 0) break;
      await waitForWord(this.#words, doorbell, seen);
    }
  }

  #refresh(): void {
    if (!this.#stale) return;
    this.#stale = false;
    for (const { hart } of this.#lanes) hart.refresh();
  }

  #setRunState(state: number): void {
    let changed = false;
    for (const { hart } of this.#lanes) {
      const index = hart.word(H.HART_RUN_STATE);
      if (this.#words[index] === state) continue;
      Atomics.store(this.#words, index, state);
      changed = true;
    }
    if (changed) this.#options.signals.ringMain();
  }
}
