import { AUTOCLEAR, COMPATIBLE, hasFeature, INCOMPATIBLE, type Qcow2Header } from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';
import { formatOf, l2Entries, setCopied } from './cluster_tree.ts';
import { CorruptImageError } from './corrupt_image_error.ts';
import type { HeaderChanges } from './header_update.ts';
import { readSnapshotL1 } from './metadata.ts';
import type { Qcow2Image } from './qcow2_image.ts';
import { placeSnapshots, settleCopied } from './snapshot_operations.ts';
import type { TableRewrite } from './table_rewrite.ts';
import { l2References } from './tree_references.ts';

/** "Version 2: refcount_order is 4", 16 bits */
const V2_REFCOUNT_ORDER = 4;

export interface AmendOptions {
  /** 3 from 2 in the header and the snapshot table; 2 from 3 where nothing of version 3 is in use, with zero clusters written out */
  readonly version?: 2 | 3;
  /** A power of two from 1 to 64; version 2 has 16 */
  readonly refcountBits?: number;
  readonly lazyRefcounts?: boolean;
  /** Another name for the external data file, which stays the same file; none where it is empty */
  readonly dataFile?: string;
  /** False: that file need not stay a raw image any more */
  readonly rawData?: false;
}

/** Changes how an image is kept; what the disk and its snapshots read as stays. @throws ImageError, nothing changed */
export async function amendQcow2(image: Qcow2Image, changes: AmendOptions): Promise<void> {
  const version = changes.version ?? image.header.version;
  if (version === 2 && changes.lazyRefcounts === true) throw refuse('lazy refcounts need version 3');
  const bits = changes.refcountBits ?? 2 ** image.header.refcountOrder;
  const order = Math.log2(bits);
  if (!Number.isInteger(order) || order > 6)
    throw refuse(`refcounts of ${bits} bits, expected a power of two up to 64`);
  if (version === 2 && order !== V2_REFCOUNT_ORDER) {
    throw refuse(
      changes.refcountBits === undefined
        ? `version 2 has refcounts of 16 bits, and the image of ${bits}`
        : `refcounts of ${bits} bits need version 3`,
    );
  }
  const external = hasFeature(image.header, INCOMPATIBLE.externalDataFile);
  if (!external && (changes.dataFile !== undefined || changes.rawData !== undefined)) {
    throw refuse('it has no data file');
  }
  if (version < image.header.version) checkDowngrade(image);
  if (version >= image.header.version) {
    await image.rewrite(async (tables) => ({
      ...features(tables.header, version, changes),
      // Version 3 wants more in each entry than 2 did.
      ...(version > tables.header.version && tables.metadata.snapshots.length > 0
        ? await placeSnapshots(tables, tables.metadata.snapshots)
        : {}),
    }));
  }
  if (order !== image.header.refcountOrder) {
    await image.rewrite(async (tables) => {
      tables.changeRefcountOrder(order);
      return { refcountOrder: order };
    });
  }
  if (version === image.header.version) return;
  await image.rewrite(async (tables) => ({
    ...(await expandZeroes(tables, image.backing !== undefined)),
    version: 2,
    incompatibleFeatures: 0n,
    compatibleFeatures: 0n,
    autoclearFeatures: 0n,
  }));
  // Clusters that lost a reference may be the disk's own now.
  await image.rewrite(settleCopied);
}

function features(header: Qcow2Header, version: 2 | 3, changes: AmendOptions): HeaderChanges {
  const bit = 1n << BigInt(COMPATIBLE.lazyRefcounts);
  const others = header.compatibleFeatures & ~bit;
  const lazy = changes.lazyRefcounts ?? (header.compatibleFeatures & bit) !== 0n;
  const raw = 1n << BigInt(AUTOCLEAR.rawExternalData);
  const dirty = 1n << BigInt(INCOMPATIBLE.dirty);
  return {
    version,
    compatibleFeatures: lazy ? others | bit : others,
    // All refcounts are in the file, and from here on they always are: nobody else would take the mark away.
    ...(lazy ? {} : { incompatibleFeatures: header.incompatibleFeatures & ~dirty }),
    ...(changes.dataFile === undefined ? {} : { dataFile: changes.dataFile || undefined }),
    ...(changes.rawData === undefined ? {} : { autoclearFeatures: header.autoclearFeatures & ~raw }),
  };
}

/** What version 2 cannot keep. @throws ImageError */
function checkDowngrade({ header, snapshots, bitmaps, sizeBytes }: Qcow2Image): void {
  if (hasFeature(header, INCOMPATIBLE.externalDataFile)) throw refuse('version 2 has no data files');
  const cleared = (1n << BigInt(INCOMPATIBLE.dirty)) | (1n << BigInt(INCOMPATIBLE.corrupt));
  const others = header.incompatibleFeatures & ~cleared;
  if (others !== 0n) throw refuse(`version 2 has no incompatible features, and 0x${others.toString(16)} are in use`);
  if (header.encryption !== 0) throw refuse('version 2 has no encryption that is worth its name');
  if ([...bitmaps].some(([, { persistent }]) => persistent))
    throw refuse('version 2 has no bitmaps, remove them first');
  const odd = snapshots.find((it) => it.diskBytes !== BigInt(sizeBytes) || it.vmStateBytes > 0xffff_ffffn);
  if (odd !== undefined) throw refuse(`version 2 keeps no snapshots of another size, as ${odd.id}`);
}

/**
 * Entries that say "zeroes", which version 2 does not have, of the disk and of all snapshots: clusters of zeroes take
 * their place where another disk would shine through, and nothing where there is none. Tables that change are new ones.
 */
async function expandZeroes(tables: TableRewrite, hasBacking: boolean): Promise<HeaderChanges> {
  const { file, header, metadata } = tables;
  const { clusterBytes } = header;
  const format = formatOf(header);
  /** New places of L2 tables by their old ones */
  const moved = new Map<number, number>();
  const bad = ({ reason }: { reason: string }): never => {
    throw new CorruptImageError(reason);
  };
  const zeroes = new Uint8Array(clusterBytes);
  for (const [host, { total }] of await l2References(file, metadata, bad)) {
    const bytes = new Uint8Array(clusterBytes);
    await file.read(host, bytes);
    const view = new DataView(bytes.buffer);
    let changed = false;
    for (const [at, entry] of l2Entries(bytes, format)) {
      if (entry.kind === 'invalid') throw new CorruptImageError(entry.reason ?? 'an L2 entry');
      if (entry.kind !== 'standard' || entry.zero === 0) continue;
      changed = true;
      if (entry.host !== 0) tables.addTimes(entry.host, -total);
      view.setBigUint64(at, 0n);
      if (!hasBacking) continue;
      const cluster = await tables.place(zeroes);
      tables.addTimes(cluster, total - 1);
      view.setBigUint64(at, BigInt(cluster));
      setCopied(bytes, at, total === 1);
    }
    if (!changed) continue;
    const fresh = await tables.place(bytes);
    tables.addTimes(fresh, total - 1);
    tables.addTimes(host, -total);
    moved.set(host, fresh);
  }
  if (moved.size === 0) return {};
  const renamed = async (l1: Uint8Array, l1Offset: number): Promise<number> => {
    const copy = l1.slice();
    const view = new DataView(copy.buffer);
    let changed = false;
    for (let at = 0; at < copy.length; at += 8) {
      const fresh = moved.get(Number(view.getBigUint64(at) & 0x00ff_ffff_ffff_fe00n));
      if (fresh === undefined) continue;
      view.setBigUint64(at, BigInt(fresh));
      setCopied(copy, at, tables.count(fresh) === 1);
      changed = true;
    }
    if (!changed) return l1Offset;
    tables.add(l1Offset, l1.length, -1);
    return tables.place(copy);
  };
  const snapshots = [];
  for (const snapshot of metadata.snapshots) {
    const l1 = await readSnapshotL1(file, header, snapshot);
    snapshots.push({
      ...snapshot,
      l1Offset: l1.length === 0 ? snapshot.l1Offset : await renamed(l1, snapshot.l1Offset),
    });
  }
  return {
    l1Offset: await renamed(metadata.l1, header.l1Offset),
    ...(snapshots.length === 0 ? {} : await placeSnapshots(tables, snapshots)),
  };
}

function refuse(why: string): ImageError {
  return new ImageError('EINVAL', `Cannot amend the image: ${why}`);
}
