import { decodeL1Entry } from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';
import type { ImageFile } from './image_file.ts';
import type { Qcow2Metadata } from './metadata.ts';

/** L2 tables that are looked at, each once: 2 PiB of disk with clusters of 64 KiB */
const MAX_TABLES = 1 << 22;
/** Of all L1 tables together, each cluster once, in `bytes`; snapshots of 4 TiB take 64 KiB each */
const MAX_L1_BYTES = 2 ** 32;
const DISK = 'the disk';

/** An L2 table, and how often it is named */
export interface L2Reference {
  /** By the disk's own L1 table */
  active: number;
  /** By that and those of all snapshots */
  total: number;
  /** Whose L1 table named it first, and by which entry */
  readonly whose: string;
  readonly index: number;
}

export interface L1Problem {
  /** Of the entry in the file, in `bytes` */
  readonly at: number;
  readonly reason: string;
  /** How many L1 tables have the entry */
  readonly times: number;
}

/**
 * All L2 tables that an image names, by their places in the file. Snapshots may share L1 tables, or their parts, and
 * these L2 tables: each is read once however often it is named, so that the work is bounded by the file and not by what
 * its tables claim. Entries that name no table, or another part of the image in place of one, go to `problem`.
 *
 * @throws ImageError where there are too many
 */
export async function l2References(
  file: ImageFile,
  metadata: Qcow2Metadata,
  problem: (found: L1Problem) => void,
): Promise<ReadonlyMap<number, L2Reference>> {
  const { header, l1, snapshots } = metadata;
  const { clusterBytes } = header;
  const perCluster = clusterBytes / 8;
  const others = tablesOfOtherKinds(file, metadata);
  const tables = new Map<number, L2Reference>();
  const take = (
    table: Uint8Array,
    from: number,
    first: number,
    whose: string,
    timesOf: (slot: number) => number,
  ): void => {
    const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
    const active = whose === DISK ? 1 : 0;
    for (let slot = 0; slot < table.length / 8; slot++) {
      const [high, low] = [view.getUint32(slot * 8), view.getUint32(slot * 8 + 4)];
      if (high === 0 && low === 0) continue;
      const entry = decodeL1Entry(high, low, clusterBytes);
      if (entry.kind === 'unallocated') continue;
      const times = timesOf(slot);
      const index = first + slot;
      const bad = (reason: string): void =>
        problem({ at: from + slot * 8, reason: `${reason}, L1 entry ${index} of ${whose}`, times });
      const inside = metadata.map.rangeAt(entry.host, clusterBytes) ?? others.get(entry.host);
      if (entry.kind === 'invalid') bad(entry.reason ?? 'an L1 entry');
      else if (entry.host >= file.sizeBytes) bad(`an L2 table at ${entry.host}, behind the end of the file`);
      else if (inside !== undefined) bad(`an L2 table at ${entry.host}, in the ${inside}`);
      else {
        const known = tables.get(entry.host);
        if (known === undefined) tables.set(entry.host, { active, total: times, whose, index });
        else {
          known.active += active;
          known.total += times;
        }
      }
    }
    if (tables.size > MAX_TABLES) throw tooMany(`more than ${MAX_TABLES} L2 tables`);
  };
  take(l1, header.l1Offset, 0, DISK, () => 1);

  /** By cluster of the file: how many L1 tables take so many of its entries */
  const parts = new Map<number, { readonly lengths: Map<number, number>; readonly whose: string; first: number }>();
  for (const { id, l1Offset, l1Entries } of snapshots) {
    for (let first = 0; first < l1Entries; first += perCluster) {
      const host = l1Offset + first * 8;
      const part = parts.get(host) ?? { lengths: new Map(), whose: `snapshot ${id}`, first };
      parts.set(host, part);
      const length = Math.min(perCluster, l1Entries - first);
      part.lengths.set(length, (part.lengths.get(length) ?? 0) + 1);
    }
  }
  let readBytes = 0;
  for (const [host, { lengths, whose, first }] of parts) {
    const longest = Math.max(...lengths.keys());
    readBytes += longest * 8;
    if (readBytes > MAX_L1_BYTES) throw tooMany(`L1 tables of snapshots with more than ${MAX_L1_BYTES} bytes`);
    const table = new Uint8Array(longest * 8);
    await file.read(host, table);
    const times = new Uint32Array(longest);
    for (let slot = longest - 1, above = 0; slot >= 0; slot--) {
      above += lengths.get(slot + 1) ?? 0;
      times[slot] = above;
    }
    take(table, host, first, whose, (slot) => times[slot]!);
  }
  return tables;
}

/**
 * Why tables may not be changed where they are: two fixed areas, or an L1 table of a snapshot and another table, have one
 * place. Undefined where that is not so.
 */
export function sharedPlace(file: ImageFile, metadata: Qcow2Metadata): string | undefined {
  if (metadata.overlap !== undefined) return metadata.overlap;
  const { clusterBytes } = metadata.header;
  const others = tablesOfOtherKinds(file, { ...metadata, snapshots: [] });
  for (const { id, l1Offset, l1Entries } of metadata.snapshots) {
    for (let at = l1Offset; at < l1Offset + l1Entries * 8; at += clusterBytes) {
      const met = metadata.map.rangeAt(at, clusterBytes) ?? others.get(at);
      if (met !== undefined) return `the L1 table of snapshot ${id} overlaps the ${met}`;
    }
  }
  return undefined;
}

/** Clusters of the file that hold tables which are not L2 tables, beside the fixed areas: what each is */
function tablesOfOtherKinds(file: ImageFile, metadata: Qcow2Metadata): ReadonlyMap<number, string> {
  const { header, snapshots, bitmaps, refcountTable } = metadata;
  const { clusterBytes, encryptionHeader } = header;
  const found = new Map<number, string>();
  const add = (host: number, bytes: number, what: string): void => {
    for (let at = host - (host % clusterBytes); at < host + bytes; at += clusterBytes) found.set(at, what);
  };
  const view = new DataView(refcountTable.buffer, refcountTable.byteOffset, refcountTable.byteLength);
  for (let at = 0; at < refcountTable.length; at += 8) {
    const host = view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
    if (host !== 0 && host % clusterBytes === 0 && host < file.sizeBytes) add(host, clusterBytes, 'refcount blocks');
  }
  for (const { l1Offset, l1Entries } of snapshots) add(l1Offset, l1Entries * 8, 'L1 table of a snapshot');
  if (encryptionHeader !== undefined) add(encryptionHeader.offset, encryptionHeader.bytes, 'encryption header');
  for (const { tableOffset, tableEntries } of bitmaps) {
    if (tableEntries > 0) add(tableOffset, tableEntries * 8, 'table of a bitmap');
  }
  return found;
}

function tooMany(what: string): ImageError {
  return new ImageError('ENOTSUP', `Cannot check the image: ${what}`);
}
