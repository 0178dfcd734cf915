import { Aclint } from '../devices/aclint/mod.ts';
import type { AccessSize, Clock, HartSignals } from '../devices/device.ts';
import { GoldfishRtc } from '../devices/goldfish_rtc/device.ts';
import { PciShared } from '../devices/pci/shared.ts';
import { Plic } from '../devices/plic/mod.ts';
import { type FinisherRequest, Syscon } from '../devices/syscon/mod.ts';
import { Uart16550 } from '../devices/uart16550/device.ts';
import { MMIO_INTERRUPT_BYTES, MMIO_INTERRUPT_OFFSET, MmioInterrupt } from '../devices/virtio/mmio_interrupt.ts';
import { GuestMemory, PAGE_BYTES } from '../memory/guest_memory.ts';
import type { MemoryLayout } from '../memory/layout.ts';
import type { Window } from './bus.ts';
import { CLINT, IRQ, PCIE_ECAM, PLIC, RTC, TEST_DEVICE, UART0, virtioMmioSlot } from './memory_map.ts';
import { deviceWords } from './words.ts';

/** One thread's objects over the devices whose whole state is in shared words: no other thread need be asked. */
export interface SharedDevices {
  readonly plic: Plic;
  readonly aclint: Aclint;
  readonly uart: Uart16550;
  readonly rtc: GoldfishRtc;
  readonly syscon: Syscon;
  /** Configuration and status registers of PCI functions, which harts read though the bus lives on the main thread */
  readonly pci: PciShared;
  /** Interrupt registers of the virtio-mmio slots, likewise */
  readonly mmio: readonly MmioInterrupt[];
  readonly windows: readonly Window[];
  /** What a hart finds inside windows of the main thread */
  readonly insets: readonly Window[];
  /** What a hart reads by itself inside other windows of the main thread; -1: it has to ask */
  readonly readInside: (address: number, size: AccessSize) => number;
}

export function attachSharedDevices(
  buffer: SharedArrayBuffer,
  signals: HartSignals,
  clock: Clock,
  onFinish: (request: FinisherRequest) => void,
): SharedDevices {
  const words = deviceWords(buffer);
  const plic = new Plic(words.plic, signals);
  const aclint = new Aclint(words.aclint, signals, clock);
  const uart = new Uart16550(words.uart, plic.line(IRQ.uart0));
  const rtc = new GoldfishRtc(words.rtc, plic.line(IRQ.rtc), clock);
  const syscon = new Syscon(onFinish);
  const pci = new PciShared(
    words.pci,
    [0, 1, 2, 3].map((line) => plic.line(IRQ.pcie + line)),
  );
  const mmio = words.mmio.map((slot, index) => new MmioInterrupt(plic.line(IRQ.virtioMmio + index), slot));
  return {
    plic,
    aclint,
    uart,
    rtc,
    syscon,
    pci,
    mmio,
    insets: mmio.map((device, slot) => ({
      range: { base: virtioMmioSlot(slot).base + MMIO_INTERRUPT_OFFSET, size: MMIO_INTERRUPT_BYTES },
      device,
    })),
    readInside: (address, size) => {
      const offset = address - PCIE_ECAM.base;
      return offset >= 0 && offset <= PCIE_ECAM.size - size ? pci.config.read(offset, size) : pci.acknowledge(address);
    },
    windows: [
      { range: PLIC, device: plic },
      { range: CLINT, device: aclint },
      { range: UART0, device: uart },
      { range: RTC, device: rtc },
      { range: TEST_DEVICE, device: syscon },
    ],
  };
}

/** RAM as devices see it, over the shared memory. */
export function guestMemory(buffer: SharedArrayBuffer, layout: MemoryLayout): GuestMemory {
  return new GuestMemory(
    new Uint8Array(buffer, layout.ram, layout.ramBytes),
    new Uint8Array(buffer, layout.dirty, layout.ramBytes / PAGE_BYTES),
  );
}
