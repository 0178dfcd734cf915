import { deflate, inflate } from 'node:zlib';
import {
  decodeVmdkFooter,
  decodeVmdkGrainMarker,
  decodeVmdkSparseHeader,
  directoryBytesOf,
  encodeVmdkGrainMarker,
  looksLikeVmdkSparse,
  VMDK_FLAG,
  VMDK_GRAIN_MARKER_BYTES,
  VMDK_HEADER_BYTES,
  type VmdkSparseHeader,
} from '../../../../protocols/vmdk/mod.ts';
import type { BlockMapChanges, Place } from '../block_map.ts';
import { ImageError } from '../disk_image.ts';
import type { ImageFile } from '../qcow2/mod.ts';

const SECTOR_BYTES = 512;
/** Footer marker, footer, end marker, in `bytes` */
const FOOTER_AREA_BYTES = 3 * SECTOR_BYTES;
/** Grain tables that are kept; a table has at most 2 KiB */
const MAX_TABLES = 4096;
/** Changed ones: then they are written */
const MAX_DIRTY_TABLES = 1024;
/** "A grain table entry of 1: a grain of zeroes", with the flag */
const ZEROED_GRAIN = 1;

/** A sparse extent: grains where the grain tables say, which the grain directory names. */
export class SparseExtent {
  readonly header: VmdkSparseHeader;
  readonly changes: BlockMapChanges | undefined;
  readonly #file: ImageFile;
  readonly #directory: DataView;
  readonly #redundant: DataView | undefined;
  readonly #directoryOffset: number;
  readonly #tables = new Map<number, DataView>();
  readonly #dirty = new Set<number>();
  /** On the whole disk, in `bytes`: where this extent begins */
  readonly #start: number;
  #forWriting = false;

  private constructor(
    file: ImageFile,
    header: VmdkSparseHeader,
    directory: Uint8Array,
    redundant: Uint8Array | undefined,
    start: number,
  ) {
    this.#file = file;
    this.header = header;
    this.#directory = viewOf(directory);
    this.#redundant = redundant === undefined ? undefined : viewOf(redundant);
    this.#directoryOffset = header.directoryOffset!;
    this.#start = start;
    // Version 3 is another writer's format, of which only reading is known.
    const writable = header.compression === 0 && header.version < 3;
    this.changes = writable ? { allocate: (at) => this.#allocate(at), flush: () => this.#flush() } : undefined;
  }

  /** Reads header and grain directory; `start` is the extent's place on the disk. @throws WireError, ImageError */
  static async load(file: ImageFile, start: number, forWriting: boolean): Promise<SparseExtent> {
    let header = decodeVmdkSparseHeader(await readArea(file, 0, VMDK_HEADER_BYTES));
    if (header.directoryOffset === undefined) {
      if (file.sizeBytes < FOOTER_AREA_BYTES + VMDK_HEADER_BYTES) throw bad('its footer is missing');
      header = decodeVmdkFooter(await readArea(file, file.sizeBytes - FOOTER_AREA_BYTES, FOOTER_AREA_BYTES));
      if (header.directoryOffset === undefined) throw bad('its footer says that there is another one');
    }
    const directory = await readDirectory(file, header, header.directoryOffset!);
    const hasRedundant = (header.flags & VMDK_FLAG.redundantTables) !== 0 && header.redundantDirectoryOffset !== 0;
    const redundant = hasRedundant ? await readDirectory(file, header, header.redundantDirectoryOffset) : undefined;
    const extent = new SparseExtent(file, header, directory, redundant, start);
    if (forWriting && !extent.compressed) extent.#checkForWriting();
    return extent;
  }

  /** Memory of its directories, in `bytes` */
  get directoriesBytes(): number {
    return this.#directory.byteLength + (this.#redundant?.byteLength ?? 0);
  }

  get compressed(): boolean {
    return this.header.compression === 1;
  }

  /** `offset` is inside the extent */
  lookupNow(offset: number, lengthBytes: number): Place | undefined {
    const { grainBytes, tableEntries, flags } = this.header;
    const grain = Math.floor(offset / grainBytes);
    const index = Math.floor(grain / tableEntries);
    const skip = offset % grainBytes;
    const tableHost = this.#tableHost(this.#directory, index);
    if (tableHost === 0) {
      const span = grainBytes * tableEntries;
      return { kind: 'hole', lengthBytes: Math.min(lengthBytes, span - (offset % span)) };
    }
    const table = this.#tables.get(index);
    if (table === undefined) return undefined;
    const run = Math.min(lengthBytes, grainBytes - skip);
    const sector = table.getUint32((grain % tableEntries) * 4, true);
    if (sector === 0) return { kind: 'hole', lengthBytes: run };
    if (sector === ZEROED_GRAIN && (flags & VMDK_FLAG.zeroedGrains) !== 0) return { kind: 'zero', lengthBytes: run };
    const host = sector * SECTOR_BYTES;
    this.#check(grain, host);
    if (!this.compressed) return { kind: 'data', lengthBytes: run, file: this.#file, host: host + skip };
    const key = this.#start + grain * grainBytes;
    return { kind: 'packed', lengthBytes: run, key, skip, unpack: () => this.#unpack(host) };
  }

  async lookup(offset: number, lengthBytes: number): Promise<Place> {
    const { grainBytes, tableEntries } = this.header;
    await this.#table(Math.floor(offset / (grainBytes * tableEntries)));
    return this.lookupNow(offset, lengthBytes)!;
  }

  /** Adds a whole grain, compressed: how a stream is written. Nothing may be there yet. */
  async appendCompressed(offset: number, grain: Uint8Array): Promise<void> {
    const packed = await new Promise<Uint8Array>((resolve, reject) => {
      deflate(grain, (error, out) => (error === null ? resolve(out) : reject(error)));
    });
    const host = Math.ceil(this.#file.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
    const length = Math.ceil((VMDK_GRAIN_MARKER_BYTES + packed.length) / SECTOR_BYTES) * SECTOR_BYTES;
    const bytes = new Uint8Array(length);
    bytes.set(encodeVmdkGrainMarker(offset, packed.length));
    bytes.set(packed, VMDK_GRAIN_MARKER_BYTES);
    await this.#file.write(host, bytes);
    await this.#setEntry(offset, host);
  }

  flushTables(): Promise<void> {
    return this.#flush();
  }

  async #unpack(host: number): Promise<Uint8Array> {
    const { grainBytes, flags } = this.header;
    let from = host;
    let dataBytes = grainBytes * 2;
    if ((flags & VMDK_FLAG.markers) !== 0) {
      const marker = decodeVmdkGrainMarker(await readArea(this.#file, host, VMDK_GRAIN_MARKER_BYTES));
      from += VMDK_GRAIN_MARKER_BYTES;
      dataBytes = marker.dataBytes;
    }
    // Deflate makes nothing much longer than it was.
    if (dataBytes === 0 || dataBytes > grainBytes * 2) {
      throw corrupt(`a compressed grain of ${dataBytes} bytes at ${host}, expected up to ${grainBytes * 2}`);
    }
    if (from >= this.#file.sizeBytes) throw corrupt(`a compressed grain at ${host}, behind the end of the file`);
    const packed = await readArea(this.#file, from, Math.min(dataBytes, this.#file.sizeBytes - from));
    return new Promise((resolve, reject) => {
      inflate(packed, { maxOutputLength: grainBytes }, (error, out) => {
        if (error === null) resolve(out);
        else reject(corrupt(`a compressed grain at ${host} is not deflate data of a grain`));
      });
    });
  }

  #tableHost(directory: DataView, index: number): number {
    return directory.getUint32(index * 4, true) * SECTOR_BYTES;
  }

  async #table(index: number): Promise<DataView> {
    const known = this.#tables.get(index);
    if (known !== undefined) return known;
    const lengthBytes = this.header.tableEntries * 4;
    const host = this.#tableHost(this.#directory, index);
    if (host < SECTOR_BYTES || host + lengthBytes > this.#file.sizeBytes) {
      throw corrupt(`grain table ${index} at ${host}, not inside the file`);
    }
    const table = viewOf(await readArea(this.#file, host, lengthBytes));
    if (this.#tables.size >= MAX_TABLES) {
      for (const old of this.#tables.keys()) {
        if (this.#dirty.has(old)) continue;
        this.#tables.delete(old);
        break;
      }
    }
    // Whoever read it at the same time was first: there must be one only.
    const first = this.#tables.get(index);
    if (first !== undefined) return first;
    this.#tables.set(index, table);
    return table;
  }

  #check(grain: number, host: number): void {
    const { grainBytes, descriptorOffset, descriptorBytes } = this.header;
    if (host >= this.#file.sizeBytes) {
      throw corrupt(`grain ${grain} at ${host}, behind the end of the file`);
    }
    const overlaps = (offset: number, lengthBytes: number): boolean =>
      host < offset + lengthBytes && (this.compressed ? host + SECTOR_BYTES : host + grainBytes) > offset;
    if (host < SECTOR_BYTES || (descriptorOffset > 0 && overlaps(descriptorOffset, descriptorBytes))) {
      throw corrupt(`grain ${grain} at ${host}, in the header or descriptor`);
    }
    if (overlaps(this.#directoryOffset, this.#directory.byteLength)) {
      throw corrupt(`grain ${grain} at ${host}, in the grain directory`);
    }
    if (this.#forWriting && host < this.header.overheadBytes) {
      throw corrupt(`grain ${grain} at ${host}, in front of the first grain`);
    }
  }

  /** All tables in front of the grains, each for itself: then no write to a grain changes one. */
  #checkForWriting(): void {
    const { overheadBytes, tableEntries } = this.header;
    const areas: { from: number; to: number }[] = [{ from: 0, to: SECTOR_BYTES }];
    const add = (from: number, lengthBytes: number) => areas.push({ from, to: from + lengthBytes });
    if (this.header.descriptorOffset > 0) add(this.header.descriptorOffset, this.header.descriptorBytes);
    add(this.#directoryOffset, this.#directory.byteLength);
    if (this.#redundant !== undefined) add(this.header.redundantDirectoryOffset, this.#redundant.byteLength);
    for (const directory of [this.#directory, this.#redundant]) {
      for (let index = 0; directory !== undefined && index < directory.byteLength / 4; index++) {
        const host = this.#tableHost(directory, index);
        if (host !== 0) add(host, tableEntries * 4);
      }
    }
    areas.sort((a, b) => a.from - b.from);
    for (const [index, { from, to }] of areas.entries()) {
      const before = areas[index - 1];
      if (before !== undefined && before.to > from) throw bad(`its tables overlap at ${from}; open it read-only`);
      if (to > overheadBytes) throw bad(`a table at ${from} is among the grains; open it read-only`);
    }
    this.#forWriting = true;
  }

  /** A new grain at the end of the file. The tables follow at the next flush. */
  async #allocate(offset: number): Promise<void> {
    const { grainBytes } = this.header;
    const host = Math.ceil(this.#file.sizeBytes / grainBytes) * grainBytes;
    if (host / SECTOR_BYTES > 0xffff_ffff) throw new ImageError('ENOSPC', 'Cannot write: the VMDK image is full');
    // The file grows to the grain's end; what lies between reads as zeroes.
    await this.#file.write(host + grainBytes - SECTOR_BYTES, new Uint8Array(SECTOR_BYTES));
    await this.#setEntry(offset, host);
    if (this.#dirty.size >= MAX_DIRTY_TABLES) await this.#flush();
  }

  async #setEntry(offset: number, host: number): Promise<void> {
    const { grainBytes, tableEntries } = this.header;
    const grain = Math.floor(offset / grainBytes);
    const index = Math.floor(grain / tableEntries);
    if (this.#tableHost(this.#directory, index) === 0) {
      throw new ImageError('ENOTSUP', 'Cannot write: the VMDK image has no grain table there');
    }
    const table = await this.#table(index);
    this.#dirty.add(index);
    table.setUint32((grain % tableEntries) * 4, host / SECTOR_BYTES, true);
  }

  async #flush(): Promise<void> {
    await this.#file.sync();
    if (this.#dirty.size === 0) return;
    for (const index of this.#dirty) {
      const table = this.#tables.get(index)!;
      const bytes = new Uint8Array(table.buffer, table.byteOffset, table.byteLength);
      for (const directory of [this.#redundant, this.#directory]) {
        const host = directory === undefined ? 0 : this.#tableHost(directory, index);
        if (host >= SECTOR_BYTES) await this.#file.write(host, bytes);
      }
    }
    this.#dirty.clear();
    await this.#file.sync();
  }
}

async function readDirectory(file: ImageFile, header: VmdkSparseHeader, offset: number): Promise<Uint8Array> {
  const lengthBytes = directoryBytesOf(header);
  if (offset < SECTOR_BYTES || offset + lengthBytes > file.sizeBytes) {
    throw bad(`its grain directory of ${lengthBytes} bytes at ${offset} is not inside the file`);
  }
  return readArea(file, offset, lengthBytes);
}

/** Whether the file is a sparse extent, by its first bytes: what else it can be is a descriptor's text. */
export async function isSparse(file: ImageFile): Promise<boolean> {
  return looksLikeVmdkSparse(await readArea(file, 0, Math.min(4, file.sizeBytes)));
}

export async function readArea(file: ImageFile, offset: number, lengthBytes: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(lengthBytes);
  await file.read(offset, bytes);
  return bytes;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

export function bad(why: string): ImageError {
  return new ImageError('EINVAL', `Cannot open the VMDK image: ${why}`);
}

function corrupt(why: string): ImageError {
  return new ImageError('EIO', `Cannot use the VMDK image: ${why}`);
}
