import type { ClusterEntry } from '../../../../protocols/qcow2/mod.ts';
import { ImageError, type ZeroOptions } from '../disk_image.ts';
import { compressCluster } from './compress.ts';
import type { Qcow2Context } from './context.ts';
import { type ClusterReader, inPlace, type Run } from './reader.ts';

/** Clusters that one holder of the lock changes before others get their turn */
const BATCH_CLUSTERS = 4096;
/** Largest piece of zeroes that is written at once, in `bytes` */
const ZERO_PIECE_BYTES = 1 << 20;

/** Whole clusters whose places in the file follow each other */
interface NewClusters {
  readonly host: number;
  readonly from: number;
  to: number;
  readonly changes: { cluster: number; old: ClusterEntry; host: number }[];
}

/**
 * What changes the map: new clusters, zeroes, discards. Whoever calls it is alone with the map. New data goes to the
 * file first, the map in memory follows, and the map in the file with the next commit.
 */
export class ClusterWriter {
  readonly #context: Qcow2Context;
  readonly #reader: ClusterReader;
  readonly #clusterBytes: number;

  constructor(context: Qcow2Context, reader: ClusterReader) {
    this.#context = context;
    this.#reader = reader;
    this.#clusterBytes = context.metadata.header.clusterBytes;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    const { map, data } = this.#context;
    const clusterBytes = this.#clusterBytes;
    const end = offset + bytes.length;
    let run: NewClusters | undefined;
    const finish = async (): Promise<void> => {
      if (run === undefined) return;
      const { host, from, to, changes } = run;
      run = undefined;
      await data.write(host, bytes.subarray(from - offset, to - offset));
      for (const { cluster, old, host: place } of changes) await this.#remap(cluster, old, place, this.#allGrains);
    };
    for (let at = offset; at < end; ) {
      const cluster = Math.floor(at / clusterBytes);
      const next = Math.min(end, (cluster + 1) * clusterBytes);
      const old = await map.entry(cluster);
      if (next - at === clusterBytes && !this.#holdsAll(old)) {
        const host = hasOwnSpace(old) ? old.host : await map.allocate(cluster);
        if (run === undefined || run.host + (run.to - run.from) !== host || run.changes.length === BATCH_CLUSTERS) {
          await finish();
          run = { host, from: at, to: at, changes: [] };
        }
        run.to = next;
        run.changes.push({ cluster, old, host });
      } else {
        await finish();
        await this.#writePart(cluster, old, at % clusterBytes, bytes.subarray(at - offset, next - offset));
      }
      if (map.crowded) {
        await finish();
        await map.commit();
      }
      at = next;
    }
    await finish();
  }

  /** One whole cluster, or what of it is on the disk; as it is where compressing does not make it smaller. */
  async writeCompressed(cluster: number, bytes: Uint8Array): Promise<void> {
    const { map, file, metadata } = this.#context;
    const { compression } = metadata.header;
    const whole = new Uint8Array(this.#clusterBytes);
    whole.set(bytes);
    const small = await compressCluster(compression, whole);
    if (small === undefined) {
      await this.write(cluster * this.#clusterBytes, bytes);
      return;
    }
    const old = await map.entry(cluster);
    const host = await map.refcounts.allocateBytes(small.length);
    await file.write(host, small);
    // Readers take whole sectors: the file must not end before the data's last one does.
    const end = host + small.length;
    if (end % 512 !== 0 && end >= file.sizeBytes) await file.write(end, new Uint8Array(512 - (end % 512)));
    await map.setCompressed(cluster, host, small.length);
    map.release(old);
  }

  /**
   * Zeroes [from, to) of one cluster, whole grains of it, by its entry. `hides`: also where nothing is under the image,
   * for the time when something is.
   */
  async zero(
    cluster: number,
    from: number,
    to: number,
    options: Pick<ZeroOptions, 'mayUnmap'> & { readonly hides?: boolean },
  ): Promise<void> {
    const { map, backing, metadata } = this.#context;
    const { version } = metadata.header;
    const old = await map.entry(cluster);
    const grains = this.#grains(from, to);
    const whole = grains === this.#allGrains;
    const shows = backing !== undefined || options.hides === true;
    if (isEmpty(old) && !shows) return;
    if (version === 2) {
      if (!shows && options.mayUnmap) {
        await map.set(cluster, 0, { copied: false, allocated: 0, zero: 0 });
        map.release(old);
      } else await this.#writePart(cluster, old, from, new Uint8Array(to - from));
      return;
    }
    if (old.kind === 'compressed' && !whole) {
      await this.#writePart(cluster, old, from, new Uint8Array(to - from));
      return;
    }
    if ((old.zero & grains) >>> 0 === grains && (!hasSpace(old) || !options.mayUnmap || !whole)) return;
    if (this.#context.rawData) await this.#zeroData(cluster * this.#clusterBytes + from, to - from);
    const allocated = old.kind === 'compressed' ? 0 : (old.allocated & ~grains) >>> 0;
    const zero = old.kind === 'compressed' ? grains : (old.zero | grains) >>> 0;
    const keep = hasSpace(old) && (!whole || (!options.mayUnmap && old.copied) || this.#context.rawData);
    await map.set(cluster, keep ? old.host : 0, { copied: keep && old.copied, allocated, zero });
    if (!keep) map.release(old);
  }

  /** Forgets [from, to) of one cluster, whole grains of it; the backing disk does not shine through afterwards. */
  async discard(cluster: number, from: number, to: number): Promise<void> {
    const { map, backing, metadata, rawData } = this.#context;
    // Without zero clusters the backing file would shine through; a raw data file must agree with the map.
    if ((backing !== undefined && metadata.header.version === 2) || rawData) return;
    const old = await map.entry(cluster);
    const grains = this.#grains(from, to);
    if (grains !== this.#allGrains) {
      if (old.kind === 'compressed' || (old.allocated & grains) === 0) return;
      const zero = (old.zero | grains) >>> 0;
      await map.set(cluster, old.host, { copied: old.copied, allocated: (old.allocated & ~grains) >>> 0, zero });
      return;
    }
    if (!hasSpace(old) && old.kind === 'standard') return;
    await map.set(cluster, 0, { copied: false, allocated: 0, zero: backing === undefined ? 0 : grains });
    map.release(old);
  }

  /** Forgets whatever a cluster has: the disk ends before it. */
  async drop(cluster: number): Promise<void> {
    const { map } = this.#context;
    const old = await map.entry(cluster);
    if (isEmpty(old)) return;
    await map.set(cluster, 0, { copied: false, allocated: 0, zero: 0 });
    map.release(old);
  }

  /** Gives a cluster that has nothing a place in the file, where it reads as zeroes. */
  async preallocate(cluster: number): Promise<void> {
    const { map } = this.#context;
    const old = await map.entry(cluster);
    if (!isEmpty(old)) return;
    const host = await map.allocate(cluster);
    const { data, cipher } = this.#context;
    // The file has to reach into the cluster; what was there before, or does not decrypt to zeroes, must not show.
    const sparse = host >= data.sizeBytes && cipher === undefined;
    await data.write(host, new Uint8Array(sparse ? 512 : this.#clusterBytes));
    await map.set(cluster, host, { copied: true, allocated: this.#allGrains, zero: 0 });
  }

  get #allGrains(): number {
    return this.#context.map.grainsPerCluster === 1 ? 1 : 0xffff_ffff;
  }

  #grains(from: number, to: number): number {
    const { grainBytes, grainsPerCluster } = this.#context.map;
    if (to - from === this.#clusterBytes) return this.#allGrains;
    const first = Math.floor(from / grainBytes);
    const count = Math.min(grainsPerCluster, Math.ceil(to / grainBytes)) - first;
    return count >= 32 ? 0xffff_ffff : (((1 << count) - 1) << first) >>> 0;
  }

  /** All of the cluster may be written where it is */
  #holdsAll(entry: ClusterEntry): boolean {
    return hasOwnSpace(entry) && entry.allocated === this.#allGrains;
  }

  async #writePart(cluster: number, old: ClusterEntry, skip: number, bytes: Uint8Array): Promise<void> {
    const { map, data } = this.#context;
    const { grainBytes } = map;
    const compressed = old.kind === 'compressed';
    const from = compressed ? 0 : skip - (skip % grainBytes);
    const to = compressed ? this.#clusterBytes : Math.ceil((skip + bytes.length) / grainBytes) * grainBytes;
    const grains = this.#grains(from, to);
    if (hasOwnSpace(old) && (old.allocated & grains) >>> 0 === grains) {
      await data.write(old.host + skip, bytes);
      return;
    }
    const host = hasOwnSpace(old) ? old.host : await map.allocate(cluster);
    let piece = bytes;
    if (from < skip || to > skip + bytes.length) {
      piece = new Uint8Array(to - from);
      await this.#readOld(cluster, from, piece);
      piece.set(bytes, skip - from);
    }
    if (host !== old.host) await this.#copyOthers(cluster, old, grains, host);
    await data.write(host + from, piece);
    await this.#remap(cluster, old, host, grains);
  }

  /** Subclusters that are not written move with the others where the cluster gets a place of its own. */
  async #copyOthers(cluster: number, old: ClusterEntry, written: number, host: number): Promise<void> {
    const { map, data } = this.#context;
    const others = (old.allocated & ~written) >>> 0;
    for (let grain = 0; grain < map.grainsPerCluster; grain++) {
      if (((others >>> grain) & 1) === 0) continue;
      const piece = new Uint8Array(map.grainBytes);
      await this.#readOld(cluster, grain * map.grainBytes, piece);
      await data.write(host + grain * map.grainBytes, piece);
    }
  }

  /** What the cluster holds now, from `from` on; zeroes behind the end of the disk */
  async #readOld(cluster: number, from: number, into: Uint8Array): Promise<void> {
    const start = cluster * this.#clusterBytes + from;
    const there = Math.max(0, Math.min(into.length, this.#context.metadata.header.sizeBytes - start));
    await this.#reader.read(start, into.subarray(0, there));
  }

  async #remap(cluster: number, old: ClusterEntry, host: number, grains: number): Promise<void> {
    const { map } = this.#context;
    const before = old.kind === 'compressed' ? { allocated: 0, zero: 0 } : old;
    const allocated = (before.allocated | grains) >>> 0;
    const zero = (before.zero & ~grains) >>> 0;
    await map.set(cluster, host, { copied: true, allocated, zero });
    if (old.kind === 'compressed' || (hasSpace(old) && old.host !== host)) map.release(old);
  }

  async #zeroData(offset: number, lengthBytes: number): Promise<void> {
    const { data, metadata } = this.#context;
    const end = Math.min(offset + lengthBytes, metadata.header.sizeBytes);
    for (let at = offset; at < end; at += ZERO_PIECE_BYTES) {
      await data.write(at, new Uint8Array(Math.min(ZERO_PIECE_BYTES, end - at)));
    }
  }
}

/** Writes into runs that may be overwritten where they are; false, and nothing done, where one may not. */
export async function writeInPlace(
  { data }: Qcow2Context,
  runs: readonly Run[],
  offset: number,
  bytes: Uint8Array,
): Promise<boolean> {
  if (!runs.every(inPlace)) return false;
  for (const run of runs) {
    await data.write(run.host, bytes.subarray(run.at - offset, run.at - offset + run.runBytes));
  }
  return true;
}

export function refuseFast(version: 2 | 3, ragged: boolean): void {
  if (version === 2 || ragged) {
    throw new ImageError('ENOTSUP', 'Cannot write zeroes fast: parts of clusters must be written');
  }
}

function hasSpace({ host, copied }: ClusterEntry): boolean {
  return host !== 0 || copied;
}

function hasOwnSpace({ kind, copied }: ClusterEntry): boolean {
  return kind === 'standard' && copied;
}

function isEmpty(entry: ClusterEntry): boolean {
  return entry.kind === 'standard' && !hasSpace(entry) && entry.zero === 0;
}
