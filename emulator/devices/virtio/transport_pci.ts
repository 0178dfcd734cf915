import {
  encodeVirtioPciCapability,
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
import { PCI_COMMAND_MASTER, type PciBus, PciFunction } from '../pci/mod.ts';
import type { VirtioDevice, VirtioInterrupt } from './device.ts';
import {
  BAR_BYTES,
  COMMON_PART,
  DEVICE_PART,
  ISR_PART,
  NOTIFY_MULTIPLIER,
  NOTIFY_PART,
  PART_BYTES,
  VirtioPciRegisters,
} from './pci_registers.ts';

/** The one BAR, as QEMU places it: 64-bit, prefetchable, 16 KiB in four parts of a page */
const BAR = 4;

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
  readonly #busAccess: VirtioPciRegisters;

  constructor(device: VirtioDevice) {
    const registers = new VirtioPciRegisters(device);
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
    registers.onInterrupt = () => this.interruptChanged();
    this.#window = this.capabilityOffset(4);
    this.allowConfigWrites(this.#window + 4, 1, 0xff); // bar
    this.allowConfigWrites(this.#window + 8, 4, 0xffff_ffff); // offset
    this.allowConfigWrites(this.#window + 12, 4, 0xffff_ffff); // length
    device.connect(this);
    device.setDma(false);
  }

  override connect(bus: PciBus): void {
    super.connect(bus);
    this.#busAccess.shareStatus(bus.status);
  }

  protected override get interruptLevel(): boolean {
    return this.#busAccess.interruptLevel;
  }

  override get statusRegister(): { readonly bar: number; readonly offset: number } {
    return { bar: BAR, offset: ISR_PART * PART_BYTES };
  }

  override get activeRegisters(): readonly number[] {
    return [this.#window + 16];
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
    this.device.setDma((command & PCI_COMMAND_MASTER) !== 0);
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
