import type { DisplayHead, KeyboardSink, TabletSink } from '../devices/backends.ts';
import type { MmioDevice } from '../devices/device.ts';
import { FwCfg } from '../devices/fw_cfg/mod.ts';
import { PciHost } from '../devices/pci/mod.ts';
import {
  emptyVirtioMmio,
  VirtioBalloon,
  VirtioBlk,
  VirtioConsole,
  type VirtioDevice,
  VirtioGpu,
  VirtioKeyboard,
  VirtioMmioTransport,
  VirtioNet,
  VirtioPciTransport,
  VirtioRng,
  VirtioTablet,
} from '../devices/virtio/mod.ts';
import type { GuestMemory } from '../memory/guest_memory.ts';
import type { Stateful } from '../state/state.ts';
import type { Window } from './bus.ts';
import type { MachineOptions } from './machine_api.ts';
import {
  FW_CFG,
  IRQ,
  PCIE_ECAM,
  PCIE_MMIO,
  PCIE_MMIO_HIGH,
  PCIE_PIO,
  VIRTIO_MMIO_SLOTS,
  virtioMmioSlot,
} from './memory_map.ts';
import type { MachinePlatform } from './platform.ts';
import type { SharedDevices } from './shared_devices.ts';

/** As QEMU gives to its first card */
const DEFAULT_MAC = Uint8Array.of(0x52, 0x54, 0x00, 0x12, 0x34, 0x56);

/** What devices need of the platform. */
export interface DevicePlatform extends Pick<MachinePlatform, 'fillRandom' | 'onProblem'> {
  /** Runs a task between two runs of the harts, where the host's clock must not matter */
  readonly defer?: (task: () => void) => void;
}

/** The devices that live on the main thread. */
export interface MainDevices {
  readonly windows: readonly Window[];
  readonly virtio: readonly VirtioDevice[];
  /** Reset in this order: transports and buses before what hangs on them */
  readonly resets: readonly { reset(): void }[];
  readonly stateful: readonly Stateful[];
  readonly virtioConsole: VirtioConsole | undefined;
  readonly display: DisplayHead | undefined;
  readonly keyboard: KeyboardSink | undefined;
  readonly tablet: TabletSink | undefined;
}

/** Puts devices where QEMU's `-M virt` has them: PCI slots from 1 upwards, virtio-mmio slots from 7 downwards. */
export function buildMainDevices(
  options: MachineOptions,
  memory: GuestMemory,
  { plic, pci: shared, mmio: interrupts }: Pick<SharedDevices, 'plic' | 'pci' | 'mmio'>,
  platform: DevicePlatform,
): MainDevices {
  const pci = new PciHost({ shared });
  const virtio: VirtioDevice[] = [];
  const stateful: Stateful[] = [pci];
  const mmio: { slot: number; transport: VirtioMmioTransport }[] = [];
  let nextPci = 1;
  const common = (id: string) => ({
    memory,
    id,
    ...(platform.onProblem === undefined ? {} : { onProblem: platform.onProblem }),
    ...(platform.defer === undefined ? {} : { defer: platform.defer, turnMs: Number.POSITIVE_INFINITY }),
  });
  const onPci = <T extends VirtioDevice>(device: T): T => {
    const transport = new VirtioPciTransport(device);
    pci.add(nextPci++, transport);
    virtio.push(device);
    stateful.push(device, transport);
    return device;
  };
  const onMmio = <T extends VirtioDevice>(device: T): T => {
    // QEMU fills the slots from the last one down
    const slot = VIRTIO_MMIO_SLOTS - 1 - mmio.length;
    if (slot < 0)
      throw new RangeError(`Cannot add ${device.name}: all ${VIRTIO_MMIO_SLOTS} virtio-mmio slots are taken`);
    const transport = new VirtioMmioTransport(device, plic.line(IRQ.virtioMmio + slot), interrupts[slot]!);
    mmio.push({ slot, transport });
    virtio.push(device);
    stateful.push(device, transport);
    return device;
  };

  for (const disk of options.disks) {
    const device = new VirtioBlk({ ...common(`virtio-${disk.id}`), backend: disk.backend });
    if (disk.bus === 'virtio-mmio') onMmio(device);
    else onPci(device);
  }
  onPci(new VirtioRng({ ...common('virtio-rng0'), fillRandom: platform.fillRandom }));

  const display = options.display ? onPci(new VirtioGpu(common('virtio-gpu0'))) : undefined;
  const keyboard = options.display ? onPci(new VirtioKeyboard(common('virtio-keyboard0'))) : undefined;
  const tablet = options.display ? onPci(new VirtioTablet(common('virtio-tablet0'))) : undefined;
  const virtioConsole =
    options.virtioConsole === true ? onPci(new VirtioConsole(common('virtio-console0'))) : undefined;
  onPci(new VirtioBalloon(common('virtio-balloon0')));
  if (options.network) onPci(new VirtioNet({ ...common('virtio-net0'), mac: DEFAULT_MAC }));

  const fwCfg = new FwCfg(memory, { ramBytes: options.ramBytes, harts: options.harts });
  stateful.push(fwCfg);

  const windows: Window[] = [
    { range: FW_CFG, device: fwCfg },
    { range: PCIE_ECAM, device: pci.ecam },
    { range: PCIE_MMIO, device: pci.mmio32 },
    { range: PCIE_MMIO_HIGH, device: pci.mmio64 },
    { range: PCIE_PIO, device: pci.pio },
  ];
  for (let slot = 0; slot < VIRTIO_MMIO_SLOTS; slot++) {
    const taken: MmioDevice | undefined = mmio.find((entry) => entry.slot === slot)?.transport;
    windows.push({ range: virtioMmioSlot(slot), device: taken ?? emptyVirtioMmio });
  }
  const resets: { reset(): void }[] = [
    fwCfg,
    pci,
    ...virtio.filter((device) => mmio.some(({ transport }) => transport.device === device)),
  ];
  return { windows, virtio, resets, stateful, display, keyboard, tablet, virtioConsole };
}
