import { crc32 } from 'node:zlib';
import type { MachineApi } from '../../emulator/machine/machine_api.ts';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  decodeRecordHeader,
  PAGE_BYTES,
  RECORD_HEADER_BYTES,
  RecordKind,
  recordHeaderCrc,
} from '../../protocols/migration/mod.ts';
import { PageTable, shiftPage, ZERO_PAGE_CRC } from './page_table.ts';

/** Cleared at a time, in pages */
const CLEAR_PAGES = 256;
const ZEROES = Buffer.alloc(CLEAR_PAGES * PAGE_BYTES);

/**
 * Stores the pages of an incoming migration. The guest does not run and all of RAM is the source's to write, so
 * pages go straight to their place; nothing but RAM can be reached. {@link scrub} undoes it.
 */
export class PageReceiver {
  readonly #machine: MachineApi;
  readonly #pages: number;
  /** 1 for each page that was stored to */
  readonly #touched: Uint8Array;
  readonly table: PageTable;

  constructor(machine: MachineApi) {
    this.#machine = machine;
    this.#pages = machine.ramBytes / PAGE_BYTES;
    this.#touched = new Uint8Array(this.#pages);
    this.table = new PageTable(this.#pages);
  }

  /**
   * Stores one record; header and payload are checked again here, whoever forwarded them.
   * @throws WireError; nothing is stored then
   */
  store(record: Uint8Array): void {
    const header = decodeRecordHeader(record);
    const { firstPage, pageCount } = header;
    if (record.length !== RECORD_HEADER_BYTES + header.payloadBytes) {
      throw refuse('ERR_WIRE_TRUNCATED', `${record.length} bytes, header says ${header.payloadBytes} of payload`);
    }
    if (header.block !== 0) throw refuse('ERR_WIRE_VALUE', `RAM block ${header.block}, expected 0`);
    if (firstPage > this.#pages || pageCount > this.#pages - firstPage) {
      throw refuse('ERR_WIRE_VALUE', `pages ${firstPage}+${pageCount}, RAM has ${this.#pages}`);
    }
    let crc = recordHeaderCrc(record);
    if (header.kind === RecordKind.zero) {
      if (crc !== header.crc) throw refuse('ERR_WIRE_CHECKSUM', 'CRC-32 does not match');
      this.#clear(firstPage, pageCount);
      this.table.fill(ZERO_PAGE_CRC, firstPage, pageCount);
      return;
    }
    const crcs = new Uint32Array(pageCount);
    for (let i = 0; i < pageCount; i++) {
      const start = RECORD_HEADER_BYTES + i * PAGE_BYTES;
      crcs[i] = crc32(record.subarray(start, start + PAGE_BYTES));
      crc = (shiftPage(crc) ^ crcs[i]!) >>> 0;
    }
    if (crc !== header.crc) throw refuse('ERR_WIRE_CHECKSUM', 'CRC-32 does not match');
    this.#touched.fill(1, firstPage, firstPage + pageCount);
    this.#machine.loadRam(firstPage * PAGE_BYTES, record.subarray(RECORD_HEADER_BYTES));
    for (let i = 0; i < pageCount; i++) this.table.set(firstPage + i, crcs[i]!);
  }

  /** Nothing of the source stays behind: all pages that were stored to are zero again. */
  scrub(): void {
    for (let first = this.#touched.indexOf(1); first >= 0; first = this.#touched.indexOf(1, first)) {
      let count = 1;
      while (count < CLEAR_PAGES && this.#touched[first + count] === 1) count++;
      this.#machine.loadRam(first * PAGE_BYTES, ZEROES.subarray(0, count * PAGE_BYTES));
      this.#touched.fill(0, first, first + count);
    }
  }

  /** Pages that are zero already are left alone: storing would make the host find memory for them. */
  #clear(firstPage: number, pageCount: number): void {
    for (let done = 0; done < pageCount; done += CLEAR_PAGES) {
      const count = Math.min(CLEAR_PAGES, pageCount - done);
      const offset = (firstPage + done) * PAGE_BYTES;
      const bytes = count * PAGE_BYTES;
      if (ZEROES.compare(this.#machine.ram(offset, bytes), 0, bytes, 0, bytes) !== 0) {
        this.#machine.loadRam(offset, ZEROES.subarray(0, bytes));
      }
    }
  }
}

function refuse(code: ConstructorParameters<typeof WireError>[0], found: string): WireError {
  return new WireError(code, `Cannot store pages: ${found}`, { message: 'migration record' });
}
