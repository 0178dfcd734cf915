import {
  AUTOCLEAR,
  decodeBitmapTable,
  decodeL1Entry,
  HEADER_FIELD,
  hasFeature,
  INCOMPATIBLE,
  type L2Format,
  type Qcow2Header,
} from '../../../../protocols/qcow2/mod.ts';
import { asImageError, ImageError } from '../disk_image.ts';
import { formatOf, l2Entries, referredBytes } from './cluster_tree.ts';
import { FdImageFile, type ImageFile } from './image_file.ts';
import { type Qcow2Metadata, readMetadata } from './metadata.ts';
import { settleCopied } from './snapshot_operations.ts';
import { TableRewrite } from './table_rewrite.ts';
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

const MAX_PROBLEMS = 100;
/** Of all bitmaps, in `bytes`: an entry stands for 32 GiB of disk at the usual sizes */
const MAX_BITMAP_TABLE_BYTES = 256 << 20;

/**
 * Checks the image at `path` and, if asked, mends it: refcounts become what is referred to, COPIED flags what the
 * refcounts are, entries that lead nowhere read as zeroes, and the dirty and corrupt bits go. No other file is opened.
 *
 * @throws WireError or ImageError where its header is wrong; errno errors of open(2)
 */
export async function checkQcow2(path: string, repair: Qcow2Repair = 'none'): Promise<Qcow2CheckResult> {
  const file = FdImageFile.open(path, repair === 'none');
  try {
    const lock = repair === 'none' ? undefined : await file.lock();
    try {
      return await checkFile(file, repair);
    } finally {
      await lock?.release();
    }
  } finally {
    await file.close();
  }
}

/** As {@link checkQcow2}, for a file that is open and that nobody else uses. */
export async function checkFile(file: ImageFile, repair: Qcow2Repair = 'none'): Promise<Qcow2CheckResult> {
  const check = new Check(file, await readMetadata(file));
  const before = await check.run();
  const { corrupt, dirty } = INCOMPATIBLE;
  const marks = (1n << BigInt(corrupt)) | (1n << BigInt(dirty));
  const marked = (before.header.incompatibleFeatures & marks) !== 0n;
  const { result } = before;
  if (repair !== 'none') await clearUnknown(file, before.header);
  // What could not be looked at may be in use: nothing of it may become free.
  if (result.checkErrors > 0) return result;
  if (repair === 'none' || (result.leaks === 0 && result.corruptions === 0 && !(marked && repair === 'all'))) {
    return result;
  }
  if (repair === 'leaks') {
    if (result.leaks === 0) return result;
    const tables = await TableRewrite.load(file);
    for (let cluster = 0; cluster < tables.counts.length; cluster++) {
      const wanted = before.references[cluster] ?? 0;
      if (tables.counts[cluster]! > wanted) tables.set(cluster, wanted);
    }
    await tables.commit(await settleCopied(tables));
  } else await check.repairAll(marks);
  file.refresh();
  const after = await new Check(file, await readMetadata(file)).run();
  return {
    ...after.result,
    leaksFixed: Math.max(0, result.leaks - after.result.leaks),
    corruptionsFixed: Math.max(0, result.corruptions - after.result.corruptions),
    problems: [...result.problems.map((text) => mended(text, repair)), ...after.result.problems].slice(0, MAX_PROBLEMS),
  };
}

/** "Autoclear": software that opens the image for writing and does not know a bit clears it. */
async function clearUnknown(file: ImageFile, { version, autoclearFeatures }: Qcow2Header): Promise<void> {
  const known = (1n << BigInt(AUTOCLEAR.bitmaps)) | (1n << BigInt(AUTOCLEAR.rawExternalData));
  const kept = autoclearFeatures & known;
  if (version === 2 || kept === autoclearFeatures) return;
  const field = new DataView(new ArrayBuffer(8));
  field.setBigUint64(0, kept);
  await file.write(HEADER_FIELD.autoclearFeatures, new Uint8Array(field.buffer));
  await file.sync();
}

/** What was found, in the words for what was done about it. */
function mended(problem: string, repair: Qcow2Repair): string {
  return problem.replace(repair === 'all' ? /^(?:Leaked|ERROR) (?=cluster|OFLAG)/ : /^Leaked /, 'Repairing ');
}

interface Found {
  readonly result: Qcow2CheckResult;
  readonly references: Uint32Array;
  readonly header: Qcow2Header;
}

/** One walk over all that an image refers to. */
class Check {
  readonly #file: ImageFile;
  readonly #metadata: Qcow2Metadata;
  readonly #format: L2Format;
  readonly #fileClusters: number;
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

  constructor(file: ImageFile, metadata: Qcow2Metadata) {
    this.#file = file;
    this.#metadata = metadata;
    this.#format = formatOf(metadata.header);
    this.#fileClusters = Math.ceil(file.sizeBytes / metadata.header.clusterBytes);
    this.#references = new Uint32Array(this.#fileClusters + 1);
  }

  async run(): Promise<Found> {
    const { header, l1 } = this.#metadata;
    await this.#referAll();
    const tables = await TableRewrite.loadDamaged(this.#file, this.#metadata, (what) => this.#corruption(what));
    this.#refer(header.refcountTableOffset, header.refcountTableClusters * header.clusterBytes, 'the refcount table');
    for (const host of tables.blocks.values()) this.#refer(host, header.clusterBytes, 'a refcount block');
    this.#compare(tables);
    await this.#checkCopied(tables, l1);
    let last = this.#references.length - 1;
    while (last > 0 && (this.#references[last] ?? 0) === 0 && (tables.counts[last] ?? 0) === 0) last--;
    return {
      header,
      references: this.#references,
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
    const again = new Check(this.#file, metadata);
    await again.#referAll();
    if (again.#errors > 0) throw new ImageError('EIO', `Cannot repair the image: ${again.#problems.at(-1)}`);
    const tables = await TableRewrite.loadDamaged(this.#file, metadata, () => {});
    tables.replaceAll(again.#references);
    const { header } = metadata;
    const changes = await settleCopied(tables);
    const kept = header.incompatibleFeatures & ~marks;
    await tables.commit({ ...changes, ...(header.version === 3 ? { incompatibleFeatures: kept } : {}) });
  }

  async #referAll(): Promise<void> {
    const { header, l1, snapshots, snapshotTableBytes } = this.#metadata;
    this.#refer(0, header.clusterBytes, 'the header');
    if (l1.length > 0) this.#refer(header.l1Offset, l1.length, 'the L1 table of the disk');
    for (const { id, l1Offset, l1Entries } of snapshots) {
      if (l1Entries > 0) this.#refer(l1Offset, l1Entries * 8, `the L1 table of snapshot ${id}`);
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
    if (snapshotTableBytes > 0) this.#refer(header.snapshotsOffset, snapshotTableBytes, 'the snapshot table');
    const { encryptionHeader } = header;
    if (encryptionHeader !== undefined) {
      this.#refer(encryptionHeader.offset, encryptionHeader.bytes, 'the encryption header');
    }
    await this.#referBitmaps();
  }

  /** One L2 table, and all that it refers to, as often as the table itself is referred to */
  async #walk(host: number, { active, total, whose }: L2Reference): Promise<void> {
    const { clusterBytes } = this.#metadata.header;
    this.#refer(host, clusterBytes, `an L2 table of ${whose}`, total);
    this.#nextHost = 0;
    for (const [at, entry] of l2Entries(await readTable(this.#file, host, clusterBytes), this.#format)) {
      if (entry.kind === 'invalid') {
        this.#corruption(`${entry.reason}, at ${host + at} for ${whose}`, total);
        continue;
      }
      const referred = referredBytes(entry, this.#format, clusterBytes);
      if (referred > 0) this.#refer(entry.host, referred, `a cluster of ${whose}`, total);
      if (active > 0) this.#count(entry.kind === 'compressed', entry.host, entry.allocated !== 0 || referred > 0, active);
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
    this.#refer(header.bitmaps.directoryOffset, header.bitmaps.directoryBytes, 'the bitmap directory');
    for (const { name, tableOffset, tableEntries } of bitmaps) {
      if (tableEntries === 0) continue;
      this.#refer(tableOffset, tableEntries * 8, `the table of bitmap ${JSON.stringify(name)}`);
      const bytes = new Uint8Array(tableEntries * 8);
      try {
        await this.#file.read(tableOffset, bytes);
        for (const entry of decodeBitmapTable(bytes, clusterBytes, this.#file.sizeBytes)) {
          if (typeof entry === 'object') this.#refer(entry.host, clusterBytes, `bitmap ${JSON.stringify(name)}`);
        }
      } catch (error) {
        this.#corruption(`bitmap ${JSON.stringify(name)}: ${(error as Error).message}`);
      }
    }
  }

  #refer(host: number, bytes: number, what: string, times = 1): void {
    const { clusterBytes } = this.#metadata.header;
    const first = Math.floor(host / clusterBytes);
    const last = Math.floor((host + bytes - 1) / clusterBytes);
    // The file may end inside its last cluster, and one that nobody has written yet may follow.
    if (last > this.#fileClusters) {
      this.#corruption(`${what} at ${host}, behind the end of the file`, times);
      return;
    }
    for (let cluster = first; cluster <= last; cluster++) {
      this.#references[cluster] = Math.min(0xffff_ffff, this.#references[cluster]! + times);
    }
  }

  #compare(tables: TableRewrite): void {
    const { counts } = tables;
    // As QEMU: what is counted behind the end of the file is not there to be leaked.
    for (let cluster = 0; cluster < this.#references.length; cluster++) {
      const count = counts[cluster] ?? 0;
      const wanted = this.#references[cluster] ?? 0;
      if (count === wanted) continue;
      // qemu-img's words: scripts count these lines.
      const text = `cluster ${cluster} refcount=${count} reference=${wanted}`;
      if (count < wanted) this.#corruption(`ERROR ${text}`);
      else {
        this.#leaks++;
        this.#note(`Leaked ${text}`);
      }
    }
  }

  async #checkCopied(tables: TableRewrite, l1: Uint8Array): Promise<void> {
    const { header } = this.#metadata;
    if (hasFeature(header, INCOMPATIBLE.externalDataFile)) return;
    for (let at = 0; at < l1.length; at += 8) {
      const view = new DataView(l1.buffer, l1.byteOffset + at, 8);
      const { kind, host, copied } = decodeL1Entry(view.getUint32(0), view.getUint32(4), header.clusterBytes);
      if (kind !== 'data' || !this.#tables.has(host) || copied === (tables.count(host) === 1)) continue;
      this.#corruption(
        `ERROR OFLAG_COPIED L2 cluster: l1_index=${at / 8} l1_entry=${hex(l1, at)} refcount=${tables.count(host)}`,
      );
    }
    for (const [table, { active }] of this.#tables) {
      if (active === 0) continue;
      const bytes = await readTable(this.#file, table, header.clusterBytes);
      for (const [at, { kind, host, copied }] of l2Entries(bytes, this.#format)) {
        if (kind !== 'standard' || host === 0 || copied === (tables.count(host) === 1)) continue;
        const text = `ERROR OFLAG_COPIED data cluster: l2_entry=${hex(bytes, at)} refcount=${tables.count(host)}`;
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
        bytes.fill(0, at, at + (this.#format.extended ? 16 : 8));
        if (this.#format.extended) bytes.fill(0xff, at + 8, at + 12);
        else if (header.version === 3) bytes[at + 7] = 1;
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

async function readTable(file: ImageFile, host: number, bytes: number): Promise<Uint8Array> {
  const table = new Uint8Array(bytes);
  await file.read(host, table);
  return table;
}

/** An entry of 8 bytes as qemu-img prints it. */
function hex(table: Uint8Array, at: number): string {
  return new DataView(table.buffer, table.byteOffset + at, 8).getBigUint64(0).toString(16);
}

/** An image with the dirty bit gets its refcounts back: what opening it for writing does first. @throws ImageError */
export async function mendWhereDirty(file: ImageFile): Promise<void> {
  const { header } = await readMetadata(file);
  if (!hasFeature(header, INCOMPATIBLE.dirty) || hasFeature(header, INCOMPATIBLE.corrupt)) return;
  const { corruptions, checkErrors, problems } = await checkFile(file, 'all');
  if (corruptions > 0 || checkErrors > 0) {
    throw new ImageError('EINVAL', `Cannot open the qcow2 image: its refcounts cannot be mended; ${problems.at(-1)}`);
  }
}
