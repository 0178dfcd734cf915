import {
  AUTOCLEAR,
  type BitmapTableEntry,
  decodeBitmapTable,
  encodeBitmapDirectory,
  encodeBitmapTable,
  QCOW2_LIMITS,
  type Qcow2Bitmap,
} from '../../../../protocols/qcow2/mod.ts';
import { DirtyBitmap, DirtyBitmaps } from '../dirty_bitmap.ts';
import { ImageError } from '../disk_image.ts';
import { MAX_HELD_BYTES, type SparseBits } from '../sparse_bits.ts';
import type { HeaderChanges } from './header_update.ts';
import type { ImageFile } from './image_file.ts';
import type { Qcow2Metadata } from './metadata.ts';
import type { TableRewrite } from './table_rewrite.ts';

/**
 * Reads the bitmaps that an image keeps. One that is marked in use, that cannot be read, or for which there is no memory
 * comes out inconsistent: it is kept in the image until somebody removes it, and nothing looks at its bits.
 */
export async function loadBitmaps(file: ImageFile, { header, bitmaps }: Qcow2Metadata): Promise<DirtyBitmaps> {
  const set = new DirtyBitmaps();
  let leftBytes: number = QCOW2_LIMITS.bitmapBitsBytes;
  for (const stored of bitmaps) {
    const granularityBytes = 2 ** stored.granularityBits;
    const options = { persistent: true, disabled: !stored.auto };
    let bitmap: DirtyBitmap;
    try {
      if (stored.inUse) throw new ImageError('EINVAL', 'Cannot load the bitmap: it was not written back');
      bitmap = new DirtyBitmap(header.sizeBytes, granularityBytes, options);
      // Many may share one table of the file: its size says nothing of what they will take.
      const mostBytes = Math.min(bitmap.bits.lengthBytes, MAX_HELD_BYTES);
      if (mostBytes > leftBytes) throw new ImageError('EINVAL', 'Cannot load the bitmap: the others take the memory');
      leftBytes -= mostBytes;
      await readBits(file, header.clusterBytes, stored, bitmap.bits);
    } catch {
      bitmap = new DirtyBitmap(header.sizeBytes, granularityBytes, { ...options, inconsistent: true });
    }
    set.add(stored.name, bitmap);
  }
  return set;
}

/** "In use: the bitmap was not saved properly and may be inconsistent": set before the disk changes. */
export async function markInUse(file: ImageFile, { header, bitmaps }: Qcow2Metadata): Promise<void> {
  if (header.bitmaps === undefined || bitmaps.every(({ inUse }) => inUse)) return;
  const { bytes } = encodeBitmapDirectory(bitmaps.map((bitmap) => ({ ...bitmap, inUse: true })));
  await file.write(header.bitmaps.directoryOffset, bytes);
  await file.sync();
}

/**
 * Writes bits, tables and directory to new clusters, and gives what the header has to say of them: the moment it does,
 * they are valid. Old ones become free. Inconsistent bitmaps stay as they are.
 */
export async function placeBitmaps(tables: TableRewrite, set: DirtyBitmaps): Promise<HeaderChanges> {
  const { header, metadata } = tables;
  const keep = metadata.bitmaps.filter(({ name }) => set.find(name)?.inconsistent === true);
  for (const stored of metadata.bitmaps) if (!keep.includes(stored)) await freeBitmap(tables, stored);
  if (header.bitmaps !== undefined && metadata.bitmaps.length > 0) {
    tables.add(header.bitmaps.directoryOffset, header.bitmaps.directoryBytes, -1);
  }
  const directory: Qcow2Bitmap[] = [];
  for (const [name, bitmap] of set) {
    if (!bitmap.persistent) continue;
    const kept = keep.find((stored) => stored.name === name);
    directory.push(kept === undefined ? await placeBitmap(tables, name, bitmap) : { ...kept, inUse: true });
  }
  const { autoclearFeatures } = header;
  const bit = 1n << BigInt(AUTOCLEAR.bitmaps);
  if (directory.length === 0) return { bitmaps: undefined, autoclearFeatures: autoclearFeatures & ~bit };
  const { bytes } = encodeBitmapDirectory(directory);
  const directoryOffset = await tables.place(bytes);
  return {
    bitmaps: { count: directory.length, directoryBytes: bytes.length, directoryOffset },
    autoclearFeatures: autoclearFeatures | bit,
  };
}

async function placeBitmap(tables: TableRewrite, name: string, bitmap: DirtyBitmap): Promise<Qcow2Bitmap> {
  const { clusterBytes } = tables.header;
  const { bits, granularityBytes, recording } = bitmap;
  const entries: BitmapTableEntry[] = [];
  const { lengthBytes } = bits;
  const buffer = new Uint8Array(clusterBytes);
  for (let at = 0; at < lengthBytes; at += clusterBytes) {
    const piece = buffer.subarray(0, Math.min(clusterBytes, lengthBytes - at));
    if (bits.isClear(at, piece.length)) {
      entries.push('zeroes');
      continue;
    }
    bits.read(at, piece);
    if (piece.length === clusterBytes && piece.every((byte) => byte === 0xff)) entries.push('ones');
    else entries.push({ host: await tables.place(piece) });
  }
  return {
    name,
    tableOffset: entries.length === 0 ? 0 : await tables.place(encodeBitmapTable(entries)),
    tableEntries: entries.length,
    inUse: false,
    auto: recording,
    granularityBits: Math.log2(granularityBytes),
  };
}

async function freeBitmap(tables: TableRewrite, stored: Qcow2Bitmap): Promise<void> {
  const { file, header } = tables;
  if (stored.tableEntries === 0) return;
  const bytes = new Uint8Array(stored.tableEntries * 8);
  await file.read(stored.tableOffset, bytes);
  for (const entry of decodeBitmapTable(bytes, header.clusterBytes, file.sizeBytes)) {
    if (typeof entry === 'object') tables.add(entry.host, header.clusterBytes, -1);
  }
  tables.add(stored.tableOffset, bytes.length, -1);
}

async function readBits(file: ImageFile, clusterBytes: number, stored: Qcow2Bitmap, bits: SparseBits): Promise<void> {
  const { lengthBytes } = bits;
  if (stored.tableEntries !== Math.ceil(lengthBytes / clusterBytes)) {
    throw new ImageError('EINVAL', `Cannot load the bitmap: ${stored.tableEntries} entries for ${lengthBytes} bytes`);
  }
  const table = new Uint8Array(stored.tableEntries * 8);
  await file.read(stored.tableOffset, table);
  const entries = decodeBitmapTable(table, clusterBytes, file.sizeBytes);
  const buffer = new Uint8Array(clusterBytes);
  for (const [index, entry] of entries.entries()) {
    if (entry === 'zeroes') continue;
    const at = index * clusterBytes;
    const piece = buffer.subarray(0, Math.min(clusterBytes, lengthBytes - at));
    if (entry === 'ones') bits.fill(at * 8, Math.min(bits.count, (at + clusterBytes) * 8), true);
    else {
      await file.read(entry.host, piece);
      bits.write(at, piece);
    }
  }
}
