import type { Observable } from 'rxjs';
import { Subject } from 'rxjs/internal/Subject';
import { Digest } from '../../protocols/bytes/mod.ts';
import type { CharacterPort, DisplayHead, KeyboardSink, TabletSink } from '../devices/backends.ts';

import { RtcAlarm } from '../devices/goldfish_rtc/mod.ts';
import { waitForWord, yieldToEventLoop } from '../devices/shared/mod.ts';
import { UartPort } from '../devices/uart16550/mod.ts';
import { readCounters } from '../hart/counters.ts';
import { installDecodeTables } from '../hart/decode_tables.ts';
import { HartState } from '../hart/state.ts';
import type { InstructionClock } from '../icount/clock.ts';
import type { InstructionParts } from '../icount/parts.ts';
import { ReplayError } from '../icount/replay_error.ts';
import type { InstructionRunner } from '../icount/runner.ts';
import { HART_HSM, HART_RUN_STATE } from '../kernel/assembly/hart_layout.ts';
import { DirtyMap } from '../memory/dirty_map.ts';
import { type GuestMemory, PAGE_BYTES } from '../memory/guest_memory.ts';
import { type MemoryLayout, planMemory } from '../memory/layout.ts';
import { canonicalText, StateError, type StateValue } from '../state/state.ts';
import { collectSymbols } from '../trace/guest_symbols.ts';
import type { LogOptions } from '../trace/hart_log.ts';
import { type ProfileResult, Profiler } from '../trace/profiler.ts';
import { type SymbolData, SymbolTable } from '../trace/symbols.ts';
import { type WasmMemory, wasm } from '../wasm/platform.ts';
import { type BootOptions, type BootPlan, planBoot, sourceOf } from './boot.ts';
import { BootError } from './boot_error.ts';
import { Bus } from './bus.ts';
import { SharedClock } from './clock.ts';
import { buildMainDevices, type MainDevices } from './devices.ts';
import { finishFromGuest } from './guest_request.ts';
import { HartGroup } from './hart_group.ts';
import { SharedHartSignals } from './hart_signals.ts';
import { loadBootPlan } from './load_plan.ts';
import type { MachineApi, MachineEvent, MachineOptions, MachineState, MachineStatus } from './machine_api.ts';
import { MachineStateSet } from './machine_state.ts';
import { MailboxServer, serveMailboxes } from './mailbox.ts';
import { RAM_START } from './memory_map.ts';
import type { HartThreadHandle, MachinePlatform } from './platform.ts';
import { attachSharedDevices, guestMemory, type SharedDevices } from './shared_devices.ts';
import {
  ATTENTION_EXIT,
  ATTENTION_PAUSE,
  GUEST_EXIT_CODE,
  GUEST_FAILURE,
  GUEST_NONE,
  GUEST_REQUEST,
  GUEST_RESET,
  MAIN_DOORBELL,
  NEVER,
  RUN_STATE_ENDED,
  THROTTLE,
} from './words.ts';

/** How long harts may take to leave the guest before they are ended by force, in `ms` */
const END_GRACE_MS = 2000;
/** Linux input event code */
const KEY_POWER = 116;

/**
 * A machine like QEMU's `-M virt`. Harts run in threads of their own over one shared memory; this object lives on
 * the main thread with the virtio devices, and serves what the harts cannot.
 */
export class Machine implements MachineApi {
  readonly options: MachineOptions;
  readonly ramBytes: number;
  readonly serial: CharacterPort;
  readonly virtioConsole: CharacterPort | undefined;
  readonly keyboard: KeyboardSink | undefined;
  readonly tablet: TabletSink | undefined;
  readonly #platform: MachinePlatform;
  readonly #layout: MemoryLayout;
  readonly #memory: WasmMemory;
  readonly #guest: GuestMemory;
  readonly #clock: SharedClock | InstructionClock;
  readonly #signals: SharedHartSignals;
  readonly #group: HartGroup;
  readonly #dirty: DirtyMap;
  readonly #shared: SharedDevices;
  readonly #devices: MainDevices;
  readonly #bus: Bus;
  readonly #uartPort: UartPort;
  readonly #rtcAlarm: RtcAlarm | undefined;
  readonly #boot: BootOptions;
  readonly #harts: readonly HartState[];
  readonly #state: MachineStateSet;
  readonly #events = new Subject<MachineEvent>();
  #threads: HartThreadHandle[] = [];
  #status: MachineStatus = 'prelaunch';
  #closed = false;
  #profiler: Profiler | undefined;
  /** The guest has asked for its end */
  #guestEnds = false;
  #replayFailed = false;
  readonly #counted: InstructionParts | undefined;
  /** In place of the threads, with -icount */
  #runner: InstructionRunner | undefined;
  /** A pause or reset is under way; later ones wait for it */
  #transition: Promise<void> = Promise.resolve();

  /**
   * Builds the machine and loads the guest; nothing runs until `start()`.
   * @throws BootError where a file is wrong, RangeError where an option is
   */
  static create(options: MachineOptions, platform: MachinePlatform): Machine {
    return new Machine(options, platform);
  }

  private constructor(options: MachineOptions, platform: MachinePlatform) {
    this.options = options;
    this.ramBytes = options.ramBytes;
    this.#platform = platform;
    this.#layout = planMemory(options.harts, options.ramBytes);
    const { icount } = platform;
    if (options.icount !== undefined && icount === undefined) {
      throw new RangeError('Cannot count instructions: the platform was given without icount');
    }
    const counted = icount?.instructionParts(options, platform);
    this.#counted = counted;
    const fillRandom = counted?.random.fill ?? platform.fillRandom;
    const rngSeed = new Uint8Array(32);
    fillRandom(rngSeed);
    this.#boot = {
      ramBytes: options.ramBytes,
      harts: options.harts,
      bios: options.bios,
      kernel: options.kernel,
      initrd: options.initrd,
      append: options.append,
      dtb: options.dtb,
      rngSeed,
      decompressors: platform.decompressors,
    };
    // Before memory is taken: a bad file costs nothing
    const plan = planBoot(this.#boot);
    const pages = this.#layout.wasmPages;
    this.#memory = new wasm.Memory({ initial: pages, maximum: pages, shared: true });
    const { buffer } = this.#memory;
    installDecodeTables(this.#memory);
    this.#clock = counted?.clock ?? SharedClock.create(buffer);
    this.#signals = new SharedHartSignals(buffer, this.#layout);
    this.#group = new HartGroup(this.#signals, options.harts);
    this.#dirty = new DirtyMap(new Uint8Array(buffer), this.#layout, options.ramBytes / PAGE_BYTES);
    this.#guest = guestMemory(buffer, this.#layout);
    this.#shared = attachSharedDevices(buffer, this.#signals, this.#clock, (request) => {
      // Harts write to the test device on their own threads, unless all of them are on this one
      if (counted !== undefined) finishFromGuest(this.#signals, 0, request);
    });
    this.#rtcAlarm = counted === undefined ? new RtcAlarm(this.#shared.rtc) : undefined;
    this.#devices = buildMainDevices(
      counted === undefined
        ? options
        : {
            ...options,
            disks: options.disks.map((disk, index) => ({ ...disk, backend: counted.inputs.disk(index, disk.backend) })),
          },
      this.#guest,
      this.#shared,
      counted === undefined ? platform : { ...platform, fillRandom, defer: counted.inputs.defer },
    );
    this.#bus = new Bus([...this.#devices.windows, ...this.#shared.windows]);
    this.#uartPort = new UartPort(this.#shared.uart);
    this.serial = counted?.inputs.port('serial', this.#uartPort) ?? this.#uartPort;
    const { virtioConsole, keyboard, tablet } = this.#devices;
    this.virtioConsole = virtioConsole && (counted?.inputs.port('console', virtioConsole) ?? virtioConsole);
    this.keyboard = keyboard && (counted?.inputs.keyboard(keyboard) ?? keyboard);
    this.tablet = tablet && (counted?.inputs.tablet(tablet) ?? tablet);
    this.#harts = Array.from({ length: options.harts }, (_, id) => new HartState(buffer, this.#layout.hart(id), id));
    const { plic, aclint, uart, rtc } = this.#shared;
    this.#state = new MachineStateSet(
      [
        this.#clock,
        ...this.#harts,
        plic,
        aclint,
        uart,
        rtc,
        ...this.#devices.stateful,
        ...(counted === undefined
          ? []
          : [new icount!.InstructionState(buffer, this.#layout, counted.random, () => this.#runner!)]),
      ],
      options.ramBytes,
      options.harts,
    );
    this.#shared.uart.reset();
    this.#shared.rtc.reset();
    this.#load(plan);
    this.#group.request(ATTENTION_PAUSE);
    const log = this.#logOptions(plan);
    if (options.profile === true) this.#profiler = new Profiler(options.harts, new SymbolTable(this.#symbols(plan)));
    const rings = this.#profiler?.rings;
    if (counted === undefined) {
      this.#threads = this.#harts.map((_, hart) =>
        platform.startHart({
          memory: this.#memory,
          harts: options.harts,
          ramBytes: options.ramBytes,
          hart,
          engine: options.engine ?? 'translator',
          ...(log === undefined ? {} : { log }),
          ...(rings === undefined ? {} : { samples: rings[hart]! }),
        }),
      );
    } else {
      this.#runner = this.#makeRunner(counted, log);
      this.#threads = [this.#runner];
    }
    for (const [hart, thread] of this.#threads.entries()) {
      void thread.ended.then((error) => this.#hartEnded(hart, error));
    }
    void this.#serve();
    this.#profiler?.start();
  }

  get status(): MachineStatus {
    return this.#status;
  }
  get events(): Observable<MachineEvent> {
    return this.#events;
  }
  get display(): DisplayHead | undefined {
    return this.#devices.display;
  }

  #makeRunner(counted: InstructionParts, trace: LogOptions | undefined): InstructionRunner {
    const { writeLog } = this.#platform;
    return new this.#platform.icount!.InstructionRunner({
      ...counted,
      sleep: counted.options.sleep,
      memory: this.#memory,
      layout: this.#layout,
      signals: this.#signals,
      devices: this.#shared,
      bus: this.#bus,
      mainBus: new Bus(this.#devices.windows),
      guest: this.#guest,
      flushOutput: () => this.#uartPort.flush(),
      digests: { harts: () => this.#registerDigest(), machine: () => this.digest() },
      guestEnded: () => {
        const request = Atomics.load(this.#signals.words, GUEST_REQUEST >> 2);
        return this.#guestEnds || (request !== GUEST_NONE && request !== GUEST_RESET);
      },
      onReplayEnd: (matches) => {
        const guestEnded = Atomics.load(this.#signals.words, GUEST_REQUEST >> 2) !== GUEST_NONE || this.#guestEnds;
        this.#events.next({ kind: 'replay-end', matches, instructions: counted.clock.instructions, guestEnded });
      },
      ...(trace === undefined ? {} : { trace }),
      ...(writeLog === undefined ? {} : { writeTrace: writeLog }),
      ...(this.#profiler === undefined ? {} : { samples: this.#profiler.rings }),
    });
  }

  #registerDigest(): bigint {
    const digest = new Digest();
    for (const hart of this.#harts) digest.text(canonicalText(hart.saveState()));
    return digest.value;
  }

  /** Of RAM, registers and devices; machines with the same one go on alike. Only while the harts stand. */
  digest(): bigint {
    const ram = new Uint32Array(this.#memory.buffer, this.#layout.ram, this.ramBytes / 4);
    return new Digest().words(ram).text(canonicalText(this.#state.save() as unknown as StateValue)).value;
  }

  /** Instructions that all harts have executed; only with `icount`. */
  get instructions(): number {
    return this.#counted?.clock.instructions ?? 0;
  }

  /** Runs on, and pauses at the first moment between two runs after so many instructions in all; with `icount`. */
  async runTo(instructions: number): Promise<void> {
    if (this.#runner === undefined) throw new RangeError('Cannot run to an instruction: the machine has no icount');
    const reached = this.#runner.stopAt(instructions);
    if (this.#status === 'paused') this.resume();
    else this.start();
    await reached;
    await this.pause();
  }

  #logOptions(plan: BootPlan): LogOptions | undefined {
    const { log: items } = this.options;
    if (items === undefined || items.length === 0) return undefined;
    const named = items.includes('in_asm') || items.includes('exec');
    return named ? { items, symbols: this.#symbols(plan) } : { items };
  }

  #symbols({ segments }: BootPlan): SymbolData {
    const { kernel, symbols: files } = this.options;
    const image = segments.find(({ name }) => name === 'kernel');
    return collectSymbols({ kernel: kernel && sourceOf(kernel), image, files: files ?? [] });
  }

  // --- life ---------------------------------------------------------------------------------------------------

  start(): void {
    if (this.#status !== 'prelaunch' && this.#status !== 'inmigrate') return;
    this.#runHarts();
  }

  /** Instead of `start()`: the machine's state comes from elsewhere. */
  awaitMigration(): void {
    if (this.#status === 'prelaunch') this.#setStatus('inmigrate');
  }

  /** True where the hart sleeps or is stopped; for the monitor. */
  hartIdle(hart: number): boolean {
    return this.#status !== 'running' || Atomics.load(this.#signals.words, this.#signals.index(hart, HART_HSM)) !== 0;
  }

  /** What each hart has counted since the machine was made, by the names of hart/counters.ts. */
  counters(): ReadonlyMap<string, bigint>[] {
    return this.#harts.map((_, hart) => readCounters(this.#memory.buffer, this.#layout.hart(hart)));
  }

  /** The profile so far; undefined where none is made. */
  profile(): ProfileResult | undefined {
    return this.#profiler?.result();
  }

  pause(): Promise<void> {
    return this.#enqueue(async () => {
      if (this.#status !== 'running') return;
      await this.#stopHarts();
      this.#setStatus('paused');
    });
  }

  resume(): void {
    void this.#enqueue(async () => {
      if (this.#status === 'paused' || this.#status === 'postmigrate') this.#runHarts();
    });
  }

  reset(): void {
    if (this.#counted !== undefined && this.#counted.log.mode !== 'off') {
      this.#platform.onProblem?.('A reset from outside is not part of a recording: it is ignored');
      return;
    }
    void this.#enqueue(() => this.#reset('host'));
  }

  /** Presses the power key of the virtio keyboard: the machine has no other button (docs/limitations.md). */
  powerdown(): void {
    this.#devices.keyboard?.key(KEY_POWER, true);
    this.#devices.keyboard?.key(KEY_POWER, false);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    await this.#enqueue(async () => {
      if (this.#status === 'running') await this.#stopHarts();
    });
    this.#closed = true;
    this.#runner?.finish();
    this.#group.request(ATTENTION_EXIT);
    const ended = Promise.all(this.#threads.map((thread) => thread.ended));
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise((resolve) => {
      timer = setTimeout(() => resolve(undefined), END_GRACE_MS);
    });
    await Promise.race([ended, late]);
    clearTimeout(timer);
    for (const thread of this.#threads) thread.terminate();
    this.#profiler?.stop();
    this.#uartPort.close();
    this.#rtcAlarm?.close();
    this.#signals.ringMain();
    this.#events.complete();
  }

  #enqueue(task: () => Promise<void>): Promise<void> {
    const run = this.#transition.then(task);
    this.#transition = run.catch(() => undefined);
    return run;
  }

  #runHarts(): void {
    this.#clock.start();
    for (const device of this.#devices.virtio) device.release();
    this.#group.clear(ATTENTION_PAUSE);
    this.#setStatus('running');
  }

  /** All harts stand at an instruction boundary, time stands, no device request is in flight. */
  async #stopHarts(): Promise<void> {
    this.#group.request(ATTENTION_PAUSE);
    await this.#group.stand(() => serveMailboxes(this.#signals, this.#bus));
    this.#clock.stop();
    for (const device of this.#devices.virtio) device.hold();
    await Promise.all(this.#devices.virtio.map((device) => device.quiesce()));
    this.#uartPort.flush();
  }

  async #reset(reason: 'guest-reset' | 'host'): Promise<void> {
    const wasRunning = this.#status === 'running';
    if (wasRunning) await this.#stopHarts();
    for (const device of this.#devices.resets) device.reset();
    this.#shared.uart.reset();
    this.#shared.rtc.reset();
    this.#shared.aclint.reset();
    this.#shared.plic.reset();
    this.#clock.setTicks(0);
    try {
      // Planned anew: the files may be others than they were
      this.#load(planBoot(this.#boot));
    } catch (error) {
      if (!(error instanceof BootError)) throw error;
      this.#platform.onProblem?.(`${error.code}: ${error.message}`);
      this.#setStatus('internal-error');
      return;
    }
    this.#events.next({ kind: 'reset', reason });
    if (wasRunning) this.#runHarts();
  }

  #load(plan: BootPlan): void {
    const parts = { buffer: this.#memory.buffer, layout: this.#layout, guest: this.#guest, signals: this.#signals };
    this.#shared.aclint.reset();
    loadBootPlan(plan, { ...parts, harts: this.options.harts });
    this.#runner?.restart();
  }

  #setStatus(status: MachineStatus): void {
    if (this.#status === status) return;
    this.#status = status;
    this.#events.next({ kind: 'status', status });
  }

  #hartEnded(hart: number, error: Error | undefined): void {
    if (this.#closed || error === undefined) return;
    this.#replayFailed = error instanceof ReplayError;
    this.#platform.onProblem?.(
      error instanceof ReplayError
        ? `${error.code}: ${error.message}`
        : `hart ${hart}: its thread failed: ${error.message}`,
    );
    Atomics.store(this.#signals.words, this.#signals.index(hart, HART_RUN_STATE), RUN_STATE_ENDED);
    this.#signals.ringMain();
    void this.#enqueue(async () => {
      await this.#stopHarts();
      this.#setStatus('internal-error');
    });
  }

  /** Serves the harts until the machine is closed. */
  async #serve(): Promise<void> {
    const doorbell = MAIN_DOORBELL >> 2;
    const mailboxes = new MailboxServer(this.#signals, this.#bus);
    while (!this.#closed) {
      const seen = Atomics.load(this.#signals.words, doorbell);
      const busy = mailboxes.serve();
      this.#serveGuestRequest();
      if (busy) await yieldToEventLoop(this.#signals.words, NEVER >> 2, 0);
      await waitForWord(this.#signals.words, doorbell, seen);
    }
  }

  /** The guest powered off or reset; its harts have stopped themselves already. */
  #serveGuestRequest(): void {
    const { words } = this.#signals;
    const request = Atomics.exchange(words, GUEST_REQUEST >> 2, GUEST_NONE);
    if (request === GUEST_NONE) return;
    this.#guestEnds = request !== GUEST_RESET;
    const exitCode = Atomics.load(words, GUEST_EXIT_CODE >> 2);
    void this.#enqueue(async () => {
      if (request === GUEST_RESET) {
        await this.#reset('guest-reset');
        return;
      }
      this.#devices.virtioConsole?.flush();
      await this.#stopHarts();
      // The end of a replay that went another way is not the guest's end
      if (this.#replayFailed) return;
      this.#setStatus('shutdown');
      const reason = request === GUEST_FAILURE ? 'guest-panic' : 'guest-shutdown';
      this.#events.next({ kind: 'shutdown', reason, exitCode });
    });
  }

  // --- memory, for migration ----------------------------------------------------------------------------------

  ram(offset: number, lengthBytes: number): Uint8Array {
    return this.#guest.view(RAM_START + offset, lengthBytes);
  }

  loadRam(offset: number, bytes: Uint8Array): void {
    this.#guest.write(RAM_START + offset, bytes);
  }

  harvestDirty(consumer: number, fromPage: number, maxPages: number): Uint32Array {
    return this.#dirty.harvest(consumer, fromPage, maxPages);
  }

  markAllDirty(consumer: number): void {
    this.#dirty.markAll(consumer);
  }

  setThrottle(percent: number): void {
    Atomics.store(this.#signals.words, THROTTLE >> 2, Math.max(0, Math.min(99, Math.floor(percent))));
  }

  // --- state --------------------------------------------------------------------------------------------------

  describeState(): ReturnType<MachineApi['describeState']> {
    return this.#state.describe();
  }

  saveState(): MachineState {
    if (this.#status === 'running') throw new Error('Cannot save the state: the machine is running; pause it first');
    return this.#state.save();
  }

  prepareState(state: MachineState): () => void {
    if (this.#counted !== undefined && this.#counted.log.mode !== 'off') {
      throw new StateError('machine', 'it is recorded or replayed, which begins at its start');
    }
    const commit = this.#state.prepare(state);
    return () => {
      for (const device of this.#devices.virtio) device.hold();
      commit();
      this.#runner?.invalidate();
    };
  }
}
