import { Cursor, WireError } from '../bytes/mod.ts';
import { crc32c } from './crc32c.ts';
import { decodeGuid } from './guid.ts';
import { VHDX_LIMITS } from './limits.ts';

/** "The header section is the first 1 MB": identifier, two headers, two region tables; in `bytes` */
export const VHDX_HEADER_SECTION_BYTES = 1 << 20;
export const VHDX_HEADER_OFFSETS = [64 << 10, 128 << 10] as const;
export const VHDX_HEADER_BYTES = 4096;
export const VHDX_REGION_TABLE_OFFSETS = [192 << 10, 256 << 10] as const;
export const VHDX_REGION_TABLE_BYTES = 64 << 10;
/** "vhdxfile", little-endian */
const FILE_SIGNATURE = 0x656c_6966_7864_6876n;
/** "head" */
const HEADER_SIGNATURE = 0x6461_6568;
/** "regi" */
const REGION_SIGNATURE = 0x6967_6572;
const CHECKSUM_AT = 4;
const MIB = 1 << 20;

export const VHDX_REGION = {
  bat: '2dc27766-f623-4200-9d64-115e9bfd4a08',
  metadata: '8b7ca206-4790-4b9a-b8fe-575f050f886e',
} as const;

/** MS-VHDX 2.2.2 */
export interface VhdxHeader {
  /** The header with the greater one counts */
  readonly sequence: bigint;
  /** The log's entries carry it; all zero: there is nothing in the log */
  readonly logGuid: string;
  readonly logOffset: number;
  readonly logBytes: number;
}

/** MS-VHDX 2.2.3.2 */
export interface VhdxRegion {
  readonly guid: string;
  readonly offset: number;
  readonly lengthBytes: number;
  readonly required: boolean;
}

export function looksLikeVhdx(start: Uint8Array): boolean {
  return start.length >= 8 && new Cursor(start, 'VHDX file identifier').u64le('signature') === FILE_SIGNATURE;
}

/** Decodes one of the two headers. @throws WireError */
export function decodeVhdxHeader(bytes: Uint8Array): VhdxHeader {
  const cursor = new Cursor(bytes, 'VHDX header');
  cursor.expectU32(swap(HEADER_SIGNATURE), 'signature');
  const checksum = cursor.u32le('checksum');
  const sequence = cursor.u64le('sequence number');
  cursor.skip(32, 'file and data write ids');
  const logGuid = decodeGuid(cursor, 'log id');
  const logVersion = cursor.u16le('log version');
  const version = cursor.u16le('version');
  const logBytes = cursor.u32le('log length');
  const logOffset = cursor.u64le('log offset');
  cursor.skip(4016, 'reserved');
  cursor.end();
  expectCrc('VHDX header', bytes, checksum);
  if (version !== 1) throw cursor.error('ERR_WIRE_VALUE', `Cannot use the VHDX header: version ${version}, expected 1`);
  if (logVersion !== 0) {
    throw cursor.error('ERR_WIRE_VALUE', `Cannot use the VHDX header: log version ${logVersion}, expected 0`);
  }
  if (logBytes % MIB !== 0 || logOffset % BigInt(MIB) !== 0n || logOffset < BigInt(VHDX_HEADER_SECTION_BYTES)) {
    throw cursor.error('ERR_WIRE_VALUE', `Cannot use the VHDX header: log of ${logBytes} bytes at ${logOffset}`);
  }
  if (logBytes > VHDX_LIMITS.logBytes) {
    const text = `Cannot use the VHDX header: log of ${logBytes} bytes, limit is ${VHDX_LIMITS.logBytes}`;
    throw cursor.error('ERR_WIRE_LIMIT', text);
  }
  return { sequence, logGuid, logOffset: sizeOf(cursor, logOffset, 'log offset'), logBytes };
}

/** Decodes one of the two region tables: no region twice, none that overlaps another. @throws WireError */
export function decodeVhdxRegionTable(bytes: Uint8Array): VhdxRegion[] {
  const name = 'VHDX region table';
  const cursor = new Cursor(bytes, name);
  cursor.expectU32(swap(REGION_SIGNATURE), 'signature');
  const checksum = cursor.u32le('checksum');
  const count = cursor.u32le('entry count');
  cursor.skip(4, 'reserved');
  expectCrc(name, bytes, checksum);
  if (count > VHDX_LIMITS.entries) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot use the ${name}: ${count} entries, limit is ${VHDX_LIMITS.entries}`);
  }
  const regions: VhdxRegion[] = [];
  const seen = new Set<string>();
  for (let index = 0; index < count; index++) {
    const guid = decodeGuid(cursor, 'guid');
    const offset = cursor.u64le('file offset');
    const lengthBytes = cursor.u32le('length');
    const required = (cursor.u32le('required') & 1) === 1;
    if (seen.has(guid)) throw cursor.error('ERR_WIRE_VALUE', `Cannot use the ${name}: region ${guid} twice`);
    seen.add(guid);
    if (offset % BigInt(MIB) !== 0n || offset < BigInt(MIB) || lengthBytes % MIB !== 0 || lengthBytes === 0) {
      const text = `Cannot use the ${name}: region of ${lengthBytes} bytes at ${offset}, expected whole MiB from 1 MiB on`;
      throw cursor.error('ERR_WIRE_VALUE', text);
    }
    if (required && guid !== VHDX_REGION.bat && guid !== VHDX_REGION.metadata) {
      throw cursor.error('ERR_WIRE_VALUE', `Cannot use the ${name}: unknown region ${guid} is required`);
    }
    regions.push({ guid, offset: sizeOf(cursor, offset, 'file offset'), lengthBytes, required });
  }
  const sorted = regions.toSorted((a, b) => a.offset - b.offset);
  for (const [index, region] of sorted.entries()) {
    const before = sorted[index - 1];
    if (before !== undefined && before.offset + before.lengthBytes > region.offset) {
      throw cursor.error('ERR_WIRE_VALUE', `Cannot use the ${name}: two regions overlap at ${region.offset}`);
    }
  }
  return regions;
}

export function expectCrc(name: string, bytes: Uint8Array, found: number): void {
  const expected = crc32c(bytes, CHECKSUM_AT);
  if (found === expected) return;
  const text = `Cannot use the ${name}: checksum 0x${found.toString(16)}, expected 0x${expected.toString(16)}`;
  throw new WireError('ERR_WIRE_CHECKSUM', text, { message: name, offset: CHECKSUM_AT });
}

export function sizeOf(cursor: Cursor, value: bigint, field: string): number {
  if (value <= BigInt(VHDX_LIMITS.sizeBytes * 2)) return Number(value);
  throw cursor.error('ERR_WIRE_LIMIT', `Cannot read ${field}: ${value} is behind the end of any VHDX file`);
}

/** Signatures are given as numbers of little-endian files, the cursor expects them big-endian. */
export function swap(value: number): number {
  return ((value << 24) | ((value & 0xff00) << 8) | ((value >>> 8) & 0xff00) | (value >>> 24)) >>> 0;
}
