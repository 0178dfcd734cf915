import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';
import type { AccessSize, Device, MmioDevice } from '../device.ts';
import { PciFunction, type PciRegion } from './function.ts';
import { PCI_CONFIG_BYTES, PCI_SLOTS } from './registers.ts';
import type { PciShared } from './shared.ts';

// Windows of QEMU `-M virt`
export const PCI_ECAM_BASE = 0x3000_0000;
export const PCI_ECAM_BYTES = 0x1000_0000;
export const PCI_PIO_BASE = 0x0300_0000;
export const PCI_PIO_BYTES = 0x1_0000;
export const PCI_MMIO32_BASE = 0x4000_0000;
export const PCI_MMIO32_BYTES = 0x4000_0000;
export const PCI_MMIO64_BASE = 0x4_0000_0000;
export const PCI_MMIO64_BYTES = 0x4_0000_0000;

/** INTx lines of the root bus */
export const PCI_INTERRUPT_LINES = 4;

/** Which of the four lines a slot's pin (1..4) is wired to; the device tree's interrupt-map says the same. */
export function pciInterruptLine(slot: number, pin: number): number {
  return (slot + pin - 1) % PCI_INTERRUPT_LINES;
}

export interface PciHostOptions {
  /** Four lines, for {@link pciInterruptLine}, and what harts serve themselves */
  readonly shared: PciShared;
  /** CPU address of each memory window's first byte; PCI addresses are the same */
  readonly mmio32Base?: number;
  readonly mmio64Base?: number;
}

/**
 * A generic ECAM host ("pci-host-ecam-generic", QEMU's gpex): one root bus, no bridges, the guest assigns
 * all BARs. Reads that nobody answers give all ones, as a master abort does.
 */
export class PciHost implements Device {
  readonly stateName = 'pcie-host';
  readonly stateVersion = 1;
  readonly ecam: MmioDevice;
  readonly mmio32: MmioDevice;
  readonly mmio64: MmioDevice;
  /** Port 0 is at PCI I/O address 0 */
  readonly pio: MmioDevice;
  readonly #shared: PciShared;
  readonly #slots = new Map<number, PciFunction>();
  readonly #mmio32Base: number;
  readonly #mmio64Base: number;
  /** Rebuilt at the next access after a change */
  #regions: PciRegion[] | undefined;

  constructor(options: PciHostOptions) {
    this.#shared = options.shared;
    this.ecam = {
      name: 'pcie-ecam',
      read: (offset, size) => this.#readConfig(offset, size),
      write: (offset, size, value) => this.#writeConfig(offset, size, value),
    };
    this.#mmio32Base = options.mmio32Base ?? PCI_MMIO32_BASE;
    this.#mmio64Base = options.mmio64Base ?? PCI_MMIO64_BASE;
    this.mmio32 = this.#window('pcie-mmio', 'memory', this.#mmio32Base);
    this.mmio64 = this.#window('pcie-mmio-high', 'memory', this.#mmio64Base);
    this.pio = this.#window('pcie-pio', 'io', 0);
    this.add(
      0,
      new PciFunction({
        name: 'gpex-root',
        vendor: 0x1b36,
        device: 0x0008,
        classCode: 0x06_00_00, // host bridge
        subsystemVendor: 0x1af4,
        subsystem: 0x1100,
      }),
    );
  }

  /** Puts a function into a slot (function 0 of it); slot 0 is the host bridge. */
  add(slot: number, pciFunction: PciFunction): void {
    if (!Number.isInteger(slot) || slot < 0 || slot >= PCI_SLOTS || this.#slots.has(slot)) {
      throw new RangeError(`Cannot use PCI slot ${slot}: taken or out of range`);
    }
    this.#slots.set(slot, pciFunction);
    this.#regions = undefined;
    const { config } = this.#shared;
    pciFunction.connect({
      regionsChanged: () => {
        this.#regions = undefined;
        this.#publishStatus();
      },
      interruptChanged: () => this.#updateInterrupt(slot, pciFunction),
      status: this.#shared.status(slot),
      config: config.bytes(slot),
    });
    config.add(slot, pciFunction.activeRegisters);
  }

  reset(): void {
    for (const pciFunction of this.#slots.values()) pciFunction.reset();
  }

  saveState(): StateValue {
    return {
      functions: [...this.#slots].map(([slot, pciFunction]) => ({ slot, config: pciFunction.saveConfig() })),
    };
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== this.stateVersion) throw new StateError(this.stateName, `version ${version}`);
    const seen = new Set<number>();
    const commits = new StateReader(this.stateName, value).list('functions', PCI_SLOTS, (item, path) => {
      const reader = new StateReader(path, item);
      const slot = reader.integer('slot', 0, PCI_SLOTS - 1);
      const pciFunction = this.#slots.get(slot);
      if (pciFunction === undefined || seen.has(slot)) throw new StateError(`${path}.slot`, `${slot} absent or twice`);
      seen.add(slot);
      return pciFunction.prepareConfig(reader.bytes('config', PCI_CONFIG_BYTES, PCI_CONFIG_BYTES), `${path}.config`);
    });
    if (seen.size !== this.#slots.size) {
      throw new StateError(`${this.stateName}.functions`, `${seen.size}, expected ${this.#slots.size}`);
    }
    return () => {
      for (const commit of commits) commit();
    };
  }

  /** The function that an ECAM offset means, only on bus 0: bits 27..20 bus, 19..15 device, 14..12 function. */
  #target(offset: number): PciFunction | undefined {
    if (offset >= 1 << 20 || ((offset >>> 12) & 7) !== 0) return undefined;
    return this.#slots.get((offset >>> 15) & 0x1f);
  }

  #readConfig(offset: number, size: AccessSize): number {
    const register = offset & 0xfff;
    // Conventional functions have no extended configuration space.
    if (register >= PCI_CONFIG_BYTES) return allOnes(size);
    return this.#target(offset)?.readConfig(register, size) ?? allOnes(size);
  }

  #writeConfig(offset: number, size: AccessSize, value: number): void {
    const register = offset & 0xfff;
    if (register < PCI_CONFIG_BYTES) this.#target(offset)?.writeConfig(register, size, value);
  }

  #window(name: string, space: PciRegion['space'], base: number): MmioDevice {
    return {
      name,
      read: (offset, size) => {
        const address = base + offset;
        const region = this.#find(space, address);
        return region === undefined ? allOnes(size) : region.target.read(address - region.base, size);
      },
      write: (offset, size, value) => {
        const address = base + offset;
        const region = this.#find(space, address);
        region?.target.write(address - region.base, size, value);
      },
    };
  }

  /** The first region that covers the address: a guest that lays two over each other gets the first. */
  #find(space: PciRegion['space'], address: number): PciRegion | undefined {
    this.#regions ??= [...this.#slots.values()].flatMap((pciFunction) => pciFunction.regions());
    for (const region of this.#regions) {
      const offset = address - region.base;
      if (offset >= 0 && offset < region.sizeBytes && region.space === space) return region;
    }
    return undefined;
  }

  #updateInterrupt(slot: number, pciFunction: PciFunction): void {
    if (pciFunction.interruptPin === 0) return;
    const line = pciInterruptLine(slot, pciFunction.interruptPin);
    this.#shared.updateLine(slot, line, () => pciFunction.interruptAsserted);
  }

  /** Tells the harts where they find status registers now, before the guest's write that moved one is done. */
  #publishStatus(): void {
    for (const [slot, pciFunction] of this.#slots) {
      const register = pciFunction.statusRegister;
      if (register === undefined) continue;
      const region = pciFunction.regions().find(({ bar }) => bar === register.bar);
      let address = region === undefined ? undefined : region.base + register.offset;
      // Where a guest has laid another BAR over it, or it lies outside the windows, this thread decides
      if (
        address !== undefined &&
        !(this.#inWindow(address) && this.#find('memory', address)?.target === region?.target)
      ) {
        address = undefined;
      }
      this.#shared.publish(slot, address, pciInterruptLine(slot, pciFunction.interruptPin));
    }
  }

  #inWindow(address: number): boolean {
    const within = (base: number, size: number) => address >= base && address < base + size;
    return within(this.#mmio32Base, PCI_MMIO32_BYTES) || within(this.#mmio64Base, PCI_MMIO64_BYTES);
  }
}

function allOnes(size: AccessSize): number {
  return size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff;
}
