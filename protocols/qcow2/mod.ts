export {
  type BitmapTableEntry,
  bitmapFlags,
  decodeBitmapDirectory,
  decodeBitmapTable,
  encodeBitmapDirectory,
  encodeBitmapTable,
  type Qcow2Bitmap,
} from './bitmaps.ts';
export {
  type ClusterEntry,
  decodeClusterEntry,
  decodeL1Entry,
  decodeL2Entry,
  decodeSubcluster,
  encodeCompressedEntry,
  encodeEntry,
  type L2Format,
  type Mapping,
  type MappingKind,
} from './entries.ts';
export { decodeHeader, peekClusterBytes } from './header.ts';
export { encodeHeader, encodeHeaderArea, type HeaderFields } from './header_encode.ts';
export {
  AUTOCLEAR,
  type BitmapsExtension,
  COMPATIBLE,
  type CompressionType,
  featureNamesFor,
  HEADER_FIELD,
  type HeaderExtension,
  hasFeature,
  INCOMPATIBLE,
  QCOW2_PEEK_BYTES,
  QCOW2_V2_HEADER_BYTES,
  QCOW2_V3_HEADER_BYTES,
  type Qcow2Header,
} from './header_layout.ts';
export { QCOW2_LIMITS } from './limits.ts';
export { maxRefcount, readRefcount, refcountsPerBlock, writeRefcount } from './refcounts.ts';
export { decodeSnapshotTable, encodeSnapshotTable, type Qcow2Snapshot } from './snapshots.ts';
export { zstdFrameBytes } from './zstd_frame.ts';
