import { StateError } from '../../state/state.ts';
import type { AccessSize } from '../device.ts';
import {
  PCI_BASE_ADDRESS_0,
  PCI_CACHE_LINE_SIZE,
  PCI_CAPABILITY_LIST,
  PCI_CLASS_REVISION,
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_IO,
  PCI_COMMAND_MEMORY,
  PCI_COMMAND_WRITABLE,
  PCI_CONFIG_BYTES,
  PCI_INTERRUPT_LINE,
  PCI_INTERRUPT_PIN,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_STATUS_INTERRUPT,
  PCI_STD_HEADER_BYTES,
  PCI_SUBSYSTEM_VENDOR_ID,
} from './registers.ts';
import { InterruptStatus } from './shared.ts';

const BAR_IO = 0x1;
const BAR_MEM_64 = 0x4;
const BAR_MEM_PREFETCH = 0x8;

/** Registers or memory behind a base address register; offsets are inside it. */
export interface PciBarTarget {
  read(offset: number, size: AccessSize): number;
  write(offset: number, size: AccessSize, value: number): void;
}

export interface PciBar {
  /** 0..5; a 64-bit BAR takes the next one too */
  readonly index: number;
  readonly kind: 'memory32' | 'memory64' | 'io';
  readonly prefetchable?: boolean;
  /** In `bytes`, a power of two: 16 or more for memory, 4 or more for I/O */
  readonly sizeBytes: number;
  readonly target: PciBarTarget;
}

export interface PciFunctionOptions {
  /** Unique in the machine */
  readonly name: string;
  readonly vendor: number;
  readonly device: number;
  readonly revision?: number;
  /** Base class, subclass, programming interface: 24 bits */
  readonly classCode: number;
  readonly subsystemVendor?: number;
  readonly subsystem?: number;
  /** 1..4 for INTA..INTD, 0 for none */
  readonly interruptPin?: number;
  readonly bars?: readonly PciBar[];
  /** In list order; the `next` byte of each is filled in here */
  readonly capabilities?: readonly Uint8Array[];
}

/** Where a BAR is decoded now. */
export interface PciRegion {
  readonly space: 'memory' | 'io';
  readonly base: number;
  readonly sizeBytes: number;
  readonly target: PciBarTarget;
  /** The BAR's index */
  readonly bar: number;
}

/** What a function tells its bus, and has from it. */
export interface PciBus {
  /** Decoding of a BAR may have changed */
  regionsChanged(): void;
  interruptChanged(pciFunction: PciFunction): void;
  /** Of this function's slot: harts may read it on their own threads, see {@link PciFunction.statusRegister} */
  readonly status: InterruptStatus;
  /** Configuration space, 256 bytes that harts read on their own threads */
  readonly config: Uint8Array;
}

/** One function: configuration space with BAR sizing, capabilities and an INTx output. */
export class PciFunction {
  readonly name: string;
  readonly interruptPin: number;
  readonly #bars: readonly PciBar[];
  /** Shared with harts once there is a bus. Never holds the interrupt bit of the status register */
  #config: Uint8Array = new Uint8Array(PCI_CONFIG_BYTES);
  #view: DataView = new DataView(this.#config.buffer);
  readonly #initial: Uint8Array;
  /** Bits that the guest may change */
  readonly #writable = new Uint8Array(PCI_CONFIG_BYTES);
  readonly #capabilityOffsets: number[] = [];
  #bus: PciBus | undefined;
  /** Not 0 while the function wants an interrupt */
  #status = new InterruptStatus();

  constructor(options: PciFunctionOptions) {
    this.name = options.name;
    this.interruptPin = options.interruptPin ?? 0;
    this.#bars = options.bars ?? [];
    const view = this.#view;
    view.setUint16(0, options.vendor, true);
    view.setUint16(2, options.device, true);
    view.setUint32(PCI_CLASS_REVISION, options.classCode * 256 + (options.revision ?? 0), true);
    view.setUint16(PCI_SUBSYSTEM_VENDOR_ID, options.subsystemVendor ?? 0, true);
    view.setUint16(PCI_SUBSYSTEM_VENDOR_ID + 2, options.subsystem ?? 0, true);
    view.setUint8(PCI_INTERRUPT_PIN, this.interruptPin);
    this.#allowWrites(PCI_COMMAND, 2, PCI_COMMAND_WRITABLE);
    this.#allowWrites(PCI_CACHE_LINE_SIZE, 1, 0xff);
    this.#allowWrites(PCI_INTERRUPT_LINE, 1, 0xff);
    for (const bar of this.#bars) this.#layBar(bar);
    this.#layCapabilities(options.capabilities ?? []);
    this.#initial = this.#config.slice();
  }

  connect(bus: PciBus): void {
    this.#bus = bus;
    bus.status.value = this.#status.value;
    this.#status = bus.status;
    bus.config.set(this.#config);
    this.#config = bus.config;
    this.#view = new DataView(bus.config.buffer, bus.config.byteOffset, PCI_CONFIG_BYTES);
  }

  /** Offset of a capability in configuration space, by its place in the list given. */
  capabilityOffset(index: number): number {
    const offset = this.#capabilityOffsets[index];
    if (offset === undefined) throw new RangeError(`Cannot find capability ${index}`);
    return offset;
  }

  get command(): number {
    return this.#view.getUint16(PCI_COMMAND, true);
  }

  /** `offset` is below 256 and a multiple of `size`. */
  readConfig(offset: number, size: AccessSize): number {
    const at = offset & ~3;
    const word = this.#view.getUint32(at, true) | (at === (PCI_STATUS & ~3) ? this.#interruptBit << 16 : 0);
    const value = word >>> (8 * (offset - at));
    return size === 4 ? value : value & (2 ** (8 * size) - 1);
  }

  writeConfig(offset: number, size: AccessSize, value: number): void {
    // A word at once: a hart may be reading it
    const at = offset & ~3;
    const shift = 8 * (offset - at);
    const written = size === 4 ? -1 : (2 ** (8 * size) - 1) << shift;
    const mask = new DataView(this.#writable.buffer).getUint32(at, true) & written;
    this.#view.setUint32(at, (this.#view.getUint32(at, true) & ~mask) | ((value << shift) & mask), true);
    const end = offset + size;
    if (end > PCI_COMMAND && offset < PCI_STATUS) this.#commandWritten();
    if (end > PCI_BASE_ADDRESS_0 && offset < PCI_BASE_ADDRESS_0 + 24) this.#bus?.regionsChanged();
  }

  /** Level of the INTx output before the disable bit. */
  setInterrupt(level: boolean): void {
    this.#status.value = level ? 1 : 0;
    this.interruptChanged();
  }

  /** The level may have changed: the bus asks for it. */
  protected interruptChanged(): void {
    this.#bus?.interruptChanged(this);
  }

  /** The level as it is now; another thread may change it where a status register is shared. */
  protected get interruptLevel(): boolean {
    return this.#status.value !== 0;
  }

  /** True while the function pulls its interrupt pin. */
  get interruptAsserted(): boolean {
    return this.interruptLevel && (this.command & PCI_COMMAND_INTX_DISABLE) === 0;
  }

  /**
   * A register behind a BAR that harts may read without this thread: reading takes what the bus's `status` of this
   * slot holds, whatever the size of the access.
   */
  get statusRegister(): { readonly bar: number; readonly offset: number } | undefined {
    return undefined;
  }

  /** Offsets of configuration registers that only {@link readConfig} can read: more than what is stored there. */
  get activeRegisters(): readonly number[] {
    return [];
  }

  /** BARs that are decoded now: those of a space that the command register enables. */
  regions(): PciRegion[] {
    const regions: PciRegion[] = [];
    for (const { index, kind, sizeBytes, target } of this.#bars) {
      const enabled = kind === 'io' ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
      if ((this.command & enabled) === 0) continue;
      const at = PCI_BASE_ADDRESS_0 + 4 * index;
      const low = this.#view.getUint32(at, true);
      const high = kind === 'memory64' ? this.#view.getUint32(at + 4, true) : 0;
      // A base above 2^53 lies in no window (it is what sizing writes), and a number would not be exact.
      if (high > 0x1f_ffff) continue;
      const base = high * 0x1_0000_0000 + low - (low % sizeBytes);
      regions.push({ space: kind === 'io' ? 'io' : 'memory', base, sizeBytes, target, bar: index });
    }
    return regions;
  }

  /** Called after each write to the command register. */
  protected commandChanged(_command: number): void {}

  /** Configuration to power-on values, INTx low. */
  reset(): void {
    this.#config.set(this.#initial);
    this.#status.value = 0;
    this.#commandWritten();
  }

  saveConfig(): Uint8Array {
    const config = Uint8Array.from(this.#config);
    config[PCI_STATUS]! |= this.#interruptBit;
    return config;
  }

  /** @throws StateError where a bit differs that the guest could not have changed */
  prepareConfig(config: Uint8Array, path: string): () => void {
    for (let index = 0; index < PCI_CONFIG_BYTES; index++) {
      const fixed = index === PCI_STATUS ? ~PCI_STATUS_INTERRUPT : 0xff;
      const mask = fixed & ~this.#writable[index]! & 0xff;
      if (((config[index]! ^ this.#initial[index]!) & mask) !== 0) {
        throw new StateError(path, `byte 0x${index.toString(16)} of the configuration is not this function's`);
      }
    }
    const copy = config.slice();
    copy[PCI_STATUS]! &= ~PCI_STATUS_INTERRUPT;
    return () => {
      this.#config.set(copy);
      this.#commandWritten();
    };
  }

  /** Makes bits of the configuration writable, little-endian. */
  protected allowConfigWrites(offset: number, size: number, mask: number): void {
    this.#allowWrites(offset, size, mask);
  }

  /** The status register's interrupt bit follows the level (PCI Local Bus 3.0 §6.2.3). */
  get #interruptBit(): number {
    return this.interruptLevel ? PCI_STATUS_INTERRUPT : 0;
  }

  #commandWritten(): void {
    this.commandChanged(this.command);
    this.#bus?.regionsChanged();
    this.#bus?.interruptChanged(this);
  }

  #allowWrites(offset: number, size: number, mask: number): void {
    for (let index = 0; index < size; index++) this.#writable[offset + index]! |= (mask >>> (8 * index)) & 0xff;
  }

  #layBar({ index, kind, prefetchable, sizeBytes }: PciBar): void {
    const smallest = kind === 'io' ? 4 : 16;
    if (sizeBytes < smallest || sizeBytes > 0x8000_0000 || (sizeBytes & (sizeBytes - 1)) !== 0) {
      throw new RangeError(`Cannot make a BAR of ${sizeBytes} bytes`);
    }
    const at = PCI_BASE_ADDRESS_0 + 4 * index;
    let flags = kind === 'io' ? BAR_IO : 0;
    if (kind === 'memory64') flags |= BAR_MEM_64;
    if (prefetchable === true) flags |= BAR_MEM_PREFETCH;
    this.#config[at] = flags;
    // Sizing reads back the bits that can be set: all ones above the size (§6.2.5.1).
    this.#allowWrites(at, 4, -sizeBytes >>> 0);
    if (kind === 'memory64') this.#allowWrites(at + 4, 4, 0xffff_ffff);
  }

  #layCapabilities(capabilities: readonly Uint8Array[]): void {
    let link = PCI_CAPABILITY_LIST;
    let at = PCI_STD_HEADER_BYTES;
    for (const capability of capabilities) {
      if (at + capability.length > PCI_CONFIG_BYTES) throw new RangeError('Cannot fit the capabilities');
      this.#config.set(capability, at);
      this.#config[at + 1] = 0;
      this.#config[link] = at;
      this.#capabilityOffsets.push(at);
      link = at + 1;
      at += (capability.length + 3) & ~3;
    }
    if (capabilities.length > 0) this.#config[PCI_STATUS]! |= PCI_STATUS_CAP_LIST;
  }
}
