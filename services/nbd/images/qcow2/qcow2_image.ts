import type { Extent } from '../../../../protocols/nbd/mod.ts';
import {
  AUTOCLEAR,
  HEADER_FIELD,
  hasFeature,
  INCOMPATIBLE,
  type Qcow2Bitmap,
  type Qcow2Header,
  type Qcow2Snapshot,
} from '../../../../protocols/qcow2/mod.ts';
import { type DiskImage, ImageError, type ZeroOptions } from '../disk_image.ts';
import type { ImageLock } from '../image_lock.ts';
import { InPlaceGate } from '../in_place_gate.ts';
import { ClusterMap } from './cluster_map.ts';
import type { Qcow2Context } from './context.ts';
import { FdImageFile, type ImageFile } from './image_file.ts';
import { readMetadata } from './metadata.ts';
import { ReadWriteLock } from './read_write_lock.ts';
import { ClusterReader, inPlace, type Run } from './reader.ts';
import { CorruptImageError } from './refcount_table.ts';
import { checkServable } from './servable.ts';
import { ClusterWriter, refuseFast, writeInPlace } from './writer.ts';

/** Larger accesses always go to the pool, in `bytes` */
const MAX_IN_PLACE_BYTES = 1 << 20;
/** Clusters that one holder of the lock changes before others get their turn */
const BATCH_CLUSTERS = 4096;

export interface Qcow2ImageOptions {
  readonly readOnly: boolean;
  /**
   * What is under the image where the image itself has nothing: opened by the caller, who decides what the name
   * inside the image is worth. Closed with the image.
   */
  readonly backing?: DiskImage;
  /** Where the clusters of an image with an external data file are; closed with the image */
  readonly dataFile?: ImageFile;
  /** Refuse an image that another writer has open (default true) */
  readonly lock?: boolean;
  /** Not locked and not written to until activate(), which reads it anew */
  readonly inactive?: boolean;
}

/**
 * A qcow2 image, versions 2 and 3. Every place that the file names is checked before it is used: inside the file,
 * aligned, not in metadata. Writes go to new clusters first and become part of the image at the next flush, in an
 * order in which a power cut costs leaked clusters at worst.
 */
export class Qcow2Image implements DiskImage {
  readonly readOnly: boolean;
  readonly blockBytes: number = 1;
  readonly #file: ImageFile;
  readonly #options: Qcow2ImageOptions;
  readonly #wantsLock: boolean;
  readonly #turns = new ReadWriteLock();
  readonly #reads = new InPlaceGate();
  readonly #writes = new InPlaceGate();
  #context: Qcow2Context;
  #reader: ClusterReader;
  #writer: ClusterWriter;
  #lock: ImageLock | undefined;
  #active = false;
  #closed = false;
  /** Autoclear bits are cleared in the file: others' data about the contents is void from here on */
  #prepared = false;
  #corrupt: CorruptImageError | undefined;

  private constructor(file: ImageFile, context: Qcow2Context, options: Qcow2ImageOptions) {
    this.#file = file;
    this.#options = options;
    this.#context = context;
    this.#reader = new ClusterReader(context);
    this.#writer = new ClusterWriter(context, this.#reader);
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
      const image = new Qcow2Image(file, await readContext(file, options), options);
      if (!options.inactive) await image.activate();
      return image;
    } catch (error) {
      await file.close();
      await options.dataFile?.close();
      throw error;
    }
  }

  get sizeBytes(): number {
    return this.header.sizeBytes;
  }

  get canFastZero(): boolean {
    return this.header.version === 3 && !this.#context.rawData;
  }

  get header(): Qcow2Header {
    return this.#context.metadata.header;
  }

  get snapshots(): readonly Qcow2Snapshot[] {
    return this.#context.metadata.snapshots;
  }

  get bitmaps(): readonly Qcow2Bitmap[] {
    return this.#context.metadata.bitmaps;
  }

  async activate(): Promise<void> {
    this.#open();
    if (this.#active) return;
    if (this.#wantsLock) this.#lock = await this.#file.lock();
    try {
      await this.#turns.exclusive(async () => {
        // Whoever wrote until now has changed the tables.
        this.#file.refresh();
        const context = await readContext(this.#file, this.#options);
        if (context.metadata.header.sizeBytes !== this.sizeBytes) {
          throw new ImageError('EINVAL', 'Cannot activate the qcow2 image: its size has changed');
        }
        this.#use(context);
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
    const { data, backing } = this.#context;
    const runs = this.#reader.runsNow(offset, into.length);
    const simple = (run: Run): boolean =>
      run.kind === 'data' || run.kind === 'zero' || (run.kind === 'unallocated' && backing === undefined);
    if (runs === undefined || !runs.every(simple) || !this.#reads.enter()) return false;
    try {
      for (const run of runs) {
        const piece = into.subarray(run.at - offset, run.at - offset + run.runBytes);
        if (run.kind === 'data') data.readNow(run.host, piece);
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
    const runs = this.#reader.runsNow(offset, data.length);
    if (runs === undefined || !runs.every(inPlace) || !this.#writes.enter()) return false;
    try {
      for (const run of runs) {
        this.#context.data.writeNow(run.host, data.subarray(run.at - offset, run.at - offset + run.runBytes));
      }
    } finally {
      this.#writes.done(data.length);
    }
    return true;
  }

  /** Where in its file the image has each run of the disk, for those who show that; may cover less than asked */
  places(offset: number, lengthBytes: number): Promise<readonly Run[]> {
    return this.#shared(() => this.#reader.runs(offset, lengthBytes, 1 << 16));
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#open();
    await this.#shared(() => this.#reader.read(offset, into));
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#writable();
    const done = await this.#shared(
      async () =>
        this.#prepared && writeInPlace(this.#context, await this.#reader.runs(offset, data.length), offset, data),
    );
    if (!done) await this.#change(() => this.#writer.write(offset, data));
  }

  /** Writes whole clusters compressed, where that makes them smaller; `offset` is at a cluster. */
  async writeCompressed(offset: number, data: Uint8Array): Promise<void> {
    this.#writable();
    const { clusterBytes, encryption } = this.header;
    if (encryption !== 0 || hasFeature(this.header, INCOMPATIBLE.externalDataFile)) {
      throw new ImageError('ENOTSUP', 'Cannot write compressed: the image is encrypted or has an external data file');
    }
    const end = offset + data.length;
    if (offset % clusterBytes !== 0 || (end % clusterBytes !== 0 && end !== this.sizeBytes)) {
      throw new ImageError(
        'EINVAL',
        `Cannot write compressed: ${data.length} bytes at ${offset} are parts of clusters`,
      );
    }
    for (let at = offset; at < end; at += clusterBytes) {
      const piece = data.subarray(at - offset, Math.min(at + clusterBytes, end) - offset);
      await this.#change(() => this.#writer.writeCompressed(at / clusterBytes, piece));
    }
  }

  async flush(): Promise<void> {
    this.#open();
    if (this.readOnly) return;
    if (this.#context.map.dirty) await this.#change(() => this.#context.map.commit(), false);
    else {
      await this.#context.data.sync();
      if (this.#context.data !== this.#file) await this.#file.sync();
    }
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    this.#writable();
    await this.#eachCluster(offset, lengthBytes, (cluster, from, to) => this.#writer.discard(cluster, from, to));
  }

  async writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    this.#writable();
    const { version } = this.header;
    const [from, to] = this.#wholeGrains(offset, lengthBytes);
    const end = offset + lengthBytes;
    const edges = from < to ? [offset, from, to, end] : [offset, end, end, end];
    const ragged = edges[0]! < edges[1]! || (edges[2]! < edges[3]! && edges[2]! < this.sizeBytes && from < to);
    if (options.fast) refuseFast(version, ragged);
    for (const edge of [0, 2]) {
      const at = edges[edge]!;
      const length = Math.min(edges[edge + 1]!, this.sizeBytes) - at;
      if (length > 0) await this.#zeroPart(at, length);
    }
    await this.#eachCluster(offset, lengthBytes, (cluster, first, last) =>
      this.#writer.zero(cluster, first, last, options),
    );
  }

  async blockStatus(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    this.#open();
    return this.#shared(() => this.#reader.blockStatus(offset, lengthBytes, maxExtents));
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#file.close();
    await this.#options.dataFile?.close();
    await this.#lock?.release();
    await this.#options.backing?.close();
  }

  #use(context: Qcow2Context): void {
    this.#context = context;
    this.#reader = new ClusterReader(context);
    this.#writer = new ClusterWriter(context, this.#reader);
    this.#prepared = false;
  }

  async #shared<T>(run: () => Promise<T>): Promise<T> {
    return this.#turns.shared(async () => {
      try {
        return await run();
      } catch (error) {
        throw await this.#noticed(error);
      }
    });
  }

  /** Runs what changes the map, alone. */
  async #change(run: () => Promise<void>, prepare = true): Promise<void> {
    await this.#turns.exclusive(async () => {
      try {
        if (prepare) {
          this.#writable();
          await this.#prepare();
          this.#reader.forget();
        }
        await run();
        if (this.#context.map.crowded) await this.#context.map.commit();
      } catch (error) {
        throw await this.#noticed(error);
      }
    });
  }

  /** "Autoclear: must be cleared by software that does not know the bit before it changes the image." */
  async #prepare(): Promise<void> {
    if (this.#prepared) return;
    const { autoclearFeatures } = this.header;
    const kept = this.#context.rawData ? autoclearFeatures & (1n << BigInt(AUTOCLEAR.rawExternalData)) : 0n;
    if (kept !== autoclearFeatures) {
      const bits = new DataView(new ArrayBuffer(8));
      bits.setBigUint64(0, kept);
      await this.#file.write(HEADER_FIELD.autoclearFeatures, new Uint8Array(bits.buffer));
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

  async #zeroPart(offset: number, lengthBytes: number): Promise<void> {
    const zeroAlready = (await this.#shared(() => this.#reader.runs(offset, lengthBytes))).every(
      (run) => run.kind === 'zero' || (run.kind === 'unallocated' && this.#context.backing === undefined),
    );
    if (!zeroAlready) await this.#change(() => this.#writer.write(offset, new Uint8Array(lengthBytes)));
  }

  /** What of the range its own entries can say, as offsets; the last cluster may be cut off by the disk's end. */
  #wholeGrains(offset: number, lengthBytes: number): [from: number, to: number] {
    const { grainBytes } = this.#context.map;
    const { clusterBytes } = this.header;
    const end = offset + lengthBytes;
    const from = Math.ceil(offset / grainBytes) * grainBytes;
    const to =
      end === this.sizeBytes ? Math.ceil(end / clusterBytes) * clusterBytes : Math.floor(end / grainBytes) * grainBytes;
    return [from, to];
  }

  /** The whole grains in the range, cluster by cluster: `visit` gets where in the cluster they are, in `bytes`. */
  async #eachCluster(
    offset: number,
    lengthBytes: number,
    visit: (cluster: number, from: number, to: number) => Promise<void>,
  ): Promise<void> {
    const { clusterBytes } = this.header;
    const [from, to] = this.#wholeGrains(offset, lengthBytes);
    for (let at = from; at < to; ) {
      await this.#change(async () => {
        const { map, backing } = this.#context;
        for (let count = 0; count < BATCH_CLUSTERS && at < to && !map.crowded; count++) {
          if (backing === undefined && !map.hasTable(at)) {
            at = (Math.floor(at / map.spanBytes) + 1) * map.spanBytes;
            continue;
          }
          const cluster = Math.floor(at / clusterBytes);
          const start = cluster * clusterBytes;
          const next = Math.min(to, start + clusterBytes);
          await visit(cluster, at - start, next - start);
          at = next;
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

async function readContext(file: ImageFile, options: Qcow2ImageOptions): Promise<Qcow2Context> {
  const { backing, dataFile, readOnly } = options;
  const metadata = await readMetadata(file);
  checkServable(metadata, { readOnly, backing, dataFile: dataFile !== undefined });
  const data = dataFile ?? file;
  const raw = (metadata.header.autoclearFeatures & (1n << BigInt(AUTOCLEAR.rawExternalData))) !== 0n;
  return {
    file,
    data,
    metadata,
    map: new ClusterMap(file, data, metadata),
    backing,
    rawData: dataFile !== undefined && raw,
  };
}
