import {
  HEADER_FIELD,
  maxRefcount,
  QCOW2_LIMITS,
  type Qcow2Header,
  readRefcount,
  refcountsPerBlock,
  writeRefcount,
} from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';
import { CorruptImageError } from './corrupt_image_error.ts';
import type { ImageFile } from './image_file.ts';
import type { MetadataMap } from './metadata_map.ts';
import { type CachedTable, TableCache } from './table_cache.ts';

const CACHE_BYTES = 4 << 20;
const TABLE = 'refcount table';

/**
 * Allocates and frees clusters of the file. Increments are in the file before anything refers to the cluster
 * (writeOut() before the L2 tables), decrements only after nothing does (release(), and settle() once the L2 and L1
 * tables are on stable storage): whatever a power cut leaves, no cluster in use has a refcount that is too low.
 */
export class RefcountTable {
  readonly #file: ImageFile;
  readonly #map: MetadataMap;
  readonly #clusterBytes: number;
  readonly #order: number;
  readonly #perBlock: number;
  readonly #blocks: TableCache;
  #table: DataView;
  #offset: number;
  /** Entries of the table that differ from the file */
  readonly #dirtyEntries = new Set<number>();
  #moved = false;
  #hint = 0;
  /** Where the next compressed data goes, unless a cluster begins there */
  #packAt = 0;
  #pending: { host: number; bytes: number }[] = [];

  constructor(file: ImageFile, header: Qcow2Header, table: Uint8Array, map: MetadataMap) {
    this.#file = file;
    this.#map = map;
    this.#clusterBytes = header.clusterBytes;
    this.#order = header.refcountOrder;
    this.#perBlock = refcountsPerBlock(header.clusterBytes, header.refcountOrder);
    this.#blocks = new TableCache(file, header.clusterBytes, CACHE_BYTES);
    this.#table = new DataView(table.buffer, table.byteOffset, table.byteLength);
    this.#offset = header.refcountTableOffset;
  }

  get dirty(): boolean {
    return this.#blocks.dirty || this.#dirtyEntries.size > 0 || this.#moved || this.#pending.length > 0;
  }

  /** Time for a commit: what waits in memory has grown */
  get crowded(): boolean {
    return this.#blocks.crowded || this.#pending.length > 65_536;
  }

  /** Takes one free cluster; gives its place in the file. @throws ImageError, the code says corrupt by `EIO` */
  async allocate(): Promise<number> {
    for (;;) {
      const index = Math.floor(this.#hint / this.#perBlock);
      const block = await this.#block(index);
      if (block === undefined) {
        await this.#addBlock(index);
        continue;
      }
      for (let slot = this.#hint % this.#perBlock; slot < this.#perBlock; slot++) {
        if (readRefcount(block.view, slot, this.#order) !== 0) continue;
        const host = (index * this.#perBlock + slot) * this.#clusterBytes;
        const metadata = this.#map.at(host, this.#clusterBytes);
        if (metadata !== undefined) throw corrupt(`refcount 0 for the ${metadata} at ${host}`);
        this.#set(block, slot, 1);
        this.#hint = index * this.#perBlock + slot + 1;
        return host;
      }
      this.#hint = (index + 1) * this.#perBlock;
    }
  }

  /** Takes space for compressed data, `bytes` of at most a cluster: behind the last such data where that fits. */
  async allocateBytes(bytes: number): Promise<number> {
    const at = this.#packAt;
    const left = (this.#clusterBytes - (at % this.#clusterBytes)) % this.#clusterBytes;
    if (left > 0 && (await this.#mayShare(at))) {
      if (bytes <= left) {
        await this.#increment(Math.floor(at / this.#clusterBytes));
        this.#packAt = at + bytes;
        return at;
      }
      const next = await this.allocate();
      if (next === at + left) {
        await this.#increment(Math.floor(at / this.#clusterBytes));
        this.#packAt = at + bytes;
        return at;
      }
      this.#packAt = next + bytes;
      return next;
    }
    const host = await this.allocate();
    this.#packAt = host + bytes;
    return host;
  }

  /** `bytes` at `host` lose one reference, once the tables that referred to it are on stable storage. */
  release(host: number, bytes: number): void {
    this.#pending.push({ host, bytes });
  }

  /** Writes increments: after it and a sync, L2 tables may refer to what was allocated. */
  async writeOut(): Promise<void> {
    await this.#blocks.writeDirty();
    if (this.#moved) {
      const { buffer, byteOffset, byteLength } = this.#table;
      await this.#file.write(this.#offset, new Uint8Array(buffer, byteOffset, byteLength));
      await this.#file.sync();
      const field = new DataView(new ArrayBuffer(12));
      field.setBigUint64(0, BigInt(this.#offset));
      field.setUint32(8, byteLength / this.#clusterBytes);
      await this.#file.write(HEADER_FIELD.refcountTable, new Uint8Array(field.buffer));
    } else if (this.#dirtyEntries.size > 0) {
      // A block is on stable storage before the table names it.
      await this.#file.sync();
      for (const index of this.#dirtyEntries) {
        const entry = new Uint8Array(this.#table.buffer, this.#table.byteOffset + index * 8, 8);
        await this.#file.write(this.#offset + index * 8, entry);
      }
    }
    this.#moved = false;
    this.#dirtyEntries.clear();
  }

  /** Takes the references of what was released away; nothing in the file refers to it any more. */
  async settle(postponed = false): Promise<void> {
    const pending = this.#pending;
    this.#pending = [];
    for (const { host, bytes } of pending) {
      const last = Math.floor((host + bytes - 1) / this.#clusterBytes);
      for (let cluster = Math.floor(host / this.#clusterBytes); cluster <= last; cluster++)
        await this.#decrement(cluster);
    }
    if (!postponed) await this.#blocks.writeDirty();
  }

  async #mayShare(host: number): Promise<boolean> {
    const cluster = Math.floor(host / this.#clusterBytes);
    const block = await this.#block(Math.floor(cluster / this.#perBlock));
    const count = block === undefined ? 0 : readRefcount(block.view, cluster % this.#perBlock, this.#order);
    return count > 0 && count < maxRefcount(this.#order);
  }

  async #increment(cluster: number): Promise<void> {
    const block = await this.#block(Math.floor(cluster / this.#perBlock));
    if (block === undefined) throw corrupt(`no refcount for the cluster at ${cluster * this.#clusterBytes}`);
    const slot = cluster % this.#perBlock;
    this.#set(block, slot, readRefcount(block.view, slot, this.#order) + 1);
  }

  async #decrement(cluster: number): Promise<void> {
    const block = await this.#block(Math.floor(cluster / this.#perBlock));
    const slot = cluster % this.#perBlock;
    const count = block === undefined ? 0 : readRefcount(block.view, slot, this.#order);
    if (block === undefined || count === 0)
      throw corrupt(`refcount 0 for a cluster in use at ${cluster * this.#clusterBytes}`);
    this.#set(block, slot, count - 1);
    if (count > 1) return;
    this.#hint = Math.min(this.#hint, cluster);
    if (Math.floor(this.#packAt / this.#clusterBytes) === cluster) this.#packAt = 0;
  }

  #set(block: CachedTable, slot: number, count: number): void {
    if (count > maxRefcount(this.#order)) throw corrupt('a refcount that overflows');
    writeRefcount(block.view, slot, this.#order, count);
    const bit = slot * 2 ** this.#order;
    this.#blocks.touch(block, Math.floor(bit / 8), Math.floor(bit / 8) + Math.max(1, 2 ** this.#order / 8));
  }

  async #block(index: number): Promise<CachedTable | undefined> {
    if (index * 8 >= this.#table.byteLength) return undefined;
    const host = this.#table.getUint32(index * 8) * 2 ** 32 + this.#table.getUint32(index * 8 + 4);
    if (host === 0) return undefined;
    const cached = this.#blocks.peek(host);
    if (cached !== undefined) return cached;
    if (host % this.#clusterBytes !== 0 || host >= this.#file.sizeBytes) throw corrupt(`a refcount block at ${host}`);
    const range = this.#map.rangeAt(host, this.#clusterBytes);
    if (range !== undefined) throw corrupt(`a refcount block at ${host} in the ${range}`);
    return this.#blocks.load(host);
  }

  /** No block counts this part of the file, so all of it is free: the block goes to its start, and counts itself. */
  async #addBlock(index: number): Promise<void> {
    const start = index * this.#perBlock;
    const entries = this.#table.byteLength / 8;
    if (index < entries) {
      this.#newBlock(index, start, 1);
      this.#dirtyEntries.add(index);
      return;
    }
    // The table is full: a larger one, with the blocks that count it, as one run of clusters from `start` on.
    const maxClusters = Math.max(1, QCOW2_LIMITS.refcountTableBytes / this.#clusterBytes);
    let blocks = 1;
    let tableClusters: number;
    for (;;) {
      const wanted = Math.max(index + blocks, Math.ceil(entries * 1.5));
      tableClusters = Math.min(Math.ceil((wanted * 8) / this.#clusterBytes), maxClusters);
      if ((index + blocks) * 8 > tableClusters * this.#clusterBytes) {
        throw new ImageError('ENOSPC', 'Cannot allocate a cluster: the refcount table is at its limit');
      }
      const needed = Math.ceil((blocks + tableClusters) / this.#perBlock);
      if (needed <= blocks) break;
      blocks = needed;
    }
    const old = { host: this.#offset, bytes: this.#table.byteLength };
    const grown = new Uint8Array(tableClusters * this.#clusterBytes);
    grown.set(new Uint8Array(this.#table.buffer, this.#table.byteOffset, this.#table.byteLength));
    this.#table = new DataView(grown.buffer);
    this.#offset = (start + blocks) * this.#clusterBytes;
    const used = blocks + tableClusters;
    for (let block = 0; block < blocks; block++) {
      const inBlock = Math.min(this.#perBlock, used - block * this.#perBlock);
      this.#newBlock(index + block, start + block, inBlock);
    }
    this.#map.removeRange(TABLE);
    this.#map.addRange(TABLE, this.#offset, grown.length);
    this.#moved = true;
    this.release(old.host, old.bytes);
  }

  #newBlock(index: number, cluster: number, used: number): void {
    const host = cluster * this.#clusterBytes;
    const metadata = this.#map.at(host, this.#clusterBytes);
    if (metadata !== undefined) throw corrupt(`no refcount for the ${metadata} at ${host}`);
    const block = this.#blocks.add(host, new Uint8Array(this.#clusterBytes));
    for (let slot = 0; slot < used; slot++) writeRefcount(block.view, slot, this.#order, 1);
    this.#table.setUint32(index * 8, Math.floor(host / 2 ** 32));
    this.#table.setUint32(index * 8 + 4, host % 2 ** 32);
    this.#map.addCluster(host, 'refcount block');
  }
}

function corrupt(found: string): CorruptImageError {
  return new CorruptImageError(found);
}
