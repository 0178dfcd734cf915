import { Cursor, Writer } from '../bytes/mod.ts';

// Vendor capabilities of a virtio PCI function (virtio 1.2 §4.1.4).

export const VIRTIO_PCI_CAP_COMMON_CFG = 1;
export const VIRTIO_PCI_CAP_NOTIFY_CFG = 2;
export const VIRTIO_PCI_CAP_ISR_CFG = 3;
export const VIRTIO_PCI_CAP_DEVICE_CFG = 4;
export const VIRTIO_PCI_CAP_PCI_CFG = 5;

/** PCI_CAP_ID_VNDR */
export const PCI_CAPABILITY_VENDOR = 0x09;
export const VIRTIO_PCI_CAP_BYTES = 16;
/** With `notify_off_multiplier`, or with `pci_cfg_data` */
export const VIRTIO_PCI_LONG_CAP_BYTES = 20;

/** `struct virtio_pci_cap`, and the 32-bit tail that two of its kinds have */
export interface VirtioPciCapability {
  /** Offset of the next capability in configuration space, 0 for the last */
  readonly next: number;
  readonly type: number;
  readonly bar: number;
  readonly id: number;
  /** In the BAR, in `bytes` */
  readonly offset: number;
  readonly length: number;
  /** `notify_off_multiplier` or `pci_cfg_data` */
  readonly tail: number | undefined;
}

export function decodeVirtioPciCapability(bytes: Uint8Array): VirtioPciCapability {
  const cursor = new Cursor(bytes, 'virtio_pci_cap');
  cursor.expectU8(PCI_CAPABILITY_VENDOR, 'cap_vndr');
  const next = cursor.u8('cap_next');
  const size = cursor.u8('cap_len');
  if (size !== VIRTIO_PCI_CAP_BYTES && size !== VIRTIO_PCI_LONG_CAP_BYTES) {
    throw cursor.error('ERR_WIRE_VALUE', `Cannot accept virtio_pci_cap cap_len: found ${size}, expected 16 or 20`);
  }
  const type = cursor.u8('cfg_type');
  const bar = cursor.u8('bar');
  const id = cursor.u8('id');
  cursor.expectU16(0, 'padding');
  const offset = cursor.u32le('offset');
  const length = cursor.u32le('length');
  const tail = size === VIRTIO_PCI_LONG_CAP_BYTES ? cursor.u32le('tail') : undefined;
  cursor.end();
  return { next, type, bar, id, offset, length, tail };
}

export function encodeVirtioPciCapability(capability: VirtioPciCapability): Uint8Array<ArrayBuffer> {
  const { tail } = capability;
  const writer = new Writer(VIRTIO_PCI_LONG_CAP_BYTES)
    .u8(PCI_CAPABILITY_VENDOR)
    .u8(capability.next)
    .u8(tail === undefined ? VIRTIO_PCI_CAP_BYTES : VIRTIO_PCI_LONG_CAP_BYTES)
    .u8(capability.type)
    .u8(capability.bar)
    .u8(capability.id)
    .zeroes(2)
    .u32le(capability.offset)
    .u32le(capability.length);
  if (tail !== undefined) writer.u32le(tail);
  return writer.finish();
}
