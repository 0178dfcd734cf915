export { decodeBitmapDirectory, type Qcow2Bitmap } from './bitmaps.ts';
export {
  decodeL1Entry,
  decodeL2Entry,
  decodeSubcluster,
  encodeEntry,
  type L2Format,
  type Mapping,
  type MappingKind,
} from './entries.ts';
export {
  AUTOCLEAR,
  type BitmapsExtension,
  type CompressionType,
  decodeHeader,
  encodeHeader,
  HEADER_FIELD,
  INCOMPATIBLE,
  peekClusterBytes,
  QCOW2_PEEK_BYTES,
  QCOW2_V2_HEADER_BYTES,
  QCOW2_V3_HEADER_BYTES,
  type Qcow2Header,
} from './header.ts';
export { QCOW2_LIMITS } from './limits.ts';
export { maxRefcount, readRefcount, refcountsPerBlock, writeRefcount } from './refcounts.ts';
export { decodeSnapshotTable, type Qcow2Snapshot } from './snapshots.ts';
export { zstdFrameBytes } from './zstd_frame.ts';
