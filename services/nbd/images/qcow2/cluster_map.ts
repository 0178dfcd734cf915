import {
  type ClusterEntry,
  decodeClusterEntry,
  decodeL1Entry,
  decodeL2Entry,
  decodeSubcluster,
  encodeCompressedEntry,
  encodeEntry,
  hasFeature,
  INCOMPATIBLE,
  type L2Format,
  type Mapping,
} from '../../../../protocols/qcow2/mod.ts';
import { CorruptImageError } from './corrupt_image_error.ts';
import type { ImageFile } from './image_file.ts';
import type { Qcow2Metadata } from './metadata.ts';
import { RefcountTable } from './refcount_table.ts';
import { type CachedTable, TableCache } from './table_cache.ts';

const L2_CACHE_BYTES = 16 << 20;
const SUBCLUSTERS = 32;
const UNALLOCATED: Mapping = { kind: 'unallocated', host: 0, lengthBytes: 0, copied: false };
const EMPTY: ClusterEntry = { kind: 'standard', host: 0, lengthBytes: 0, copied: false, allocated: 0, zero: 0 };

/** From places on the disk to places in the file, through the L1 and L2 tables, checked entry by entry. */
export class ClusterMap {
  /** What has a mapping of its own: a cluster, or a subcluster, in `bytes` */
  readonly grainBytes: number;
  /** What one L1 entry covers, in `bytes` of the disk */
  readonly spanBytes: number;
  readonly refcounts: RefcountTable;
  readonly #file: ImageFile;
  readonly #data: ImageFile;
  readonly #metadata: Qcow2Metadata;
  readonly #l1: DataView;
  readonly #l2: TableCache;
  readonly #clusterBytes: number;
  readonly #perTable: number;
  /** 1, or 32 with extended entries */
  readonly grainsPerCluster: number;
  readonly #format: L2Format;
  readonly #entryBytes: number;
  /** Clusters lie in an external file, each where it is on the disk, and nothing counts them */
  readonly #external: boolean;
  readonly #dirtyL1 = new Set<number>();

  constructor(file: ImageFile, data: ImageFile, metadata: Qcow2Metadata) {
    const { header, l1, map } = metadata;
    this.#file = file;
    this.#data = data;
    this.#metadata = metadata;
    this.#clusterBytes = header.clusterBytes;
    this.#external = hasFeature(header, INCOMPATIBLE.externalDataFile);
    this.#format = {
      version: header.version,
      clusterBits: header.clusterBits,
      extended: header.extendedL2,
      external: this.#external,
    };
    this.#entryBytes = header.extendedL2 ? 16 : 8;
    this.#perTable = header.clusterBytes / this.#entryBytes;
    this.grainsPerCluster = header.extendedL2 ? SUBCLUSTERS : 1;
    this.grainBytes = header.clusterBytes / this.grainsPerCluster;
    this.spanBytes = this.#perTable * header.clusterBytes;
    this.#l1 = new DataView(l1.buffer, l1.byteOffset, l1.byteLength);
    this.#l2 = new TableCache(file, header.clusterBytes, L2_CACHE_BYTES);
    this.refcounts = new RefcountTable(file, header, metadata.refcountTable, map);
  }

  get dirty(): boolean {
    return this.#l2.dirty || this.#dirtyL1.size > 0 || this.refcounts.dirty;
  }

  get crowded(): boolean {
    return this.#l2.crowded || this.refcounts.crowded;
  }

  /** No L2 table for this place of the disk: unallocated up to the end of its span */
  hasTable(offset: number): boolean {
    const at = Math.floor(offset / this.spanBytes) * 8;
    return this.#l1.getUint32(at) !== 0 || this.#l1.getUint32(at + 4) !== 0;
  }

  /** The mapping of a grain, or undefined where its L2 table has to be read first. @throws CorruptImageError */
  lookupNow(grain: number): Mapping | undefined {
    const cluster = Math.floor(grain / this.grainsPerCluster);
    const host = this.#tableHost(Math.floor(cluster / this.#perTable)).host;
    if (host === 0) return UNALLOCATED;
    const table = this.#l2.peek(host);
    return table === undefined ? undefined : this.#mapping(table, cluster, grain);
  }

  async lookup(grain: number): Promise<Mapping> {
    const cluster = Math.floor(grain / this.grainsPerCluster);
    const host = this.#tableHost(Math.floor(cluster / this.#perTable)).host;
    return host === 0 ? UNALLOCATED : this.#mapping(await this.#l2.load(host), cluster, grain);
  }

  /** The entry of a cluster as a whole. @throws CorruptImageError */
  async entry(cluster: number): Promise<ClusterEntry> {
    const tableHost = this.#tableHost(Math.floor(cluster / this.#perTable)).host;
    if (tableHost === 0) return EMPTY;
    const { view } = this.#l2.peek(tableHost) ?? (await this.#l2.load(tableHost));
    const at = (cluster % this.#perTable) * this.#entryBytes;
    const { extended } = this.#format;
    const zeroBits = extended ? view.getUint32(at + 8) : 0;
    const allocatedBits = extended ? view.getUint32(at + 12) : 0;
    const entry = decodeClusterEntry(view.getUint32(at), view.getUint32(at + 4), zeroBits, allocatedBits, this.#format);
    if (entry.kind === 'invalid') throw new CorruptImageError(entry.reason ?? 'an L2 entry');
    if (entry.host !== 0 || entry.copied || entry.kind === 'compressed') {
      const { kind, host, copied } = entry;
      const compressed = kind === 'compressed';
      const lengthBytes = compressed ? entry.lengthBytes : this.#clusterBytes;
      this.#check({ kind: compressed ? kind : 'data', host, lengthBytes, copied }, cluster * this.#clusterBytes);
    }
    return entry;
  }

  /** Maps a cluster anew; what it lost is released by the caller. */
  async set(
    cluster: number,
    host: number,
    { copied, allocated, zero }: Pick<ClusterEntry, 'copied' | 'allocated' | 'zero'>,
  ): Promise<void> {
    const { extended } = this.#format;
    const { high, low } = encodeEntry(host, { copied, zero: !extended && zero !== 0 });
    await this.#put(cluster, high, low, zero, allocated);
  }

  /** Maps a cluster to compressed data. */
  async setCompressed(cluster: number, host: number, lengthBytes: number): Promise<void> {
    const { high, low } = encodeCompressedEntry(host, lengthBytes, this.#format.clusterBits);
    await this.#put(cluster, high, low, 0, 0);
  }

  /** Where new data of a cluster goes; behind the table that will name it, so that data follows data. */
  async allocate(cluster: number): Promise<number> {
    const index = Math.floor(cluster / this.#perTable);
    const table = this.#tableHost(index);
    if (table.host === 0 || !table.copied) await this.#tableForWrite(index);
    return this.#external ? cluster * this.#clusterBytes : this.refcounts.allocate();
  }

  /** What an entry referred to before it was changed loses its reference. */
  release({ kind, host, lengthBytes }: ClusterEntry): void {
    if (host === 0 || this.#external) return;
    this.refcounts.release(host, kind === 'compressed' ? lengthBytes : this.#clusterBytes);
  }

  async #put(cluster: number, high: number, low: number, zeroBits: number, allocatedBits: number): Promise<void> {
    const table = await this.#tableForWrite(Math.floor(cluster / this.#perTable));
    const at = (cluster % this.#perTable) * this.#entryBytes;
    table.view.setUint32(at, high);
    table.view.setUint32(at + 4, low);
    if (this.#format.extended) {
      table.view.setUint32(at + 8, zeroBits);
      table.view.setUint32(at + 12, allocatedBits);
    }
    this.#l2.touch(table, at, at + this.#entryBytes);
  }

  /**
   * Brings the tables to stable storage so that a power cut after any write leaves leaks at worst: data and refcounts,
   * then L2 tables, then L1 entries, then what became free.
   */
  async commit(lazy = false): Promise<void> {
    // Lazy: the dirty bit says that refcounts in the file are not to be trusted, until all are written.
    const postponed = lazy && !this.refcounts.crowded;
    if (!postponed) await this.refcounts.writeOut();
    await this.#syncData();
    const changed = this.#l2.dirty || this.#dirtyL1.size > 0;
    await this.#l2.writeDirty();
    if (this.#dirtyL1.size > 0) {
      await this.#file.sync();
      for (const index of this.#dirtyL1) {
        const entry = new Uint8Array(this.#l1.buffer, this.#l1.byteOffset + index * 8, 8);
        await this.#file.write(this.#metadata.header.l1Offset + index * 8, entry);
      }
      this.#dirtyL1.clear();
    }
    if (changed) await this.#file.sync();
    await this.refcounts.settle(postponed);
  }

  async #syncData(): Promise<void> {
    if (this.#data !== this.#file) await this.#data.sync();
    await this.#file.sync();
  }

  #tableHost(index: number): Mapping {
    const high = this.#l1.getUint32(index * 8);
    const low = this.#l1.getUint32(index * 8 + 4);
    if (high === 0 && low === 0) return UNALLOCATED;
    const entry = decodeL1Entry(high, low, this.#clusterBytes);
    if (entry.kind === 'invalid') throw new CorruptImageError(entry.reason ?? 'an L1 entry');
    if (entry.host === 0 || this.#l2.peek(entry.host) !== undefined) return entry;
    // Not read yet: is it a table at all?
    if (entry.host >= this.#file.sizeBytes) throw new CorruptImageError(`an L2 table at ${entry.host}, behind the end`);
    const range = this.#metadata.map.rangeAt(entry.host, this.#clusterBytes);
    if (range !== undefined) throw new CorruptImageError(`an L2 table at ${entry.host}, in the ${range}`);
    return entry;
  }

  #mapping(table: CachedTable, cluster: number, grain: number): Mapping {
    const slot = cluster % this.#perTable;
    let mapping: Mapping;
    if (this.#format.extended) {
      const at = slot * 16;
      const entry = decodeL2Entry(table.view.getUint32(at), table.view.getUint32(at + 4), this.#format);
      const zeroBits = table.view.getUint32(at + 8);
      const allocatedBits = table.view.getUint32(at + 12);
      const index = grain % SUBCLUSTERS;
      mapping = decodeSubcluster(entry, zeroBits, allocatedBits, index, this.#format.clusterBits);
    } else {
      const high = table.view.getUint32(slot * 8);
      const low = table.view.getUint32(slot * 8 + 4);
      if (high === 0 && low === 0) return UNALLOCATED;
      mapping = decodeL2Entry(high, low, this.#format);
    }
    if (mapping.kind === 'invalid') throw new CorruptImageError(mapping.reason ?? 'an L2 entry');
    if (mapping.host !== 0 || mapping.kind === 'compressed') this.#check(mapping, grain * this.grainBytes);
    return mapping;
  }

  #check({ kind, host, lengthBytes }: Mapping, offset: number): void {
    const { map } = this.#metadata;
    if (this.#external) {
      if (kind !== 'compressed' && host === offset) return;
      throw new CorruptImageError(`a ${kind} cluster at ${host} of the data file, expected ${offset}`);
    }
    const fileEnd = this.#file.sizeBytes;
    // The file may end inside its last cluster, before a subcluster that nobody has written yet.
    const clusterEnd = Math.ceil(fileEnd / this.#clusterBytes) * this.#clusterBytes;
    const first = host - (host % this.#clusterBytes);
    if ((kind === 'compressed' ? host : first) >= fileEnd || host + lengthBytes > clusterEnd) {
      throw new CorruptImageError(`a ${kind} cluster at ${host}, behind the end of the file`);
    }
    for (let at = first; at < host + lengthBytes; at += this.#clusterBytes) {
      const metadata = map.at(at, this.#clusterBytes);
      if (metadata !== undefined) throw new CorruptImageError(`a ${kind} cluster at ${host}, in the ${metadata}`);
    }
  }

  async #tableForWrite(index: number): Promise<CachedTable> {
    const entry = this.#tableHost(index);
    if (entry.host !== 0 && entry.copied) return this.#l2.load(entry.host);
    const bytes = new Uint8Array(this.#clusterBytes);
    // Shared with a snapshot: a table of our own, with the same entries.
    if (entry.host !== 0) bytes.set((await this.#l2.load(entry.host)).bytes);
    const host = await this.refcounts.allocate();
    const table = this.#l2.add(host, bytes);
    this.#metadata.map.addCluster(host, 'L2 table');
    const { high, low } = encodeEntry(host, { copied: true });
    this.#l1.setUint32(index * 8, high);
    this.#l1.setUint32(index * 8 + 4, low);
    this.#dirtyL1.add(index);
    if (entry.host !== 0) {
      this.#l2.drop(entry.host);
      this.#metadata.map.removeCluster(entry.host);
      this.refcounts.release(entry.host, this.#clusterBytes);
    }
    return table;
  }
}
