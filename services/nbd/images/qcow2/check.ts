import {
  AUTOCLEAR,
  decodeBitmapTable,
  HEADER_FIELD,
  hasFeature,
  INCOMPATIBLE,
  type L2Format,
  type Qcow2Header,
} from '../../../../protocols/qcow2/mod.ts';
import { asImageError, ImageError } from '../disk_image.ts';
import { formatOf, l2Entries, l2Tables, referredBytes } from './cluster_tree.ts';
import { FdImageFile, type ImageFile } from './image_file.ts';
import { type Qcow2Metadata, readMetadata } from './metadata.ts';
import { settleCopied } from './snapshot_operations.ts';
import { TableRewrite } from './table_rewrite.ts';

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
    await this.#walk(header.l1Offset, l1, 'the disk', true);
    for (const snapshot of snapshots) {
      const table = new Uint8Array(snapshot.l1Entries * 8);
      await this.#file.read(snapshot.l1Offset, table);
      await this.#walk(snapshot.l1Offset, table, `snapshot ${snapshot.id}`, false);
    }
    if (snapshotTableBytes > 0) this.#refer(header.snapshotsOffset, snapshotTableBytes, 'the snapshot table');
    const { encryptionHeader } = header;
    if (encryptionHeader !== undefined) {
      this.#refer(encryptionHeader.offset, encryptionHeader.bytes, 'the encryption header');
    }
    await this.#referBitmaps();
  }

  async #walk(l1Offset: number, l1: Uint8Array, whose: string, active: boolean): Promise<void> {
    const { header } = this.#metadata;
    if (l1.length > 0) this.#refer(l1Offset, l1.length, `the L1 table of ${whose}`);
    const problem = ({ index, reason }: { index: number; reason: string }): void =>
      this.#corruption(`${reason}, L1 entry ${index} of ${whose}`);
    try {
      for await (const { host, bytes } of l2Tables(this.#file, header, l1, problem)) {
        this.#refer(host, header.clusterBytes, `an L2 table of ${whose}`);
        this.#nextHost = 0;
        for (const [at, entry] of l2Entries(bytes, this.#format)) {
          if (entry.kind === 'invalid') {
            this.#corruption(`${entry.reason}, at ${host + at} for ${whose}`);
            continue;
          }
          const referred = referredBytes(entry, this.#format, header.clusterBytes);
          if (referred > 0) this.#refer(entry.host, referred, `a cluster of ${whose}`);
          if (active) this.#count(entry.kind === 'compressed', entry.host, entry.allocated !== 0 || referred > 0);
        }
      }
    } catch (error) {
      this.#errors++;
      this.#note(`${whose}: ${asImageError(error).message}`);
    }
  }

  #count(compressed: boolean, host: number, allocated: boolean): void {
    if (!allocated) return;
    this.#allocated++;
    if (compressed) {
      // As QEMU: compressed clusters are fragments, always.
      this.#compressed++;
      this.#fragmented++;
      return;
    }
    if (this.#nextHost !== 0 && host !== this.#nextHost) this.#fragmented++;
    this.#nextHost = host + this.#metadata.header.clusterBytes;
  }

  async #referBitmaps(): Promise<void> {
    const { header, bitmaps } = this.#metadata;
    const { clusterBytes } = header;
    if (bitmaps.length === 0 || header.bitmaps === undefined) return;
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

  #refer(host: number, bytes: number, what: string): void {
    const { clusterBytes } = this.#metadata.header;
    const first = Math.floor(host / clusterBytes);
    const last = Math.floor((host + bytes - 1) / clusterBytes);
    // The file may end inside its last cluster, and one that nobody has written yet may follow.
    if (last > this.#fileClusters) {
      this.#corruption(`${what} at ${host}, behind the end of the file`);
      return;
    }
    for (let cluster = first; cluster <= last; cluster++) this.#references[cluster]!++;
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
    for await (const { index, host, copied, bytes } of l2Tables(this.#file, header, l1, () => {})) {
      if (copied !== (tables.count(host) === 1)) {
        const l1Entry = hex(l1, index * 8);
        this.#corruption(
          `ERROR OFLAG_COPIED L2 cluster: l1_index=${index} l1_entry=${l1Entry} refcount=${tables.count(host)}`,
        );
      }
      for (const [at, entry] of l2Entries(bytes, this.#format)) {
        if (entry.kind !== 'standard' || entry.host === 0) continue;
        if (entry.copied !== (tables.count(entry.host) === 1)) {
          const refcount = tables.count(entry.host);
          this.#corruption(`ERROR OFLAG_COPIED data cluster: l2_entry=${hex(bytes, at)} refcount=${refcount}`);
        }
      }
    }
  }

  /** Entries that lead nowhere read as zeroes from now on, in version 2 as what is under the image. */
  async #zeroWhatIsInvalid(): Promise<void> {
    const { header, l1, snapshots } = this.#metadata;
    const { clusterBytes } = header;
    const lost = (host: number, bytes: number): boolean =>
      Math.floor((host + bytes - 1) / clusterBytes) > this.#fileClusters;
    const mend = async (offset: number, table: Uint8Array): Promise<void> => {
      const bad: number[] = [];
      for await (const { host, bytes } of l2Tables(this.#file, header, table, ({ index }) => bad.push(index))) {
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
      for (const index of bad) await this.#file.write(offset + index * 8, new Uint8Array(8));
    };
    await mend(header.l1Offset, l1);
    for (const snapshot of snapshots) {
      const table = new Uint8Array(snapshot.l1Entries * 8);
      await this.#file.read(snapshot.l1Offset, table);
      await mend(snapshot.l1Offset, table);
    }
    await this.#file.sync();
  }

  #corruption(text: string): void {
    this.#corruptions++;
    this.#note(text);
  }

  #note(text: string): void {
    if (this.#problems.length < MAX_PROBLEMS) this.#problems.push(text);
  }
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
