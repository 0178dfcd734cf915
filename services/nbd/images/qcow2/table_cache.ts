import type { ImageFile } from './image_file.ts';

const SECTOR_BYTES = 512;

/** One cluster of metadata in memory */
export interface CachedTable {
  readonly host: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** What differs from the file, in `bytes`; empty where from >= to */
  dirtyFrom: number;
  dirtyTo: number;
  /** Asked for since it last came up for removal */
  used: boolean;
}

/**
 * Metadata clusters; out goes first what was not asked for while all others came up for removal. What is dirty stays
 * until it was written. Nothing moves when a table is asked for: a map whose entries are taken out and put back makes
 * itself anew again and again, and each old one keeps its successor from the collector.
 */
export class TableCache {
  readonly #file: ImageFile;
  readonly #clusterBytes: number;
  readonly #capacity: number;
  readonly #tables = new Map<number, CachedTable>();
  readonly #loading = new Map<number, Promise<CachedTable>>();
  readonly #dirty = new Set<CachedTable>();

  constructor(file: ImageFile, clusterBytes: number, maxBytes: number) {
    this.#file = file;
    this.#clusterBytes = clusterBytes;
    this.#capacity = Math.max(4, Math.floor(maxBytes / clusterBytes));
  }

  /** Dirty tables are at least half of what fits: time to write them */
  get crowded(): boolean {
    return this.#dirty.size * 2 >= this.#capacity;
  }

  get dirty(): boolean {
    return this.#dirty.size > 0;
  }

  peek(host: number): CachedTable | undefined {
    const table = this.#tables.get(host);
    if (table !== undefined) table.used = true;
    return table;
  }

  /** `host` was checked to be a whole cluster inside the file. */
  async load(host: number): Promise<CachedTable> {
    const cached = this.peek(host);
    if (cached !== undefined) return cached;
    let loading = this.#loading.get(host);
    if (loading === undefined) {
      loading = this.#read(host).finally(() => this.#loading.delete(host));
      this.#loading.set(host, loading);
    }
    return loading;
  }

  /** A table that is new at `host`; all of it is dirty. */
  add(host: number, bytes: Uint8Array): CachedTable {
    const table = this.#insert(host, bytes);
    this.touch(table, 0, bytes.length);
    return table;
  }

  touch(table: CachedTable, from: number, to: number): void {
    table.dirtyFrom = Math.min(table.dirtyFrom, from);
    table.dirtyTo = Math.max(table.dirtyTo, to);
    this.#dirty.add(table);
  }

  /** The cluster at `host` is no table any more. */
  drop(host: number): void {
    const table = this.#tables.get(host);
    if (table === undefined) return;
    this.#tables.delete(host);
    this.#dirty.delete(table);
  }

  async writeDirty(): Promise<void> {
    const tables = [...this.#dirty].sort((a, b) => a.host - b.host);
    for (const table of tables) {
      const from = table.dirtyFrom - (table.dirtyFrom % SECTOR_BYTES);
      const to = Math.min(Math.ceil(table.dirtyTo / SECTOR_BYTES) * SECTOR_BYTES, table.bytes.length);
      await this.#file.write(table.host + from, table.bytes.subarray(from, to));
      table.dirtyFrom = Number.POSITIVE_INFINITY;
      table.dirtyTo = 0;
      this.#dirty.delete(table);
    }
  }

  async #read(host: number): Promise<CachedTable> {
    const bytes = new Uint8Array(this.#clusterBytes);
    await this.#file.read(host, bytes);
    return this.#tables.get(host) ?? this.#insert(host, bytes);
  }

  #insert(host: number, bytes: Uint8Array): CachedTable {
    for (const [key, old] of this.#tables) {
      if (this.#tables.size < this.#capacity) break;
      if (this.#dirty.has(old)) continue;
      this.#tables.delete(key);
      if (!old.used) continue;
      // A second chance, behind the others: this loop comes to it again.
      old.used = false;
      this.#tables.set(key, old);
    }
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const table = { host, bytes, view, dirtyFrom: Number.POSITIVE_INFINITY, dirtyTo: 0, used: false };
    this.#tables.set(host, table);
    return table;
  }
}
