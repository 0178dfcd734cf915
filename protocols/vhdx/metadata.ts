import { Cursor } from '../bytes/mod.ts';
import { decodeGuid } from './guid.ts';
import { VHDX_LIMITS } from './limits.ts';

/** Of the metadata table, before the items; in `bytes` */
export const VHDX_METADATA_TABLE_BYTES = 64 << 10;
/** "metadata", little-endian */
const SIGNATURE = 0x6174_6164_6174_656dn;
/** Items are small; the parent locator is the longest, and is not read. In `bytes` */
const MAX_ITEM_BYTES = 1 << 20;

/** MS-VHDX 2.6.2: what this decoder knows, and how many bytes it has */
const ITEMS: Readonly<Record<string, { readonly name: string; readonly bytes?: number }>> = {
  'caa16737-fa36-4d43-b3b6-33f0aa44e76b': { name: 'file parameters', bytes: 8 },
  '2fa54224-cd1b-4876-b211-5dbed83bf4b8': { name: 'virtual disk size', bytes: 8 },
  'beca12ab-b2e6-4523-93ef-c309e000c746': { name: 'virtual disk id', bytes: 16 },
  '8141bf1d-a96f-4709-ba47-f233a8faab5f': { name: 'logical sector size', bytes: 4 },
  'cda348c7-445d-4471-9cc9-e9885251c556': { name: 'physical sector size', bytes: 4 },
  'a8d35f2d-b30b-454d-abf7-d3d84834ab0c': { name: 'parent locator' },
};

/** What the metadata region says of the disk. */
export interface VhdxMetadata {
  /** Of the disk, in `bytes`, whole sectors */
  readonly sizeBytes: number;
  /** A power of two, in `bytes` */
  readonly blockBytes: number;
  /** 512 or 4096, in `bytes` */
  readonly sectorBytes: number;
  /** Blocks keep their space: the disk was made fixed */
  readonly fixed: boolean;
  /** A differencing disk */
  readonly hasParent: boolean;
}

/**
 * Decodes the metadata region: the table in its first 64 KiB, and the items behind it. `region` may be shorter than
 * the region in the file; items that this decoder needs have to be in it.
 *
 * @throws WireError
 */
export function decodeVhdxMetadata(region: Uint8Array): VhdxMetadata {
  const name = 'VHDX metadata';
  const cursor = new Cursor(region, name);
  const refuse = (why: string) => cursor.error('ERR_WIRE_VALUE', `Cannot use the ${name}: ${why}`);
  if (cursor.u64le('signature') !== SIGNATURE)
    throw cursor.error('ERR_WIRE_MAGIC', `Cannot use the ${name}: no signature`);
  cursor.skip(2, 'reserved');
  const count = cursor.u16le('entry count');
  cursor.skip(20, 'reserved');
  if (count > VHDX_LIMITS.entries) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot use the ${name}: ${count} entries, limit is ${VHDX_LIMITS.entries}`);
  }
  const items = new Map<string, Cursor>();
  for (let index = 0; index < count; index++) {
    const guid = decodeGuid(cursor, 'item id');
    const offset = cursor.u32le('offset');
    const length = cursor.u32le('length');
    const flags = cursor.u32le('flags');
    cursor.skip(4, 'reserved');
    const known = ITEMS[guid];
    const user = (flags & 1) === 1;
    if (known === undefined || user) {
      // "IsRequired": who does not understand it must not open the file.
      if ((flags & 4) !== 0) throw refuse(`unknown item ${guid} is required`);
      continue;
    }
    if (items.has(known.name)) throw refuse(`${known.name} twice`);
    if (length > MAX_ITEM_BYTES || (known.bytes !== undefined && length !== known.bytes)) {
      throw refuse(`${known.name} of ${length} bytes`);
    }
    if (offset < VHDX_METADATA_TABLE_BYTES) throw refuse(`${known.name} at ${offset}, inside the table`);
    if (known.bytes === undefined) {
      items.set(known.name, new Cursor(new Uint8Array(0), name));
      continue;
    }
    const at = new Cursor(region, name);
    at.skip(offset, known.name);
    items.set(known.name, new Cursor(at.bytes(length, known.name), name));
  }
  const need = (item: string): Cursor => {
    const found = items.get(item);
    if (found === undefined) throw refuse(`${item} is missing`);
    return found;
  };
  const parameters = need('file parameters');
  const blockBytes = parameters.u32le('block size');
  const flags = parameters.u32le('flags');
  const size = need('virtual disk size').u64le('virtual disk size');
  const sectorBytes = need('logical sector size').u32le('logical sector size');
  const { minBlockBytes, maxBlockBytes, sizeBytes } = VHDX_LIMITS;
  if (blockBytes < minBlockBytes || blockBytes > maxBlockBytes || (blockBytes & (blockBytes - 1)) !== 0) {
    throw refuse(`blocks of ${blockBytes} bytes, expected a power of two from 1 MiB to 256 MiB`);
  }
  if (sectorBytes !== 512 && sectorBytes !== 4096)
    throw refuse(`sectors of ${sectorBytes} bytes, expected 512 or 4096`);
  if (size > BigInt(sizeBytes)) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot use the ${name}: disk of ${size} bytes, limit is ${sizeBytes}`);
  }
  if (size % BigInt(sectorBytes) !== 0n) throw refuse(`disk of ${size} bytes is not whole sectors`);
  const hasParent = (flags & 2) !== 0;
  return { sizeBytes: Number(size), blockBytes, sectorBytes, fixed: (flags & 1) !== 0, hasParent };
}
