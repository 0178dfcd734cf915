export {
  type ControlKind,
  type ControlMessage,
  type DeviceVersion,
  decodeControl,
  encodeControl,
  frameControl,
  type Manifest,
  printable,
  type RamBlock,
} from './control.ts';
export { type Crc32, crc32, crc32Shift } from './crc32.ts';
export { type MigrationFrame, MigrationFrames } from './frame.ts';
export * from './limits.ts';
export * from './machine_link.ts';
export {
  decodeRecord,
  decodeRecordHeader,
  encodeRecord,
  encodeRecordHeader,
  MAX_RECORD_BYTES,
  RECORD_HEADER_BYTES,
  RECORD_MAGIC,
  type RecordFields,
  type RecordHeader,
  RecordKind,
  RecordOrder,
  type RecordSession,
  recordHeaderCrc,
} from './record.ts';
export { type SessionMessage, type SessionPhase, SessionState } from './session.ts';
