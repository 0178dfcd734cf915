import type { Hart } from '../hart/hart.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import type { GuestMemory } from '../memory/guest_memory.ts';
import { requestFromGuest } from './guest_request.ts';
import type { SharedHartSignals } from './hart_signals.ts';
import { handleEcall, type RemoteFence, type ResetType, type SbiHost, type SbiRegisters } from './sbi.ts';
import { HART_STATE, type HartState } from './sbi_constants.ts';
import type { SharedDevices } from './shared_devices.ts';
import { ATTENTION_FENCE, ATTENTION_FENCE_I, GUEST_FAILURE, GUEST_RESET, GUEST_SHUTDOWN } from './words.ts';

const A0 = 10;
const A1 = 11;
const SSIP = 1;
const ECALL_BYTES = 4n;
/** How long to sleep on another hart's fence before serving one's own again, in `ms` */
const FENCE_WAIT_MS = 1;

export interface HartSbiOptions {
  readonly hart: Hart;
  readonly signals: SharedHartSignals;
  readonly memory: GuestMemory;
  readonly devices: SharedDevices;
  /** Answers fences that other harts ask of this one, while it waits for theirs */
  readonly serveFences: () => void;
  /** Flushes these harts at once, where they all are on this thread */
  readonly fence?: (kind: RemoteFence['kind'], harts: number) => void;
}

/** The built-in SBI on one hart's thread: what handleEcall asks of the machine, by shared words. */
export class HartSbi implements SbiHost {
  readonly harts: number;
  readonly hartId: number;
  readonly memory: GuestMemory;
  readonly machineIds = { mvendorid: 0n, marchid: 0n, mimpid: 0n };
  readonly #hart: Hart;
  readonly #signals: SharedHartSignals;
  readonly #devices: SharedDevices;
  readonly #serveFences: () => void;
  readonly #fence: HartSbiOptions['fence'];
  #suspendRequested = false;

  constructor(options: HartSbiOptions) {
    this.#hart = options.hart;
    this.#signals = options.signals;
    this.#devices = options.devices;
    this.#serveFences = options.serveFences;
    this.#fence = options.fence;
    this.memory = options.memory;
    this.harts = options.signals.harts;
    this.hartId = options.hart.id;
  }

  /** Serves the call that the hart has just made; 'suspend' where it is to wait for an interrupt. */
  call(): 'go-on' | 'suspend' {
    const hart = this.#hart;
    const registers = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => hart.x(A0 + i)) as unknown as SbiRegisters;
    this.#suspendRequested = false;
    const result = handleEcall(this, registers);
    if (result === 'retry') hart.pc -= ECALL_BYTES;
    else if (result !== 'noreturn') {
      hart.setX(A0, BigInt(result.error));
      if (result.value !== undefined) hart.setX(A1, result.value);
    }
    return this.#suspendRequested ? 'suspend' : 'go-on';
  }

  // --- hart states (HSM) --------------------------------------------------------------------------------------

  #state(hart: number): number {
    return Atomics.load(this.#signals.words, this.#signals.index(hart, H.HART_HSM));
  }

  /** False where the hart is stopped or sleeps: it must not run. Starts it where that was asked. */
  enterIfStarted(): boolean {
    const state = this.#state(this.hartId);
    if (state === HART_STATE.started) return true;
    const wakes =
      state === HART_STATE.startPending ||
      (state === HART_STATE.suspended &&
        (Atomics.load(this.#signals.words, this.#hart.word(H.HART_MIP)) & this.#hart.get32(H.HART_MIE)) !== 0);
    if (!wakes) return false;
    const mie = this.#hart.get64(H.HART_MIE);
    this.#hart.reset({
      pc: this.#hart.get64(H.HART_START_ADDRESS),
      a0: this.hartId,
      a1: this.#hart.get64(H.HART_START_OPAQUE),
      supervisor: true,
    });
    // A resumed hart finds its interrupt enables as they were ("Hart suspend")
    if (state === HART_STATE.suspended) this.#hart.set64(H.HART_MIE, mie);
    Atomics.store(this.#signals.words, this.#hart.word(H.HART_HSM), HART_STATE.started);
    return true;
  }

  startPending(): boolean {
    return this.#state(this.hartId) === HART_STATE.startPending;
  }
  get suspended(): boolean {
    return this.#state(this.hartId) === HART_STATE.suspended;
  }

  hartStatus(hart: number): HartState {
    return this.#state(hart) as HartState;
  }

  hartStart(hart: number, address: bigint, opaque: bigint): boolean {
    const { words } = this.#signals;
    const index = this.#signals.index(hart, H.HART_HSM);
    // Claimed first, so that two starters do not mix their arguments; visible as pending only when they stand
    if (Atomics.compareExchange(words, index, HART_STATE.stopped, HART_STATE.stopPending) !== HART_STATE.stopped) {
      return false;
    }
    const view = new DataView(words.buffer, this.#signals.index(hart, 0) * 4);
    view.setBigUint64(H.HART_START_ADDRESS, address, true);
    view.setBigUint64(H.HART_START_OPAQUE, opaque, true);
    Atomics.store(words, index, HART_STATE.startPending);
    this.#signals.kick(hart);
    return true;
  }

  hartStop(): void {
    Atomics.store(this.#signals.words, this.#hart.word(H.HART_HSM), HART_STATE.stopped);
  }
  hartSuspend(): void {
    this.#suspendRequested = true;
  }
  hartSuspendNonRetentive(address: bigint, opaque: bigint): void {
    this.#hart.set64(H.HART_START_ADDRESS, address);
    this.#hart.set64(H.HART_START_OPAQUE, opaque);
    Atomics.store(this.#signals.words, this.#hart.word(H.HART_HSM), HART_STATE.suspended);
  }

  // --- timers, interrupts, fences -------------------------------------------------------------------------------

  setTimer(deadline: bigint): void {
    // The harts have Sstc: the supervisor's own comparator is the SBI's timer too
    this.#hart.set64(H.HART_STIMECMP, deadline);
    this.#hart.updateSupervisorTimer();
  }

  sendIpi(harts: number): void {
    for (let hart = 0; hart < this.harts; hart++) {
      if (harts & (1 << hart)) this.#signals.setPending(hart, SSIP, true);
    }
  }
  clearIpi(): void {
    this.#signals.setPending(this.hartId, SSIP, false);
  }

  /** Always flushes everything: the TLBs are small and refill fast. Waits until all have done it. */
  remoteFence({ kind, harts }: RemoteFence): boolean {
    if (this.#fence !== undefined) {
      this.#fence(kind, harts);
      return true;
    }
    const bit = kind === 'fence.i' ? ATTENTION_FENCE_I : ATTENTION_FENCE;
    for (let hart = 0; hart < this.harts; hart++) {
      if ((harts & (1 << hart)) === 0) continue;
      if (hart !== this.hartId) this.#signals.request(hart, bit);
      else if (kind === 'fence.i') this.#hart.flushInstructions();
      else this.#hart.flushTranslations();
    }
    for (let hart = 0; hart < this.harts; hart++) {
      if ((harts & (1 << hart)) === 0 || hart === this.hartId) continue;
      for (;;) {
        const attention = this.#signals.attention(hart);
        if ((attention & bit) === 0) break;
        // The other may be waiting for us
        this.#serveFences();
        Atomics.wait(this.#signals.words, this.#signals.index(hart, H.HART_ATTENTION), attention, FENCE_WAIT_MS);
      }
    }
    return true;
  }

  // --- the machine ----------------------------------------------------------------------------------------------

  systemReset(type: ResetType, failure: boolean): void {
    const request = type !== 'shutdown' ? GUEST_RESET : failure ? GUEST_FAILURE : GUEST_SHUTDOWN;
    requestFromGuest(this.#signals, this.hartId, request, failure ? 1 : 0);
  }

  consoleWrite(bytes: Uint8Array): number {
    return this.#devices.uart.firmwareWrite(bytes);
  }
  consoleRead(maxBytes: number): Uint8Array {
    return this.#devices.uart.firmwareRead(maxBytes);
  }

  loadVirtual64(address: bigint): bigint | undefined {
    return this.#hart.peek64(address);
  }
}
