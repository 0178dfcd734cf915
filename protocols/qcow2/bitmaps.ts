import { Cursor, WireError, Writer } from '../bytes/mod.ts';
import { tableOffset } from './header.ts';
import type { BitmapsExtension } from './header_layout.ts';
import { QCOW2_LIMITS } from './limits.ts';

export interface Qcow2Bitmap {
  readonly name: string;
  readonly tableOffset: number;
  readonly tableEntries: number;
  /** Not written back by who used it last: its contents mean nothing */
  readonly inUse: boolean;
  /** Records writes */
  readonly auto: boolean;
  /** One bit stands for 2^granularityBits `bytes` */
  readonly granularityBits: number;
}

/** Decodes the bitmap directory, exactly `directoryBytes` of it. @throws WireError */
export function decodeBitmapDirectory(
  bytes: Uint8Array,
  extension: BitmapsExtension,
  clusterBytes: number,
  fileBytes: number,
): Qcow2Bitmap[] {
  const cursor = new Cursor(bytes, 'qcow2 bitmap directory');
  const bitmaps: Qcow2Bitmap[] = [];
  const names = new Set<string>();
  for (let index = 0; index < extension.count; index++) {
    const offset = cursor.u64('bitmap_table_offset');
    const tableEntries = cursor.u32('bitmap_table_size');
    const flags = cursor.u32('flags');
    cursor.expectU8(1, 'type');
    const granularityBits = cursor.u8('granularity_bits');
    const nameBytes = cursor.u16('name_size');
    const extraBytes = cursor.u32('extra_data_size');
    if ((flags & ~0x7) !== 0) throw bad(`flags 0x${(flags >>> 0).toString(16)}, expected bits 0 to 2`);
    if (granularityBits < 9 || granularityBits > 31)
      throw bad(`granularity 2^${granularityBits}, expected 2^9 to 2^31`);
    // "If there is extra data that is not understood, the bitmap must not be used": we know of none.
    if (extraBytes !== 0) throw bad(`extra data of ${extraBytes} bytes, expected none`);
    if (tableEntries > QCOW2_LIMITS.l1Bytes / 8) throw bad(`table of ${tableEntries} entries`);
    if (nameBytes === 0) throw bad('an empty name');
    const name = cursor.utf8(nameBytes, QCOW2_LIMITS.bitmapNameBytes, 'name');
    cursor.skip(Math.min(-cursor.offset & 7, cursor.remaining), 'padding');
    const at = tableOffset(offset, tableEntries * 8, `table of bitmap ${index}`, clusterBytes, fileBytes);
    if (names.has(name)) throw bad('a name twice');
    names.add(name);
    bitmaps.push({
      name,
      tableOffset: at,
      tableEntries,
      inUse: (flags & 1) !== 0,
      auto: (flags & 2) !== 0,
      granularityBits,
    });
  }
  cursor.end();
  return bitmaps;
}

/** Encodes a bitmap directory; where each entry's `flags` stand is given beside it, in `bytes`. */
export function encodeBitmapDirectory(bitmaps: readonly Qcow2Bitmap[]): {
  bytes: Uint8Array<ArrayBuffer>;
  flagsAt: number[];
} {
  const out = new Writer();
  const flagsAt: number[] = [];
  for (const bitmap of bitmaps) {
    const name = new TextEncoder().encode(bitmap.name);
    out.u64(BigInt(bitmap.tableOffset)).u32(bitmap.tableEntries);
    flagsAt.push(out.length);
    out.u32(bitmapFlags(bitmap)).u8(1).u8(bitmap.granularityBits);
    out
      .u16(name.length)
      .u32(0)
      .bytes(name)
      .zeroes(-out.length & 7);
  }
  return { bytes: out.finish(), flagsAt };
}

/** The `flags` field of an entry of the directory */
export function bitmapFlags({ inUse, auto }: Pick<Qcow2Bitmap, 'inUse' | 'auto'>): number {
  return (inUse ? 1 : 0) | (auto ? 2 : 0);
}

/** What one entry of a bitmap table stands for: a cluster of bits, or all of them alike */
export type BitmapTableEntry = { readonly host: number } | 'zeroes' | 'ones';

/** Decodes a bitmap table. @throws WireError for reserved bits and clusters that are none */
export function decodeBitmapTable(bytes: Uint8Array, clusterBytes: number, fileBytes: number): BitmapTableEntry[] {
  const cursor = new Cursor(bytes, 'qcow2 bitmap table');
  const entries: BitmapTableEntry[] = [];
  while (cursor.remaining > 0) {
    const value = cursor.u64('entry');
    const offset = value & 0x00ff_ffff_ffff_fe00n;
    // Bit 0 says "all ones", and is reserved where there is an offset.
    if ((value & ~offset & (offset === 0n ? ~1n : ~0n)) !== 0n) throw bad(`reserved bits in 0x${value.toString(16)}`);
    if (offset === 0n) entries.push(value === 1n ? 'ones' : 'zeroes');
    else {
      if (offset % BigInt(clusterBytes) !== 0n || offset >= BigInt(fileBytes)) throw bad(`bits at ${offset}`);
      entries.push({ host: Number(offset) });
    }
  }
  return entries;
}

export function encodeBitmapTable(entries: readonly BitmapTableEntry[]): Uint8Array<ArrayBuffer> {
  const out = new Writer(entries.length * 8);
  for (const entry of entries) out.u64(entry === 'zeroes' ? 0n : entry === 'ones' ? 1n : BigInt(entry.host));
  return out.finish();
}

function bad(found: string): WireError {
  return new WireError('ERR_WIRE_VALUE', `Cannot read the bitmap directory: ${found}`, {
    message: 'qcow2 bitmap directory',
  });
}
