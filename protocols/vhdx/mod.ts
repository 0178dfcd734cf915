export { decodeVhdxBatEntry, VHDX_BAT_ENTRY_BYTES, type VhdxBlockKind, vhdxBatEntries, vhdxChunkRatio } from './bat.ts';
export { crc32c } from './crc32c.ts';
export { NO_GUID } from './guid.ts';
export {
  decodeVhdxHeader,
  decodeVhdxRegionTable,
  looksLikeVhdx,
  VHDX_HEADER_BYTES,
  VHDX_HEADER_OFFSETS,
  VHDX_HEADER_SECTION_BYTES,
  VHDX_REGION,
  VHDX_REGION_TABLE_BYTES,
  VHDX_REGION_TABLE_OFFSETS,
  type VhdxHeader,
  type VhdxRegion,
} from './header.ts';
export { VHDX_LIMITS } from './limits.ts';
export {
  decodeVhdxLogEntry,
  isWholeVhdxLogEntry,
  peekVhdxLogEntry,
  VHDX_LOG_SECTOR_BYTES,
  type VhdxLogChange,
  type VhdxLogEntryHeader,
} from './log.ts';
export { decodeVhdxMetadata, VHDX_METADATA_TABLE_BYTES, type VhdxMetadata } from './metadata.ts';
