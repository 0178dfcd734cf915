import { FdtNode, split64 } from '../../protocols/fdt/mod.ts';
import {
  type AddressRange,
  CLINT,
  FW_CFG,
  IRQ,
  MAX_HARTS,
  PCIE_ECAM,
  PCIE_MMIO,
  PCIE_MMIO_HIGH,
  PCIE_PIO,
  PLIC,
  PLIC_SOURCES,
  pcieInterrupt,
  RAM_START,
  RTC,
  SSWI,
  TEST_DEVICE,
  TIMEBASE_HZ,
  UART0,
  VIRTIO_MMIO_SLOTS,
  virtioMmioSlot,
} from './memory_map.ts';

/** Multi-letter extensions, in the order in which an ISA string lists them */
const EXTENSIONS = [
  'zicbom',
  'zicbop',
  'zicboz',
  'zicntr',
  'zicond',
  'zicsr',
  'zifencei',
  'zihintpause',
  'zihpm',
  'zba',
  'zbb',
  'zbs',
  'sstc',
  'svadu',
  'svinval',
  'svpbmt',
] as const;
const SINGLE_LETTERS = 'imafdc';

/** As in the deprecated `riscv,isa` */
export const ISA_STRING = `rv64${SINGLE_LETTERS}_${EXTENSIONS.join('_')}`;
/** In `bytes`, of cbo.* */
export const CACHE_BLOCK_BYTES = 64;

/** Values of test-device writes that power off and reboot */
const POWER_OFF = 0x5555;
const REBOOT = 0x7777;
/** What QEMU announces for the UART's clock, in `Hz` */
const UART_CLOCK_HZ = 3_686_400;
/** `mip` numbers of the interrupt sources, as the interrupt-controller binding has them */
const SSI = 1;
const MSI = 3;
const MTI = 7;
const SEI = 9;
const MEI = 11;

// PCI bus binding: the address space of a `ranges` entry
const PCI_SPACE_IO = 0x0100_0000;
const PCI_SPACE_MEMORY_32 = 0x0200_0000;
const PCI_SPACE_MEMORY_64 = 0x0300_0000;

export interface DeviceTreeOptions {
  /** In `bytes` */
  readonly ramBytes: number;
  /** 1..8 */
  readonly harts: number;
  /** As QEMU's `aclint=on`: MSWI, MTIMER and SSWI nodes instead of the CLINT's */
  readonly aclint?: boolean;
}

export interface ChosenOptions {
  readonly bootargs?: string | undefined;
  /** `[start, end)` in guest physical space */
  readonly initrd?: { readonly start: number; readonly end: number } | undefined;
  /** Fresh entropy for the guest's random pool */
  readonly rngSeed?: Uint8Array | undefined;
}

/**
 * The tree that describes the machine, as QEMU's `-M virt` describes its own; `docs/devices/device_tree.md` lists
 * the differences. Without `/chosen`: see {@link setChosen}.
 */
export function buildDeviceTree(options: DeviceTreeOptions): FdtNode {
  const { harts, ramBytes } = options;
  if (!Number.isInteger(harts) || harts < 1 || harts > MAX_HARTS) {
    throw new RangeError(`Cannot describe ${harts} harts: 1..${MAX_HARTS}`);
  }
  // Phandles: 1..harts are the harts' interrupt controllers, then theirs themselves, then these two
  const intc = (hart: number) => 1 + hart;
  const cpu = (hart: number) => 1 + harts + hart;
  const plic = 1 + 2 * harts;
  const test = plic + 1;
  const perHart = (...sources: number[]) =>
    Array.from({ length: harts }, (_, hart) => sources.flatMap((source) => [intc(hart), source])).flat();

  const root = new FdtNode('')
    .cells('#address-cells', 2)
    .cells('#size-cells', 2)
    .text('compatible', 'riscv-virtio')
    .text('model', 'riscv-virtio,qemu');
  root
    .child(`memory@${RAM_START.toString(16)}`)
    .text('device_type', 'memory')
    .cells64('reg', RAM_START, ramBytes);

  const cpus = root
    .child('cpus')
    .cells('#address-cells', 1)
    .cells('#size-cells', 0)
    .cells('timebase-frequency', TIMEBASE_HZ);
  for (let hart = 0; hart < harts; hart++) addHart(cpus, hart, cpu(hart), intc(hart));
  const cluster = cpus.child('cpu-map').child('cluster0');
  for (let hart = 0; hart < harts; hart++) cluster.child(`core${hart}`).cells('cpu', cpu(hart));

  const soc = root
    .child('soc')
    .cells('#address-cells', 2)
    .cells('#size-cells', 2)
    .text('compatible', 'simple-bus')
    .flag('ranges');
  if (options.aclint === true) addAclint(soc, perHart);
  else {
    soc
      .child(unit('clint', CLINT.base))
      .text('compatible', 'sifive,clint0', 'riscv,clint0')
      .cells64('reg', CLINT.base, CLINT.size)
      .cells('interrupts-extended', ...perHart(MSI, MTI));
  }
  soc
    .child(unit('plic', PLIC.base))
    .text('compatible', 'sifive,plic-1.0.0', 'riscv,plic0')
    .cells64('reg', PLIC.base, PLIC.size)
    .cells('#address-cells', 0)
    .cells('#interrupt-cells', 1)
    .flag('interrupt-controller')
    .cells('interrupts-extended', ...perHart(MEI, SEI))
    .cells('riscv,ndev', PLIC_SOURCES - 1)
    .cells('phandle', plic);
  soc
    .child(unit('test', TEST_DEVICE.base))
    .text('compatible', 'sifive,test1', 'sifive,test0', 'syscon')
    .cells64('reg', TEST_DEVICE.base, TEST_DEVICE.size)
    .cells('phandle', test);
  soc
    .child(unit('serial', UART0.base))
    .text('compatible', 'ns16550a')
    .cells64('reg', UART0.base, UART0.size)
    .cells('clock-frequency', UART_CLOCK_HZ)
    .cells('interrupts', IRQ.uart0)
    .cells('interrupt-parent', plic);
  soc
    .child(unit('rtc', RTC.base))
    .text('compatible', 'google,goldfish-rtc')
    .cells64('reg', RTC.base, RTC.size)
    .cells('interrupts', IRQ.rtc)
    .cells('interrupt-parent', plic);
  for (let slot = 0; slot < VIRTIO_MMIO_SLOTS; slot++) {
    const { base, size } = virtioMmioSlot(slot);
    soc
      .child(unit('virtio_mmio', base))
      .text('compatible', 'virtio,mmio')
      .cells64('reg', base, size)
      .cells('interrupts', IRQ.virtioMmio + slot)
      .cells('interrupt-parent', plic);
  }
  addPcie(soc, plic);

  addSyscon(root, 'poweroff', POWER_OFF, test);
  addSyscon(root, 'reboot', REBOOT, test);
  root
    .child(unit('fw-cfg', FW_CFG.base))
    .text('compatible', 'qemu,fw-cfg-mmio')
    .cells64('reg', FW_CFG.base, FW_CFG.size)
    .flag('dma-coherent');
  root.child('chosen').text('stdout-path', `/soc/${unit('serial', UART0.base)}`);
  return root;
}

/** Writes what the boot decides into `/chosen`; also into a tree that came from a file. */
export function setChosen(root: FdtNode, chosen: ChosenOptions): void {
  const node = root.child('chosen');
  if (chosen.bootargs !== undefined && chosen.bootargs !== '') node.text('bootargs', chosen.bootargs);
  if (chosen.initrd !== undefined) {
    node.cells64('linux,initrd-start', chosen.initrd.start).cells64('linux,initrd-end', chosen.initrd.end);
  }
  if (chosen.rngSeed !== undefined) node.bytes('rng-seed', chosen.rngSeed);
}

function addHart(cpus: FdtNode, hart: number, phandle: number, intc: number): void {
  cpus
    .child(`cpu@${hart.toString(16)}`)
    .text('device_type', 'cpu')
    .cells('reg', hart)
    .text('status', 'okay')
    .text('compatible', 'riscv')
    .text('riscv,isa', ISA_STRING)
    .text('riscv,isa-base', 'rv64i')
    .text('riscv,isa-extensions', ...SINGLE_LETTERS, ...EXTENSIONS)
    .cells('riscv,cbom-block-size', CACHE_BLOCK_BYTES)
    .cells('riscv,cbop-block-size', CACHE_BLOCK_BYTES)
    .cells('riscv,cboz-block-size', CACHE_BLOCK_BYTES)
    .text('mmu-type', 'riscv,sv57')
    .cells('phandle', phandle)
    .child('interrupt-controller')
    .text('compatible', 'riscv,cpu-intc')
    .cells('#interrupt-cells', 1)
    .flag('interrupt-controller')
    .cells('phandle', intc);
}

function addAclint(soc: FdtNode, perHart: (...sources: number[]) => number[]): void {
  const mswiBytes = 0x4000;
  const timecmp = CLINT.base + mswiBytes;
  const mtimeOffset = 0x7ff8;
  soc
    .child(unit('mswi', CLINT.base))
    .text('compatible', 'riscv,aclint-mswi')
    .cells64('reg', CLINT.base, mswiBytes)
    .cells('interrupts-extended', ...perHart(MSI))
    .flag('interrupt-controller')
    .cells('#interrupt-cells', 0);
  soc
    .child(unit('mtimer', timecmp))
    .text('compatible', 'riscv,aclint-mtimer')
    // mtime first, then mtimecmp, as the binding wants them
    .cells64('reg', timecmp + mtimeOffset, CLINT.size - mswiBytes - mtimeOffset, timecmp, mtimeOffset)
    .cells('interrupts-extended', ...perHart(MTI));
  soc
    .child(unit('sswi', SSWI.base))
    .text('compatible', 'riscv,aclint-sswi')
    .cells64('reg', SSWI.base, SSWI.size)
    .cells('interrupts-extended', ...perHart(SSI))
    .flag('interrupt-controller')
    .cells('#interrupt-cells', 0);
}

function addPcie(soc: FdtNode, plic: number): void {
  const window = (space: number, pci: number, { base, size }: AddressRange) => [
    space,
    ...split64(pci),
    ...split64(base),
    ...split64(size),
  ];
  const ranges = [
    ...window(PCI_SPACE_IO, 0, PCIE_PIO),
    ...window(PCI_SPACE_MEMORY_32, PCIE_MMIO.base, PCIE_MMIO),
    ...window(PCI_SPACE_MEMORY_64, PCIE_MMIO_HIGH.base, PCIE_MMIO_HIGH),
  ];
  // Device numbers count modulo 4 (the mask keeps two bits of them), pins are INTA 1 .. INTD 4
  const interruptMap: number[] = [];
  for (let device = 0; device < 4; device++) {
    for (let pin = 1; pin <= 4; pin++) {
      interruptMap.push(device << 11, 0, 0, pin, plic, pcieInterrupt(device, pin));
    }
  }
  soc
    .child(unit('pci', PCIE_ECAM.base))
    .text('compatible', 'pci-host-ecam-generic')
    .text('device_type', 'pci')
    .cells('#address-cells', 3)
    .cells('#size-cells', 2)
    .cells('#interrupt-cells', 1)
    .cells('linux,pci-domain', 0)
    .cells('bus-range', 0, 0xff)
    .flag('dma-coherent')
    .cells64('reg', PCIE_ECAM.base, PCIE_ECAM.size)
    .cells('ranges', ...ranges)
    .cells('interrupt-map', ...interruptMap)
    .cells('interrupt-map-mask', 3 << 11, 0, 0, 7);
}

function addSyscon(root: FdtNode, name: string, value: number, regmap: number): void {
  root
    .child(name)
    .text('compatible', `syscon-${name}`)
    .cells('regmap', regmap)
    .cells('offset', 0)
    .cells('value', value);
}

function unit(name: string, address: number): string {
  return `${name}@${address.toString(16)}`;
}
