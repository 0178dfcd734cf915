import {
  AUTOCLEAR,
  COMPATIBLE,
  HEADER_FIELD,
  INCOMPATIBLE,
  type Qcow2Header,
} from '../../../../protocols/qcow2/mod.ts';
import { DirtyBitmaps } from '../dirty_bitmap.ts';
import { type DiskImage, ImageError } from '../disk_image.ts';
import type { ImageLock } from '../image_lock.ts';
import { CryptFile, readLuksHeader, type SectorCipher, unlockLuks } from '../luks/mod.ts';
import { loadBitmaps, markInUse, placeBitmaps } from './bitmap_store.ts';
import { mendWhereDirty } from './check.ts';
import { ClusterMap } from './cluster_map.ts';
import type { Qcow2Context } from './context.ts';
import { CorruptImageError } from './corrupt_image_error.ts';
import { type HeaderChanges, writeHeader } from './header_update.ts';
import type { ImageFile } from './image_file.ts';
import { asOfSnapshot, type Qcow2Metadata, readMetadata } from './metadata.ts';
import { ReadWriteLock } from './read_write_lock.ts';
import { ClusterReader } from './reader.ts';
import { releaseFree } from './release.ts';
import { checkServable } from './servable.ts';
import { TableRewrite } from './table_rewrite.ts';
import { ClusterWriter } from './writer.ts';

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
  /** flush() does nothing, and writes have no order: a power cut may cost the image (default false) */
  readonly unsafe?: boolean;
  /** Not locked and not written to until activate(), which reads it anew */
  readonly inactive?: boolean;
  /** Of an image with LUKS encryption */
  readonly passphrase?: Uint8Array;
  /** Id or name of an internal snapshot: the disk as it was then, read-only */
  readonly snapshot?: string;
}

const LAZY_REFCOUNTS = 1n << BigInt(COMPATIBLE.lazyRefcounts);
const DIRTY_BIT = 1n << BigInt(INCOMPATIBLE.dirty);
const KNOWN_AUTOCLEAR = (1n << BigInt(AUTOCLEAR.bitmaps)) | (1n << BigInt(AUTOCLEAR.rawExternalData));

/** The tables of one open image, and who may use them when: many readers, or one who changes them. */
export class Qcow2Engine {
  readonly file: ImageFile;
  options: Qcow2ImageOptions;
  readonly turns = new ReadWriteLock();
  context: Qcow2Context;
  reader: ClusterReader;
  writer: ClusterWriter;
  /** Autoclear bits are cleared in the file: others' data about the contents is void from here on */
  prepared = false;
  /** Somebody else closes what is under the image */
  keepsBacking = false;
  /** As loaded by activate(); from the first write on those in the file are marked as in use */
  bitmaps = new DirtyBitmaps();
  /** Of the image, and of its external data file */
  #locks: readonly ImageLock[] = [];
  #active = false;
  #closed = false;
  #corrupt: CorruptImageError | undefined;

  private constructor(file: ImageFile, context: Qcow2Context, options: Qcow2ImageOptions) {
    this.file = file;
    this.options = options;
    this.context = context;
    this.reader = new ClusterReader(context);
    this.writer = new ClusterWriter(context, this.reader);
  }

  /** Opens the image in `file`, which is closed where that fails. */
  static async open(file: ImageFile, options: Qcow2ImageOptions): Promise<Qcow2Engine> {
    try {
      const engine = new Qcow2Engine(file, await readContext(file, options), options);
      if (!options.inactive) await engine.activate();
      return engine;
    } catch (error) {
      await file.close();
      await options.dataFile?.close();
      throw error;
    }
  }

  get header(): Qcow2Header {
    return this.context.metadata.header;
  }

  async activate(): Promise<void> {
    this.checkOpen();
    if (this.#active) return;
    const { readOnly, lock } = this.options;
    if (!readOnly && lock !== false) await this.#takeLocks();
    try {
      await this.turns.exclusive(async () => {
        // Whoever wrote until now has changed the tables.
        this.file.refresh();
        this.options.dataFile?.refresh();
        if (!readOnly) await mendWhereDirty(this.file);
        const context = await readContext(this.file, this.options, this.context.cipher);
        if (context.metadata.header.sizeBytes !== this.header.sizeBytes) {
          throw new ImageError('EINVAL', 'Cannot activate the qcow2 image: its size has changed');
        }
        this.#use(context);
        this.prepared = false;
        this.bitmaps = await loadBitmaps(this.file, context.metadata);
      });
    } catch (error) {
      await this.#releaseLocks();
      throw error;
    }
    this.#active = true;
  }

  async inactivate(): Promise<void> {
    try {
      await this.#finish();
    } finally {
      this.#active = false;
    }
    await this.flush();
    await this.#releaseLocks();
  }

  async flush(): Promise<void> {
    this.checkOpen();
    if (this.options.readOnly) return;
    const { map, data } = this.context;
    if (map.dirty) await this.change(() => this.commit(), false);
    else {
      await data.sync();
      if (data !== this.file) await this.file.sync();
    }
  }

  /** Brings what is cached to the file, in its order. */
  async commit(): Promise<void> {
    await this.context.map.commit(this.#lazy);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    // What cannot be written back stays marked in the file: bitmaps as in use, refcounts as dirty.
    if (this.#active) await this.#finish().catch(() => {});
    this.#closed = true;
    await this.file.close();
    await this.options.dataFile?.close();
    await this.#releaseLocks();
    if (!this.keepsBacking) await this.options.backing?.close();
  }

  /** Runs what uses the map as it is. */
  async shared<T>(run: () => Promise<T>): Promise<T> {
    return this.turns.shared(async () => {
      try {
        return await run();
      } catch (error) {
        throw await this.#noticed(error);
      }
    });
  }

  /** Runs what changes the map, alone. */
  async change(run: () => Promise<void>, prepare = true): Promise<void> {
    await this.turns.exclusive(async () => {
      try {
        if (prepare) {
          this.checkWritable();
          await this.#prepare();
          this.reader.forget();
        }
        await run();
        if (this.context.map.crowded) await this.commit();
      } catch (error) {
        throw await this.#noticed(error);
      }
    });
  }

  /**
   * Runs what changes the tables as a whole, alone, with all that was cached in the file: `run` gives what the header
   * has to say afterwards. Everything is read anew then.
   */
  async rewrite(run: (tables: TableRewrite) => Promise<HeaderChanges>): Promise<void> {
    await this.change(async () => {
      await this.context.map.commit();
      const tables = await TableRewrite.load(this.file);
      await tables.commit(await run(tables));
      this.#use(await readContext(this.file, this.options, this.context.cipher));
    });
  }

  /** Gives what nobody uses back to the file system, where the file can. */
  async release(): Promise<void> {
    await this.change(async () => {
      await this.context.map.commit();
      await releaseFree(this.file);
      this.#use(await readContext(this.file, this.options, this.context.cipher));
    });
  }

  /**
   * Puts another disk under the image, or none, and says so in the header where `changes` do. The one before is closed
   * unless it is kept.
   */
  async changeBacking(backing: DiskImage | undefined, changes: HeaderChanges, keepOld: boolean): Promise<void> {
    await this.change(async () => {
      await this.context.map.commit();
      const { backing: old, ...rest } = this.options;
      if (Object.keys(changes).length > 0) {
        await writeHeader(this.file, (await readMetadata(this.file)).header, changes);
      }
      this.options = backing === undefined ? rest : { ...rest, backing };
      this.#use(await readContext(this.file, this.options, this.context.cipher));
      if (old !== backing && !keepOld) await old?.close();
    });
  }

  /** Puts another object for the same disk under the image, which may be read-only. The one before is closed. */
  async swapBacking(backing: DiskImage): Promise<void> {
    await this.turns.exclusive(async () => {
      this.checkOpen();
      if (this.context.map.dirty) await this.context.map.commit();
      const { backing: old } = this.options;
      this.options = { ...this.options, backing };
      this.#use(await readContext(this.file, this.options, this.context.cipher));
      if (old !== backing) await old?.close();
    });
  }

  checkOpen(): void {
    if (this.#closed) throw new ImageError('ESHUTDOWN', 'Cannot access the image: it is closed');
  }

  checkWritable(): void {
    this.checkOpen();
    if (this.options.readOnly) throw new ImageError('EPERM', 'Cannot write: image is read-only');
    if (!this.#active) throw new ImageError('EPERM', 'Cannot write: another machine owns the image now');
    if (this.#corrupt !== undefined) throw this.#corrupt;
  }

  async #takeLocks(): Promise<void> {
    this.#locks = [await this.file.lock()];
    try {
      const data = await this.options.dataFile?.lock();
      if (data !== undefined) this.#locks = [...this.#locks, data];
    } catch (error) {
      await this.#releaseLocks();
      throw error;
    }
  }

  async #releaseLocks(): Promise<void> {
    const locks = this.#locks;
    this.#locks = [];
    for (const lock of locks) await lock.release();
  }

  get #lazy(): boolean {
    return this.header.version === 3 && (this.header.compatibleFeatures & LAZY_REFCOUNTS) !== 0n;
  }

  /** The last words of a writer: all refcounts, bitmaps that are valid again, no dirty bit. */
  async #finish(): Promise<void> {
    if (this.options.readOnly || this.#corrupt !== undefined) return;
    await this.turns.exclusive(async () => {
      if (this.context.map.dirty) await this.context.map.commit();
      if (this.prepared && this.#lazy) {
        await this.#writeBits(HEADER_FIELD.incompatibleFeatures, this.header.incompatibleFeatures & ~DIRTY_BIT);
        await this.file.sync();
      }
      const persistent = [...this.bitmaps].some(([, bitmap]) => bitmap.persistent);
      if (this.prepared && (persistent || this.context.metadata.bitmaps.length > 0)) {
        const tables = await TableRewrite.load(this.file);
        await tables.commit(await placeBitmaps(tables, this.bitmaps));
        this.#use(await readContext(this.file, this.options, this.context.cipher));
      }
      this.prepared = false;
    });
  }

  #use(context: Qcow2Context): void {
    this.context = context;
    this.reader = new ClusterReader(context);
    this.writer = new ClusterWriter(context, this.reader);
  }

  /** "Autoclear: must be cleared by software that does not know the bit before it changes the image." */
  async #prepare(): Promise<void> {
    if (this.prepared) return;
    const { autoclearFeatures } = this.header;
    const kept = autoclearFeatures & KNOWN_AUTOCLEAR;
    await markInUse(this.file, this.context.metadata);
    if (this.#lazy) {
      const bits = this.header.incompatibleFeatures | DIRTY_BIT;
      await this.#writeBits(HEADER_FIELD.incompatibleFeatures, bits);
      await this.file.sync();
    }
    if (kept !== autoclearFeatures) {
      await this.#writeBits(HEADER_FIELD.autoclearFeatures, kept);
      await this.file.sync();
    }
    this.prepared = true;
  }

  /** An image that contradicts itself is not written to any more, and says so to whoever opens it next. */
  async #noticed(error: unknown): Promise<unknown> {
    if (!(error instanceof CorruptImageError) || this.#corrupt !== undefined || !this.#active || this.options.readOnly)
      return error;
    this.#corrupt = error;
    if (this.header.version === 3) {
      const bits = this.header.incompatibleFeatures | (1n << BigInt(INCOMPATIBLE.corrupt));
      await this.#writeBits(HEADER_FIELD.incompatibleFeatures, bits);
    }
    return error;
  }

  async #writeBits(offset: number, bits: bigint): Promise<void> {
    const field = new DataView(new ArrayBuffer(8));
    field.setBigUint64(0, bits);
    await this.file.write(offset, new Uint8Array(field.buffer));
  }
}

/** `known`: the cipher of the image, where it was unlocked before. */
async function readContext(
  file: ImageFile,
  options: Qcow2ImageOptions,
  known: SectorCipher | undefined = undefined,
): Promise<Qcow2Context> {
  const { backing, dataFile, readOnly, passphrase } = options;
  const now = await readMetadata(file);
  if (options.snapshot !== undefined && !readOnly) {
    throw new ImageError('EPERM', 'Cannot open a snapshot for writing: it is read-only');
  }
  const metadata = options.snapshot === undefined ? now : await asOfSnapshot(file, now, options.snapshot);
  checkServable(metadata, {
    readOnly,
    backing,
    dataFile: dataFile !== undefined,
    passphrase: passphrase !== undefined,
  });
  const cipher = known ?? (passphrase === undefined ? undefined : await unlock(file, metadata, passphrase));
  const plain = dataFile ?? file;
  // The number of a sector is that of its place in the file, not on the disk.
  const data = cipher === undefined ? plain : new CryptFile(plain, cipher);
  const raw = (metadata.header.autoclearFeatures & (1n << BigInt(AUTOCLEAR.rawExternalData))) !== 0n;
  return {
    file,
    data,
    metadata,
    map: new ClusterMap(file, data, metadata),
    backing,
    rawData: dataFile !== undefined && raw,
    cipher,
  };
}

async function unlock(file: ImageFile, { header }: Qcow2Metadata, passphrase: Uint8Array): Promise<SectorCipher> {
  const { offset, bytes } = header.encryptionHeader!;
  const area = {
    lengthBytes: bytes,
    read: (at: number, into: Uint8Array): Promise<void> => file.read(offset + at, into),
  };
  return unlockLuks(area, await readLuksHeader(area), passphrase);
}
