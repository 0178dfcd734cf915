import type { Extent } from '../../../../protocols/nbd/mod.ts';
import { hasFeature, INCOMPATIBLE, type Qcow2Header, type Qcow2Snapshot } from '../../../../protocols/qcow2/mod.ts';
import type { DirtyBitmaps } from '../dirty_bitmap.ts';
import { type DiskImage, ImageError, type StatusBudget, type ZeroOptions } from '../disk_image.ts';
import { ExtentList } from '../extent_list.ts';
import { InPlaceGate } from '../in_place_gate.ts';
import { SECTOR_BYTES } from '../luks/mod.ts';
import { CoreAtHand, StorageReads } from '../slow_reason.ts';
import { isZero } from '../zeroes.ts';
import { bitmapExtents, bitmapNames } from './chain_bitmaps.ts';
import { Qcow2Engine, type Qcow2ImageOptions } from './engine.ts';
import type { HeaderChanges } from './header_update.ts';
import { FdImageFile, type ImageFile } from './image_file.ts';
import { inPlace, MAX_STATUS_GRAINS, type Run } from './reader.ts';
import { resizeQcow2 } from './resize.ts';
import type { TableRewrite } from './table_rewrite.ts';
import { refuseFast, writeInPlace } from './writer.ts';

/** Larger accesses always go to the pool, in `bytes` */
const MAX_IN_PLACE_BYTES = 1 << 20;
/** Clusters that one holder of the lock changes before others get their turn */
const BATCH_CLUSTERS = 4096;

/**
 * A qcow2 image, versions 2 and 3. Every place that the file names is checked before it is used: inside the file,
 * aligned, not in metadata. Writes go to new clusters first and become part of the image at the next flush, in an
 * order in which a power cut costs leaked clusters at worst.
 */
export class Qcow2Image implements DiskImage {
  readonly readOnly: boolean;
  readonly #engine: Qcow2Engine;
  readonly #reads = new InPlaceGate(new StorageReads());
  readonly #writes = new InPlaceGate(new CoreAtHand());

  private constructor(engine: Qcow2Engine) {
    this.#engine = engine;
    this.readOnly = engine.options.readOnly;
  }

  /**
   * Opens the image at a path or in a descriptor, which it takes over. The format is the caller's word.
   * @throws WireError where the image is wrong, ImageError where it cannot be served, errno errors of open(2)
   */
  static async open(source: string | number, options: Qcow2ImageOptions): Promise<Qcow2Image> {
    const file = FdImageFile.from(source, options);
    return Qcow2Image.openFile(file, options);
  }

  /** Opens the image in `file`, which is closed where that fails. */
  static async openFile(file: ImageFile, options: Qcow2ImageOptions): Promise<Qcow2Image> {
    return new Qcow2Image(await Qcow2Engine.open(file, options));
  }

  get sizeBytes(): number {
    return this.header.sizeBytes;
  }

  get blockBytes(): number {
    return this.#engine.context.cipher === undefined ? 1 : SECTOR_BYTES;
  }

  get canFastZero(): boolean {
    return this.header.version === 3 && !this.#engine.context.rawData;
  }

  get header(): Qcow2Header {
    return this.#engine.header;
  }

  get snapshots(): readonly Qcow2Snapshot[] {
    return this.#engine.context.metadata.snapshots;
  }

  /** Kept in the image where they are persistent */
  get bitmaps(): DirtyBitmaps {
    return this.#engine.bitmaps;
  }

  dirtyBitmaps(): readonly string[] {
    return bitmapNames(this.bitmaps, this.backing);
  }

  async dirtyBitmap(name: string, offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return bitmapExtents(this.bitmaps, this.backing, { name, offset, lengthBytes, maxExtents });
  }

  activate(): Promise<void> {
    return this.#engine.activate();
  }

  inactivate(): Promise<void> {
    return this.#engine.inactivate();
  }

  readNow(offset: number, into: Uint8Array, alone = false): boolean {
    const engine = this.#engine;
    engine.checkOpen();
    if (into.length > MAX_IN_PLACE_BYTES || !engine.turns.idle) return false;
    const { data, backing } = engine.context;
    const runs = engine.reader.runsNow(offset, into.length);
    const simple = (run: Run): boolean =>
      run.kind === 'data' || run.kind === 'zero' || (run.kind === 'unallocated' && backing === undefined);
    if (runs === undefined || !runs.every(simple) || !this.#reads.enter(alone)) return false;
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

  writeNow(offset: number, bytes: Uint8Array): boolean {
    const engine = this.#engine;
    engine.checkWritable();
    if (bytes.length > MAX_IN_PLACE_BYTES || !engine.turns.idle || !engine.prepared) return false;
    const runs = engine.reader.runsNow(offset, bytes.length);
    if (runs === undefined || !runs.every(inPlace) || !this.#writes.enter()) return false;
    engine.bitmaps.mark(offset, bytes.length);
    try {
      for (const run of runs) {
        engine.context.data.writeNow(run.host, bytes.subarray(run.at - offset, run.at - offset + run.runBytes));
      }
    } finally {
      this.#writes.done(bytes.length);
    }
    return true;
  }

  /** Where in its file the image has each run of the disk, for those who show that; may cover less than asked */
  places(offset: number, lengthBytes: number): Promise<readonly Run[]> {
    return this.#engine.shared(() => this.#engine.reader.runs(offset, lengthBytes, { left: MAX_STATUS_GRAINS }));
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#engine.checkOpen();
    await this.#engine.shared(() => this.#engine.reader.read(offset, into));
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    const engine = this.#engine;
    engine.checkWritable();
    engine.bitmaps.mark(offset, bytes.length);
    const done = await engine.shared(
      async () =>
        engine.prepared && writeInPlace(engine.context, await engine.reader.runs(offset, bytes.length), offset, bytes),
    );
    if (!done) await engine.change(() => engine.writer.write(offset, bytes));
  }

  /** Writes whole clusters compressed, where that makes them smaller; `offset` is at a cluster. */
  async writeCompressed(offset: number, bytes: Uint8Array): Promise<void> {
    const engine = this.#engine;
    engine.checkWritable();
    const { clusterBytes, encryption } = this.header;
    if (encryption !== 0 || hasFeature(this.header, INCOMPATIBLE.externalDataFile)) {
      throw new ImageError('ENOTSUP', 'Cannot write compressed: the image is encrypted or has an external data file');
    }
    const end = offset + bytes.length;
    if (offset % clusterBytes !== 0 || (end % clusterBytes !== 0 && end !== this.sizeBytes)) {
      throw new ImageError(
        'EINVAL',
        `Cannot write compressed: ${bytes.length} bytes at ${offset} are parts of clusters`,
      );
    }
    engine.bitmaps.mark(offset, bytes.length);
    for (let at = offset; at < end; at += clusterBytes) {
      const piece = bytes.subarray(at - offset, Math.min(at + clusterBytes, end) - offset);
      await engine.change(() => engine.writer.writeCompressed(at / clusterBytes, piece));
    }
  }

  flush(): Promise<void> {
    return this.#engine.flush();
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    this.#engine.checkWritable();
    this.#engine.bitmaps.mark(offset, lengthBytes);
    await this.#eachCluster(offset, lengthBytes, (cluster, from, to) => this.#engine.writer.discard(cluster, from, to));
  }

  async writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    this.#engine.checkWritable();
    await this.#zero(offset, lengthBytes, options, () => this.#engine.bitmaps.mark(offset, lengthBytes));
  }

  /** `begin` is called once it is known that it can be done. */
  async #zero(offset: number, lengthBytes: number, options: ZeroOptions, begin = () => {}): Promise<void> {
    const [from, to] = this.#wholeGrains(offset, lengthBytes);
    const end = offset + lengthBytes;
    const edges = from < to ? [offset, from, to, end] : [offset, end, end, end];
    const ragged = edges[0]! < edges[1]! || (edges[2]! < edges[3]! && edges[2]! < this.sizeBytes && from < to);
    if (options.fast) refuseFast(this.header.version, ragged);
    begin();
    for (const edge of [0, 2]) {
      const at = edges[edge]!;
      const length = Math.min(edges[edge + 1]!, this.sizeBytes) - at;
      if (length > 0) await this.#zeroPart(at, length);
    }
    await this.#eachCluster(offset, lengthBytes, (cluster, first, last) =>
      this.#engine.writer.zero(cluster, first, last, options),
    );
  }

  async blockStatus(offset: number, lengthBytes: number, maxExtents: number, budget?: StatusBudget): Promise<Extent[]> {
    this.#engine.checkOpen();
    return this.#engine.shared(() => this.#engine.reader.blockStatus(offset, lengthBytes, maxExtents, budget));
  }

  async allocationDepth(
    offset: number,
    lengthBytes: number,
    maxExtents: number,
    budget: StatusBudget = { left: MAX_STATUS_GRAINS },
  ): Promise<Extent[]> {
    const { backing } = this.#engine.context;
    const list = new ExtentList();
    let at = offset;
    for (const { lengthBytes: length, flags } of await this.ownExtents(offset, lengthBytes, budget)) {
      const end = at + length;
      if (flags !== 0) list.add(length, 1);
      else {
        const there = Math.min(end, backing?.sizeBytes ?? 0);
        // Many at once: whoever answers looks further than one extent each time, and the peers wait meanwhile.
        while (at < there && list.length <= maxExtents) {
          if (--budget.left <= 0 && list.length > 0) return list.extents.slice(0, maxExtents);
          const below = (await backing?.allocationDepth?.(at, there - at, maxExtents, budget)) ?? [];
          for (const under of below.length > 0 ? below : [{ lengthBytes: there - at, flags: 1 }]) {
            const piece = Math.min(under.lengthBytes, there - at);
            list.add(piece, under.flags === 0 ? 0 : under.flags + 1);
            at += piece;
          }
        }
        if (list.length > maxExtents) break;
        if (at < end) list.add(end - at, 0);
      }
      at = end;
      if (list.length > maxExtents) break;
    }
    return list.extents.slice(0, maxExtents);
  }

  /** What is behind a smaller end is gone. */
  async resize(sizeBytes: number): Promise<void> {
    await resizeQcow2(this, sizeBytes, { shrink: true });
  }

  /** Which parts of the disk this image has by itself, without what is under it: `flags` 1, else 0; may cover less. */
  async ownExtents(offset: number, lengthBytes: number, budget?: StatusBudget): Promise<Extent[]> {
    this.#engine.checkOpen();
    return this.#engine.shared(() => this.#engine.reader.ownExtents(offset, lengthBytes, budget));
  }

  /** Changes the tables as a whole, for the operations beside this file; no request is in work meanwhile. */
  async rewrite(run: (tables: TableRewrite) => Promise<HeaderChanges>): Promise<void> {
    this.#engine.checkWritable();
    await this.#engine.rewrite(run);
    this.#engine.bitmaps.resize(this.sizeBytes);
  }

  /** Bitmaps were added, removed or changed: they are written when the image is closed. */
  async touchBitmaps(): Promise<void> {
    await this.#engine.change(async () => {});
  }

  /** What is under the image */
  get backing(): DiskImage | undefined {
    return this.#engine.context.backing;
  }

  /**
   * Puts another disk under the image, or none. With `name` the header says so, too: contents must be the same then,
   * or the caller's wish. The disk before is closed unless `keepOld`.
   */
  async changeBacking(
    backing: DiskImage | undefined,
    options: { readonly name?: { readonly file: string; readonly format: string } | null; readonly keepOld?: boolean },
  ): Promise<void> {
    const { name, keepOld = false } = options;
    const changes =
      name === undefined ? {} : { backingFile: name?.file, backingFormat: name === null ? undefined : name.format };
    await this.#engine.changeBacking(backing, changes, keepOld);
  }

  /** Puts another object for the same disk under the image, which may be read-only. The one before is closed. */
  swapBacking(backing: DiskImage): Promise<void> {
    return this.#engine.swapBacking(backing);
  }

  /** Whoever closes the image leaves the disk under it open. */
  keepBacking(): void {
    this.#engine.keepsBacking = true;
  }

  /**
   * Copies what is under the image into it, where it has nothing itself; the disk reads the same, so nothing records it.
   * Zeroes, too, with `zeroes`: something else will be under the image.
   */
  async fillFromBelow(offset: number, lengthBytes: number, zeroes = false): Promise<void> {
    const piece = new Uint8Array(lengthBytes);
    await this.read(offset, piece);
    if (!isZero(piece)) await this.#engine.change(() => this.#engine.writer.write(offset, piece));
    else if (zeroes) await this.#zero(offset, lengthBytes, { mayUnmap: true, fast: false });
  }

  /** Whole clusters, and at the end what there is of one, read as zeroes whatever is put under the image. */
  async hide(offset: number, lengthBytes: number): Promise<void> {
    const hide = (cluster: number, from: number, to: number): Promise<void> =>
      this.#engine.writer.zero(cluster, from, to, { mayUnmap: true, hides: true });
    await this.#eachCluster(offset, lengthBytes, hide, true);
  }

  /** Forgets all clusters that lie wholly behind `offset`. */
  async dropFrom(offset: number): Promise<void> {
    const { clusterBytes } = this.header;
    const from = Math.ceil(offset / clusterBytes) * clusterBytes;
    const length = Math.ceil(this.sizeBytes / clusterBytes) * clusterBytes - from;
    if (length > 0) await this.#eachCluster(from, length, (cluster) => this.#engine.writer.drop(cluster));
  }

  /** Gives clusters that are free back to the file system; no request is in work meanwhile. */
  async releaseSpace(): Promise<void> {
    this.#engine.checkWritable();
    await this.#engine.release();
  }

  /** Gives every cluster of a range that has none its place in the file, where it reads as zeroes. */
  async preallocate(offset: number, lengthBytes: number): Promise<void> {
    const { clusterBytes } = this.header;
    const end = Math.ceil((offset + lengthBytes) / clusterBytes);
    for (let cluster = Math.floor(offset / clusterBytes); cluster < end; ) {
      await this.#engine.change(async () => {
        for (let count = 0; count < BATCH_CLUSTERS && cluster < end; count++) {
          await this.#engine.writer.preallocate(cluster++);
          if (this.#engine.context.map.crowded) return;
        }
      });
    }
  }

  close(): Promise<void> {
    return this.#engine.close();
  }

  async #zeroPart(offset: number, lengthBytes: number): Promise<void> {
    const engine = this.#engine;
    const runs = await engine.shared(() => engine.reader.runs(offset, lengthBytes));
    const zeroAlready = runs.every(
      (run) => run.kind === 'zero' || (run.kind === 'unallocated' && engine.context.backing === undefined),
    );
    if (!zeroAlready) await engine.change(() => engine.writer.write(offset, new Uint8Array(lengthBytes)));
  }

  /** What of the range its own entries can say, as offsets; the last cluster may be cut off by the disk's end. */
  #wholeGrains(offset: number, lengthBytes: number): [from: number, to: number] {
    const { grainBytes } = this.#engine.context.map;
    const { clusterBytes } = this.header;
    const end = offset + lengthBytes;
    const from = Math.ceil(offset / grainBytes) * grainBytes;
    const to =
      end === this.sizeBytes ? Math.ceil(end / clusterBytes) * clusterBytes : Math.floor(end / grainBytes) * grainBytes;
    return [from, to];
  }

  /** The whole grains in the range, as bytes of their clusters; what has nothing, not even a table, only with `empty`. */
  async #eachCluster(
    offset: number,
    lengthBytes: number,
    visit: (cluster: number, from: number, to: number) => Promise<void>,
    empty = false,
  ): Promise<void> {
    const { clusterBytes } = this.header;
    const [from, to] = this.#wholeGrains(offset, lengthBytes);
    for (let at = from; at < to; ) {
      await this.#engine.change(async () => {
        const { map, backing } = this.#engine.context;
        for (let count = 0; count < BATCH_CLUSTERS && at < to && !map.crowded; count++) {
          if (backing === undefined && !empty && !map.hasTable(at)) {
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
}
