export {
  type PciBar,
  type PciBarTarget,
  type PciBus,
  PciFunction,
  type PciFunctionOptions,
  type PciRegion,
} from './function.ts';
export {
  PCI_ECAM_BASE,
  PCI_ECAM_BYTES,
  PCI_INTERRUPT_LINES,
  PCI_MMIO32_BASE,
  PCI_MMIO32_BYTES,
  PCI_MMIO64_BASE,
  PCI_MMIO64_BYTES,
  PCI_PIO_BASE,
  PCI_PIO_BYTES,
  PciHost,
  type PciHostOptions,
  pciInterruptLine,
} from './host.ts';
export { PCI_COMMAND_MASTER, PCI_CONFIG_BYTES } from './registers.ts';
export { InterruptStatus, PciShared } from './shared.ts';
