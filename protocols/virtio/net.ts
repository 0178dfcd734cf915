import { Cursor, Writer } from '../bytes/mod.ts';

// Network device (virtio 1.2 §5.1), link only: no offloads, one queue pair.

export const VIRTIO_NET_F_MTU = 3;
export const VIRTIO_NET_F_MAC = 5;
export const VIRTIO_NET_F_STATUS = 16;

export const VIRTIO_NET_S_LINK_UP = 1;

/** With `num_buffers`, which VERSION_1 always has (§5.1.6.1), in `bytes` */
export const VIRTIO_NET_HDR_BYTES = 12;
export const VIRTIO_NET_CONFIG_BYTES = 12;
export const VIRTIO_NET_HDR_GSO_NONE = 0;

/** `struct virtio_net_hdr` */
export interface VirtioNetHeader {
  readonly flags: number;
  readonly gsoType: number;
  readonly headerLength: number;
  readonly gsoSize: number;
  readonly checksumStart: number;
  readonly checksumOffset: number;
  readonly buffers: number;
}

export function decodeVirtioNetHeader(bytes: Uint8Array): VirtioNetHeader {
  const cursor = new Cursor(bytes, 'virtio_net_hdr');
  const header = {
    flags: cursor.u8('flags'),
    gsoType: cursor.u8('gso_type'),
    headerLength: cursor.u16le('hdr_len'),
    gsoSize: cursor.u16le('gso_size'),
    checksumStart: cursor.u16le('csum_start'),
    checksumOffset: cursor.u16le('csum_offset'),
    buffers: cursor.u16le('num_buffers'),
  };
  cursor.end();
  return header;
}

export function encodeVirtioNetHeader(header: VirtioNetHeader): Uint8Array<ArrayBuffer> {
  return new Writer(VIRTIO_NET_HDR_BYTES)
    .u8(header.flags)
    .u8(header.gsoType)
    .u16le(header.headerLength)
    .u16le(header.gsoSize)
    .u16le(header.checksumStart)
    .u16le(header.checksumOffset)
    .u16le(header.buffers)
    .finish();
}

/** `struct virtio_net_config` up to and with `mtu` */
export interface VirtioNetConfig {
  /** Six bytes */
  readonly mac: Uint8Array;
  readonly status: number;
  readonly mtu: number;
}

export function encodeVirtioNetConfig(config: VirtioNetConfig): Uint8Array<ArrayBuffer> {
  if (config.mac.length !== 6) throw new RangeError(`Cannot use a MAC of ${config.mac.length} bytes: expected 6`);
  return new Writer(VIRTIO_NET_CONFIG_BYTES)
    .bytes(config.mac)
    .u16le(config.status)
    .u16le(1) // max_virtqueue_pairs
    .u16le(config.mtu)
    .finish();
}

export function decodeVirtioNetConfig(bytes: Uint8Array): VirtioNetConfig {
  const cursor = new Cursor(bytes, 'virtio_net_config');
  const mac = cursor.bytes(6, 'mac').slice();
  const status = cursor.u16le('status');
  cursor.skip(2, 'max_virtqueue_pairs');
  const mtu = cursor.u16le('mtu');
  cursor.end();
  return { mac, status, mtu };
}
