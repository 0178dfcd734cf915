import {
  decodeVhdxBatEntry,
  VHDX_BAT_ENTRY_BYTES,
  VHDX_HEADER_SECTION_BYTES,
  type VhdxMetadata,
  vhdxChunkRatio,
} from '../../../../protocols/vhdx/mod.ts';
import type { BlockMap, Place } from '../block_map.ts';
import { ImageError } from '../disk_image.ts';
import type { ImageFile } from '../qcow2/mod.ts';
import type { VhdxDetails } from './open.ts';

/** The table is read in pages, in `bytes`, and so many are kept: a disk of 64 TiB has a table of 512 MiB */
const PAGE_BYTES = 64 << 10;
const MAX_PAGES = 256;

/** An area of the file that holds no blocks. */
export interface VhdxArea {
  readonly name: string;
  readonly offset: number;
  readonly lengthBytes: number;
}

/** Blocks where the block allocation table says, each entry checked when it is used. */
export class VhdxBlockTable implements BlockMap {
  readonly details: VhdxDetails;
  readonly sizeBytes: number;
  readonly #file: ImageFile;
  readonly #metadata: VhdxMetadata;
  readonly #tableOffset: number;
  readonly #chunkRatio: number;
  readonly #areas: readonly VhdxArea[];
  readonly #pages = new Map<number, DataView>();

  constructor(file: ImageFile, details: VhdxDetails, tableOffset: number, areas: readonly VhdxArea[]) {
    this.#file = file;
    this.details = details;
    this.#metadata = details.metadata;
    this.sizeBytes = details.metadata.sizeBytes;
    this.#tableOffset = tableOffset;
    this.#chunkRatio = vhdxChunkRatio(details.metadata);
    this.#areas = areas;
  }

  lookupNow(offset: number, lengthBytes: number): Place | undefined {
    const { blockBytes } = this.#metadata;
    const block = Math.floor(offset / blockBytes);
    // Behind the entries of each chunk comes one of its bitmap.
    const at = (block + Math.floor(block / this.#chunkRatio)) * VHDX_BAT_ENTRY_BYTES;
    const page = this.#pages.get(Math.floor(at / PAGE_BYTES));
    if (page === undefined) return undefined;
    const low = page.getUint32(at % PAGE_BYTES, true);
    const high = page.getUint32((at % PAGE_BYTES) + 4, true);
    const entry = decodeVhdxBatEntry(low, high);
    const skip = offset % blockBytes;
    const run = Math.min(lengthBytes, blockBytes - skip);
    if (entry.kind === 'hole' || entry.kind === 'zero') return { kind: 'hole', lengthBytes: run };
    if (entry.kind !== 'data') throw corrupt(`block ${block} has state ${low & 7}`);
    this.#check(block, entry.offset);
    return { kind: 'data', lengthBytes: run, file: this.#file, host: entry.offset + skip };
  }

  async lookup(offset: number, lengthBytes: number): Promise<Place> {
    const block = Math.floor(offset / this.#metadata.blockBytes);
    const at = (block + Math.floor(block / this.#chunkRatio)) * VHDX_BAT_ENTRY_BYTES;
    const index = Math.floor(at / PAGE_BYTES);
    const page = new Uint8Array(PAGE_BYTES);
    await this.#file.read(this.#tableOffset + index * PAGE_BYTES, page);
    if (this.#pages.size >= MAX_PAGES) this.#pages.delete(this.#pages.keys().next().value!);
    this.#pages.set(index, new DataView(page.buffer));
    return this.lookupNow(offset, lengthBytes)!;
  }

  #check(block: number, start: number): void {
    const end = start + this.#metadata.blockBytes;
    if (start < VHDX_HEADER_SECTION_BYTES) throw corrupt(`block ${block} is in the headers`);
    if (end > this.#file.sizeBytes) throw corrupt(`block ${block} at ${start}, behind the end of the file`);
    for (const { name, offset, lengthBytes } of this.#areas) {
      if (start < offset + lengthBytes && end > offset) throw corrupt(`block ${block} at ${start}, in the ${name}`);
    }
  }
}

function corrupt(why: string): ImageError {
  return new ImageError('EIO', `Cannot use the VHDX image: ${why}`);
}
