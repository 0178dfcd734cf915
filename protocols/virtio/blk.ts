import { Cursor, Writer } from '../bytes/mod.ts';

// Block device (virtio 1.2 §5.2).

export const VIRTIO_BLK_F_SIZE_MAX = 1;
export const VIRTIO_BLK_F_SEG_MAX = 2;
export const VIRTIO_BLK_F_RO = 5;
export const VIRTIO_BLK_F_BLK_SIZE = 6;
export const VIRTIO_BLK_F_FLUSH = 9;
export const VIRTIO_BLK_F_TOPOLOGY = 10;
export const VIRTIO_BLK_F_DISCARD = 13;
export const VIRTIO_BLK_F_WRITE_ZEROES = 14;

export const VIRTIO_BLK_T_IN = 0;
export const VIRTIO_BLK_T_OUT = 1;
export const VIRTIO_BLK_T_FLUSH = 4;
export const VIRTIO_BLK_T_GET_ID = 8;
export const VIRTIO_BLK_T_DISCARD = 11;
export const VIRTIO_BLK_T_WRITE_ZEROES = 13;

export const VIRTIO_BLK_S_OK = 0;
export const VIRTIO_BLK_S_IOERR = 1;
export const VIRTIO_BLK_S_UNSUPP = 2;

/** Unit of all sector numbers, whatever the block size, in `bytes` (§5.2.4) */
export const VIRTIO_BLK_SECTOR_BYTES = 512;
export const VIRTIO_BLK_ID_BYTES = 20;
export const VIRTIO_BLK_REQ_HEADER_BYTES = 16;
export const VIRTIO_BLK_SEGMENT_BYTES = 16;
export const VIRTIO_BLK_CONFIG_BYTES = 60;
export const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1;

/** The device-readable head of `struct virtio_blk_req` */
export interface VirtioBlkRequest {
  readonly type: number;
  /** Reserved, except as I/O priority in some drivers; ignored */
  readonly priority: number;
  /** In units of 512 bytes */
  readonly sector: bigint;
}

/** Shape only: an unknown type is answered with VIRTIO_BLK_S_UNSUPP, it is not an error. */
export function decodeVirtioBlkRequest(bytes: Uint8Array): VirtioBlkRequest {
  const cursor = new Cursor(bytes, 'virtio_blk_req');
  const request = {
    type: cursor.u32le('type'),
    priority: cursor.u32le('reserved'),
    sector: cursor.u64le('sector'),
  };
  cursor.end();
  return request;
}

export function encodeVirtioBlkRequest(request: VirtioBlkRequest): Uint8Array<ArrayBuffer> {
  return new Writer(VIRTIO_BLK_REQ_HEADER_BYTES)
    .u32le(request.type)
    .u32le(request.priority)
    .u64le(request.sector)
    .finish();
}

/** `struct virtio_blk_discard_write_zeroes` */
export interface VirtioBlkSegment {
  readonly sector: bigint;
  readonly sectors: number;
  readonly flags: number;
}

/**
 * The payload of a discard or write-zeroes request.
 * @throws WireError for a broken length or more than `maxSegments`
 */
export function decodeVirtioBlkSegments(bytes: Uint8Array, maxSegments: number): VirtioBlkSegment[] {
  const cursor = new Cursor(bytes, 'virtio_blk_discard_write_zeroes');
  const count = Math.ceil(bytes.length / VIRTIO_BLK_SEGMENT_BYTES);
  if (count === 0 || count > maxSegments) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot accept ${count} segments: expected 1..${maxSegments}`);
  }
  const segments: VirtioBlkSegment[] = [];
  for (let index = 0; index < count; index++) {
    segments.push({
      sector: cursor.u64le('sector'),
      sectors: cursor.u32le('num_sectors'),
      flags: cursor.u32le('flags'),
    });
  }
  return segments;
}

export function encodeVirtioBlkSegments(segments: readonly VirtioBlkSegment[]): Uint8Array<ArrayBuffer> {
  const writer = new Writer(VIRTIO_BLK_SEGMENT_BYTES * Math.max(segments.length, 1));
  for (const { sector, sectors, flags } of segments) writer.u64le(sector).u32le(sectors).u32le(flags);
  return writer.finish();
}

/** `struct virtio_blk_config` up to and with the write-zeroes limits; fields of features not offered are 0. */
export interface VirtioBlkConfig {
  /** In units of 512 bytes */
  readonly capacity: bigint;
  readonly sizeMax: number;
  readonly segMax: number;
  readonly blkSize: number;
  readonly physicalBlockExp: number;
  readonly minIoSize: number;
  readonly optIoSize: number;
  readonly maxDiscardSectors: number;
  readonly maxDiscardSeg: number;
  readonly discardSectorAlignment: number;
  readonly maxWriteZeroesSectors: number;
  readonly maxWriteZeroesSeg: number;
  readonly writeZeroesMayUnmap: number;
}

export function encodeVirtioBlkConfig(config: VirtioBlkConfig): Uint8Array<ArrayBuffer> {
  return new Writer(VIRTIO_BLK_CONFIG_BYTES)
    .u64le(config.capacity)
    .u32le(config.sizeMax)
    .u32le(config.segMax)
    .zeroes(4) // geometry: VIRTIO_BLK_F_GEOMETRY is not offered
    .u32le(config.blkSize)
    .u8(config.physicalBlockExp)
    .u8(0) // alignment_offset
    .u16le(config.minIoSize)
    .u32le(config.optIoSize)
    .u8(0) // writeback: VIRTIO_BLK_F_CONFIG_WCE is not offered
    .u8(0)
    .u16le(1) // num_queues
    .u32le(config.maxDiscardSectors)
    .u32le(config.maxDiscardSeg)
    .u32le(config.discardSectorAlignment)
    .u32le(config.maxWriteZeroesSectors)
    .u32le(config.maxWriteZeroesSeg)
    .u8(config.writeZeroesMayUnmap)
    .zeroes(3)
    .finish();
}

export function decodeVirtioBlkConfig(bytes: Uint8Array): VirtioBlkConfig {
  const cursor = new Cursor(bytes, 'virtio_blk_config');
  const capacity = cursor.u64le('capacity');
  const sizeMax = cursor.u32le('size_max');
  const segMax = cursor.u32le('seg_max');
  cursor.skip(4, 'geometry');
  const blkSize = cursor.u32le('blk_size');
  const physicalBlockExp = cursor.u8('physical_block_exp');
  cursor.skip(1, 'alignment_offset');
  const minIoSize = cursor.u16le('min_io_size');
  const optIoSize = cursor.u32le('opt_io_size');
  cursor.skip(4, 'writeback');
  const config = {
    capacity,
    sizeMax,
    segMax,
    blkSize,
    physicalBlockExp,
    minIoSize,
    optIoSize,
    maxDiscardSectors: cursor.u32le('max_discard_sectors'),
    maxDiscardSeg: cursor.u32le('max_discard_seg'),
    discardSectorAlignment: cursor.u32le('discard_sector_alignment'),
    maxWriteZeroesSectors: cursor.u32le('max_write_zeroes_sectors'),
    maxWriteZeroesSeg: cursor.u32le('max_write_zeroes_seg'),
    writeZeroesMayUnmap: cursor.u8('write_zeroes_may_unmap'),
  };
  cursor.skip(3, 'unused1');
  cursor.end();
  return config;
}
