import {
  AUTOCLEAR,
  decodeBitmapDirectory,
  decodeHeader,
  decodeL1Entry,
  decodeSnapshotTable,
  peekClusterBytes,
  QCOW2_LIMITS,
  QCOW2_PEEK_BYTES,
  type Qcow2Bitmap,
  type Qcow2Header,
  type Qcow2Snapshot,
} from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';
import { CorruptImageError } from './corrupt_image_error.ts';
import { FdImageFile, type ImageFile } from './image_file.ts';
import { MetadataMap } from './metadata_map.ts';

/** L1 tables of snapshots cover at most so many clusters; real images have a few each */
const MAX_SNAPSHOT_CLUSTERS = 1 << 20;

/** Everything of an image that is read at open; L2 tables and refcount blocks come when they are needed. */
export interface Qcow2Metadata {
  readonly header: Qcow2Header;
  readonly snapshots: readonly Qcow2Snapshot[];
  readonly bitmaps: readonly Qcow2Bitmap[];
  /** Of the snapshot table, in `bytes` */
  readonly snapshotTableBytes: number;
  readonly l1: Uint8Array;
  readonly refcountTable: Uint8Array;
  readonly map: MetadataMap;
  /** Why the image must not be written to */
  readonly damage: string | undefined;
  /** Of that, two of the fixed areas in one place: nothing can tell which of them is right */
  readonly overlap: string | undefined;
}

/** What an image says of itself. Nothing of it was followed: no backing file and no data file was opened. */
export interface Qcow2Info {
  readonly header: Qcow2Header;
  readonly snapshots: readonly Qcow2Snapshot[];
  readonly bitmaps: readonly Qcow2Bitmap[];
}

/** Reads the header, snapshots and bitmaps of the image at `path`, and opens no other file. @throws WireError, ImageError */
export async function inspectQcow2(path: string): Promise<Qcow2Info> {
  const file = FdImageFile.open(path, true);
  try {
    const header = await readHeader(file);
    const { snapshots } = await readSnapshots(file, header);
    return { header, snapshots, bitmaps: await readBitmaps(file, header) };
  } finally {
    await file.close();
  }
}

/** @throws WireError where the image is wrong, ImageError where it cannot be read */
export async function readMetadata(file: ImageFile): Promise<Qcow2Metadata> {
  const header = await readHeader(file);
  const { clusterBytes } = header;
  const table = await readSnapshots(file, header);
  const bitmaps = await readBitmaps(file, header);
  const l1 = await readArea(file, header.l1Offset, header.l1Entries * 8);
  const refcountBytes = header.refcountTableClusters * clusterBytes;
  const refcountTable = await readArea(file, header.refcountTableOffset, refcountBytes);

  const map = new MetadataMap();
  let overlap: string | undefined;
  const add = (name: string, from: number, bytes: number): void => {
    const other = map.addRange(name, from, bytes);
    if (other !== undefined) overlap ??= `the ${name} overlaps the ${other}`;
  };
  add('header', 0, clusterBytes);
  add('L1 table', header.l1Offset, l1.length);
  add('refcount table', header.refcountTableOffset, refcountBytes);
  add('snapshot table', header.snapshotsOffset, table.lengthBytes);
  if (bitmaps.length > 0 && header.bitmaps !== undefined) {
    add('bitmap directory', header.bitmaps.directoryOffset, header.bitmaps.directoryBytes);
  }

  let damage = overlap;
  const hosts: number[] = [];
  for (const [index, snapshot] of table.snapshots.entries()) {
    const end = snapshot.l1Offset + snapshot.l1Entries * 8;
    for (let host = snapshot.l1Offset; host < end; host += clusterBytes) hosts.push(host);
    if (hosts.length > MAX_SNAPSHOT_CLUSTERS) {
      throw new ImageError('EINVAL', `Cannot open the qcow2 image: L1 tables of ${index + 1} snapshots are too large`);
    }
  }
  const l1View = new DataView(l1.buffer, l1.byteOffset, l1.byteLength);
  const all = new Float64Array(hosts.length + header.l1Entries + refcountTable.length / 8);
  all.set(hosts);
  let count = hosts.length;
  for (let at = 0; at < l1.length; at += 8) {
    const high = l1View.getUint32(at);
    const low = l1View.getUint32(at + 4);
    if (high === 0 && low === 0) continue;
    const entry = decodeL1Entry(high, low, clusterBytes);
    if (entry.kind === 'invalid') damage ??= entry.reason;
    else if (entry.kind === 'data') {
      if (entry.host >= file.sizeBytes) damage ??= `an L2 table at ${entry.host}, behind the end of the file`;
      all[count++] = entry.host;
    }
  }
  const refcountView = new DataView(refcountTable.buffer, refcountTable.byteOffset, refcountTable.byteLength);
  for (let at = 0; at < refcountTable.length; at += 8) {
    const host = refcountView.getUint32(at) * 2 ** 32 + refcountView.getUint32(at + 4);
    if (host === 0) continue;
    if (host % clusterBytes !== 0) damage ??= `a refcount block at ${host}, not at a cluster`;
    else if (host >= file.sizeBytes) damage ??= `a refcount block at ${host}, behind the end of the file`;
    all[count++] = host;
  }
  const met = map.setFound(all.slice(0, count), clusterBytes);
  damage ??= met;
  return {
    header,
    snapshots: table.snapshots,
    snapshotTableBytes: table.lengthBytes,
    bitmaps,
    l1,
    refcountTable,
    map,
    damage,
    overlap,
  };
}

/** The image with a snapshot's tables in place of the disk's: to be read, not to be written. @throws ImageError */
export async function asOfSnapshot(file: ImageFile, now: Qcow2Metadata, idOrName: string): Promise<Qcow2Metadata> {
  const snapshot = findSnapshot(now.snapshots, idOrName);
  const l1 = await readSnapshotL1(file, now.header, snapshot);
  const { l1Offset, l1Entries, diskBytes } = snapshot;
  return { ...now, header: { ...now.header, l1Offset, l1Entries, sizeBytes: Number(diskBytes) }, l1 };
}

/** @throws ImageError where there is none of this id or name */
export function findSnapshot(snapshots: readonly Qcow2Snapshot[], idOrName: string): Qcow2Snapshot {
  const found = snapshots.find(({ id }) => id === idOrName) ?? snapshots.find(({ name }) => name === idOrName);
  if (found !== undefined) return found;
  throw new ImageError('EINVAL', `Cannot find snapshot ${JSON.stringify(idOrName.slice(0, 64))}`);
}

/** @throws CorruptImageError where it is too short for the snapshot's disk */
export async function readSnapshotL1(
  file: ImageFile,
  header: Qcow2Header,
  { id, l1Offset, l1Entries, diskBytes }: Qcow2Snapshot,
): Promise<Uint8Array> {
  if (BigInt(l1Entries) * BigInt(spanBytes(header)) < diskBytes || diskBytes > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new CorruptImageError(`the L1 table of snapshot ${id} is too short for ${diskBytes} bytes`);
  }
  return readArea(file, l1Offset, l1Entries * 8);
}

/** What one L1 entry covers, in `bytes` of the disk */
export function spanBytes({ clusterBytes, extendedL2 }: Pick<Qcow2Header, 'clusterBytes' | 'extendedL2'>): number {
  return (clusterBytes / (extendedL2 ? 16 : 8)) * clusterBytes;
}

async function readHeader(file: ImageFile): Promise<Qcow2Header> {
  const start = await readArea(file, 0, Math.min(file.sizeBytes, QCOW2_PEEK_BYTES));
  const first = await readArea(file, 0, Math.min(file.sizeBytes, peekClusterBytes(start)));
  return decodeHeader(first, file.sizeBytes);
}

async function readSnapshots(
  file: ImageFile,
  header: Qcow2Header,
): Promise<{ snapshots: Qcow2Snapshot[]; lengthBytes: number }> {
  if (header.snapshotCount === 0) return { snapshots: [], lengthBytes: 0 };
  // 40 bytes, extra data, an id and a name of 65 535 bytes each and padding: no entry is longer.
  const most = header.snapshotCount * (40 + QCOW2_LIMITS.snapshotExtraBytes + 2 * 65_535 + 7);
  const there = file.sizeBytes - header.snapshotsOffset;
  const bytes = await readArea(file, header.snapshotsOffset, Math.min(most, there, QCOW2_LIMITS.snapshotTableBytes));
  return decodeSnapshotTable(bytes, header, file.sizeBytes);
}

async function readBitmaps(file: ImageFile, header: Qcow2Header): Promise<Qcow2Bitmap[]> {
  const { bitmaps } = header;
  // "If the autoclear bit is not set, the bitmaps extension data must be considered inconsistent."
  const consistent = (header.autoclearFeatures & (1n << BigInt(AUTOCLEAR.bitmaps))) !== 0n;
  if (bitmaps === undefined || !consistent) return [];
  const { directoryOffset, directoryBytes } = bitmaps;
  if (directoryOffset % header.clusterBytes !== 0 || directoryOffset + directoryBytes > file.sizeBytes) {
    throw new ImageError(
      'EINVAL',
      `Cannot open the qcow2 image: bitmap directory at ${directoryOffset}, file is shorter`,
    );
  }
  const bytes = await readArea(file, directoryOffset, directoryBytes);
  return decodeBitmapDirectory(bytes, bitmaps, header.clusterBytes, file.sizeBytes);
}

/** An area that was checked to be inside the file. */
async function readArea(file: ImageFile, offset: number, lengthBytes: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(lengthBytes);
  await file.read(offset, bytes);
  return bytes;
}
