import { Cursor, Writer } from '../bytes/mod.ts';

/** Size of one split-ring descriptor, in `bytes` (virtio 1.2 §2.7.5) */
export const VIRTQ_DESC_BYTES = 16;

export const VIRTQ_DESC_F_NEXT = 1;
export const VIRTQ_DESC_F_WRITE = 2;
export const VIRTQ_DESC_F_INDIRECT = 4;

/** `struct virtq_desc`: one piece of a buffer, as the driver wrote it. Nothing of it is checked yet. */
export interface VirtqDescriptor {
  /** Guest physical */
  readonly address: bigint;
  /** In `bytes` */
  readonly length: number;
  readonly flags: number;
  /** Index of the continuation when VIRTQ_DESC_F_NEXT is set */
  readonly next: number;
}

/** Shape only: unknown flags are the driver's to set and ours to ignore (§2.7.5). */
export function decodeVirtqDescriptor(bytes: Uint8Array): VirtqDescriptor {
  const cursor = new Cursor(bytes, 'virtq_desc');
  const descriptor = {
    address: cursor.u64le('addr'),
    length: cursor.u32le('len'),
    flags: cursor.u16le('flags'),
    next: cursor.u16le('next'),
  };
  cursor.end();
  return descriptor;
}

export function encodeVirtqDescriptor(descriptor: VirtqDescriptor): Uint8Array<ArrayBuffer> {
  return new Writer(VIRTQ_DESC_BYTES)
    .u64le(descriptor.address)
    .u32le(descriptor.length)
    .u16le(descriptor.flags)
    .u16le(descriptor.next)
    .finish();
}
