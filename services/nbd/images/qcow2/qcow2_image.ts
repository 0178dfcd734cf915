import { type Extent, STATE } from '../../../../protocols/nbd/mod.ts';
import {
  HEADER_FIELD,
  INCOMPATIBLE,
  type Mapping,
  type Qcow2Bitmap,
  type Qcow2Header,
  type Qcow2Snapshot,
} from '../../../../protocols/qcow2/mod.ts';
import { type DiskImage, ImageError, type ZeroOptions } from '../disk_image.ts';
import type { ImageLock } from '../image_lock.ts';
import { InPlaceGate } from '../in_place_gate.ts';
import { ClusterMap } from './cluster_map.ts';
import { decompressCluster } from './decompress.ts';
import { FdImageFile, type ImageFile } from './image_file.ts';
import { type Qcow2Metadata, readMetadata } from './metadata.ts';
import { ReadWriteLock } from './read_write_lock.ts';
import { CorruptImageError } from './refcount_table.ts';

/** Larger accesses always go to the pool, in `bytes` */
const MAX_IN_PLACE_BYTES = 1 << 20;
/** Clusters that one holder of the lock changes before others get their turn */
const BATCH_CLUSTERS = 4096;
/** Grains that one block-status request looks at; the client asks again for the rest */
const MAX_STATUS_GRAINS = 1 << 16;

export interface Qcow2ImageOptions {
  readonly readOnly: boolean;
  /**
   * What is under the image where the image itself has nothing: opened by the caller, who decides what the name
   * inside the image is worth. Closed with the image.
   */
  readonly backing?: DiskImage;
  /** Refuse an image that another writer has open (default true) */
  readonly lock?: boolean;
  /** Not locked and not written to until activate(), which reads it anew */
  readonly inactive?: boolean;
}

interface Run extends Mapping {
  /** On the disk, in `bytes` */
  readonly at: number;
  runBytes: number;
}

/**
 * A qcow2 image, versions 2 and 3. Every place that the file names is checked before it is used: inside the file,
 * aligned, not in metadata. Writes go to new clusters first and become part of the image at the next flush, in an
 * order in which a power cut costs leaked clusters at worst. Images with extended L2 entries, with the dirty or the
 * corrupt bit are opened read-only; encrypted ones and ones with an external data file are refused.
 */
export class Qcow2Image implements DiskImage {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly blockBytes: number = 1;
  readonly #file: ImageFile;
  readonly #backing: DiskImage | undefined;
  readonly #wantsLock: boolean;
  readonly #turns = new ReadWriteLock();
  readonly #reads = new InPlaceGate();
  readonly #writes = new InPlaceGate();
  #metadata: Qcow2Metadata;
  #map: ClusterMap;
  #lock: ImageLock | undefined;
  #active = false;
  #closed = false;
  /** Autoclear bits are cleared in the file: others' data about the contents is void from here on */
  #prepared = false;
  #corrupt: CorruptImageError | undefined;
  #inflated: { host: number; bytes: Uint8Array } | undefined;

  private constructor(file: ImageFile, metadata: Qcow2Metadata, options: Qcow2ImageOptions) {
    this.#file = file;
    this.#metadata = metadata;
    this.#map = new ClusterMap(file, metadata);
    this.#backing = options.backing;
    this.sizeBytes = metadata.header.sizeBytes;
    this.readOnly = options.readOnly;
    this.#wantsLock = !options.readOnly && options.lock !== false;
  }

  /**
   * Opens the image at a path or in a descriptor, which it takes over. The format is the caller's word.
   * @throws WireError where the image is wrong, ImageError where it cannot be served, errno errors of open(2)
   */
  static async open(source: string | number, options: Qcow2ImageOptions): Promise<Qcow2Image> {
    const file = typeof source === 'string' ? FdImageFile.open(source, options.readOnly) : new FdImageFile(source);
    return Qcow2Image.openFile(file, options);
  }

  /** Opens the image in `file`, which is closed where that fails. */
  static async openFile(file: ImageFile, options: Qcow2ImageOptions): Promise<Qcow2Image> {
    try {
      const metadata = await readMetadata(file);
      checkServable(metadata, options);
      const image = new Qcow2Image(file, metadata, options);
      if (!options.inactive) await image.activate();
      return image;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get canFastZero(): boolean {
    return this.#metadata.header.version === 3;
  }

  get header(): Qcow2Header {
    return this.#metadata.header;
  }

  get snapshots(): readonly Qcow2Snapshot[] {
    return this.#metadata.snapshots;
  }

  get bitmaps(): readonly Qcow2Bitmap[] {
    return this.#metadata.bitmaps;
  }

  async activate(): Promise<void> {
    this.#open();
    if (this.#active) return;
    if (this.#wantsLock) this.#lock = await this.#file.lock();
    try {
      await this.#turns.exclusive(async () => {
        // Whoever wrote until now has changed the tables.
        this.#file.refresh();
        const metadata = await readMetadata(this.#file);
        if (metadata.header.sizeBytes !== this.sizeBytes) {
          throw new ImageError('EINVAL', 'Cannot activate the qcow2 image: its size has changed');
        }
        const backing = this.#backing;
        checkServable(metadata, { readOnly: this.readOnly, ...(backing === undefined ? {} : { backing }) });
        this.#metadata = metadata;
        this.#map = new ClusterMap(this.#file, metadata);
        this.#inflated = undefined;
        this.#prepared = false;
      });
    } catch (error) {
      await this.#lock?.release();
      this.#lock = undefined;
      throw error;
    }
    this.#active = true;
  }

  async inactivate(): Promise<void> {
    this.#active = false;
    await this.flush();
    const lock = this.#lock;
    this.#lock = undefined;
    await lock?.release();
  }

  readNow(offset: number, into: Uint8Array): boolean {
    this.#open();
    if (into.length > MAX_IN_PLACE_BYTES || !this.#turns.idle) return false;
    const runs = this.#runsNow(offset, into.length);
    const simple = (run: Run): boolean =>
      run.kind === 'data' || run.kind === 'zero' || (run.kind === 'unallocated' && this.#backing === undefined);
    if (runs === undefined || !runs.every(simple) || !this.#reads.enter()) return false;
    try {
      for (const run of runs) {
        const piece = into.subarray(run.at - offset, run.at - offset + run.runBytes);
        if (run.kind === 'data') this.#file.readNow(run.host, piece);
        else piece.fill(0);
      }
    } finally {
      this.#reads.done(into.length);
    }
    return true;
  }

  writeNow(offset: number, data: Uint8Array): boolean {
    this.#writable();
    if (data.length > MAX_IN_PLACE_BYTES || !this.#turns.idle || !this.#prepared) return false;
    const runs = this.#runsNow(offset, data.length);
    if (runs === undefined || !runs.every(inPlace) || !this.#writes.enter()) return false;
    try {
      for (const run of runs) {
        this.#file.writeNow(run.host, data.subarray(run.at - offset, run.at - offset + run.runBytes));
      }
    } finally {
      this.#writes.done(data.length);
    }
    return true;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#open();
    await this.#turns.shared(() => this.#read(offset, into));
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#writable();
    const done = await this.#turns.shared(async () => {
      if (!this.#prepared) return false;
      const runs = await this.#runs(offset, data.length);
      if (!runs.every(inPlace)) return false;
      for (const run of runs) {
        await this.#file.write(run.host, data.subarray(run.at - offset, run.at - offset + run.runBytes));
      }
      return true;
    });
    if (!done) await this.#change(() => this.#allocatingWrite(offset, data));
  }

  async flush(): Promise<void> {
    this.#open();
    if (this.readOnly) return;
    if (!this.#map.dirty) await this.#file.sync();
    else await this.#change(() => this.#map.commit(), false);
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    this.#writable();
    const { version } = this.header;
    // Without zero clusters the backing file would shine through.
    if (this.#backing !== undefined && version === 2) return;
    await this.#eachWholeCluster(offset, lengthBytes, async (cluster, mapping) => {
      if (mapping.kind === 'unallocated' || (mapping.kind === 'zero' && mapping.host === 0)) return;
      await this.#map.set(cluster, 0, { copied: false, zero: this.#backing !== undefined });
      this.#release(mapping);
    });
  }

  async writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    this.#writable();
    const { version } = this.header;
    const [from, to] = this.#wholeClusters(offset, lengthBytes);
    const end = offset + lengthBytes;
    const edges = from < to ? [offset, from, to, end] : [offset, end, end, end];
    const ragged = edges[0]! < edges[1]! || (edges[2]! < edges[3]! && edges[2]! < this.sizeBytes && from < to);
    if (options.fast && (version === 2 || ragged)) {
      throw new ImageError('ENOTSUP', 'Cannot write zeroes fast: parts of clusters must be written');
    }
    for (const edge of [0, 2]) {
      const at = edges[edge]!;
      const length = Math.min(edges[edge + 1]!, this.sizeBytes) - at;
      if (length > 0) await this.#zeroPart(at, length);
    }
    await this.#eachWholeCluster(offset, lengthBytes, async (cluster, mapping) => {
      if (mapping.kind === 'unallocated' && this.#backing === undefined) return;
      if (version === 2) {
        if (this.#backing === undefined && options.mayUnmap) {
          await this.#map.set(cluster, 0, { copied: false });
          this.#release(mapping);
        } else await this.#writeCluster(cluster, mapping, new Uint8Array(this.header.clusterBytes));
        return;
      }
      if (mapping.kind === 'zero' && (mapping.host === 0 || !options.mayUnmap)) return;
      const keep = !options.mayUnmap && mapping.kind === 'data' && mapping.copied;
      await this.#map.set(cluster, keep ? mapping.host : 0, { copied: keep, zero: true });
      if (!keep) this.#release(mapping);
    });
  }

  async blockStatus(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    this.#open();
    return this.#turns.shared(async () => {
      const extents: { lengthBytes: number; flags: number }[] = [];
      const add = (length: number, flags: number): boolean => {
        const before = extents.at(-1);
        if (before?.flags === flags) before.lengthBytes += length;
        else if (extents.length >= maxExtents) return false;
        else extents.push({ lengthBytes: length, flags });
        return true;
      };
      for (const run of await this.#runs(offset, lengthBytes, MAX_STATUS_GRAINS)) {
        if (run.kind === 'unallocated' && this.#backing !== undefined) {
          if (!(await this.#backingStatus(run, maxExtents, add))) return extents;
          continue;
        }
        const flags =
          run.kind === 'unallocated'
            ? STATE.HOLE | STATE.ZERO
            : run.kind === 'zero'
              ? STATE.ZERO | (run.host === 0 ? STATE.HOLE : 0)
              : 0;
        if (!add(run.runBytes, flags)) return extents;
      }
      return extents;
    });
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#file.close();
    await this.#lock?.release();
    await this.#backing?.close();
  }

  async #read(offset: number, into: Uint8Array): Promise<void> {
    for (const run of await this.#runs(offset, into.length)) {
      const piece = into.subarray(run.at - offset, run.at - offset + run.runBytes);
      if (run.kind === 'data') await this.#file.read(run.host, piece);
      else if (run.kind === 'zero') piece.fill(0);
      else if (run.kind === 'unallocated') await this.#readBacking(run.at, piece);
      else {
        const bytes = await this.#inflate(run);
        const { clusterBytes } = this.header;
        for (let done = 0; done < piece.length; ) {
          const skip = (run.at + done) % clusterBytes;
          const count = Math.min(clusterBytes - skip, piece.length - done);
          piece.set(bytes.subarray(skip, skip + count), done);
          done += count;
        }
      }
    }
  }

  async #inflate({ host, lengthBytes }: Run): Promise<Uint8Array> {
    if (this.#inflated?.host === host) return this.#inflated.bytes;
    const { compression, clusterBytes } = this.header;
    const data = new Uint8Array(Math.min(lengthBytes, this.#file.sizeBytes - host));
    await this.#file.read(host, data);
    const bytes = await decompressCluster(compression, data, clusterBytes);
    this.#inflated = { host, bytes };
    return bytes;
  }

  async #readBacking(offset: number, into: Uint8Array): Promise<void> {
    const there = Math.max(0, Math.min(into.length, (this.#backing?.sizeBytes ?? 0) - offset));
    if (there > 0) await this.#backing?.read(offset, into.subarray(0, there));
    into.fill(0, there);
  }

  async #backingStatus(
    run: Run,
    maxExtents: number,
    add: (length: number, flags: number) => boolean,
  ): Promise<boolean> {
    const backing = this.#backing!;
    const end = run.at + run.runBytes;
    let at = run.at;
    while (at < end && at < backing.sizeBytes) {
      const extents = await backing.blockStatus(at, Math.min(end, backing.sizeBytes) - at, maxExtents);
      for (const { lengthBytes, flags } of extents) {
        const length = Math.min(lengthBytes, end - at);
        if (!add(length, flags)) return false;
        at += length;
      }
      if (extents.length === 0) return false;
    }
    return at >= end || add(end - at, STATE.HOLE | STATE.ZERO);
  }

  /** Undefined where it needs more than memory, or is wrong: the way that may wait reports that. */
  #runsNow(offset: number, lengthBytes: number): Run[] | undefined {
    const runs: Run[] = [];
    const end = offset + lengthBytes;
    try {
      for (let at = offset; at < end; ) {
        const mapping = this.#map.lookupNow(Math.floor(at / this.#map.grainBytes));
        if (mapping === undefined) return undefined;
        at = this.#addRun(runs, mapping, at, end);
      }
    } catch (error) {
      if (error instanceof CorruptImageError) return undefined;
      throw error;
    }
    return runs;
  }

  async #runs(offset: number, lengthBytes: number, maxGrains = Number.POSITIVE_INFINITY): Promise<Run[]> {
    const runs: Run[] = [];
    const end = offset + lengthBytes;
    let grains = 0;
    try {
      for (let at = offset; at < end && grains < maxGrains; grains++) {
        const grain = Math.floor(at / this.#map.grainBytes);
        const mapping = this.#map.lookupNow(grain) ?? (await this.#map.lookup(grain));
        at = this.#addRun(runs, mapping, at, end);
      }
    } catch (error) {
      throw await this.#noticed(error);
    }
    return runs;
  }

  /** Adds what `mapping` covers from `at` on, or lets the run before grow; gives where it ends. */
  #addRun(runs: Run[], mapping: Mapping, at: number, end: number): number {
    const { grainBytes, spanBytes } = this.#map;
    const unit = mapping.kind === 'unallocated' && !this.#map.hasTable(at) ? spanBytes : grainBytes;
    const next = Math.min(end, (Math.floor(at / unit) + 1) * unit);
    const host = mapping.kind === 'data' ? mapping.host + (at % grainBytes) : mapping.host;
    const before = runs.at(-1);
    const joins =
      before !== undefined &&
      before.kind === mapping.kind &&
      before.copied === mapping.copied &&
      (mapping.kind === 'data'
        ? before.host + before.runBytes === host
        : mapping.kind === 'zero'
          ? (before.host === 0) === (host === 0)
          : // Compressed: the subclusters of one cluster have one place in the file.
            before.host === host);
    if (joins) before.runBytes += next - at;
    else runs.push({ ...mapping, host, at, runBytes: next - at });
    return next;
  }

  /** Runs what changes the map, alone. */
  async #change(run: () => Promise<void>, prepare = true): Promise<void> {
    await this.#turns.exclusive(async () => {
      try {
        if (prepare) {
          this.#writable();
          await this.#prepare();
          this.#inflated = undefined;
        }
        await run();
        if (this.#map.crowded) await this.#map.commit();
      } catch (error) {
        throw await this.#noticed(error);
      }
    });
  }

  /** "Autoclear: must be cleared by software that does not know the bit before it changes the image"; we keep none. */
  async #prepare(): Promise<void> {
    if (this.#prepared) return;
    if (this.header.autoclearFeatures !== 0n) {
      await this.#file.write(HEADER_FIELD.autoclearFeatures, new Uint8Array(8));
      await this.#file.sync();
    }
    this.#prepared = true;
  }

  /** An image that contradicts itself is not written to any more, and says so to whoever opens it next. */
  async #noticed(error: unknown): Promise<unknown> {
    if (!(error instanceof CorruptImageError) || this.#corrupt !== undefined || !this.#active || this.readOnly)
      return error;
    this.#corrupt = error;
    if (this.header.version === 3) {
      const bits = new DataView(new ArrayBuffer(8));
      bits.setBigUint64(0, this.header.incompatibleFeatures | (1n << BigInt(INCOMPATIBLE.corrupt)));
      await this.#file.write(HEADER_FIELD.incompatibleFeatures, new Uint8Array(bits.buffer));
    }
    return error;
  }

  async #allocatingWrite(offset: number, data: Uint8Array): Promise<void> {
    const { clusterBytes } = this.header;
    const end = offset + data.length;
    /** Whole clusters whose places in the file follow each other */
    let run:
      | { host: number; from: number; to: number; changes: { cluster: number; old: Mapping; host: number }[] }
      | undefined;
    const finish = async (): Promise<void> => {
      if (run === undefined) return;
      const { host, from, to, changes } = run;
      run = undefined;
      await this.#file.write(host, data.subarray(from - offset, to - offset));
      for (const { cluster, old, host: place } of changes) await this.#remap(cluster, old, place);
    };
    for (let at = offset; at < end; ) {
      const cluster = Math.floor(at / clusterBytes);
      const next = Math.min(end, (cluster + 1) * clusterBytes);
      const old = this.#map.lookupNow(cluster) ?? (await this.#map.lookup(cluster));
      if (next - at === clusterBytes && !inPlace(old)) {
        const host = await this.#place(old);
        if (run === undefined || run.host + (run.to - run.from) !== host || run.changes.length === BATCH_CLUSTERS) {
          await finish();
          run = { host, from: at, to: at, changes: [] };
        }
        run.to = next;
        run.changes.push({ cluster, old, host });
      } else {
        await finish();
        await this.#writePart(cluster, old, at % clusterBytes, data.subarray(at - offset, next - offset));
      }
      if (this.#map.crowded) {
        await finish();
        await this.#map.commit();
      }
      at = next;
    }
    await finish();
  }

  async #writePart(cluster: number, old: Mapping, skip: number, data: Uint8Array): Promise<void> {
    if (inPlace(old)) {
      await this.#file.write(old.host + skip, data);
      return;
    }
    const { clusterBytes } = this.header;
    const whole = new Uint8Array(clusterBytes);
    const start = cluster * clusterBytes;
    await this.#read(start, whole.subarray(0, Math.min(clusterBytes, this.sizeBytes - start)));
    whole.set(data, skip);
    await this.#writeCluster(cluster, old, whole);
  }

  async #writeCluster(cluster: number, old: Mapping, whole: Uint8Array): Promise<void> {
    const host = inPlace(old) ? old.host : await this.#place(old);
    await this.#file.write(host, whole);
    if (!inPlace(old)) await this.#remap(cluster, old, host);
  }

  /** Where a cluster that cannot be written in place goes: the space of a zero cluster, or new space. */
  async #place(old: Mapping): Promise<number> {
    return old.kind === 'zero' && old.copied && old.host !== 0 ? old.host : this.#map.refcounts.allocate();
  }

  async #remap(cluster: number, old: Mapping, host: number): Promise<void> {
    await this.#map.set(cluster, host, { copied: true });
    if (old.host !== host) this.#release(old);
  }

  #release({ kind, host, lengthBytes }: Mapping): void {
    if (kind === 'unallocated' || (kind === 'zero' && host === 0)) return;
    this.#map.refcounts.release(host, lengthBytes);
  }

  async #zeroPart(offset: number, lengthBytes: number): Promise<void> {
    const zeroAlready = (await this.#turns.shared(() => this.#runs(offset, lengthBytes))).every(
      (run) => run.kind === 'zero' || (run.kind === 'unallocated' && this.#backing === undefined),
    );
    if (!zeroAlready) await this.#change(() => this.#allocatingWrite(offset, new Uint8Array(lengthBytes)));
  }

  /** Clusters that lie wholly in the range, as offsets; the last of the disk may be cut off by its end. */
  #wholeClusters(offset: number, lengthBytes: number): [from: number, to: number] {
    const { clusterBytes } = this.header;
    const end = offset + lengthBytes;
    const from = Math.ceil(offset / clusterBytes) * clusterBytes;
    const to = (end === this.sizeBytes ? Math.ceil(end / clusterBytes) : Math.floor(end / clusterBytes)) * clusterBytes;
    return [from, to];
  }

  async #eachWholeCluster(
    offset: number,
    lengthBytes: number,
    visit: (cluster: number, mapping: Mapping) => Promise<void>,
  ): Promise<void> {
    const { clusterBytes } = this.header;
    const [from, to] = this.#wholeClusters(offset, lengthBytes);
    for (let at = from; at < to; ) {
      await this.#change(async () => {
        for (let count = 0; count < BATCH_CLUSTERS && at < to && !this.#map.crowded; count++) {
          if (this.#backing === undefined && !this.#map.hasTable(at)) {
            at = (Math.floor(at / this.#map.spanBytes) + 1) * this.#map.spanBytes;
            continue;
          }
          const cluster = at / clusterBytes;
          await visit(cluster, this.#map.lookupNow(cluster) ?? (await this.#map.lookup(cluster)));
          at += clusterBytes;
        }
      });
    }
  }

  #open(): void {
    if (this.#closed) throw new ImageError('ESHUTDOWN', 'Cannot access the image: it is closed');
  }

  #writable(): void {
    this.#open();
    if (this.readOnly) throw new ImageError('EPERM', 'Cannot write: image is read-only');
    if (!this.#active) throw new ImageError('EPERM', 'Cannot write: another machine owns the image now');
    if (this.#corrupt !== undefined) throw this.#corrupt;
  }
}

function inPlace({ kind, copied }: Mapping): boolean {
  return kind === 'data' && copied;
}

function checkServable({ header, damage }: Qcow2Metadata, options: Qcow2ImageOptions): void {
  const refuse = (why: string): never => {
    throw new ImageError('EINVAL', `Cannot open the qcow2 image: ${why}`);
  };
  const has = (bit: number): boolean => (header.incompatibleFeatures & (1n << BigInt(bit))) !== 0n;
  if (header.encryption !== 0) refuse('it is encrypted');
  if (has(INCOMPATIBLE.externalDataFile)) refuse('it keeps its data in an external file');
  if (header.backingFile !== undefined && options.backing === undefined) {
    refuse(`it has a backing file, ${JSON.stringify(header.backingFile)}, and none was given`);
  }
  if (header.backingFile === undefined && options.backing !== undefined)
    refuse('a backing file was given, it has none');
  if (options.readOnly) return;
  if (has(INCOMPATIBLE.corrupt)) refuse('it is marked corrupt; open it read-only or repair it');
  if (has(INCOMPATIBLE.dirty)) refuse('its refcounts are marked dirty; open it read-only or repair it');
  if (header.extendedL2) refuse('extended L2 entries are supported read-only');
  if (damage !== undefined) refuse(`corrupt, ${damage}`);
}
