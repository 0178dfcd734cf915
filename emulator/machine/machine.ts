import { type Observable, Subject } from 'rxjs';
import type { CharacterPort, DisplayHead, KeyboardSink, TabletSink } from '../devices/backends.ts';

import { RtcAlarm } from '../devices/goldfish_rtc/mod.ts';
import { waitForWord, yieldToEventLoop } from '../devices/shared/mod.ts';
import { UartPort } from '../devices/uart16550/mod.ts';
import { installDecodeTables } from '../hart/hart.ts';
import { resetHartRegisters } from '../hart/reset.ts';
import { HartState } from '../hart/state.ts';
import { HART_HSM, HART_MIP, HART_RUN_STATE, HART_STATE_BYTES } from '../kernel/assembly/hart_layout.ts';
import { type GuestMemory, PAGE_BYTES, PAGE_SHIFT } from '../memory/guest_memory.ts';
import { type MemoryLayout, planMemory } from '../memory/layout.ts';
import { type WasmMemory, wasm } from '../wasm/platform.ts';
import { type BootPlan, planBoot } from './boot.ts';
import { Bus } from './bus.ts';
import { SharedClock } from './clock.ts';
import { buildMainDevices, type MainDevices } from './devices.ts';
import { SharedHartSignals } from './hart_signals.ts';
import type { MachineApi, MachineEvent, MachineOptions, MachineState, MachineStatus } from './machine_api.ts';
import { MachineStateSet } from './machine_state.ts';
import { MailboxServer, serveMailboxes } from './mailbox.ts';
import { BOOT_ROM, RAM_START } from './memory_map.ts';
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
  RUN_STATE_RUNNING,
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
  readonly #platform: MachinePlatform;
  readonly #layout: MemoryLayout;
  readonly #memory: WasmMemory;
  readonly #bytes: Uint8Array;
  readonly #guest: GuestMemory;
  readonly #clock: SharedClock;
  readonly #signals: SharedHartSignals;
  readonly #shared: SharedDevices;
  readonly #devices: MainDevices;
  readonly #bus: Bus;
  readonly #uartPort: UartPort;
  readonly #rtcAlarm: RtcAlarm;
  readonly #plan: BootPlan;
  readonly #harts: readonly HartState[];
  readonly #state: MachineStateSet;
  readonly #events = new Subject<MachineEvent>();
  #threads: HartThreadHandle[] = [];
  #status: MachineStatus = 'prelaunch';
  #closed = false;
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
    const rngSeed = new Uint8Array(32);
    platform.fillRandom(rngSeed);
    // Before memory is taken: a bad file costs nothing
    this.#plan = planBoot({
      ramBytes: options.ramBytes,
      harts: options.harts,
      bios: options.bios,
      kernel: options.kernel,
      initrd: options.initrd,
      append: options.append,
      dtb: options.dtb,
      rngSeed,
      decompressors: platform.decompressors,
    });
    const pages = this.#layout.wasmPages;
    this.#memory = new wasm.Memory({ initial: pages, maximum: pages, shared: true });
    const { buffer } = this.#memory;
    this.#bytes = new Uint8Array(buffer);
    installDecodeTables(this.#memory);
    this.#clock = SharedClock.create(buffer);
    this.#signals = new SharedHartSignals(buffer, this.#layout);
    this.#guest = guestMemory(buffer, this.#layout);
    this.#shared = attachSharedDevices(buffer, this.#signals, this.#clock, () => {
      // Harts write to the test device on their own threads; nothing on this one does
    });
    this.#rtcAlarm = new RtcAlarm(this.#shared.rtc);
    this.#devices = buildMainDevices(options, this.#guest, this.#shared, platform);
    this.#bus = new Bus([...this.#devices.windows, ...this.#shared.windows]);
    this.#uartPort = new UartPort(this.#shared.uart);
    this.serial = this.#uartPort;
    this.#harts = Array.from({ length: options.harts }, (_, id) => new HartState(buffer, this.#layout.hart(id), id));
    const { plic, aclint, uart, rtc } = this.#shared;
    this.#state = new MachineStateSet(
      [this.#clock, ...this.#harts, plic, aclint, uart, rtc, ...this.#devices.stateful],
      options.ramBytes,
      options.harts,
    );
    this.#shared.uart.reset();
    this.#shared.rtc.reset();
    this.#load();
    for (let hart = 0; hart < options.harts; hart++) this.#signals.request(hart, ATTENTION_PAUSE);
    this.#threads = this.#harts.map((_, hart) =>
      platform.startHart({
        memory: this.#memory,
        harts: options.harts,
        ramBytes: options.ramBytes,
        hart,
        engine: options.engine ?? 'translator',
      }),
    );
    for (const [hart, thread] of this.#threads.entries()) {
      void thread.ended.then((error) => this.#hartEnded(hart, error));
    }
    void this.#serve();
  }

  get status(): MachineStatus {
    return this.#status;
  }
  get events(): Observable<MachineEvent> {
    return this.#events;
  }
  get virtioConsole(): CharacterPort | undefined {
    return this.#devices.virtioConsole;
  }
  get display(): DisplayHead | undefined {
    return this.#devices.display;
  }
  get keyboard(): KeyboardSink | undefined {
    return this.#devices.keyboard;
  }
  get tablet(): TabletSink | undefined {
    return this.#devices.tablet;
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
    for (let hart = 0; hart < this.options.harts; hart++) this.#signals.request(hart, ATTENTION_EXIT);
    const ended = Promise.all(this.#threads.map((thread) => thread.ended));
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise((resolve) => {
      timer = setTimeout(() => resolve(undefined), END_GRACE_MS);
    });
    await Promise.race([ended, late]);
    clearTimeout(timer);
    for (const thread of this.#threads) thread.terminate();
    this.#uartPort.close();
    this.#rtcAlarm.close();
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
    for (let hart = 0; hart < this.options.harts; hart++) this.#signals.clear(hart, ATTENTION_PAUSE);
    this.#setStatus('running');
  }

  /** All harts stand at an instruction boundary, time stands, no device request is in flight. */
  async #stopHarts(): Promise<void> {
    for (let hart = 0; hart < this.options.harts; hart++) this.#signals.request(hart, ATTENTION_PAUSE);
    await this.#hartsStand();
    this.#clock.stop();
    for (const device of this.#devices.virtio) device.hold();
    await Promise.all(this.#devices.virtio.map((device) => device.quiesce()));
    this.#uartPort.flush();
  }

  async #hartsStand(): Promise<void> {
    for (;;) {
      const seen = Atomics.load(this.#signals.words, MAIN_DOORBELL >> 2);
      let standing = true;
      for (let hart = 0; hart < this.options.harts; hart++) {
        const state = Atomics.load(this.#signals.words, this.#signals.index(hart, HART_RUN_STATE));
        if (state === RUN_STATE_RUNNING) standing = false;
      }
      if (standing) return;
      serveMailboxes(this.#signals, this.#bus);
      await waitForWord(this.#signals.words, MAIN_DOORBELL >> 2, seen, 100);
    }
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
    this.#load();
    this.#events.next({ kind: 'reset', reason });
    if (wasRunning) this.#runHarts();
  }

  /** Puts the boot plan into memory and the harts at their start. RAM outside the plan keeps its contents. */
  #load(): void {
    this.#bytes.fill(0, this.#layout.rom, this.#layout.ram);
    this.#bytes.set(this.#plan.rom, this.#layout.rom + BOOT_ROM.base);
    for (const { address, bytes, memoryBytes } of this.#plan.segments) {
      this.#guest.write(address, bytes);
      if (memoryBytes > bytes.length) this.#guest.fill(address + bytes.length, memoryBytes - bytes.length, 0);
    }
    this.#shared.aclint.reset();
    const { start } = this.#plan;
    for (let hart = 0; hart < this.options.harts; hart++) {
      const base = this.#layout.hart(hart);
      this.#bytes.fill(0, base, base + HART_STATE_BYTES);
      Atomics.store(this.#signals.words, this.#signals.index(hart, HART_MIP), 0);
      const supervisor = start.privilege === 'S';
      resetHartRegisters(this.#memory.buffer, base, {
        id: hart,
        pc: start.pc,
        a0: supervisor ? start.a0 : hart,
        a1: start.a1,
        supervisor,
      });
      Atomics.store(this.#signals.words, this.#signals.index(hart, HART_HSM), supervisor && hart !== start.a0 ? 1 : 0);
    }
  }

  #setStatus(status: MachineStatus): void {
    if (this.#status === status) return;
    this.#status = status;
    this.#events.next({ kind: 'status', status });
  }

  #hartEnded(hart: number, error: Error | undefined): void {
    if (this.#closed || error === undefined) return;
    this.#platform.onProblem?.(`hart ${hart}: its thread failed: ${error.message}`);
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
    const exitCode = Atomics.load(words, GUEST_EXIT_CODE >> 2);
    void this.#enqueue(async () => {
      if (request === GUEST_RESET) {
        await this.#reset('guest-reset');
        return;
      }
      await this.#stopHarts();
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
    const pages = this.ramBytes / PAGE_BYTES;
    const dirty = this.#bytes.subarray(this.#layout.dirty, this.#layout.dirty + pages);
    const found = new Uint32Array(Math.min(maxPages, pages));
    let count = 0;
    for (let page = fromPage; page < pages && count < found.length; page++) {
      if ((dirty[page]! & consumer) === 0) continue;
      // Cleared before the caller reads the page: a store that races marks it again
      Atomics.and(dirty, page, ~consumer & 0xff);
      found[count++] = page;
    }
    return found.subarray(0, count);
  }

  markAllDirty(consumer: number): void {
    const pages = this.ramBytes >> PAGE_SHIFT;
    for (let page = 0; page < pages; page++) Atomics.or(this.#bytes, this.#layout.dirty + page, consumer);
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
    const commit = this.#state.prepare(state);
    return () => {
      for (const device of this.#devices.virtio) device.hold();
      commit();
    };
  }
}
