import {
  encodeSnapshotTable,
  hasFeature,
  INCOMPATIBLE,
  QCOW2_LIMITS,
  type Qcow2Snapshot,
} from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';
import { formatOf, l2Entries, l2Tables, referredBytes, setCopied } from './cluster_tree.ts';
import { CorruptImageError } from './corrupt_image_error.ts';
import type { HeaderChanges } from './header_update.ts';
import { findSnapshot, readSnapshotL1 } from './metadata.ts';
import type { Qcow2Image } from './qcow2_image.ts';
import type { TableRewrite } from './table_rewrite.ts';

const MAX_NAME_BYTES = 255;

/** Keeps the disk as it is now under a name, inside the image. Takes no more space than its tables until it is written. */
export async function createSnapshot(image: Qcow2Image, name: string): Promise<Qcow2Snapshot> {
  const rawName = new TextEncoder().encode(name);
  if (rawName.length > MAX_NAME_BYTES || name.includes('\0'))
    throw refuse('create', `a name of ${rawName.length} bytes`);
  let made: Qcow2Snapshot | undefined;
  await image.rewrite(async (tables) => {
    const { header, metadata } = tables;
    checkKind(tables, 'create');
    if (metadata.snapshots.length >= QCOW2_LIMITS.snapshots) throw refuse('create', 'the image has as many as it can');
    const nowMs = Date.now();
    const id = String(1 + metadata.snapshots.reduce((max, snapshot) => Math.max(max, Number(snapshot.id) || 0), 0));
    // No machine: its count of instructions is 0, as that of its clock.
    const raw = {
      id: new TextEncoder().encode(id),
      name: rawName,
      furtherExtra: new Uint8Array(8),
      incomplete: false,
    };
    made = {
      id,
      name,
      // The tables as they are become the snapshot's; the disk goes on with copies.
      l1Offset: header.l1Offset,
      l1Entries: header.l1Entries,
      dateSeconds: Math.floor(nowMs / 1000),
      dateNanoseconds: (nowMs % 1000) * 1_000_000,
      vmClock: 0n,
      vmStateBytes: 0n,
      diskBytes: BigInt(header.sizeBytes),
      raw,
    };
    const l1 = await shareTree(tables, metadata.l1);
    return {
      l1Offset: await tables.place(l1),
      ...(await placeSnapshots(tables, [...metadata.snapshots, made])),
    };
  });
  return made!;
}

/** Makes the disk what it was when the snapshot was taken; what was written since is gone. */
export async function applySnapshot(image: Qcow2Image, idOrName: string): Promise<void> {
  await image.rewrite(async (tables) => {
    const { header, metadata } = tables;
    checkKind(tables, 'apply');
    const snapshot = findSnapshot(metadata.snapshots, idOrName);
    const sizeBytes = Number(snapshot.diskBytes);
    const l1 = await readSnapshotL1(tables.file, tables.header, snapshot);
    await dropTree(tables, metadata.l1);
    if (header.l1Entries > 0) tables.add(header.l1Offset, header.l1Entries * 8, -1);
    const shared = await shareTree(tables, l1);
    return { l1Offset: await tables.place(shared), l1Entries: snapshot.l1Entries, sizeBytes };
  });
  // Any part of the disk may be another now.
  image.bitmaps.mark(0, image.sizeBytes);
}

/** Forgets a snapshot; clusters that only it had become free. */
export async function deleteSnapshot(image: Qcow2Image, idOrName: string): Promise<void> {
  await image.rewrite(async (tables) => {
    const { metadata } = tables;
    const snapshot = findSnapshot(metadata.snapshots, idOrName);
    const l1 = await readSnapshotL1(tables.file, tables.header, snapshot);
    await dropTree(tables, l1);
    if (snapshot.l1Entries > 0) tables.add(snapshot.l1Offset, snapshot.l1Entries * 8, -1);
    const rest = metadata.snapshots.filter((other) => other !== snapshot);
    return { ...(await settleCopied(tables)), ...(await placeSnapshots(tables, rest)) };
  });
}

/**
 * Everything that an L1 table refers to gets one more reference, and new L2 tables name it: gives the L1 table that
 * names those. The table itself and the L2 tables it had are left to whoever has them.
 */
async function shareTree(tables: TableRewrite, l1: Uint8Array): Promise<Uint8Array> {
  const { header, file } = tables;
  const format = formatOf(header);
  const shared = l1.slice();
  const view = new DataView(shared.buffer);
  for await (const { index, bytes } of l2Tables(file, header, l1, corrupt)) {
    for (const [at, entry] of l2Entries(bytes, format)) {
      if (entry.kind === 'invalid') throw new CorruptImageError(entry.reason ?? 'an L2 entry');
      const referred = referredBytes(entry, format, header.clusterBytes);
      if (referred === 0) continue;
      tables.add(entry.host, referred, 1);
      if (entry.kind === 'standard') setCopied(bytes, at, false);
    }
    view.setBigUint64(index * 8, BigInt(await tables.place(bytes)) | (1n << 63n));
  }
  return shared;
}

/** Everything under an L1 table loses one reference, the L2 tables too. */
async function dropTree(tables: TableRewrite, l1: Uint8Array): Promise<void> {
  const { header, file } = tables;
  const format = formatOf(header);
  for await (const { host, bytes } of l2Tables(file, header, l1, corrupt)) {
    for (const [, entry] of l2Entries(bytes, format)) {
      if (entry.kind === 'invalid') throw new CorruptImageError(entry.reason ?? 'an L2 entry');
      const referred = referredBytes(entry, format, header.clusterBytes);
      if (referred > 0) tables.add(entry.host, referred, -1);
    }
    tables.add(host, header.clusterBytes, -1);
  }
}

/**
 * Brings the COPIED flags of the disk's own tables in line with the refcounts: tables in which one is wrong are
 * written anew. Gives what the header has to say then.
 */
export async function settleCopied(tables: TableRewrite): Promise<HeaderChanges> {
  const { header, file, metadata } = tables;
  const format = formatOf(header);
  const l1 = metadata.l1.slice();
  const view = new DataView(l1.buffer);
  let changed = false;
  for await (const { index, host, copied, bytes } of l2Tables(file, header, metadata.l1, () => {})) {
    let wrong = false;
    for (const [at, entry] of l2Entries(bytes, format)) {
      if (entry.kind !== 'standard' || entry.host === 0 || format.external === true) continue;
      const own = tables.count(entry.host) === 1;
      if (entry.copied === own) continue;
      setCopied(bytes, at, own);
      wrong = true;
    }
    if (wrong) {
      tables.add(host, header.clusterBytes, -1);
      view.setBigUint64(index * 8, BigInt(await tables.place(bytes)) | (1n << 63n));
      changed = true;
    } else if (copied !== (tables.count(host) === 1)) {
      setCopied(l1, index * 8, !copied);
      changed = true;
    }
  }
  if (!changed) return {};
  tables.add(header.l1Offset, l1.length, -1);
  return { l1Offset: await tables.place(l1) };
}

/** A new snapshot table; the old one's clusters become free. */
export async function placeSnapshots(
  tables: TableRewrite,
  snapshots: readonly Qcow2Snapshot[],
): Promise<Pick<HeaderChanges, 'snapshotCount' | 'snapshotsOffset'>> {
  const { header, metadata } = tables;
  if (metadata.snapshotTableBytes > 0) tables.add(header.snapshotsOffset, metadata.snapshotTableBytes, -1);
  const bytes = encodeSnapshotTable(snapshots);
  if (bytes.length > QCOW2_LIMITS.snapshotTableBytes) throw refuse('write', 'their table would be too large');
  return {
    snapshotCount: snapshots.length,
    snapshotsOffset: snapshots.length === 0 ? 0 : await tables.place(bytes),
  };
}

function checkKind({ header }: TableRewrite, what: string): void {
  if (hasFeature(header, INCOMPATIBLE.externalDataFile)) throw refuse(what, 'data files have none');
}

function corrupt({ reason }: { reason: string }): never {
  throw new CorruptImageError(reason);
}

function refuse(what: string, found: string): ImageError {
  return new ImageError('EINVAL', `Cannot ${what} a snapshot: ${found}`);
}
