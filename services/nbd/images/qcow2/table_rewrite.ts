import {
  maxRefcount,
  QCOW2_LIMITS,
  type Qcow2Header,
  readRefcount,
  refcountsPerBlock,
  writeRefcount,
} from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';
import { CorruptImageError } from './corrupt_image_error.ts';
import { type HeaderChanges, writeHeader } from './header_update.ts';
import type { ImageFile } from './image_file.ts';
import { type Qcow2Metadata, readMetadata } from './metadata.ts';

/** Refcounts that are held in memory, 4 bytes each: an image of 4 TiB with clusters of 64 KiB */
export const MAX_CLUSTERS = 1 << 26;

/**
 * A change of an image's tables that happens as a whole or not at all, for what touches too much of them to be brought
 * into an order: snapshots, another size, repair. All refcounts are in memory; new tables, and every refcount block
 * that changes, go to clusters that are free before and after; then the header's first sector, written at once, names
 * the new ones. Nobody else uses the image meanwhile, and all that was cached is in the file.
 */
export class TableRewrite {
  readonly file: ImageFile;
  readonly metadata: Qcow2Metadata;
  readonly #clusterBytes: number;
  #order: number;
  #perBlock: number;
  #counts: Uint32Array;
  /** Clusters that were in use and are not any more: the image as it is still needs them, one bit each */
  #freed: Uint8Array;
  /** Where the blocks are, by index */
  readonly #blocks = new Map<number, number>();
  readonly #dirty = new Set<number>();
  /** The refcount table and its blocks count themselves */
  #countsItself = true;
  #hint = 0;

  private constructor(file: ImageFile, metadata: Qcow2Metadata) {
    const { clusterBytes, refcountOrder } = metadata.header;
    this.file = file;
    this.metadata = metadata;
    this.#clusterBytes = clusterBytes;
    this.#order = refcountOrder;
    this.#perBlock = refcountsPerBlock(clusterBytes, refcountOrder);
    this.#counts = new Uint32Array(0);
    this.#freed = new Uint8Array(0);
    this.#grow(Math.ceil(file.sizeBytes / clusterBytes));
  }

  /** Reads the tables and all refcounts. @throws CorruptImageError, ImageError where there are too many */
  static async load(file: ImageFile): Promise<TableRewrite> {
    const tables = new TableRewrite(file, await readMetadata(file));
    await tables.#loadCounts((what) => {
      throw new CorruptImageError(what);
    });
    return tables;
  }

  /** As load(), but blocks that cannot be read count nothing, and `damage` hears of them. */
  static async loadDamaged(
    file: ImageFile,
    metadata: Qcow2Metadata,
    damage: (what: string) => void,
  ): Promise<TableRewrite> {
    const tables = new TableRewrite(file, metadata);
    await tables.#loadCounts(damage);
    return tables;
  }

  get header(): Qcow2Header {
    return this.metadata.header;
  }

  /** One for each cluster of the file; what is behind its end counts nothing */
  get counts(): Readonly<Uint32Array> {
    return this.#counts;
  }

  /** Where the refcount blocks are */
  get blocks(): ReadonlyMap<number, number> {
    return this.#blocks;
  }

  count(host: number): number {
    return this.#counts[Math.floor(host / this.#clusterBytes)] ?? 0;
  }

  /** Changes the refcounts of all clusters that `bytes` from `host` on touch. @throws ImageError where one overflows */
  add(host: number, bytes: number, delta: 1 | -1): void {
    const last = Math.floor((host + bytes - 1) / this.#clusterBytes);
    for (let cluster = Math.floor(host / this.#clusterBytes); cluster <= last; cluster++) {
      this.set(cluster, (this.#counts[cluster] ?? 0) + delta);
    }
  }

  /** Changes the refcount of one cluster by more than one. @throws ImageError where it overflows */
  addTimes(host: number, delta: number): void {
    const cluster = Math.floor(host / this.#clusterBytes);
    this.set(cluster, (this.#counts[cluster] ?? 0) + delta);
  }

  /**
   * Refcounts have another width from the commit on, which has to say so in the header.
   * @throws ImageError where one does not fit into its bits
   */
  changeRefcountOrder(order: number): void {
    const { refcountTableOffset, refcountTableClusters } = this.header;
    // The old table and its blocks go; they count themselves.
    this.add(refcountTableOffset, refcountTableClusters * this.#clusterBytes, -1);
    for (const host of this.#blocks.values()) this.add(host, 1, -1);
    const most = Math.min(maxRefcount(order), 0xffff_ffff);
    const cluster = this.#counts.findIndex((count) => count > most);
    if (cluster !== -1) {
      throw new ImageError(
        'ENOTSUP',
        `Cannot change the refcounts to ${2 ** order} bits: the cluster at ${cluster * this.#clusterBytes} has ${this.#counts[cluster]}`,
      );
    }
    this.#order = order;
    this.#perBlock = refcountsPerBlock(this.#clusterBytes, order);
    this.#blocks.clear();
    this.#dirty.clear();
    this.#allBlocksDirty();
    this.#countsItself = false;
  }

  set(cluster: number, count: number): void {
    const before = this.#counts[cluster] ?? 0;
    if (count === before) return;
    if (count < 0) throw new CorruptImageError(`refcount 0 for a cluster in use at ${cluster * this.#clusterBytes}`);
    if (count > Math.min(maxRefcount(this.#order), 0xffff_ffff)) {
      throw new ImageError('ENOTSUP', `Cannot change the image: a refcount of ${count} does not fit into its bits`);
    }
    this.#grow(cluster + 1);
    this.#counts[cluster] = count;
    if (count === 0) this.#freed[cluster >> 3]! |= 1 << (cluster & 7);
    this.#dirty.add(Math.floor(cluster / this.#perBlock));
  }

  /** Counts of somebody else, without the refcount table and its blocks: those are written anew as a whole. */
  replaceAll(counts: Readonly<Uint32Array>): void {
    for (let cluster = 0; cluster < Math.max(counts.length, this.#counts.length); cluster++) {
      const before = this.#counts[cluster] ?? 0;
      this.set(cluster, counts[cluster] ?? 0);
      if (before > 0) this.#freed[cluster >> 3]! |= 1 << (cluster & 7);
    }
    const { refcountTableOffset, refcountTableClusters } = this.header;
    const keep = (host: number): void => {
      const cluster = Math.floor(host / this.#clusterBytes);
      this.#grow(cluster + 1);
      this.#freed[cluster >> 3]! |= 1 << (cluster & 7);
    };
    for (const [index, host] of this.#blocks) {
      keep(host);
      this.#dirty.add(index);
    }
    for (let index = 0; index < refcountTableClusters; index++) keep(refcountTableOffset + index * this.#clusterBytes);
    this.#allBlocksDirty();
    this.#countsItself = false;
  }

  #allBlocksDirty(): void {
    for (let cluster = 0; cluster < this.#counts.length; cluster += this.#perBlock) {
      const end = Math.min(this.#counts.length, cluster + this.#perBlock);
      if (this.#counts.subarray(cluster, end).some((count) => count > 0)) this.#dirty.add(cluster / this.#perBlock);
    }
  }

  /** Takes clusters that follow each other and are not in use before or after; gives the first's place. */
  allocate(clusters: number): number {
    let free = 0;
    for (let cluster = this.#hint; ; cluster++) {
      const used = (this.#counts[cluster] ?? 0) > 0 || ((this.#freed[cluster >> 3] ?? 0) >> (cluster & 7)) % 2 === 1;
      free = used ? 0 : free + 1;
      if (free < clusters) continue;
      const first = cluster - clusters + 1;
      for (let at = first; at <= cluster; at++) this.set(at, 1);
      if (clusters === 1) this.#hint = cluster + 1;
      return first * this.#clusterBytes;
    }
  }

  /** Allocates, and writes `bytes` there. */
  async place(bytes: Uint8Array): Promise<number> {
    const clusters = Math.max(1, Math.ceil(bytes.length / this.#clusterBytes));
    const host = this.allocate(clusters);
    const whole = new Uint8Array(clusters * this.#clusterBytes);
    whole.set(bytes);
    await this.file.write(host, whole);
    return host;
  }

  /** Writes what changed, and then the header with `changes`: the moment at which the image is the new one. */
  async commit(changes: HeaderChanges): Promise<void> {
    const table = this.#placeBlocks();
    if (table === undefined) {
      await this.file.sync();
      await writeHeader(this.file, this.header, changes);
      return;
    }
    const bytes = new DataView(new ArrayBuffer(table.clusters * this.#clusterBytes));
    for (const [index, host] of this.#blocks) bytes.setBigUint64(index * 8, BigInt(host));
    for (const index of this.#dirty) {
      const block = new DataView(new ArrayBuffer(this.#clusterBytes));
      const first = index * this.#perBlock;
      const there = Math.min(this.#perBlock, this.#counts.length - first);
      for (let slot = 0; slot < there; slot++) {
        const count = this.#counts[first + slot]!;
        if (count > 0) writeRefcount(block, slot, this.#order, count);
      }
      await this.file.write(this.#blocks.get(index)!, new Uint8Array(block.buffer));
    }
    await this.file.write(table.host, new Uint8Array(bytes.buffer));
    await this.file.sync();
    await writeHeader(this.file, this.header, {
      ...changes,
      refcountTableOffset: table.host,
      refcountTableClusters: table.clusters,
    });
  }

  /** New places for all blocks that change and for the table; these change blocks, too, until none is left. */
  #placeBlocks(): { host: number; clusters: number } | undefined {
    if (this.#dirty.size === 0) return undefined;
    const { refcountTableOffset, refcountTableClusters } = this.header;
    const placed = new Set<number>();
    const own = this.#countsItself;
    if (own) this.add(refcountTableOffset, refcountTableClusters * this.#clusterBytes, -1);
    let table: { host: number; clusters: number } | undefined;
    for (;;) {
      let moved = false;
      for (const index of [...this.#dirty]) {
        if (placed.has(index)) continue;
        placed.add(index);
        moved = true;
        const old = this.#blocks.get(index);
        if (own && old !== undefined) this.add(old, 1, -1);
        this.#blocks.set(index, this.allocate(1));
      }
      let entries = 1;
      for (const index of this.#blocks.keys()) entries = Math.max(entries, index + 1);
      if (table === undefined || entries * 8 > table.clusters * this.#clusterBytes) {
        if (table !== undefined) this.add(table.host, table.clusters * this.#clusterBytes, -1);
        // Room for the blocks that the table itself may need.
        const clusters = Math.max(refcountTableClusters, Math.ceil(((entries + 2) * 8) / this.#clusterBytes));
        if (clusters * this.#clusterBytes > Math.max(QCOW2_LIMITS.refcountTableBytes, this.#clusterBytes)) {
          throw new ImageError('ENOSPC', 'Cannot change the image: its refcount table is at its limit');
        }
        table = { host: this.allocate(clusters), clusters };
        moved = true;
      }
      if (!moved) return table;
    }
  }

  async #loadCounts(damage: (what: string) => void): Promise<void> {
    const { refcountTable } = this.metadata;
    const view = new DataView(refcountTable.buffer, refcountTable.byteOffset, refcountTable.byteLength);
    const bytes = new Uint8Array(this.#clusterBytes);
    const block = new DataView(bytes.buffer);
    for (let index = 0; index < refcountTable.length / 8; index++) {
      const host = view.getUint32(index * 8) * 2 ** 32 + view.getUint32(index * 8 + 4);
      if (host === 0) continue;
      if (host % this.#clusterBytes !== 0 || host >= this.file.sizeBytes) {
        damage(`a refcount block at ${host}`);
        continue;
      }
      this.#blocks.set(index, host);
      await this.file.read(host, bytes);
      for (let slot = 0; slot < this.#perBlock; slot++) {
        const count = readRefcount(block, slot, this.#order);
        if (count === 0) continue;
        const cluster = index * this.#perBlock + slot;
        this.#grow(cluster + 1);
        this.#counts[cluster] = Math.min(count, 0xffff_ffff);
      }
    }
  }

  #grow(clusters: number): void {
    if (clusters > MAX_CLUSTERS) {
      throw new ImageError('ENOTSUP', `Cannot change the image: more than ${MAX_CLUSTERS} clusters are counted`);
    }
    if (clusters <= this.#counts.length) return;
    const length = Math.min(MAX_CLUSTERS, Math.max(clusters, Math.ceil(this.#counts.length * 1.25)));
    const counts = new Uint32Array(length);
    counts.set(this.#counts);
    this.#counts = counts;
    const freed = new Uint8Array(Math.ceil(length / 8));
    freed.set(this.#freed);
    this.#freed = freed;
  }
}
