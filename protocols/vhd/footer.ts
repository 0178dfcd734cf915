import { Cursor, WireError, Writer } from '../bytes/mod.ts';
import type { VhdGeometry } from './geometry.ts';
import { VHD_LIMITS } from './limits.ts';

export const VHD_FOOTER_BYTES = 512;
/** "conectix" */
const COOKIE = 0x636f6e6563746978n;
const VERSION = 0x0001_0000;
const CHECKSUM_AT = 64;
/** Seconds from 1970-01-01 to 2000-01-01, where the format's time begins */
const EPOCH_SECONDS = 946_684_800;
const NO_OFFSET = 0xffff_ffff_ffff_ffffn;

export type VhdType = 'fixed' | 'dynamic' | 'differencing';
const TYPES: readonly (VhdType | undefined)[] = [undefined, undefined, 'fixed', 'dynamic', 'differencing'];

/** "Hard Disk Footer Format": the last sector of the file, and the first one of a dynamic disk */
export interface VhdFooter {
  /** Where the header of a dynamic disk is, in `bytes`; undefined for a fixed one */
  readonly headerOffset: number | undefined;
  /** Seconds since 1970-01-01 */
  readonly timeSeconds: number;
  /** Four characters of the program that made the file */
  readonly creator: string;
  /** In `bytes` */
  readonly originalBytes: number;
  /** In `bytes`; not always the size of the disk, see diskBytes() */
  readonly currentBytes: number;
  readonly geometry: VhdGeometry;
  readonly type: VhdType;
  /** 16 bytes */
  readonly uuid: Uint8Array;
  readonly savedState: boolean;
}

/** A sector that begins as a footer does; whether it is a good one, decodeVhdFooter() tells. */
export function looksLikeVhdFooter(sector: Uint8Array): boolean {
  return sector.length >= 8 && new Cursor(sector, 'VHD footer').u64('cookie') === COOKIE;
}

/** Decodes a footer: shape, checksum, sizes within the limits. @throws WireError */
export function decodeVhdFooter(sector: Uint8Array): VhdFooter {
  const cursor = new Cursor(sector, 'VHD footer');
  cursor.expectU64(COOKIE, 'cookie');
  cursor.skip(4, 'features');
  cursor.expectU32(VERSION, 'file format version');
  const dataOffset = cursor.u64('data offset');
  const time = cursor.u32('time stamp');
  const creator = latin1(cursor.bytes(4, 'creator application'));
  cursor.skip(8, 'creator version and host');
  const original = cursor.u64('original size');
  const current = cursor.u64('current size');
  const geometry = {
    cylinders: cursor.u16('cylinders'),
    heads: cursor.u8('heads'),
    sectorsPerTrack: cursor.u8('sectors per track'),
  };
  const typeNumber = cursor.u32('disk type');
  const checksum = cursor.u32('checksum');
  const uuid = cursor.bytes(16, 'unique id').slice();
  const savedState = cursor.u8('saved state') !== 0;
  cursor.skip(427, 'reserved');
  cursor.end();
  expectChecksum('VHD footer', sector, CHECKSUM_AT, checksum);
  const type = TYPES[typeNumber];
  if (type === undefined) {
    throw cursor.error('ERR_WIRE_VALUE', `Cannot use the VHD footer: disk type ${typeNumber}, expected 2, 3 or 4`);
  }
  for (const size of [original, current]) {
    if (size > BigInt(VHD_LIMITS.sizeBytes)) {
      const text = `Cannot use the VHD footer: disk of ${size} bytes, limit is ${VHD_LIMITS.sizeBytes}`;
      throw cursor.error('ERR_WIRE_LIMIT', text);
    }
  }
  if (type !== 'fixed' && (dataOffset < BigInt(VHD_FOOTER_BYTES) || dataOffset > BigInt(Number.MAX_SAFE_INTEGER))) {
    throw cursor.error('ERR_WIRE_VALUE', `Cannot use the VHD footer: header at ${dataOffset}`);
  }
  return {
    headerOffset: type === 'fixed' ? undefined : Number(dataOffset),
    timeSeconds: time + EPOCH_SECONDS,
    creator,
    originalBytes: Number(original),
    currentBytes: Number(current),
    geometry,
    type,
    uuid,
    savedState,
  };
}

export function encodeVhdFooter(footer: VhdFooter): Uint8Array<ArrayBuffer> {
  const out = new Writer(VHD_FOOTER_BYTES);
  // Features: the reserved bit, "must always be set to 1".
  out.u64(COOKIE).u32(2).u32(VERSION);
  out.u64(footer.headerOffset === undefined ? NO_OFFSET : BigInt(footer.headerOffset));
  out.u32(Math.max(0, footer.timeSeconds - EPOCH_SECONDS) >>> 0);
  for (let index = 0; index < 4; index++) out.u8(footer.creator.charCodeAt(index) & 0xff);
  // Version 1.0 of the creator, on "Wi2k": hosts are Windows or Macintosh.
  out.u32(0x0001_0000).u32(0x5769326b);
  out.u64(BigInt(footer.originalBytes)).u64(BigInt(footer.currentBytes));
  out.u16(footer.geometry.cylinders).u8(footer.geometry.heads).u8(footer.geometry.sectorsPerTrack);
  out.u32(TYPES.indexOf(footer.type)).u32(0).bytes(footer.uuid);
  out.u8(footer.savedState ? 1 : 0).zeroes(427);
  return withChecksum(out.finish(), CHECKSUM_AT);
}

/** One's complement of the sum of all bytes but the checksum's own. */
function vhdChecksum(bytes: Uint8Array, checksumAt: number): number {
  let sum = 0;
  for (const [index, byte] of bytes.entries()) if (index < checksumAt || index >= checksumAt + 4) sum += byte;
  return ~sum >>> 0;
}

export function withChecksum(bytes: Uint8Array<ArrayBuffer>, checksumAt: number): Uint8Array<ArrayBuffer> {
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(checksumAt, vhdChecksum(bytes, checksumAt));
  return bytes;
}

export function expectChecksum(name: string, bytes: Uint8Array, checksumAt: number, found: number): void {
  const expected = vhdChecksum(bytes, checksumAt);
  if (found === expected) return;
  const text = `Cannot use the ${name}: checksum 0x${found.toString(16)}, expected 0x${expected.toString(16)}`;
  throw new WireError('ERR_WIRE_CHECKSUM', text, { message: name, offset: checksumAt });
}

function latin1(bytes: Uint8Array): string {
  return String.fromCharCode(...bytes);
}
