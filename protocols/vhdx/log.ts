import { Cursor } from '../bytes/mod.ts';
import { crc32c } from './crc32c.ts';
import { decodeGuid } from './guid.ts';
import { sizeOf, swap, VHDX_HEADER_SECTION_BYTES } from './header.ts';
import { VHDX_LIMITS } from './limits.ts';

export const VHDX_LOG_SECTOR_BYTES = 4096;
const ENTRY_HEADER_BYTES = 64;
const DESCRIPTOR_BYTES = 32;
/** "loge", "zero", "desc", "data" */
const ENTRY_SIGNATURE = 0x6567_6f6c;
const ZERO_SIGNATURE = 0x6f72_657a;
const DATA_SIGNATURE = 0x6373_6564;
const SECTOR_SIGNATURE = 0x6174_6164;

/** The first 64 bytes of a log entry. MS-VHDX 2.3.1.1 */
export interface VhdxLogEntryHeader {
  readonly checksum: number;
  readonly entryBytes: number;
  /** In the log, in `bytes`: the entry where the sequence began */
  readonly tail: number;
  readonly sequence: bigint;
  readonly descriptors: number;
  readonly logGuid: string;
  /** The file had at least this size when the entry was written, in `bytes` */
  readonly flushedFileBytes: number;
  /** The file has at least this size after the replay, in `bytes` */
  readonly lastFileBytes: number;
}

/** One change that a log entry makes to the file. */
export type VhdxLogChange =
  | { readonly kind: 'zero'; readonly offset: number; readonly lengthBytes: number }
  /** One sector */
  | { readonly kind: 'data'; readonly offset: number; readonly bytes: Uint8Array };

/** Undefined where no entry can begin: most of a log is old entries and zeroes. */
export function peekVhdxLogEntry(bytes: Uint8Array, logBytes: number): VhdxLogEntryHeader | undefined {
  const cursor = new Cursor(bytes, 'VHDX log entry');
  if (cursor.u32('signature') !== swap(ENTRY_SIGNATURE)) return undefined;
  const checksum = cursor.u32le('checksum');
  const entryBytes = cursor.u32le('entry length');
  const tail = cursor.u32le('tail');
  const sequence = cursor.u64le('sequence number');
  const descriptors = cursor.u32le('descriptor count');
  cursor.skip(4, 'reserved');
  const logGuid = decodeGuid(cursor, 'log id');
  const flushed = cursor.u64le('flushed file offset');
  const last = cursor.u64le('last file offset');
  const whole = (value: number): boolean => value % VHDX_LOG_SECTOR_BYTES === 0;
  if (entryBytes === 0 || entryBytes > logBytes || !whole(entryBytes) || tail >= logBytes || !whole(tail))
    return undefined;
  if (sequence === 0n || descriptors > (entryBytes - ENTRY_HEADER_BYTES) / DESCRIPTOR_BYTES) return undefined;
  const end = BigInt(VHDX_LIMITS.sizeBytes * 2);
  if (flushed > end || last > end) return undefined;
  return {
    checksum,
    entryBytes,
    tail,
    sequence,
    descriptors,
    logGuid,
    flushedFileBytes: Number(flushed),
    lastFileBytes: Number(last),
  };
}

/** Whether the bytes of a whole entry are what was written. */
export function isWholeVhdxLogEntry(entry: Uint8Array, header: VhdxLogEntryHeader): boolean {
  return crc32c(entry, 4) === header.checksum;
}

/**
 * Decodes what a whole entry changes. Its checksum was right, so that a wrong part is no accident.
 * @throws WireError
 */
export function decodeVhdxLogEntry(entry: Uint8Array, header: VhdxLogEntryHeader): VhdxLogChange[] {
  const name = 'VHDX log entry';
  const cursor = new Cursor(entry, name);
  cursor.skip(ENTRY_HEADER_BYTES, 'header');
  const refuse = (why: string) => cursor.error('ERR_WIRE_VALUE', `Cannot replay the ${name}: ${why}`);
  const described = ENTRY_HEADER_BYTES + header.descriptors * DESCRIPTOR_BYTES;
  const data = new Cursor(entry, name);
  data.skip(Math.ceil(described / VHDX_LOG_SECTOR_BYTES) * VHDX_LOG_SECTOR_BYTES, 'descriptors');
  const changes: VhdxLogChange[] = [];
  for (let index = 0; index < header.descriptors; index++) {
    const signature = swap(cursor.u32('descriptor signature'));
    const trailing = cursor.bytes(4, 'trailing bytes');
    const leading = cursor.bytes(8, 'leading bytes');
    const fileOffset = cursor.u64le('file offset');
    if (cursor.u64le('sequence number') !== header.sequence) throw refuse('a descriptor of another entry');
    const offset = sizeOf(cursor, fileOffset, 'file offset');
    if (offset % VHDX_LOG_SECTOR_BYTES !== 0) throw refuse(`a change at ${offset}, not at a sector of 4096 bytes`);
    if (offset < VHDX_HEADER_SECTION_BYTES) throw refuse(`a change at ${offset}, in the headers of the file`);
    if (signature === ZERO_SIGNATURE) {
      const length = new Cursor(leading, name).u64le('zero length');
      const lengthBytes = sizeOf(cursor, length, 'zero length');
      if (lengthBytes % VHDX_LOG_SECTOR_BYTES !== 0) throw refuse(`zeroes of ${lengthBytes} bytes`);
      changes.push({ kind: 'zero', offset, lengthBytes });
    } else if (signature === DATA_SIGNATURE) {
      if (swap(data.u32('data signature')) !== SECTOR_SIGNATURE) throw refuse('a data sector without its signature');
      const high = data.u32le('sequence high');
      const middle = data.bytes(4084, 'data');
      const low = data.u32le('sequence low');
      if ((BigInt(high) << 32n) + BigInt(low) !== header.sequence) throw refuse('a data sector of another entry');
      const bytes = new Uint8Array(VHDX_LOG_SECTOR_BYTES);
      bytes.set(leading);
      bytes.set(middle, 8);
      bytes.set(trailing, 4092);
      changes.push({ kind: 'data', offset, bytes });
    } else throw refuse(`descriptor signature 0x${signature.toString(16)}`);
  }
  return changes;
}
