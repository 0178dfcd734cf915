import { Cursor, Writer } from '../bytes/mod.ts';
import { VIRTQ_DESC_BYTES } from './descriptor.ts';

// Layout of a split virtqueue (virtio 1.2 §2.7). Offsets are from the start of each part.

/** Largest ring that the specification allows (§2.7), in descriptors */
export const VIRTQUEUE_MAX_SIZE = 32768;

export const VIRTQ_DESC_ALIGN = 16;
export const VIRTQ_AVAIL_ALIGN = 2;
export const VIRTQ_USED_ALIGN = 4;

export const VIRTQ_AVAIL_F_NO_INTERRUPT = 1;
export const VIRTQ_USED_F_NO_NOTIFY = 1;

export const VIRTQ_AVAIL_FLAGS = 0;
export const VIRTQ_AVAIL_IDX = 2;
export const VIRTQ_AVAIL_RING = 4;
export const VIRTQ_USED_FLAGS = 0;
export const VIRTQ_USED_IDX = 2;
export const VIRTQ_USED_RING = 4;
export const VIRTQ_USED_ELEM_BYTES = 8;

/** A split ring's size is a power of two up to 32768 (§2.7). */
export function isVirtqueueSize(size: number): boolean {
  return Number.isInteger(size) && size >= 1 && size <= VIRTQUEUE_MAX_SIZE && (size & (size - 1)) === 0;
}

/** Bytes of the descriptor table. */
export function descriptorTableBytes(size: number): number {
  return VIRTQ_DESC_BYTES * size;
}
/** Bytes of the available ring, `used_event` included. */
export function availRingBytes(size: number): number {
  return VIRTQ_AVAIL_RING + 2 * size + 2;
}
/** Bytes of the used ring, `avail_event` included. */
export function usedRingBytes(size: number): number {
  return VIRTQ_USED_RING + VIRTQ_USED_ELEM_BYTES * size + 2;
}
/** Offset of `used_event` in the available ring. */
export function usedEventOffset(size: number): number {
  return VIRTQ_AVAIL_RING + 2 * size;
}
/** Offset of `avail_event` in the used ring. */
export function availEventOffset(size: number): number {
  return VIRTQ_USED_RING + VIRTQ_USED_ELEM_BYTES * size;
}

/** True when moving an index from `previous` to `next` passes `event` (§2.7.10): all modulo 2^16. */
export function passesEvent(event: number, next: number, previous: number): boolean {
  return ((next - event - 1) & 0xffff) < ((next - previous) & 0xffff);
}

/** `struct virtq_used_elem` */
export interface VirtqUsedElement {
  /** Head of the chain that was used */
  readonly id: number;
  /** Written into the chain's device-writable part, in `bytes` */
  readonly length: number;
}

export function decodeVirtqUsedElement(bytes: Uint8Array): VirtqUsedElement {
  const cursor = new Cursor(bytes, 'virtq_used_elem');
  const element = { id: cursor.u32le('id'), length: cursor.u32le('len') };
  cursor.end();
  return element;
}

export function encodeVirtqUsedElement(element: VirtqUsedElement): Uint8Array<ArrayBuffer> {
  return new Writer(VIRTQ_USED_ELEM_BYTES).u32le(element.id).u32le(element.length).finish();
}
