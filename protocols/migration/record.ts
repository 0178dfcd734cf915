import { Cursor, WireError } from '../bytes/mod.ts';
import { type Crc32, crc32 } from './crc32.ts';
import { MAX_PAGE_INDEX, MAX_RUN_PAGES, MAX_ZERO_PAGES, PAGE_BYTES } from './limits.ts';

// A run of pages, outside protobuf so that bulk bytes are neither copied nor re-encoded. All integers little-endian:
//
//    0  magic u32          4  version u8     5  kind u8       6  flags u16 (0)
//    8  block u16         10  reserved u16  12  pass u32
//   16  first page u64                      24  page count u32
//   28  payload bytes u32 32  CRC-32 u32    36  sequence u32
//   40  payload
//
// The checksum covers the header, with its own field as zero, and the payload. It guards against accident; against
// an attacker on the way there is TLS.

/** "CMIG" when read as bytes; above any control length, so the first word of a frame tells which kind it is */
export const RECORD_MAGIC = 0x4749_4d43;
export const RECORD_VERSION = 1;
export const RECORD_HEADER_BYTES = 40;
/** In `bytes`, header included */
export const MAX_RECORD_BYTES = RECORD_HEADER_BYTES + MAX_RUN_PAGES * PAGE_BYTES;

/** Kinds of a record; compressed and delta runs will take further numbers when a session can negotiate them */
export const RecordKind = { raw: 1, zero: 2 } as const;
export type RecordKind = (typeof RecordKind)[keyof typeof RecordKind];

export interface RecordHeader {
  readonly kind: RecordKind;
  /** Index of the RAM block in the manifest */
  readonly block: number;
  readonly pass: number;
  /** Within the block, in pages of 4096 `bytes` */
  readonly firstPage: number;
  readonly pageCount: number;
  /** What follows the header, in `bytes` */
  readonly payloadBytes: number;
  readonly crc: number;
  /** Counts the records of a session, from 0, modulo 2^32 */
  readonly sequence: number;
}

export type RecordFields = Omit<RecordHeader, 'crc' | 'payloadBytes'>;

const NAME = 'migration record';

/**
 * Encodes the header of a run. `runCrc` is the CRC-32 of the payload; `join` continues a header's checksum over it
 * (see crc32Shift), so that whoever has it already does not compute it twice.
 */
export function encodeRecordHeader(
  fields: RecordFields,
  crcOver: (headerCrc: number) => number,
): Uint8Array<ArrayBuffer> {
  const header = new Uint8Array(RECORD_HEADER_BYTES);
  const view = new DataView(header.buffer);
  view.setUint32(0, RECORD_MAGIC, true);
  view.setUint8(4, RECORD_VERSION);
  view.setUint8(5, fields.kind);
  view.setUint16(8, fields.block, true);
  view.setUint32(12, fields.pass, true);
  view.setBigUint64(16, BigInt(fields.firstPage), true);
  view.setUint32(24, fields.pageCount, true);
  view.setUint32(28, fields.kind === RecordKind.raw ? fields.pageCount * PAGE_BYTES : 0, true);
  view.setUint32(36, fields.sequence, true);
  view.setUint32(32, crcOver(crc32(header)), true);
  return header;
}

/** Header and payload in one piece. */
export function encodeRecord(fields: RecordFields, payload: Uint8Array, crc: Crc32 = crc32): Uint8Array {
  const header = encodeRecordHeader(fields, (seed) => crc(payload, seed));
  const record = new Uint8Array(RECORD_HEADER_BYTES + payload.length);
  record.set(header);
  record.set(payload, RECORD_HEADER_BYTES);
  return record;
}

/** Decodes a header: shape and bounds that need no session. */
export function decodeRecordHeader(bytes: Uint8Array): RecordHeader {
  const cursor = new Cursor(bytes.subarray(0, RECORD_HEADER_BYTES), NAME);
  if (cursor.u32le('magic') !== RECORD_MAGIC) throw cursor.error('ERR_WIRE_MAGIC', `Cannot accept a ${NAME}: no magic`);
  cursor.expectU8(RECORD_VERSION, 'version');
  const kind = cursor.u8('kind');
  const flags = cursor.u16le('flags');
  const block = cursor.u16le('block');
  const reserved = cursor.u16le('reserved');
  const pass = cursor.u32le('pass');
  const firstPage = Number(cursor.u64le('first page'));
  const pageCount = cursor.u32le('page count');
  const payloadBytes = cursor.u32le('payload length');
  const crc = cursor.u32le('crc');
  const sequence = cursor.u32le('sequence');
  if (kind !== RecordKind.raw && kind !== RecordKind.zero) {
    throw refuse('ERR_WIRE_VALUE', `kind ${kind}, expected RAW or ZERO`);
  }
  if (flags !== 0 || reserved !== 0) throw refuse('ERR_WIRE_MAGIC', 'flags or reserved bits are set, expected 0');
  const maxPages = kind === RecordKind.raw ? MAX_RUN_PAGES : MAX_ZERO_PAGES;
  if (pageCount < 1 || pageCount > maxPages) {
    throw refuse('ERR_WIRE_LIMIT', `${pageCount} pages, limit is ${maxPages}`);
  }
  if (firstPage >= MAX_PAGE_INDEX) throw refuse('ERR_WIRE_LIMIT', `first page ${firstPage}, limit is 2^40`);
  const expected = kind === RecordKind.raw ? pageCount * PAGE_BYTES : 0;
  if (payloadBytes !== expected) {
    throw refuse('ERR_WIRE_VALUE', `payload of ${payloadBytes} bytes, expected ${expected}`);
  }
  return { kind, block, pass, firstPage, pageCount, payloadBytes, crc, sequence };
}

/** A whole record: its header, checked against its payload. */
export function decodeRecord(record: Uint8Array, crc: Crc32 = crc32): { header: RecordHeader; payload: Uint8Array } {
  const header = decodeRecordHeader(record);
  const cursor = new Cursor(record, NAME);
  cursor.skip(RECORD_HEADER_BYTES, 'header');
  const payload = cursor.bytes(header.payloadBytes, 'payload');
  cursor.end();
  const found = crc(payload, recordHeaderCrc(record));
  if (found !== header.crc) {
    throw refuse('ERR_WIRE_CHECKSUM', `CRC-32 is ${hex(found)}, header says ${hex(header.crc)}`);
  }
  return { header, payload };
}

/** CRC-32 of the header of a record with the checksum field as zero: the seed for its payload. */
export function recordHeaderCrc(record: Uint8Array): number {
  const header = new Uint8Array(RECORD_HEADER_BYTES); // not slice(): of a Buffer that is no copy
  header.set(record.subarray(0, RECORD_HEADER_BYTES));
  header.fill(0, 32, 36);
  return crc32(header);
}

/** What a receiver holds a stream of records against. */
export interface RecordSession {
  /** Pages of each RAM block, by index */
  readonly blockPages: readonly number[];
}

/**
 * Follows the records of a session: each in its pass, in sequence, inside its block, and no page twice in a pass
 * (blocks and pages ascend). So the work of a pass is bounded by RAM, whatever the sender does.
 */
export class RecordOrder {
  readonly #session: RecordSession;
  #pass = 0;
  #sequence = 0;
  #block = 0;
  #nextPage = 0;
  #pages = 0;
  #records = 0;

  constructor(session: RecordSession) {
    this.#session = session;
  }

  /** Pages and records of the pass so far */
  get pages(): number {
    return this.#pages;
  }
  get records(): number {
    return this.#records;
  }

  beginPass(pass: number): void {
    if (pass !== this.#pass + 1) throw refuse('ERR_WIRE_STATE', `pass ${pass} begins, expected ${this.#pass + 1}`);
    this.#pass = pass;
    this.#block = 0;
    this.#nextPage = 0;
    this.#pages = 0;
    this.#records = 0;
  }

  /** @throws WireError */
  accept(header: RecordHeader): void {
    const { block, firstPage, pageCount } = header;
    if (header.pass !== this.#pass) throw refuse('ERR_WIRE_STATE', `pass ${header.pass}, expected ${this.#pass}`);
    if (header.sequence !== this.#sequence) {
      throw refuse('ERR_WIRE_STATE', `sequence ${header.sequence}, expected ${this.#sequence}`);
    }
    const blockPages = this.#session.blockPages[block];
    if (blockPages === undefined) throw refuse('ERR_WIRE_VALUE', `RAM block ${block} is not in the manifest`);
    if (firstPage > blockPages || pageCount > blockPages - firstPage) {
      throw refuse('ERR_WIRE_VALUE', `pages ${firstPage}+${pageCount} of block ${block}, it has ${blockPages}`);
    }
    if (block < this.#block || (block === this.#block && firstPage < this.#nextPage)) {
      throw refuse('ERR_WIRE_STATE', `page ${firstPage} of block ${block} again in pass ${this.#pass}`);
    }
    this.#block = block;
    this.#nextPage = firstPage + pageCount;
    this.#pages += pageCount;
    this.#records++;
    this.#sequence = (this.#sequence + 1) >>> 0;
  }
}

function refuse(code: ConstructorParameters<typeof WireError>[0], found: string): WireError {
  return new WireError(code, `Cannot accept a ${NAME}: ${found}`, { message: NAME });
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(8, '0')}`;
}
