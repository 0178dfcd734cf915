import { createHash } from 'node:crypto';
import { endianness } from 'node:os';
import { crc32 } from 'node:zlib';
import { crc32Shift, PAGE_BYTES } from '../../protocols/migration/mod.ts';

const ZERO_PAGE = Buffer.alloc(PAGE_BYTES);
export const ZERO_PAGE_CRC = crc32(ZERO_PAGE);

/** `shiftPage(crc32(A)) ^ crc32(page)` is the CRC of A followed by the page */
export const shiftPage = crc32Shift(PAGE_BYTES);

/** True where all bytes from `offset` to the page's end are zero. Only on private copies: a guest may write meanwhile. */
export function isZeroPage(bytes: Buffer, offset: number): boolean {
  return bytes[offset] === 0 && bytes.compare(ZERO_PAGE, 0, PAGE_BYTES, offset, offset + PAGE_BYTES) === 0;
}

/**
 * CRC-32 of every page as it was last sent or stored. Kept while pages travel, so that comparing the two ends
 * while the guest stands costs a hash over 4 bytes a page and not over all of RAM.
 */
export class PageTable {
  readonly #crcs: Uint32Array;

  constructor(pages: number) {
    this.#crcs = new Uint32Array(pages);
  }

  set(page: number, crc: number): void {
    this.#crcs[page] = crc;
  }

  fill(crc: number, firstPage: number, pageCount: number): void {
    this.#crcs.fill(crc, firstPage, firstPage + pageCount);
  }

  /** SHA-256 over the table, each CRC as u32 little-endian */
  digest(): Uint8Array {
    const bytes = Buffer.from(this.#crcs.buffer.slice(0));
    if (endianness() === 'BE') bytes.swap32();
    return new Uint8Array(createHash('sha256').update(bytes).digest());
  }

  /** The first page whose bytes are not those of the table, or undefined. `ram` gives live bytes. */
  async firstDifference(ram: (offset: number, lengthBytes: number) => Uint8Array): Promise<number | undefined> {
    const STEP = 4096;
    for (let first = 0; first < this.#crcs.length; first += STEP) {
      const count = Math.min(STEP, this.#crcs.length - first);
      const view = ram(first * PAGE_BYTES, count * PAGE_BYTES);
      for (let i = 0; i < count; i++) {
        if (crc32(view.subarray(i * PAGE_BYTES, (i + 1) * PAGE_BYTES)) !== this.#crcs[first + i]) return first + i;
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
    return undefined;
  }
}
