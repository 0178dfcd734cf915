import { Cursor, WireError, Writer } from '../bytes/mod.ts';
import { type BitmapsExtension, EXTENSION, type HeaderExtension, type Qcow2Header } from './header_layout.ts';
import { QCOW2_LIMITS } from './limits.ts';

/** What the extensions of a header say. */
export interface Extensions {
  backingFormat?: string;
  featureNames?: Uint8Array;
  bitmaps?: BitmapsExtension;
  dataFile?: string;
  encryption?: { offset: bigint; bytes: bigint };
  others: HeaderExtension[];
  /** Where the end marker ends, from the start of the area, in `bytes` */
  endsAt: number;
}

/** Walks the extensions from the end of the header to the end marker. @throws WireError */
export function decodeExtensions(area: Uint8Array): Extensions {
  const cursor = new Cursor(area, 'qcow2 header extension');
  const found: Extensions = { others: [], endsAt: 0 };
  const seen = new Set<number>();
  for (let count = 0; cursor.remaining >= 8; count++) {
    if (count === QCOW2_LIMITS.extensions) throw bad('ERR_WIRE_LIMIT', `more than ${count} header extensions`);
    const type = cursor.u32('type');
    const length = cursor.u32('length');
    if (type === EXTENSION.end) break;
    if (seen.has(type)) throw bad('ERR_WIRE_VALUE', `header extension 0x${type.toString(16)} twice`);
    seen.add(type);
    const data = new Cursor(cursor.bytes(length, 'data'), 'qcow2 header extension');
    const padding = -length & 7;
    cursor.skip(Math.min(padding, cursor.remaining), 'padding');
    if (type === EXTENSION.backingFormat) found.backingFormat = data.utf8(length, 15, 'backing format');
    else if (type === EXTENSION.dataFile) found.dataFile = data.utf8(length, 1023, 'data file name');
    else if (type === EXTENSION.featureNames) found.featureNames = data.rest().slice();
    else if (type === EXTENSION.bitmaps) found.bitmaps = decodeBitmapsExtension(data);
    else if (type === EXTENSION.encryption) {
      found.encryption = { offset: data.u64('offset'), bytes: data.u64('length') };
      data.end();
    } else found.others.push({ type, data: data.rest().slice() });
  }
  found.endsAt = cursor.offset;
  return found;
}

function decodeBitmapsExtension(data: Cursor): BitmapsExtension {
  const count = data.u32('nb_bitmaps');
  data.expectU32(0, 'reserved');
  const bytes = data.u64('bitmap_directory_size');
  const offset = data.u64('bitmap_directory_offset');
  data.end();
  if (count === 0 || count > QCOW2_LIMITS.bitmaps) {
    throw bad('ERR_WIRE_LIMIT', `${count} bitmaps, expected 1 to ${QCOW2_LIMITS.bitmaps}`);
  }
  if (bytes > BigInt(QCOW2_LIMITS.bitmapDirectoryBytes)) {
    throw bad('ERR_WIRE_LIMIT', `bitmap directory of ${bytes} bytes, limit is ${QCOW2_LIMITS.bitmapDirectoryBytes}`);
  }
  return { count, directoryBytes: Number(bytes), directoryOffset: Number(offset) };
}

/** The extensions of a header with their end marker; names of features only where they fit into `roomBytes`. */
export function encodeExtensions(
  header: Partial<
    Pick<
      Qcow2Header,
      'backingFormat' | 'dataFile' | 'encryptionHeader' | 'bitmaps' | 'otherExtensions' | 'featureNames'
    >
  >,
  roomBytes: number,
): Uint8Array<ArrayBuffer> {
  const out = new Writer();
  const add = (type: number, data: Uint8Array): void => {
    out
      .u32(type)
      .u32(data.length)
      .bytes(data)
      .zeroes(-data.length & 7);
  };
  const { backingFormat, dataFile, encryptionHeader, bitmaps, otherExtensions = [], featureNames } = header;
  const utf8 = new TextEncoder();
  if (backingFormat !== undefined && backingFormat !== '') add(EXTENSION.backingFormat, utf8.encode(backingFormat));
  if (dataFile !== undefined) add(EXTENSION.dataFile, utf8.encode(dataFile));
  if (encryptionHeader !== undefined) {
    const { offset, bytes } = encryptionHeader;
    add(EXTENSION.encryption, new Writer().u64(BigInt(offset)).u64(BigInt(bytes)).finish());
  }
  if (bitmaps !== undefined) {
    const { count, directoryBytes, directoryOffset } = bitmaps;
    const data = new Writer().u32(count).u32(0).u64(BigInt(directoryBytes)).u64(BigInt(directoryOffset));
    add(EXTENSION.bitmaps, data.finish());
  }
  for (const { type, data } of otherExtensions) add(type, data);
  // Names only decorate an error of another program.
  if (featureNames !== undefined && out.length + 8 + featureNames.length + 8 <= roomBytes) {
    add(EXTENSION.featureNames, featureNames);
  }
  return out.u32(EXTENSION.end).u32(0).finish();
}

function bad(code: WireError['code'], found: string): WireError {
  return new WireError(code, `Cannot open the qcow2 image: ${found}`, { message: 'qcow2 header' });
}
