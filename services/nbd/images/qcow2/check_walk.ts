import {
  decodeBitmapTable,
  decodeL1Entry,
  hasFeature,
  INCOMPATIBLE,
  type L2Format,
  maxRefcount,
  type Qcow2Header,
} from '../../../../protocols/qcow2/mod.ts';
import { asImageError, ImageError } from '../disk_image.ts';
import { formatOf, l2Entries, referredBytes } from './cluster_tree.ts';
import type { ImageFile } from './image_file.ts';
import { type Qcow2Metadata, readMetadata } from './metadata.ts';
import { placeSnapshots, settleCopied } from './snapshot_operations.ts';
import { MAX_CLUSTERS, TableRewrite } from './table_rewrite.ts';
import { type L2Reference, l2References, sharedPlace } from './tree_references.ts';

/** What was found, counted as `qemu-img check --output=json` counts it. */
export interface Qcow2CheckResult {
  /** Clusters that are in use by nobody and not free */
  readonly leaks: number;
  /** Contradictions that may cost data */
  readonly corruptions: number;
  readonly leaksFixed: number;
  readonly corruptionsFixed: number;
  /** Parts that could not be looked at */
  readonly checkErrors: number;
  /** Where the last cluster in use ends, in `bytes` */
  readonly imageEndOffset: number;
  /** Of the disk */
  readonly totalClusters: number;
  readonly allocatedClusters: number;
  readonly fragmentedClusters: number;
  readonly compressedClusters: number;
  /** What the numbers stand for, the first of each kind of a few */
  readonly problems: readonly string[];
}

export type Qcow2Repair = 'none' | 'leaks' | 'all';

export const MAX_PROBLEMS = 100;
/** qemu-img's words */
const BEHIND_END = 'ERROR: counting reference for region exceeding the end of the file by one cluster or more';
const OVERFLOW_ADVICE =
  'Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image cannot be opened for writing';
/** Of all bitmaps, in `bytes`: an entry stands for 32 GiB of disk at the usual sizes */
const MAX_BITMAP_TABLE_BYTES = 256 << 20;

export interface Found {
  readonly result: Qcow2CheckResult;
  readonly references: Uint32Array;
  /** Refcounts as they are in the file */
  readonly counts: Readonly<Uint32Array>;
  readonly header: Qcow2Header;
  /** A cluster is referred to more often than its refcount has bits for */
  readonly overflows: boolean;
}

/** One walk over all that an image refers to. */
export class CheckWalk {
  readonly #file: ImageFile;
  readonly #metadata: Qcow2Metadata;
  readonly #format: L2Format;
  readonly #fileClusters: number;
  readonly #repair: Qcow2Repair;
  readonly #problems: string[] = [];
  #references: Uint32Array;
  #corruptions = 0;
  #leaks = 0;
  #errors = 0;
  #allocated = 0;
  #fragmented = 0;
  #compressed = 0;
  #nextHost = 0;
  #tables: ReadonlyMap<number, L2Reference> = new Map();
  readonly #maxCount: number;
  #overflows = false;

  /**
   * `repair`: what will be done about it, for the words and for what flags have to be afterwards.
   * @throws ImageError where the file has too many clusters
   */
  constructor(file: ImageFile, metadata: Qcow2Metadata, repair: Qcow2Repair = 'none') {
    this.#repair = repair;
    this.#maxCount = Math.min(0xffff_ffff, maxRefcount(metadata.header.refcountOrder));
    this.#file = file;
    this.#metadata = metadata;
    this.#format = formatOf(metadata.header);
    this.#fileClusters = Math.ceil(file.sizeBytes / metadata.header.clusterBytes);
    // A file of holes may be of any size.
    if (this.#fileClusters > MAX_CLUSTERS) {
      throw new ImageError(
        'ENOTSUP',
        `Cannot check the image: its file has ${this.#fileClusters} clusters, limit is ${MAX_CLUSTERS}`,
      );
    }
    this.#references = new Uint32Array(this.#fileClusters + 1);
  }

  async run(): Promise<Found> {
    const { header, l1, snapshots } = this.#metadata;
    for (const [index, { raw }] of snapshots.entries()) {
      const what = this.#repair === 'all' ? 'Repairing' : 'ERROR';
      if (raw.incomplete) this.#corruption(`${what} snapshot table entry ${index} is incomplete`);
    }
    await this.#referAll();
    const tables = await TableRewrite.loadDamaged(this.#file, this.#metadata, (what) => this.#corruption(what));
    this.#refer(header.refcountTableOffset, header.refcountTableClusters * header.clusterBytes);
    for (const host of tables.blocks.values()) this.#refer(host, header.clusterBytes);
    this.#compare(tables);
    if (this.#errors === 0 && !this.#overflows) this.#tellRepair(tables);
    await this.#checkCopied(tables, l1);
    let last = this.#references.length - 1;
    while (last > 0 && (this.#references[last] ?? 0) === 0 && (tables.counts[last] ?? 0) === 0) last--;
    return {
      header,
      references: this.#references,
      counts: tables.counts,
      overflows: this.#overflows,
      result: {
        leaks: this.#leaks,
        corruptions: this.#corruptions,
        leaksFixed: 0,
        corruptionsFixed: 0,
        checkErrors: this.#errors,
        imageEndOffset: (last + 1) * header.clusterBytes,
        totalClusters: Math.ceil(header.sizeBytes / header.clusterBytes),
        allocatedClusters: this.#allocated,
        fragmentedClusters: this.#fragmented,
        compressedClusters: this.#compressed,
        problems: this.#problems,
      },
    };
  }

  /** Writes all tables so that they agree; `marks` are the feature bits that go. */
  async repairAll(marks: bigint): Promise<void> {
    await this.#zeroWhatIsInvalid();
    const metadata = await readMetadata(this.#file);
    const again = new CheckWalk(this.#file, metadata);
    await again.#referAll();
    if (again.#errors > 0) throw new ImageError('EIO', `Cannot repair the image: ${again.#problems.at(-1)}`);
    const tables = await TableRewrite.loadDamaged(this.#file, metadata, () => {});
    tables.replaceAll(again.#references);
    const { header } = metadata;
    const incomplete = metadata.snapshots.some(({ raw }) => raw.incomplete);
    const changes = {
      ...(await settleCopied(tables)),
      ...(incomplete ? await placeSnapshots(tables, metadata.snapshots) : {}),
    };
    const kept = header.incompatibleFeatures & ~marks;
    await tables.commit({ ...changes, ...(header.version === 3 ? { incompatibleFeatures: kept } : {}) });
  }

  async #referAll(): Promise<void> {
    const { header, l1, snapshots, snapshotTableBytes } = this.#metadata;
    this.#refer(0, header.clusterBytes);
    if (l1.length > 0) this.#refer(header.l1Offset, l1.length);
    for (const { l1Offset, l1Entries } of snapshots) {
      if (l1Entries > 0) this.#refer(l1Offset, l1Entries * 8);
    }
    try {
      this.#tables = await l2References(this.#file, this.#metadata, ({ reason, times }) =>
        this.#corruption(reason, times),
      );
      for (const [host, reference] of this.#tables) await this.#walk(host, reference);
    } catch (error) {
      this.#errors++;
      this.#note(asImageError(error).message);
    }
    if (snapshotTableBytes > 0) this.#refer(header.snapshotsOffset, snapshotTableBytes);
    const { encryptionHeader } = header;
    if (encryptionHeader !== undefined) {
      this.#refer(encryptionHeader.offset, encryptionHeader.bytes);
    }
    await this.#referBitmaps();
  }

  /** One L2 table, and all that it refers to, as often as the table itself is referred to */
  async #walk(host: number, { active, total, whose }: L2Reference): Promise<void> {
    const { clusterBytes } = this.#metadata.header;
    this.#refer(host, clusterBytes, total);
    this.#nextHost = 0;
    for (const [at, entry] of l2Entries(await readTable(this.#file, host, clusterBytes), this.#format)) {
      if (entry.kind === 'invalid') {
        this.#corruption(`${entry.reason}, at ${host + at} for ${whose}`, total);
        continue;
      }
      const referred = referredBytes(entry, this.#format, clusterBytes);
      if (referred > 0) this.#refer(entry.host, referred, total);
      if (active > 0)
        this.#count(entry.kind === 'compressed', entry.host, entry.allocated !== 0 || referred > 0, active);
    }
  }

  #count(compressed: boolean, host: number, allocated: boolean, times: number): void {
    if (!allocated) return;
    this.#allocated += times;
    if (compressed) {
      // As QEMU: compressed clusters are fragments, always.
      this.#compressed += times;
      this.#fragmented += times;
      return;
    }
    if (this.#nextHost !== 0 && host !== this.#nextHost) this.#fragmented += times;
    this.#nextHost = host + this.#metadata.header.clusterBytes;
  }

  async #referBitmaps(): Promise<void> {
    const { header, bitmaps } = this.#metadata;
    const { clusterBytes } = header;
    if (bitmaps.length === 0 || header.bitmaps === undefined) return;
    // Many may share one table: what is read is counted, not what the file has.
    if (bitmaps.reduce((sum, { tableEntries }) => sum + tableEntries * 8, 0) > MAX_BITMAP_TABLE_BYTES) {
      this.#errors++;
      this.#note(`bitmaps: their tables have more than ${MAX_BITMAP_TABLE_BYTES} bytes`);
      return;
    }
    this.#refer(header.bitmaps.directoryOffset, header.bitmaps.directoryBytes);
    for (const { name, tableOffset, tableEntries } of bitmaps) {
      if (tableEntries === 0) continue;
      this.#refer(tableOffset, tableEntries * 8);
      const bytes = new Uint8Array(tableEntries * 8);
      try {
        await this.#file.read(tableOffset, bytes);
        for (const entry of decodeBitmapTable(bytes, clusterBytes, this.#file.sizeBytes)) {
          if (typeof entry === 'object') this.#refer(entry.host, clusterBytes);
        }
      } catch (error) {
        this.#corruption(`bitmap ${JSON.stringify(name)}: ${(error as Error).message}`);
      }
    }
  }

  #refer(host: number, bytes: number, times = 1): void {
    const { clusterBytes } = this.#metadata.header;
    const first = Math.floor(host / clusterBytes);
    const last = Math.floor((host + bytes - 1) / clusterBytes);
    // The file may end inside its last cluster, and one that nobody has written yet may follow.
    if (last > this.#fileClusters) {
      const region = `offset 0x${host.toString(16)} size 0x${bytes.toString(16)}`;
      this.#corruption(`${BEHIND_END}: ${region}`, times);
      return;
    }
    for (let cluster = first; cluster <= last; cluster++) {
      const count = this.#references[cluster]! + times;
      this.#references[cluster] = Math.min(this.#maxCount, count);
      if (count <= this.#maxCount) continue;
      this.#corruption(`ERROR: overflow cluster offset=0x${(cluster * clusterBytes).toString(16)}`);
      if (!this.#overflows) this.#note(OVERFLOW_ADVICE);
      this.#overflows = true;
    }
  }

  *#differences({ counts }: TableRewrite): Generator<{ cluster: number; count: number; wanted: number }> {
    // As QEMU: what is counted behind the end of the file is not there to be leaked.
    for (let cluster = 0; cluster < this.#references.length; cluster++) {
      const count = counts[cluster] ?? 0;
      const wanted = this.#references[cluster] ?? 0;
      if (count !== wanted) yield { cluster, count, wanted };
    }
  }

  #compare(tables: TableRewrite): void {
    for (const { cluster, count, wanted } of this.#differences(tables)) {
      // qemu-img's words: scripts count these lines.
      const text = `cluster ${cluster} refcount=${count} reference=${wanted}`;
      if (count < wanted) this.#corruption(`ERROR ${text}`);
      else {
        this.#leaks++;
        this.#note(`Leaked ${text}`);
      }
    }
  }

  /** As qemu-img: what was found, once more as it is mended. Counts that were none make all of them new. */
  #tellRepair(tables: TableRewrite): void {
    if (this.#repair === 'none') return;
    const differs = [...this.#differences(tables)];
    if (this.#repair === 'all' && differs.some(({ count, wanted }) => count === 0 && wanted > 0)) {
      this.#note('Rebuilding refcount structure');
      const { refcountTableOffset, refcountTableClusters, clusterBytes } = this.#metadata.header;
      const table = Array.from(
        { length: refcountTableClusters },
        (_, index) => refcountTableOffset + index * clusterBytes,
      );
      for (const host of [...table, ...tables.blocks.values()].sort((a, b) => a - b)) {
        this.#note(`Repairing cluster ${host / clusterBytes} refcount=1 reference=0`);
      }
      return;
    }
    for (const { cluster, count, wanted } of differs) {
      if (count < wanted && this.#repair === 'leaks') continue;
      this.#note(`Repairing cluster ${cluster} refcount=${count} reference=${wanted}`);
    }
  }

  /** The refcount of a cluster once the repair is done */
  #countAfter(tables: TableRewrite, host: number): number {
    const count = tables.count(host);
    const wanted = this.#references[Math.floor(host / this.#metadata.header.clusterBytes)] ?? 0;
    if (this.#repair === 'none') return count;
    return this.#repair === 'all' ? wanted : Math.min(count, wanted);
  }

  async #checkCopied(tables: TableRewrite, l1: Uint8Array): Promise<void> {
    const { header } = this.#metadata;
    if (hasFeature(header, INCOMPATIBLE.externalDataFile)) return;
    const what = this.#repair === 'all' ? 'Repairing' : 'ERROR';
    for (let at = 0; at < l1.length; at += 8) {
      const view = new DataView(l1.buffer, l1.byteOffset + at, 8);
      const { kind, host, copied } = decodeL1Entry(view.getUint32(0), view.getUint32(4), header.clusterBytes);
      const count = this.#countAfter(tables, host);
      if (kind !== 'data' || !this.#tables.has(host) || copied === (count === 1)) continue;
      this.#corruption(`${what} OFLAG_COPIED L2 cluster: l1_index=${at / 8} l1_entry=${hex(l1, at)} refcount=${count}`);
    }
    for (const [table, { active }] of this.#tables) {
      if (active === 0) continue;
      const bytes = await readTable(this.#file, table, header.clusterBytes);
      for (const [at, { kind, host, copied }] of l2Entries(bytes, this.#format)) {
        const count = this.#countAfter(tables, host);
        if (kind !== 'standard' || host === 0 || copied === (count === 1)) continue;
        const text = `${what} OFLAG_COPIED data cluster: l2_entry=${hex(bytes, at)} refcount=${count}`;
        this.#corruption(text, active);
      }
    }
  }

  /**
   * Entries that lead nowhere read as zeroes from now on, in version 2 as what is under the image. Tables are changed
   * where they are, and nothing else is: what an L1 entry calls a table, and is another part of the image, is none.
   */
  async #zeroWhatIsInvalid(): Promise<void> {
    const { header } = this.#metadata;
    const { clusterBytes } = header;
    const overlap = sharedPlace(this.#file, this.#metadata);
    if (overlap !== undefined) throw new ImageError('EINVAL', `Cannot repair the image: ${overlap}`);
    const lost = (host: number, bytes: number): boolean =>
      Math.floor((host + bytes - 1) / clusterBytes) > this.#fileClusters;
    const bad: number[] = [];
    const tables = await l2References(this.#file, this.#metadata, ({ at }) => bad.push(at));
    for (const host of tables.keys()) {
      const bytes = await readTable(this.#file, host, clusterBytes);
      let changed = false;
      for (const [at, entry] of l2Entries(bytes, this.#format)) {
        const referred = referredBytes(entry, this.#format, clusterBytes);
        if (entry.kind !== 'invalid' && !lost(entry.host, Math.max(1, referred))) continue;
        if (this.#format.extended) loseSubclusters(bytes.subarray(at, at + 16));
        else {
          bytes.fill(0, at, at + 8);
          if (header.version === 3) bytes[at + 7] = 1;
        }
        changed = true;
      }
      if (changed) await this.#file.write(host, bytes);
    }
    for (const at of bad) await this.#file.write(at, new Uint8Array(8));
    await this.#file.sync();
  }

  #corruption(text: string, times = 1): void {
    this.#corruptions += times;
    this.#note(text);
  }

  #note(text: string): void {
    if (this.#problems.length < MAX_PROBLEMS) this.#problems.push(text);
  }
}

/** Subclusters that an entry had somewhere read as zeroes; the others are what they were, also what is under the image. */
function loseSubclusters(entry: Uint8Array): void {
  const view = new DataView(entry.buffer, entry.byteOffset, entry.byteLength);
  const compressed = (view.getUint8(0) & 0x40) !== 0;
  const lost = compressed ? 0xffff_ffff : view.getUint32(12);
  const zero = view.getUint32(8) | lost;
  entry.fill(0);
  view.setUint32(8, zero >>> 0);
}

async function readTable(file: ImageFile, host: number, bytes: number): Promise<Uint8Array> {
  const table = new Uint8Array(bytes);
  await file.read(host, table);
  return table;
}

/** An entry of 8 bytes as qemu-img prints it. */
function hex(table: Uint8Array, at: number): string {
  return new DataView(table.buffer, table.byteOffset + at, 8).getBigUint64(0).toString(16);
}
