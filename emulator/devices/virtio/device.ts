import { WireError } from '../../../protocols/bytes/mod.ts';
import {
  featureMask,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
  VIRTIO_ISR_CONFIG,
  VIRTIO_ISR_QUEUE,
  VIRTIO_STATUS_DRIVER_OK,
  VIRTIO_STATUS_FEATURES_OK,
  VIRTIO_STATUS_NEEDS_RESET,
} from '../../../protocols/virtio/mod.ts';
import { type GuestMemory, GuestMemoryError } from '../../memory/guest_memory.ts';
import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';
import type { Device } from '../device.ts';
import type { Chain } from './chain.ts';
import { VirtQueue, type VirtQueueOptions } from './queue.ts';
import { VirtQueueError } from './queue_error.ts';

/** Chains that one notification may handle before the event loop gets its turn */
const CHAINS_PER_TURN = 64;
/** In `ms` */
const TURN_MS = 2;
/** The clock is looked at once for so many chains: a power of two */
const CHAINS_PER_LOOK = 4;

/** How a device reaches its driver; the transport sets this. */
export interface VirtioInterrupt {
  /** `cause`: VIRTIO_ISR_QUEUE or VIRTIO_ISR_CONFIG */
  raise(cause: number): void;
  /** The device was reset by the machine, not by the driver's register */
  deviceReset(): void;
}

/** What every virtio device is made with. */
export interface VirtioDeviceOptions {
  readonly memory: GuestMemory;
  /** `stateName` of the device, unique in the machine: `virtio-blk0` */
  readonly id: string;
  /** Runs a task after other events (default: a zero timeout) */
  readonly defer?: (task: () => void) => void;
  /** How long a turn may last, in `ms` (default 2); infinity where the host's clock must not matter */
  readonly turnMs?: number;
  /** Told once each time a driver breaks the device, for the log; contains no guest text */
  readonly onProblem?: (text: string) => void;
}

export interface VirtioDeviceShape {
  readonly name: string;
  readonly virtioId: number;
  /** Device-specific features, without the common ones */
  readonly features: bigint;
  readonly queues: readonly VirtQueueOptions[];
}

/**
 * The part that all virtio devices share: status, feature negotiation, queues, configuration access, pausing
 * and state (virtio 1.2 §2, §3.1). Registers arrive in any order; nothing is taken from a queue before DRIVER_OK.
 */
export abstract class VirtioDevice implements Device {
  readonly name: string;
  readonly stateName: string;
  readonly stateVersion: number = 1;
  readonly virtioId: number;
  readonly deviceFeatures: bigint;
  readonly queues: readonly VirtQueue[];
  protected readonly memory: GuestMemory;
  readonly #options: VirtioDeviceOptions;
  #interrupt: VirtioInterrupt | undefined;
  #status = 0;
  #driverFeatures = 0n;
  #configGeneration = 0;
  #dma = true;
  #held = false;
  #requests = 0;
  #idle: (() => void)[] = [];
  /** Queues that have had their turn and have more to do */
  readonly #postponed = new Set<number>();
  #problem: string | undefined;

  constructor(options: VirtioDeviceOptions, shape: VirtioDeviceShape) {
    this.#options = options;
    this.name = shape.name;
    this.stateName = options.id;
    this.virtioId = shape.virtioId;
    this.memory = options.memory;
    this.deviceFeatures = shape.features | featureMask(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX);
    this.queues = shape.queues.map((queue, index) => new VirtQueue(index, options.memory, queue));
  }

  // --- for the transports ---

  connect(interrupt: VirtioInterrupt): void {
    this.#interrupt = interrupt;
  }

  get status(): number {
    return this.#status;
  }
  get configGeneration(): number {
    return this.#configGeneration;
  }
  get driverFeatures(): bigint {
    return this.#driverFeatures;
  }
  /** Why the device needs a reset */
  get problem(): string | undefined {
    return this.#problem;
  }

  /** 32 of the offered features; words above 1 are 0, newer drivers ask for them. */
  featureWord(select: number): number {
    if (select > 1) return 0;
    return Number((this.deviceFeatures >> BigInt(32 * select)) & 0xffff_ffffn);
  }

  driverFeatureWord(select: number): number {
    if (select > 1) return 0;
    return Number((this.#driverFeatures >> BigInt(32 * select)) & 0xffff_ffffn);
  }

  setDriverFeatureWord(select: number, value: number): void {
    if (select > 1 || (this.#status & VIRTIO_STATUS_FEATURES_OK) !== 0) return;
    const shift = BigInt(32 * select);
    this.#driverFeatures = (this.#driverFeatures & ~(0xffff_ffffn << shift)) | (BigInt(value) << shift);
  }

  /** The status register (§2.1, §3.1.1): 0 resets; bits are only added; FEATURES_OK sticks if we agree. */
  writeStatus(value: number): void {
    const wanted = value & 0xff;
    if (wanted === 0) {
      this.#reset();
      return;
    }
    // DEVICE_NEEDS_RESET is ours: the driver neither sets nor clears it.
    const added = wanted & ~this.#status & ~VIRTIO_STATUS_NEEDS_RESET;
    if ((added & VIRTIO_STATUS_FEATURES_OK) !== 0) this.#acceptFeatures();
    this.#status |= added & ~(VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK);
    if ((added & VIRTIO_STATUS_DRIVER_OK) !== 0 && (this.#status & VIRTIO_STATUS_FEATURES_OK) !== 0) {
      this.#status |= VIRTIO_STATUS_DRIVER_OK;
      this.guard(() => this.started());
      this.#serveAll();
    }
  }

  /** Takes the queue into use with the addresses of its registers; bad ones break the device. */
  enableQueue(index: number): void {
    const queue = this.queues[index];
    if (queue === undefined || queue.ready) return;
    if ((this.#status & VIRTIO_STATUS_NEEDS_RESET) !== 0) return;
    this.guard(() => queue.enable());
    if (queue.ready) this.notify(index);
  }

  disableQueue(index: number): void {
    this.queues[index]?.disable();
  }

  /** The driver says that a queue has new chains. */
  notify(index: number): void {
    const queue = this.queues[index];
    if (queue === undefined || !queue.ready || !this.live) return;
    this.guard(() => this.serve(queue));
  }

  /** One unsigned little-endian value; bytes after the end are 0. */
  readConfig(offset: number, size: number): number {
    const bytes = this.config();
    let value = 0;
    for (let index = size - 1; index >= 0; index--) value = value * 256 + (bytes[offset + index] ?? 0);
    return value;
  }

  /** Most devices have nothing that the driver may write. */
  writeConfig(_offset: number, _size: number, _value: number): void {}

  /** PCI bus mastering: without it the device may not touch memory. */
  setDma(allowed: boolean): void {
    if (this.#dma === allowed) return;
    this.#dma = allowed;
    for (const queue of this.queues) queue.setDma(allowed);
    if (allowed) this.#serveAll();
  }

  // --- for the machine ---

  /** No new request starts until {@link release}. */
  hold(): void {
    this.#held = true;
  }

  release(): void {
    if (!this.#held) return;
    this.#held = false;
    this.#serveAll();
  }

  /** Resolves when nothing is in flight; meant for after {@link hold}. */
  quiesce(): Promise<void> {
    if (this.#requests === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idle.push(resolve));
  }

  reset(): void {
    this.#reset();
    this.#interrupt?.deviceReset();
  }

  saveState(): StateValue {
    return {
      status: this.#status,
      driverFeatures: this.#driverFeatures,
      configGeneration: this.#configGeneration,
      queues: this.queues.map((queue) => queue.saveState()),
      model: this.saveModel(),
    };
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== this.stateVersion) throw new StateError(this.stateName, `version ${version}`);
    const reader = new StateReader(this.stateName, value);
    const status = reader.integer('status', 0, 0xff);
    const driverFeatures = reader.u64('driverFeatures');
    const configGeneration = reader.u32('configGeneration');
    const featuresOk = (status & VIRTIO_STATUS_FEATURES_OK) !== 0;
    if (featuresOk && !this.#accepts(driverFeatures)) {
      throw new StateError(`${this.stateName}.driverFeatures`, `0x${driverFeatures.toString(16)} were never offered`);
    }
    if ((status & VIRTIO_STATUS_DRIVER_OK) !== 0 && !featuresOk) {
      throw new StateError(`${this.stateName}.status`, 'DRIVER_OK without FEATURES_OK');
    }
    const broken = (status & VIRTIO_STATUS_NEEDS_RESET) !== 0;
    const states = reader.list('queues', this.queues.length, (item, path) => ({ item, path }));
    if (states.length !== this.queues.length) {
      throw new StateError(`${this.stateName}.queues`, `${states.length}, expected ${this.queues.length}`);
    }
    const queues = states.map(({ item, path }, index) => this.queues[index]!.prepareState(item, path, broken));
    const model = this.prepareModel(reader.map('model'));
    return () => {
      this.#reset();
      this.#status = status;
      this.#driverFeatures = driverFeatures;
      this.#configGeneration = configGeneration;
      if (broken) this.#problem = 'broken before its state was saved';
      if (featuresOk) this.#negotiateQueues();
      for (const commit of queues) commit();
      model();
    };
  }

  // --- for the device classes ---

  /** The configuration space as the driver reads it now. */
  protected abstract config(): Uint8Array;
  /** Work that a notification of `queue` allows; called only while the device is live. */
  protected abstract serve(queue: VirtQueue): void;
  protected abstract saveModel(): StateValue;
  protected abstract prepareModel(reader: StateReader): () => void;
  /** The driver has set DRIVER_OK. */
  protected started(): void {}
  /** Model state to power-on values. */
  protected resetModel(): void {}

  /** True while queues may be used: DRIVER_OK, not broken, not held, DMA allowed. */
  protected get live(): boolean {
    return this.driverReady && !this.#held && this.#dma;
  }

  /** True while the driver wants events: DRIVER_OK and not broken; also while the machine is paused. */
  protected get driverReady(): boolean {
    return (this.#status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET)) === VIRTIO_STATUS_DRIVER_OK;
  }

  protected negotiated(bit: number): boolean {
    return (this.#driverFeatures & (1n << BigInt(bit))) !== 0n;
  }

  /** Handles chains of `queue` while there are any, `ready()` says so, and the turn lasts. */
  protected drain(queue: VirtQueue, handle: (chain: Chain) => void, ready: () => boolean = () => true): void {
    const start = performance.now();
    try {
      for (let count = 0; this.live && ready(); count++) {
        const look = count > 0 && count % CHAINS_PER_LOOK === 0;
        if (count === CHAINS_PER_TURN || (look && performance.now() - start > (this.#options.turnMs ?? TURN_MS))) {
          this.#postpone(queue);
          return;
        }
        const chain = queue.pop();
        if (chain === undefined) return;
        handle(chain);
      }
    } finally {
      this.signal(queue);
    }
  }

  /** Interrupts the driver if it asked for that; call once after a batch of completions. */
  protected signal(queue: VirtQueue): void {
    if (this.#dma && queue.wantsInterrupt()) this.#interrupt?.raise(VIRTIO_ISR_QUEUE);
  }

  /** Completes one chain and signals: for work that ends outside of {@link drain}. */
  protected finish(queue: VirtQueue, chain: Chain, writtenBytes: number): void {
    if ((this.#status & VIRTIO_STATUS_NEEDS_RESET) !== 0) return;
    if (!this.#dma) {
      // Bus mastering went off under a request: its memory is no longer ours to write.
      if (queue.ready && queue.inFlight > 0) this.fail('Cannot complete a request: bus mastering is off');
      return;
    }
    if (queue.complete(chain, writtenBytes)) this.signal(queue);
  }

  /** The configuration changed by our side. */
  protected configChanged(): void {
    this.#configGeneration = (this.#configGeneration + 1) >>> 0;
    if ((this.#status & VIRTIO_STATUS_DRIVER_OK) !== 0) this.#interrupt?.raise(VIRTIO_ISR_CONFIG);
  }

  /** Counts asynchronous work, so that {@link quiesce} waits for it, also after a reset. */
  protected async track(work: Promise<void>): Promise<void> {
    this.#requests++;
    try {
      await work;
    } finally {
      this.#requests--;
      if (this.#requests === 0) {
        const idle = this.#idle;
        this.#idle = [];
        for (const resolve of idle) resolve();
      }
    }
  }

  /** Runs work on guest input: a breach by the guest breaks the device, never the machine. */
  protected guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (error instanceof VirtQueueError || error instanceof GuestMemoryError || error instanceof WireError) {
        this.fail(error.message);
        return;
      }
      throw error;
    }
  }

  /** Stops the device until it is reset (§2.1.2). */
  protected fail(text: string): void {
    if ((this.#status & VIRTIO_STATUS_NEEDS_RESET) !== 0) return;
    this.#problem = text;
    this.#status |= VIRTIO_STATUS_NEEDS_RESET;
    if ((this.#status & VIRTIO_STATUS_DRIVER_OK) !== 0) this.#interrupt?.raise(VIRTIO_ISR_CONFIG);
    this.report(text);
  }

  protected report(text: string): void {
    this.#options.onProblem?.(`${this.stateName}: ${text}`);
  }

  protected defer(task: () => void): void {
    const { defer } = this.#options;
    if (defer === undefined) setTimeout(task, 0);
    else defer(task);
  }

  // --- own ---

  #accepts(features: bigint): boolean {
    return (features & ~this.deviceFeatures) === 0n && (features & featureMask(VIRTIO_F_VERSION_1)) !== 0n;
  }

  #acceptFeatures(): void {
    if (!this.#accepts(this.#driverFeatures)) return;
    this.#status |= VIRTIO_STATUS_FEATURES_OK;
    this.#negotiateQueues();
  }

  #negotiateQueues(): void {
    const eventIdx = this.negotiated(VIRTIO_F_EVENT_IDX);
    const indirect = this.negotiated(VIRTIO_F_INDIRECT_DESC);
    for (const queue of this.queues) queue.negotiate({ eventIdx, indirect });
  }

  #serveAll(): void {
    for (const queue of this.queues) this.notify(queue.index);
  }

  #postpone(queue: VirtQueue): void {
    if (this.#postponed.has(queue.index)) return;
    this.#postponed.add(queue.index);
    this.defer(() => {
      if (this.#postponed.delete(queue.index)) this.notify(queue.index);
    });
  }

  #reset(): void {
    this.#status = 0;
    this.#driverFeatures = 0n;
    this.#problem = undefined;
    this.#postponed.clear();
    for (const queue of this.queues) queue.reset();
    this.resetModel();
  }
}
