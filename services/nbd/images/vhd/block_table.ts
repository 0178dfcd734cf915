import { decodeVhdDynamicHeader, VHD_HEADER_BYTES, VHD_LIMITS } from '../../../../protocols/vhd/mod.ts';
import type { BlockMap, BlockMapChanges, Place } from '../block_map.ts';
import { ImageError } from '../disk_image.ts';
import type { ImageFile } from '../qcow2/mod.ts';
import type { VhdDetails } from './open.ts';

const SECTOR_BYTES = 512;
/** "An unused table entry has a value of 0xFFFFFFFF" */
const UNUSED = 0xffff_ffff;
/** Bitmaps of blocks that are kept, for differencing disks */
const BITMAP_CACHE = 256;

/** A dynamic or differencing disk: blocks where the block allocation table says, each behind a bitmap of its sectors. */
export class VhdBlockTable implements BlockMap {
  readonly details: VhdDetails;
  readonly sizeBytes: number;
  readonly changes?: BlockMapChanges;
  readonly #file: ImageFile;
  readonly #blockBytes: number;
  readonly #bitmapBytes: number;
  readonly #tableOffset: number;
  /** The part of the table that the disk needs, as it is in the file, padded to whole sectors */
  readonly #table: DataView;
  readonly #tableBytes: number;
  readonly #differencing: boolean;
  readonly #footer: Uint8Array;
  readonly #bitmaps = new Map<number, Uint8Array>();
  /** Sectors of the table that differ from the file */
  readonly #dirty = new Set<number>();
  /** Blocks whose sectors are all marked as used; others want that before they are written to */
  readonly #marked = new Set<number>();
  #footerAtEnd: boolean;

  private constructor(file: ImageFile, details: VhdDetails, table: Uint8Array, tableBytes: number, footer: Uint8Array) {
    this.#file = file;
    this.details = details;
    this.sizeBytes = details.sizeBytes;
    this.#blockBytes = details.blockBytes!;
    this.#bitmapBytes = bitmapBytesOf(this.#blockBytes);
    this.#tableOffset = details.tableOffset!;
    this.#table = new DataView(table.buffer, table.byteOffset, table.byteLength);
    this.#tableBytes = tableBytes;
    this.#differencing = details.type === 'differencing';
    this.#footer = footer;
    this.#footerAtEnd = details.footerAtEnd;
    if (!this.#differencing) {
      this.changes = { allocate: (offset) => this.#allocate(offset), flush: () => this.#flush() };
    }
  }

  /** Reads header and table. @throws WireError, ImageError */
  static async load(
    file: ImageFile,
    details: VhdDetails,
    footer: Uint8Array,
    forWriting: boolean,
  ): Promise<VhdBlockTable> {
    const { sizeBytes } = details;
    const headerOffset = details.footer.headerOffset!;
    if (headerOffset + VHD_HEADER_BYTES > file.sizeBytes) throw bad(`the header at ${headerOffset} is behind the end`);
    const bytes = new Uint8Array(VHD_HEADER_BYTES);
    await file.read(headerOffset, bytes);
    const header = decodeVhdDynamicHeader(bytes);
    const needed = Math.ceil(sizeBytes / header.blockBytes);
    if (header.tableEntries < needed) {
      throw bad(`${header.tableEntries} table entries of ${header.blockBytes} bytes, the disk needs ${needed}`);
    }
    const tableBytes = needed * 4;
    if (tableBytes > VHD_LIMITS.tableBytes) {
      throw bad(`a block allocation table of ${tableBytes} bytes, limit is ${VHD_LIMITS.tableBytes}`);
    }
    if (header.tableOffset + tableBytes > file.sizeBytes) {
      throw bad(`the block allocation table at ${header.tableOffset} of ${tableBytes} bytes is longer than the file`);
    }
    if (header.tableOffset < headerOffset + VHD_HEADER_BYTES && headerOffset < header.tableOffset + tableBytes) {
      throw bad('the block allocation table overlaps the header');
    }
    if (header.tableOffset < SECTOR_BYTES) throw bad('the block allocation table overlaps the copy of the footer');
    const table = new Uint8Array(Math.ceil(tableBytes / SECTOR_BYTES) * SECTOR_BYTES);
    await file.read(header.tableOffset, table);
    const known: VhdDetails = {
      ...details,
      blockBytes: header.blockBytes,
      tableOffset: header.tableOffset,
      parentName: header.parentName,
    };
    const map = new VhdBlockTable(file, known, table, tableBytes, footer);
    if (forWriting) map.#checkForWriting();
    return map;
  }

  lookupNow(offset: number, lengthBytes: number): Place | undefined {
    const block = Math.floor(offset / this.#blockBytes);
    const skip = offset % this.#blockBytes;
    const inBlock = Math.min(lengthBytes, this.#blockBytes - skip);
    const sector = this.#entry(block);
    if (sector === UNUSED) return { kind: 'hole', lengthBytes: this.#holeBytes(block, skip, lengthBytes) };
    const start = this.#checked(block, sector);
    const host = start + this.#bitmapBytes + skip;
    if (!this.#differencing) {
      return { kind: 'data', lengthBytes: inBlock, file: this.#file, host, unready: !this.#marked.has(block) };
    }
    const bitmap = this.#bitmaps.get(block);
    return bitmap === undefined ? undefined : this.#fromBitmap(bitmap, skip, inBlock, host);
  }

  async lookup(offset: number, lengthBytes: number): Promise<Place> {
    const block = Math.floor(offset / this.#blockBytes);
    const start = this.#checked(block, this.#entry(block));
    const bitmap = new Uint8Array(this.#bitmapBytes);
    await this.#file.read(start, bitmap);
    if (this.#bitmaps.size >= BITMAP_CACHE) this.#bitmaps.delete(this.#bitmaps.keys().next().value!);
    this.#bitmaps.set(block, bitmap);
    const skip = offset % this.#blockBytes;
    const inBlock = Math.min(lengthBytes, this.#blockBytes - skip);
    return this.#fromBitmap(bitmap, skip, inBlock, start + this.#bitmapBytes + skip);
  }

  /** Sectors that are marked are here; the others are in the parent. */
  #fromBitmap(bitmap: Uint8Array, skip: number, lengthBytes: number, host: number): Place {
    const marked = (sector: number): boolean => ((bitmap[sector >> 3]! >> (7 - (sector & 7))) & 1) === 1;
    const first = Math.floor(skip / SECTOR_BYTES);
    const here = marked(first);
    let end = first + 1;
    while (end * SECTOR_BYTES < skip + lengthBytes && marked(end) === here) end++;
    const run = Math.min(lengthBytes, end * SECTOR_BYTES - skip);
    return here ? { kind: 'data', lengthBytes: run, file: this.#file, host } : { kind: 'hole', lengthBytes: run };
  }

  /** A hole goes on for as many blocks as have no space; bounded by what was asked for. */
  #holeBytes(block: number, skip: number, lengthBytes: number): number {
    let run = this.#blockBytes - skip;
    for (let next = block + 1; run < lengthBytes && this.#entry(next) === UNUSED; next++) run += this.#blockBytes;
    return Math.min(run, lengthBytes);
  }

  #entry(block: number): number {
    return this.#table.getUint32(block * 4);
  }

  /** Where the block's bitmap is, once it was found to lie in the file and not in its metadata. */
  #checked(block: number, sector: number): number {
    const start = sector * SECTOR_BYTES;
    const end = start + this.#bitmapBytes + this.#blockBytes;
    const tableEnd = this.#tableOffset + this.#tableBytes;
    const headerOffset = this.details.footer.headerOffset!;
    let wrong: string | undefined;
    if (end > this.#file.sizeBytes) wrong = 'behind the end of the file';
    else if (start < SECTOR_BYTES) wrong = 'in the copy of the footer';
    else if (start < tableEnd && end > this.#tableOffset) wrong = 'in the block allocation table';
    else if (start < headerOffset + VHD_HEADER_BYTES && end > headerOffset) wrong = 'in the header';
    if (wrong === undefined) return start;
    throw new ImageError('EIO', `Cannot use the VHD image: block ${block} at ${start}, ${wrong}`);
  }

  /** Two blocks in one place would let a write to one change the other. */
  #checkForWriting(): void {
    const starts: number[] = [];
    for (let block = 0; block < this.#tableBytes / 4; block++) {
      const sector = this.#entry(block);
      if (sector !== UNUSED) starts.push(this.#checked(block, sector));
    }
    const sorted = Float64Array.from(starts).sort();
    const length = this.#bitmapBytes + this.#blockBytes;
    for (let index = 1; index < sorted.length; index++) {
      if (sorted[index]! < sorted[index - 1]! + length) {
        throw bad(`two blocks share their place at ${sorted[index]}; open it read-only`);
      }
    }
  }

  /**
   * A new block takes the place of the footer, which moves behind it; the copy at the file's start stands in until
   * then. The table follows at the next flush, so that a power cut leaves an unused block at worst.
   */
  async #allocate(offset: number): Promise<void> {
    const block = Math.floor(offset / this.#blockBytes);
    const sector = this.#entry(block);
    if (sector !== UNUSED) {
      await this.#mark(block, this.#checked(block, sector));
      return;
    }
    const size = this.#file.sizeBytes;
    const start = Math.ceil((this.#footerAtEnd ? size - SECTOR_BYTES : size) / SECTOR_BYTES) * SECTOR_BYTES;
    if (start / SECTOR_BYTES >= UNUSED) throw new ImageError('ENOSPC', 'Cannot write: the VHD image is full');
    const end = start + this.#bitmapBytes + this.#blockBytes;
    await this.#file.write(end, this.#footer);
    this.#footerAtEnd = true;
    await this.#file.write(start, new Uint8Array(this.#bitmapBytes).fill(0xff));
    this.#marked.add(block);
    this.#table.setUint32(block * 4, start / SECTOR_BYTES);
    this.#dirty.add(Math.floor((block * 4) / SECTOR_BYTES));
  }

  /** Other programs mark each sector as it is written; we mark a block as a whole, as QEMU does. */
  async #mark(block: number, start: number): Promise<void> {
    const bitmap = new Uint8Array(this.#bitmapBytes);
    await this.#file.read(start, bitmap);
    if (bitmap.some((byte) => byte !== 0xff)) await this.#file.write(start, bitmap.fill(0xff));
    this.#marked.add(block);
  }

  async #flush(): Promise<void> {
    await this.#file.sync();
    if (this.#dirty.size === 0) return;
    for (const sector of this.#dirty) {
      const at = sector * SECTOR_BYTES;
      const bytes = new Uint8Array(this.#table.buffer, this.#table.byteOffset + at, SECTOR_BYTES);
      await this.#file.write(this.#tableOffset + at, bytes);
    }
    this.#dirty.clear();
    await this.#file.sync();
  }
}

/** One bit a sector, "padded to a 512-byte sector boundary" */
export function bitmapBytesOf(blockBytes: number): number {
  return Math.ceil(blockBytes / SECTOR_BYTES / 8 / SECTOR_BYTES) * SECTOR_BYTES;
}

export function bad(why: string): ImageError {
  return new ImageError('EINVAL', `Cannot open the VHD image: ${why}`);
}
