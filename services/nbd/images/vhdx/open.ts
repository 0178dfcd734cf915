import { WireError } from '../../../../protocols/bytes/mod.ts';
import {
  decodeVhdxHeader,
  decodeVhdxMetadata,
  decodeVhdxRegionTable,
  looksLikeVhdx,
  VHDX_BAT_ENTRY_BYTES,
  VHDX_HEADER_BYTES,
  VHDX_HEADER_OFFSETS,
  VHDX_HEADER_SECTION_BYTES,
  VHDX_METADATA_TABLE_BYTES,
  VHDX_REGION,
  VHDX_REGION_TABLE_BYTES,
  VHDX_REGION_TABLE_OFFSETS,
  type VhdxHeader,
  type VhdxMetadata,
  type VhdxRegion,
  vhdxBatEntries,
} from '../../../../protocols/vhdx/mod.ts';
import type { BlockMap } from '../block_map.ts';
import { MappedImage, type MappedImageOptions } from '../mapped_image.ts';
import { FdImageFile, type ImageFile } from '../qcow2/mod.ts';
import { type VhdxArea, VhdxBlockTable } from './block_table.ts';
import { bad, replayLog } from './log_replay.ts';

/** Of the metadata region, in `bytes`: the table, and as much again for its items, which are small */
const MAX_METADATA_BYTES = VHDX_METADATA_TABLE_BYTES * 2;

/** What a VHDX file says of itself. */
export interface VhdxDetails {
  readonly metadata: VhdxMetadata;
  /** Entries of the log that the file still waits for; they were replayed in memory */
  readonly logEntries: number;
}

export interface VhdxMap extends BlockMap {
  readonly details: VhdxDetails;
}

/**
 * Opens a VHDX image, fixed or dynamic, for reading. A log that was not replayed is replayed in memory.
 * @throws WireError where the image is wrong, ImageError where it cannot be served, errno errors of open(2)
 */
export async function openVhdx(source: string | number, options: MappedImageOptions): Promise<MappedImage<VhdxMap>> {
  const file = FdImageFile.from(source, options);
  return openVhdxFile(file, options);
}

export function openVhdxFile(file: ImageFile, options: MappedImageOptions): Promise<MappedImage<VhdxMap>> {
  return MappedImage.open(file, () => load(file, options), options);
}

/** What the image at `path` says of itself; opens no other file. @throws WireError, ImageError */
export async function inspectVhdx(path: string): Promise<VhdxDetails> {
  const file = FdImageFile.open(path, true);
  try {
    return (await readTables(file)).details;
  } finally {
    await file.close();
  }
}

async function load(file: ImageFile, options: MappedImageOptions): Promise<VhdxMap> {
  const tables = await readTables(file);
  if (options.backing !== undefined) throw bad('a backing file was given, differencing VHDX images are not supported');
  if (tables.details.metadata.hasParent) throw bad('it is a differencing disk, which is not supported');
  return new VhdxBlockTable(tables.file, tables.details, tables.bat.offset, tables.areas);
}

async function readTables(from: ImageFile) {
  if (from.sizeBytes < VHDX_HEADER_SECTION_BYTES) throw bad(`its file has ${from.sizeBytes} bytes, headers take 1 MiB`);
  const start = await readArea(from, 0, 8);
  if (!looksLikeVhdx(start)) throw bad('its first bytes are not "vhdxfile"');
  const header = await currentHeader(from);
  const { file, entries } = await replayLog(from, header);
  const regions = await firstGood(VHDX_REGION_TABLE_OFFSETS, async (offset) =>
    decodeVhdxRegionTable(await readArea(file, offset, VHDX_REGION_TABLE_BYTES)),
  );
  const region = (guid: string, name: string): VhdxRegion => {
    const found = regions.find((candidate) => candidate.guid === guid);
    if (found === undefined) throw bad(`it has no ${name} region`);
    if (found.offset + found.lengthBytes > file.sizeBytes)
      throw bad(`its ${name} region is behind the end of the file`);
    return found;
  };
  const bat = region(VHDX_REGION.bat, 'block allocation table');
  const place = region(VHDX_REGION.metadata, 'metadata');
  const areas: VhdxArea[] = [
    { name: 'log', offset: header.logOffset, lengthBytes: header.logBytes },
    { name: 'block allocation table', ...bat },
    { name: 'metadata', ...place },
  ];
  for (const { name, offset, lengthBytes } of areas.slice(1)) {
    if (offset < header.logOffset + header.logBytes && offset + lengthBytes > header.logOffset) {
      throw bad(`its log overlaps the ${name} region`);
    }
  }
  const metadata = decodeVhdxMetadata(
    await readArea(file, place.offset, Math.min(place.lengthBytes, MAX_METADATA_BYTES)),
  );
  const needed = vhdxBatEntries(metadata) * VHDX_BAT_ENTRY_BYTES;
  if (needed > bat.lengthBytes) {
    throw bad(`its block allocation table has ${bat.lengthBytes} bytes, a disk of this size needs ${needed}`);
  }
  const details: VhdxDetails = { metadata, logEntries: entries };
  return { file, details, bat, areas };
}

/** "The header with the greater sequence number is the current one"; one that was torn while written does not count. */
async function currentHeader(file: ImageFile): Promise<VhdxHeader> {
  const headers: VhdxHeader[] = [];
  let wrong: unknown;
  for (const offset of VHDX_HEADER_OFFSETS) {
    try {
      headers.push(decodeVhdxHeader(await readArea(file, offset, VHDX_HEADER_BYTES)));
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      wrong = error;
    }
  }
  const [first, second] = headers;
  if (first === undefined) throw wrong;
  return second !== undefined && second.sequence > first.sequence ? second : first;
}

async function firstGood<T>(offsets: readonly number[], read: (offset: number) => Promise<T>): Promise<T> {
  let wrong: unknown;
  for (const offset of offsets) {
    try {
      return await read(offset);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      wrong ??= error;
    }
  }
  throw wrong;
}

async function readArea(file: ImageFile, offset: number, lengthBytes: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(lengthBytes);
  await file.read(offset, bytes);
  return bytes;
}
