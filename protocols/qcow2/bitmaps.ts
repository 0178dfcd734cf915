import { Cursor, WireError } from '../bytes/mod.ts';
import { type BitmapsExtension, tableOffset } from './header.ts';
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
    if (bitmaps.some((other) => other.name === name)) throw bad('a name twice');
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

function bad(found: string): WireError {
  return new WireError('ERR_WIRE_VALUE', `Cannot read the bitmap directory: ${found}`, {
    message: 'qcow2 bitmap directory',
  });
}
