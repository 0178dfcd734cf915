import {
  encodeVirtioPciCapability,
  VIRTIO_ISR_CONFIG,
  VIRTIO_ISR_QUEUE,
  VIRTIO_PCI_CAP_COMMON_CFG,
  VIRTIO_PCI_CAP_DEVICE_CFG,
  VIRTIO_PCI_CAP_ISR_CFG,
  VIRTIO_PCI_CAP_NOTIFY_CFG,
  VIRTIO_PCI_CAP_PCI_CFG,
  VIRTIO_PCI_DEVICE_BASE,
  VIRTIO_PCI_VENDOR,
} from '../../../protocols/virtio/mod.ts';
import { StateReader } from '../../state/read_state.ts';
import { StateError, type Stateful, type StateValue } from '../../state/state.ts';
import type { AccessSize } from '../device.ts';
import { PciFunction } from '../pci/mod.ts';
import type { VirtioDevice, VirtioInterrupt } from './device.ts';
import { withHigh, withLow } from './transport_mmio.ts';

/** The one BAR, as QEMU places it: 64-bit, prefetchable, 16 KiB in four parts of a page */
const BAR = 4;
const PART_BYTES = 0x1000;
const COMMON_PART = 0;
const ISR_PART = 1;
const DEVICE_PART = 2;
const NOTIFY_PART = 3;
const BAR_BYTES = 4 * PART_BYTES;
const NOTIFY_MULTIPLIER = 4;
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

/** Class codes by virtio device id; others are "unclassified" as in QEMU. */
const CLASS_CODES = new Map<number, number>([
  [1, 0x02_00_00], // network, ethernet
  [2, 0x01_00_00], // mass storage, SCSI
  [3, 0x07_80_00], // communication, other
  [16, 0x03_80_00], // display, other
  [18, 0x09_00_00], // input, keyboard
]);

/** virtio over PCI, modern interface only (virtio 1.2 §4.1), with INTx and without MSI-X. */
export class VirtioPciTransport extends PciFunction implements Stateful, VirtioInterrupt {
  readonly stateName: string;
  readonly stateVersion = 1;
  readonly device: VirtioDevice;
  /** Offset of VIRTIO_PCI_CAP_PCI_CFG in configuration space */
  readonly #window: number;
  readonly #busAccess: VirtioRegisters;

  constructor(device: VirtioDevice) {
    const registers = new VirtioRegisters(device);
    const part = (type: number, at: number, tail?: number): Uint8Array =>
      encodeVirtioPciCapability({
        next: 0,
        type,
        bar: BAR,
        id: 0,
        offset: at * PART_BYTES,
        length: PART_BYTES,
        tail,
      });
    super({
      name: device.name,
      vendor: VIRTIO_PCI_VENDOR,
      device: VIRTIO_PCI_DEVICE_BASE + device.virtioId,
      revision: 1,
      classCode: CLASS_CODES.get(device.virtioId) ?? 0x00_ff_00,
      subsystemVendor: VIRTIO_PCI_VENDOR,
      subsystem: 0x1100,
      interruptPin: 1,
      bars: [{ index: BAR, kind: 'memory64', prefetchable: true, sizeBytes: BAR_BYTES, target: registers }],
      capabilities: [
        part(VIRTIO_PCI_CAP_COMMON_CFG, COMMON_PART),
        part(VIRTIO_PCI_CAP_ISR_CFG, ISR_PART),
        part(VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE_PART),
        part(VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_PART, NOTIFY_MULTIPLIER),
        encodeVirtioPciCapability({
          next: 0,
          type: VIRTIO_PCI_CAP_PCI_CFG,
          bar: 0,
          id: 0,
          offset: 0,
          length: 0,
          tail: 0,
        }),
      ],
    });
    this.device = device;
    this.stateName = `${device.stateName}-pci`;
    this.#busAccess = registers;
    registers.onInterrupt = (level) => this.setInterrupt(level);
    this.#window = this.capabilityOffset(4);
    this.allowConfigWrites(this.#window + 4, 1, 0xff); // bar
    this.allowConfigWrites(this.#window + 8, 4, 0xffff_ffff); // offset
    this.allowConfigWrites(this.#window + 12, 4, 0xffff_ffff); // length
    device.connect(this);
    device.setDma(false);
  }

  raise(cause: number): void {
    this.#busAccess.raise(cause);
  }

  deviceReset(): void {
    this.#busAccess.reset();
  }

  /** The data register of the configuration window reaches into the BAR (§4.1.4.9). */
  override readConfig(offset: number, size: AccessSize): number {
    const access = this.#windowAccess(offset, size);
    return access === undefined ? super.readConfig(offset, size) : this.#busAccess.read(access, size);
  }

  override writeConfig(offset: number, size: AccessSize, value: number): void {
    const access = this.#windowAccess(offset, size);
    if (access === undefined) super.writeConfig(offset, size, value);
    else this.#busAccess.write(access, size, value);
  }

  /** Memory is the device's only while bus mastering is on. */
  protected override commandChanged(command: number): void {
    this.device.setDma((command & 0x4) !== 0);
  }

  override reset(): void {
    super.reset();
    this.device.reset();
  }

  #windowAccess(offset: number, size: AccessSize): number | undefined {
    if (offset !== this.#window + 16) return undefined;
    const bar = super.readConfig(this.#window + 4, 1);
    const at = super.readConfig(this.#window + 8, 4);
    const length = super.readConfig(this.#window + 12, 4);
    if (bar !== BAR || length !== size || at % size !== 0 || at > BAR_BYTES - size) return undefined;
    return at;
  }

  saveState(): StateValue {
    return this.#busAccess.saveState();
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== this.stateVersion) throw new StateError(this.stateName, `version ${version}`);
    return this.#busAccess.prepareState(new StateReader(this.stateName, value));
  }
}

/** What lies behind the BAR: common configuration, ISR status, device configuration, notification. */
class VirtioRegisters {
  onInterrupt: (level: boolean) => void = () => {};
  readonly #device: VirtioDevice;
  #deviceFeatureSelect = 0;
  #driverFeatureSelect = 0;
  #queueSelect = 0;
  #isr = 0;

  constructor(device: VirtioDevice) {
    this.#device = device;
  }

  raise(cause: number): void {
    this.#isr |= cause;
    this.onInterrupt(true);
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
        const isr = this.#isr;
        this.#setIsr(0);
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
      isr: this.#isr,
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
    this.#isr = value;
    this.onInterrupt(value !== 0);
  }
}

function low(address: bigint): number {
  return Number(address & 0xffff_ffffn);
}
function high(address: bigint): number {
  return Number(address >> 32n);
}
