// Where everything lies in guest physical space: the addresses and interrupt numbers of QEMU's `-M virt`, so that
// firmware and bare-metal programs written for it run unchanged.

/** A range of guest physical addresses, in `bytes`; above 2^32 too, always a safe integer */
export interface AddressRange {
  readonly base: number;
  readonly size: number;
}

function range(base: number, size: number): AddressRange {
  return Object.freeze({ base, size });
}

/** Reset vector and what it needs; 16-byte aligned code at its start */
export const BOOT_ROM = range(0x1000, 0xf000);
/** SiFive test device: power-off, reboot, exit status */
export const TEST_DEVICE = range(0x10_0000, 0x1000);
export const RTC = range(0x10_1000, 0x1000);
/** MSWI and MTIMER, in the layout of the SiFive CLINT */
export const CLINT = range(0x200_0000, 0x1_0000);
/** Supervisor software interrupts (ACLINT) */
export const SSWI = range(0x2f0_0000, 0x4000);
/** PCI port space; port 0 is at its start */
export const PCIE_PIO = range(0x300_0000, 0x1_0000);
/** Room for 512 harts of two contexts, as QEMU announces it */
export const PLIC = range(0xc00_0000, 0x60_0000);
export const UART0 = range(0x1000_0000, 0x100);
/** Slot `i` is at `base + i * VIRTIO_MMIO_STRIDE` */
export const VIRTIO_MMIO = range(0x1000_1000, 0x8000);
export const VIRTIO_MMIO_STRIDE = 0x1000;
export const VIRTIO_MMIO_SLOTS = 8;
export const FW_CFG = range(0x1010_0000, 0x18);
/** Two banks of `size / 2` each */
export const FLASH = range(0x2000_0000, 0x400_0000);
/** Configuration space of buses 0..255 */
export const PCIE_ECAM = range(0x3000_0000, 0x1000_0000);
export const PCIE_MMIO = range(0x4000_0000, 0x4000_0000);
/** 64-bit prefetchable window. QEMU puts it at the next 16 GiB boundary above RAM: here always this one */
export const PCIE_MMIO_HIGH = range(0x4_0000_0000, 0x4_0000_0000);
/** RAM starts here; its size is the machine's */
export const RAM_START = 0x8000_0000;

/** Inputs of the PLIC */
export const IRQ = Object.freeze({
  /** Slot `i` has `virtioMmio + i` */
  virtioMmio: 1,
  uart0: 10,
  rtc: 11,
  /** INTA..INTD are `pcie`..`pcie + 3`, swizzled by device number */
  pcie: 32,
});

/** Interrupt sources of the PLIC, source 0 (which does not exist) included */
export const PLIC_SOURCES = 96;
/** Frequency of `mtime`, in `Hz` */
export const TIMEBASE_HZ = 10_000_000;
export const MAX_HARTS = 8;

/** The range of one virtio-mmio slot, 0..7 */
export function virtioMmioSlot(slot: number): AddressRange {
  if (!Number.isInteger(slot) || slot < 0 || slot >= VIRTIO_MMIO_SLOTS) {
    throw new RangeError(`Cannot place virtio-mmio slot ${slot}: there are ${VIRTIO_MMIO_SLOTS}`);
  }
  return range(VIRTIO_MMIO.base + slot * VIRTIO_MMIO_STRIDE, VIRTIO_MMIO_STRIDE);
}

/** The PLIC input of a PCI function's interrupt pin (1 INTA .. 4 INTD), as the host bridge swizzles it. */
export function pcieInterrupt(device: number, pin: number): number {
  return IRQ.pcie + ((device + pin - 1) & 3);
}
