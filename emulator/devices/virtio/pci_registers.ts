import { VIRTIO_ISR_CONFIG, VIRTIO_ISR_QUEUE } from '../../../protocols/virtio/mod.ts';
import type { StateReader } from '../../state/read_state.ts';
import type { StateValue } from '../../state/state.ts';
import type { AccessSize } from '../device.ts';
import { InterruptStatus } from '../pci/mod.ts';
import type { VirtioDevice } from './device.ts';
import { withHigh, withLow } from './transport_mmio.ts';

export const PART_BYTES = 0x1000;
export const COMMON_PART = 0;
export const ISR_PART = 1;
export const DEVICE_PART = 2;
export const NOTIFY_PART = 3;
export const BAR_BYTES = 4 * PART_BYTES;
export const NOTIFY_MULTIPLIER = 4;
const NO_VECTOR = 0xffff;

// `struct virtio_pci_common_cfg` (virtio 1.2 §4.1.4.3), 64-bit fields as two halves
const COMMON = {
  deviceFeatureSelect: 0,
  deviceFeature: 4,
  driverFeatureSelect: 8,
  driverFeature: 12,
  configMsixVector: 16,
  numQueues: 18,
  deviceStatus: 20,
  configGeneration: 21,
  queueSelect: 22,
  queueSize: 24,
  queueMsixVector: 26,
  queueEnable: 28,
  queueNotifyOff: 30,
  queueDescLow: 32,
  queueDescHigh: 36,
  queueDriverLow: 40,
  queueDriverHigh: 44,
  queueDeviceLow: 48,
  queueDeviceHigh: 52,
} as const;

/** Width of each field by its offset, in `bytes` */
const COMMON_WIDTHS = new Map<number, number>([
  [COMMON.deviceFeatureSelect, 4],
  [COMMON.deviceFeature, 4],
  [COMMON.driverFeatureSelect, 4],
  [COMMON.driverFeature, 4],
  [COMMON.configMsixVector, 2],
  [COMMON.numQueues, 2],
  [COMMON.deviceStatus, 1],
  [COMMON.configGeneration, 1],
  [COMMON.queueSelect, 2],
  [COMMON.queueSize, 2],
  [COMMON.queueMsixVector, 2],
  [COMMON.queueEnable, 2],
  [COMMON.queueNotifyOff, 2],
  [COMMON.queueDescLow, 4],
  [COMMON.queueDescHigh, 4],
  [COMMON.queueDriverLow, 4],
  [COMMON.queueDriverHigh, 4],
  [COMMON.queueDeviceLow, 4],
  [COMMON.queueDeviceHigh, 4],
]);

/** What lies behind the BAR: common configuration, ISR status, device configuration, notification. */
export class VirtioPciRegisters {
  onInterrupt: () => void = () => {};
  readonly #device: VirtioDevice;
  #deviceFeatureSelect = 0;
  #driverFeatureSelect = 0;
  #queueSelect = 0;
  /** Harts read it themselves where the bus shares it */
  #isr = new InterruptStatus();

  constructor(device: VirtioDevice) {
    this.#device = device;
  }

  raise(cause: number): void {
    this.#isr.add(cause);
    this.onInterrupt();
  }

  /** From now on causes are kept there. */
  shareStatus(status: InterruptStatus): void {
    status.value = this.#isr.value;
    this.#isr = status;
  }

  get interruptLevel(): boolean {
    return this.#isr.value !== 0;
  }

  reset(): void {
    this.#deviceFeatureSelect = 0;
    this.#driverFeatureSelect = 0;
    this.#queueSelect = 0;
    this.#setIsr(0);
  }

  read(offset: number, size: AccessSize): number {
    const within = offset % PART_BYTES;
    switch ((offset - within) / PART_BYTES) {
      case COMMON_PART:
        return this.#readCommon(within, size);
      case ISR_PART: {
        if (within !== 0) return 0;
        // Reading acknowledges: it clears the causes and releases INTx (§4.1.4.5.1).
        const isr = this.#isr.take();
        this.onInterrupt();
        return isr;
      }
      case DEVICE_PART:
        return this.#device.readConfig(within, size);
      default:
        return 0;
    }
  }

  write(offset: number, size: AccessSize, value: number): void {
    const within = offset % PART_BYTES;
    switch ((offset - within) / PART_BYTES) {
      case COMMON_PART:
        this.#writeCommon(within, size, value);
        return;
      case DEVICE_PART:
        this.#device.writeConfig(within, size, value);
        return;
      case NOTIFY_PART:
        // The address names the queue: queue_notify_off is the queue's index.
        this.#device.notify(Math.floor(within / NOTIFY_MULTIPLIER));
        return;
    }
  }

  /** Fields side by side, as a wide read sees them. */
  #readCommon(offset: number, size: AccessSize): number {
    let value = 0;
    let scale = 1;
    for (let at = offset; at < offset + size; at++) {
      value += this.#commonByte(at) * scale;
      scale *= 256;
    }
    return value;
  }

  #commonByte(at: number): number {
    for (let field = at; field >= 0 && field > at - 4; field--) {
      const width = COMMON_WIDTHS.get(field);
      if (width !== undefined) {
        return at < field + width ? (this.#commonField(field) >>> (8 * (at - field))) & 0xff : 0;
      }
    }
    return 0;
  }

  #commonField(field: number): number {
    const device = this.#device;
    const queue = device.queues[this.#queueSelect];
    switch (field) {
      case COMMON.deviceFeatureSelect:
        return this.#deviceFeatureSelect;
      case COMMON.deviceFeature:
        return device.featureWord(this.#deviceFeatureSelect);
      case COMMON.driverFeatureSelect:
        return this.#driverFeatureSelect;
      case COMMON.driverFeature:
        return device.driverFeatureWord(this.#driverFeatureSelect);
      case COMMON.configMsixVector:
      case COMMON.queueMsixVector:
        return NO_VECTOR;
      case COMMON.numQueues:
        return device.queues.length;
      case COMMON.deviceStatus:
        return device.status;
      case COMMON.configGeneration:
        return device.configGeneration & 0xff;
      case COMMON.queueSelect:
        return this.#queueSelect;
    }
    // A queue that does not exist has size 0 (§4.1.4.3.1).
    if (queue === undefined) return 0;
    switch (field) {
      case COMMON.queueSize:
        return queue.size;
      case COMMON.queueEnable:
        return queue.ready ? 1 : 0;
      case COMMON.queueNotifyOff:
        return queue.index;
      case COMMON.queueDescLow:
        return low(queue.descAddress);
      case COMMON.queueDescHigh:
        return high(queue.descAddress);
      case COMMON.queueDriverLow:
        return low(queue.driverAddress);
      case COMMON.queueDriverHigh:
        return high(queue.driverAddress);
      case COMMON.queueDeviceLow:
        return low(queue.deviceAddress);
      case COMMON.queueDeviceHigh:
        return high(queue.deviceAddress);
      default:
        return 0;
    }
  }

  /** A write takes effect on the fields that it covers whole, in order of their offsets. */
  #writeCommon(offset: number, size: AccessSize, value: number): void {
    for (let at = offset; at < offset + size; ) {
      const width = COMMON_WIDTHS.get(at);
      if (width === undefined || at + width > offset + size) return;
      const shifted = value >>> (8 * (at - offset));
      this.#writeField(at, width === 4 ? shifted : shifted & (width === 2 ? 0xffff : 0xff));
      at += width;
    }
  }

  #writeField(field: number, value: number): void {
    const device = this.#device;
    switch (field) {
      case COMMON.deviceFeatureSelect:
        this.#deviceFeatureSelect = value;
        return;
      case COMMON.driverFeatureSelect:
        this.#driverFeatureSelect = value;
        return;
      case COMMON.driverFeature:
        device.setDriverFeatureWord(this.#driverFeatureSelect, value);
        return;
      case COMMON.deviceStatus:
        device.writeStatus(value);
        if (value === 0) this.reset();
        return;
      case COMMON.queueSelect:
        this.#queueSelect = value;
        return;
    }
    const queue = device.queues[this.#queueSelect];
    // §4.1.4.3.2: addresses and size are fixed while the queue is enabled, and only a reset disables it.
    if (queue === undefined || queue.ready) return;
    switch (field) {
      case COMMON.queueSize:
        queue.size = value;
        return;
      case COMMON.queueEnable:
        if (value === 1) device.enableQueue(queue.index);
        return;
      case COMMON.queueDescLow:
        queue.descAddress = withLow(queue.descAddress, value);
        return;
      case COMMON.queueDescHigh:
        queue.descAddress = withHigh(queue.descAddress, value);
        return;
      case COMMON.queueDriverLow:
        queue.driverAddress = withLow(queue.driverAddress, value);
        return;
      case COMMON.queueDriverHigh:
        queue.driverAddress = withHigh(queue.driverAddress, value);
        return;
      case COMMON.queueDeviceLow:
        queue.deviceAddress = withLow(queue.deviceAddress, value);
        return;
      case COMMON.queueDeviceHigh:
        queue.deviceAddress = withHigh(queue.deviceAddress, value);
        return;
    }
  }

  saveState(): StateValue {
    return {
      deviceFeatureSelect: this.#deviceFeatureSelect,
      driverFeatureSelect: this.#driverFeatureSelect,
      queueSelect: this.#queueSelect,
      isr: this.#isr.value,
    };
  }

  prepareState(reader: StateReader): () => void {
    const deviceFeatureSelect = reader.u32('deviceFeatureSelect');
    const driverFeatureSelect = reader.u32('driverFeatureSelect');
    const queueSelect = reader.integer('queueSelect', 0, 0xffff);
    const isr = reader.integer('isr', 0, VIRTIO_ISR_QUEUE | VIRTIO_ISR_CONFIG);
    return () => {
      this.#deviceFeatureSelect = deviceFeatureSelect;
      this.#driverFeatureSelect = driverFeatureSelect;
      this.#queueSelect = queueSelect;
      this.#setIsr(isr);
    };
  }

  #setIsr(value: number): void {
    this.#isr.value = value;
    this.onInterrupt();
  }
}

function low(address: bigint): number {
  return Number(address & 0xffff_ffffn);
}
function high(address: bigint): number {
  return Number(address >> 32n);
}
