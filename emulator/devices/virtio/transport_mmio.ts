import { VIRTIO_ISR_CONFIG, VIRTIO_ISR_QUEUE } from '../../../protocols/virtio/mod.ts';
import { StateReader } from '../../state/read_state.ts';
import { StateError, type Stateful, type StateValue } from '../../state/state.ts';
import type { AccessSize, InterruptLine, MmioDevice } from '../device.ts';
import type { VirtioDevice, VirtioInterrupt } from './device.ts';
import { MMIO_INTERRUPT_BYTES, MMIO_INTERRUPT_OFFSET, MmioInterrupt } from './mmio_interrupt.ts';

/** Size of one slot's window, in `bytes` (QEMU `-M virt`) */
export const VIRTIO_MMIO_BYTES = 0x1000;

const MAGIC = 0x7472_6976; // "virt"
const VERSION = 2;
const VENDOR = 0x554d_4551; // "QEMU", what drivers and tools expect to see

// Registers (virtio 1.2 §4.2.2)
const REG = {
  magicValue: 0x000,
  version: 0x004,
  deviceId: 0x008,
  vendorId: 0x00c,
  deviceFeatures: 0x010,
  deviceFeaturesSel: 0x014,
  driverFeatures: 0x020,
  driverFeaturesSel: 0x024,
  queueSel: 0x030,
  queueNumMax: 0x034,
  queueNum: 0x038,
  queueReady: 0x044,
  queueNotify: 0x050,
  status: 0x070,
  queueDescLow: 0x080,
  queueDescHigh: 0x084,
  queueDriverLow: 0x090,
  queueDriverHigh: 0x094,
  queueDeviceLow: 0x0a0,
  queueDeviceHigh: 0x0a4,
  shmLenLow: 0x0b0,
  shmLenHigh: 0x0b4,
  shmBaseLow: 0x0b8,
  shmBaseHigh: 0x0bc,
  configGeneration: 0x0fc,
  config: 0x100,
} as const;

/** virtio-mmio, version 2 registers (virtio 1.2 §4.2): one device in one window with one interrupt. */
export class VirtioMmioTransport implements MmioDevice, Stateful, VirtioInterrupt {
  readonly name: string;
  readonly stateName: string;
  readonly stateVersion = 1;
  readonly device: VirtioDevice;
  #deviceFeaturesSel = 0;
  #driverFeaturesSel = 0;
  #queueSel = 0;
  readonly #interrupt: MmioInterrupt;

  /** `interrupt`: where harts serve those registers by themselves, their state */
  constructor(device: VirtioDevice, line: InterruptLine, interrupt: MmioInterrupt = new MmioInterrupt(line)) {
    this.device = device;
    this.name = 'virtio-mmio';
    this.stateName = `${device.stateName}-mmio`;
    this.#interrupt = interrupt;
    device.connect(this);
  }

  raise(cause: number): void {
    this.#interrupt.raise(cause);
  }

  deviceReset(): void {
    this.#deviceFeaturesSel = 0;
    this.#driverFeaturesSel = 0;
    this.#queueSel = 0;
    this.#interrupt.status = 0;
  }

  read(offset: number, size: AccessSize): number {
    if (offset >= REG.config) return this.device.readConfig(offset - REG.config, size);
    // §4.2.2.2: registers are read as 32 bits, aligned.
    if (size !== 4) return 0;
    if (isInterrupt(offset)) return this.#interrupt.read(offset - MMIO_INTERRUPT_OFFSET, size);
    const { device } = this;
    const queue = device.queues[this.#queueSel];
    switch (offset) {
      case REG.magicValue:
        return MAGIC;
      case REG.version:
        return VERSION;
      case REG.deviceId:
        return device.virtioId;
      case REG.vendorId:
        return VENDOR;
      case REG.deviceFeatures:
        return device.featureWord(this.#deviceFeaturesSel);
      case REG.queueNumMax:
        return queue?.maxSize ?? 0;
      case REG.queueReady:
        return queue?.ready === true ? 1 : 0;
      case REG.status:
        return device.status;
      // A region that does not exist has a length of all ones (§4.2.2); drivers ask without a feature bit.
      case REG.shmLenLow:
      case REG.shmLenHigh:
      case REG.shmBaseLow:
      case REG.shmBaseHigh:
        return 0xffff_ffff;
      case REG.configGeneration:
        return device.configGeneration;
      default:
        return 0;
    }
  }

  write(offset: number, size: AccessSize, value: number): void {
    const { device } = this;
    if (offset >= REG.config) {
      device.writeConfig(offset - REG.config, size, value);
      return;
    }
    if (size !== 4) return;
    if (isInterrupt(offset)) {
      this.#interrupt.write(offset - MMIO_INTERRUPT_OFFSET, size, value);
      return;
    }
    switch (offset) {
      case REG.deviceFeaturesSel:
        this.#deviceFeaturesSel = value;
        return;
      case REG.driverFeaturesSel:
        this.#driverFeaturesSel = value;
        return;
      case REG.driverFeatures:
        device.setDriverFeatureWord(this.#driverFeaturesSel, value);
        return;
      case REG.queueSel:
        this.#queueSel = value;
        return;
      case REG.queueNotify:
        device.notify(value);
        return;
      case REG.status:
        device.writeStatus(value);
        if ((value & 0xff) === 0) this.deviceReset();
        return;
      default:
        this.#writeQueue(offset, value);
    }
  }

  #writeQueue(offset: number, value: number): void {
    const queue = this.device.queues[this.#queueSel];
    if (queue === undefined) return;
    if (offset === REG.queueReady) {
      if ((value & 1) !== 0) this.device.enableQueue(queue.index);
      else this.device.disableQueue(queue.index);
      return;
    }
    // §4.2.2.2: not while the queue is in use.
    if (queue.ready) return;
    switch (offset) {
      case REG.queueNum:
        // What does not fit is no size at all; it is refused when the queue is made ready.
        queue.size = value > 0xffff ? 0 : value;
        return;
      case REG.queueDescLow:
        queue.descAddress = withLow(queue.descAddress, value);
        return;
      case REG.queueDescHigh:
        queue.descAddress = withHigh(queue.descAddress, value);
        return;
      case REG.queueDriverLow:
        queue.driverAddress = withLow(queue.driverAddress, value);
        return;
      case REG.queueDriverHigh:
        queue.driverAddress = withHigh(queue.driverAddress, value);
        return;
      case REG.queueDeviceLow:
        queue.deviceAddress = withLow(queue.deviceAddress, value);
        return;
      case REG.queueDeviceHigh:
        queue.deviceAddress = withHigh(queue.deviceAddress, value);
        return;
    }
  }

  saveState(): StateValue {
    return {
      deviceFeaturesSel: this.#deviceFeaturesSel,
      driverFeaturesSel: this.#driverFeaturesSel,
      queueSel: this.#queueSel,
      interruptStatus: this.#interrupt.status,
    };
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== this.stateVersion) throw new StateError(this.stateName, `version ${version}`);
    const reader = new StateReader(this.stateName, value);
    const deviceFeaturesSel = reader.u32('deviceFeaturesSel');
    const driverFeaturesSel = reader.u32('driverFeaturesSel');
    const queueSel = reader.u32('queueSel');
    const interruptStatus = reader.integer('interruptStatus', 0, VIRTIO_ISR_QUEUE | VIRTIO_ISR_CONFIG);
    return () => {
      this.#deviceFeaturesSel = deviceFeaturesSel;
      this.#driverFeaturesSel = driverFeaturesSel;
      this.#queueSel = queueSel;
      this.#interrupt.status = interruptStatus;
    };
  }
}

function isInterrupt(offset: number): boolean {
  return offset >= MMIO_INTERRUPT_OFFSET && offset < MMIO_INTERRUPT_OFFSET + MMIO_INTERRUPT_BYTES;
}

/** A slot without a device: DeviceID 0, which drivers pass over silently (§4.2.2). */
export const emptyVirtioMmio: MmioDevice = {
  name: 'virtio-mmio',
  read(offset: number, size: AccessSize): number {
    if (size !== 4) return 0;
    if (offset === REG.magicValue) return MAGIC;
    if (offset === REG.version) return VERSION;
    return offset === REG.vendorId ? VENDOR : 0;
  },
  write(): void {},
};

/** `address` with its low 32 bits replaced. */
export function withLow(address: bigint, value: number): bigint {
  return (address & 0xffff_ffff_0000_0000n) | BigInt(value);
}

/** `address` with its high 32 bits replaced. */
export function withHigh(address: bigint, value: number): bigint {
  return (address & 0xffff_ffffn) | (BigInt(value) << 32n);
}
