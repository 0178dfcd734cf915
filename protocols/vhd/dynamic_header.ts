import { Cursor, Writer } from '../bytes/mod.ts';
import { expectChecksum, withChecksum } from './footer.ts';
import { VHD_LIMITS } from './limits.ts';

export const VHD_HEADER_BYTES = 1024;
/** "cxsparse" */
const COOKIE = 0x6378737061727365n;
const VERSION = 0x0001_0000;
const CHECKSUM_AT = 36;
const NO_OFFSET = 0xffff_ffff_ffff_ffffn;
const PARENT_LOCATORS = 8;

/** "Dynamic Disk Header Format" */
export interface VhdDynamicHeader {
  /** Of the block allocation table, in `bytes` */
  readonly tableOffset: number;
  readonly tableEntries: number;
  /** A power of two, in `bytes` */
  readonly blockBytes: number;
  /** Of a differencing disk: what its maker called the parent. Text of the image, not to be opened by itself */
  readonly parentName: string | undefined;
}

/** Decodes the header of a dynamic or differencing disk: shape, checksum, sizes within the limits. @throws WireError */
export function decodeVhdDynamicHeader(bytes: Uint8Array): VhdDynamicHeader {
  const name = 'VHD dynamic disk header';
  const cursor = new Cursor(bytes, name);
  cursor.expectU64(COOKIE, 'cookie');
  cursor.skip(8, 'data offset');
  const tableOffset = cursor.u64('table offset');
  cursor.expectU32(VERSION, 'header version');
  const tableEntries = cursor.u32('max table entries');
  const blockBytes = cursor.u32('block size');
  const checksum = cursor.u32('checksum');
  cursor.skip(16 + 4 + 4, 'parent id, time and reserved');
  const parentName = utf16(cursor, 512);
  cursor.skip(PARENT_LOCATORS * 24 + 256, 'parent locators and reserved');
  cursor.end();
  expectChecksum(name, bytes, CHECKSUM_AT, checksum);
  const { minBlockBytes, maxBlockBytes } = VHD_LIMITS;
  if (blockBytes < minBlockBytes || blockBytes > maxBlockBytes || (blockBytes & (blockBytes - 1)) !== 0) {
    const range = `a power of two from ${minBlockBytes} to ${maxBlockBytes}`;
    throw cursor.error('ERR_WIRE_VALUE', `Cannot use the ${name}: blocks of ${blockBytes} bytes, expected ${range}`);
  }
  if (tableOffset > BigInt(Number.MAX_SAFE_INTEGER) || tableOffset % 512n !== 0n) {
    throw cursor.error('ERR_WIRE_VALUE', `Cannot use the ${name}: block allocation table at ${tableOffset}`);
  }
  return { tableOffset: Number(tableOffset), tableEntries, blockBytes, parentName };
}

/** Encodes the header of a dynamic disk; none that has a parent is made here. */
export function encodeVhdDynamicHeader(header: Omit<VhdDynamicHeader, 'parentName'>): Uint8Array<ArrayBuffer> {
  const out = new Writer(VHD_HEADER_BYTES);
  out.u64(COOKIE).u64(NO_OFFSET).u64(BigInt(header.tableOffset)).u32(VERSION);
  out.u32(header.tableEntries).u32(header.blockBytes).u32(0);
  out.zeroes(VHD_HEADER_BYTES - out.length);
  return withChecksum(out.finish(), CHECKSUM_AT);
}

/** UTF-16, big-endian, up to its first NUL; what is no text counts as none: it is only shown. */
function utf16(cursor: Cursor, lengthBytes: number): string | undefined {
  let text = '';
  for (let at = 0; at < lengthBytes; at += 2) {
    const unit = cursor.u16('parent name');
    if (unit === 0) {
      cursor.skip(lengthBytes - at - 2, 'parent name');
      break;
    }
    text += String.fromCharCode(unit);
  }
  return text === '' || !text.isWellFormed() ? undefined : text;
}
