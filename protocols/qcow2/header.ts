import { Cursor, WireError, Writer } from '../bytes/mod.ts';
import { QCOW2_LIMITS } from './limits.ts';

const MAGIC = 0x514649fb;
export const QCOW2_V2_HEADER_BYTES = 72;
export const QCOW2_V3_HEADER_BYTES = 104;
/** Enough of a file to learn the size of its first cluster, in `bytes` */
export const QCOW2_PEEK_BYTES = 24;

/** Bits of `incompatibleFeatures` */
export const INCOMPATIBLE = { dirty: 0, corrupt: 1, externalDataFile: 2, compressionType: 3, extendedL2: 4 } as const;
/** Bits of `autoclearFeatures` */
export const AUTOCLEAR = { bitmaps: 0, rawExternalData: 1 } as const;
const KNOWN_INCOMPATIBLE = 0x1fn;

/** Where fields that change while the image is open lie in the header, in `bytes` */
export const HEADER_FIELD = {
  /** refcount_table_offset, 8 bytes, and refcount_table_clusters, 4 bytes */
  refcountTable: 48,
  incompatibleFeatures: 72,
  autoclearFeatures: 88,
} as const;

const EXTENSION = {
  end: 0,
  backingFormat: 0xe2792aca,
  featureNames: 0x6803f857,
  bitmaps: 0x23852875,
  encryption: 0x0537be77,
  dataFile: 0x44415441,
} as const;

export type CompressionType = 'zlib' | 'zstd';

/** "Bitmaps extension" */
export interface BitmapsExtension {
  readonly count: number;
  readonly directoryBytes: number;
  readonly directoryOffset: number;
}

export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly headerBytes: number;
  readonly clusterBits: number;
  /** In `bytes` */
  readonly clusterBytes: number;
  /** Of the virtual disk, in `bytes`, whole sectors */
  readonly sizeBytes: number;
  /** Text of the image, not to be opened by itself */
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  readonly dataFile: string | undefined;
  /** 0 none, 1 legacy AES, 2 LUKS */
  readonly encryption: 0 | 1 | 2;
  readonly l1Entries: number;
  readonly l1Offset: number;
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  /** Width of a refcount is 2^order bits */
  readonly refcountOrder: number;
  readonly snapshotCount: number;
  readonly snapshotsOffset: number;
  readonly incompatibleFeatures: bigint;
  readonly compatibleFeatures: bigint;
  readonly autoclearFeatures: bigint;
  readonly compression: CompressionType;
  readonly extendedL2: boolean;
  readonly bitmaps: BitmapsExtension | undefined;
}

/** The size of the first cluster, in `bytes`: how much of the file {@link decodeHeader} has to see. */
export function peekClusterBytes(start: Uint8Array): number {
  const cursor = new Cursor(start, 'qcow2 header');
  cursor.expectU32(MAGIC, 'magic');
  cursor.skip(16, 'version to backing_file_size');
  return 2 ** clusterBitsOf(cursor);
}

/**
 * Decodes the header with its extensions and refuses what could not be served: unknown incompatible features, sizes
 * above the limits, tables that are not inside the file. `first` is the first cluster or all of a shorter file,
 * `fileBytes` the size of the file.
 *
 * @throws WireError
 */
export function decodeHeader(first: Uint8Array, fileBytes: number): Qcow2Header {
  const cursor = new Cursor(first, 'qcow2 header');
  cursor.expectU32(MAGIC, 'magic');
  const version = cursor.u32('version');
  if (version !== 2 && version !== 3) throw bad('ERR_WIRE_VALUE', `version ${version}, expected 2 or 3`);
  const backingOffset = cursor.u64('backing_file_offset');
  const backingBytes = cursor.u32('backing_file_size');
  const clusterBits = clusterBitsOf(cursor);
  const clusterBytes = 2 ** clusterBits;
  const size = cursor.u64('size');
  const encryption = cursor.u32('crypt_method');
  const l1Entries = cursor.u32('l1_size');
  const l1Offset = cursor.u64('l1_table_offset');
  const refcountTableOffset = cursor.u64('refcount_table_offset');
  const refcountTableClusters = cursor.u32('refcount_table_clusters');
  const snapshotCount = cursor.u32('nb_snapshots');
  const snapshotsOffset = cursor.u64('snapshots_offset');
  let incompatibleFeatures = 0n;
  let compatibleFeatures = 0n;
  let autoclearFeatures = 0n;
  let refcountOrder = 4;
  let headerBytes = QCOW2_V2_HEADER_BYTES;
  let compressionType = 0;
  if (version === 3) {
    incompatibleFeatures = cursor.u64('incompatible_features');
    compatibleFeatures = cursor.u64('compatible_features');
    autoclearFeatures = cursor.u64('autoclear_features');
    refcountOrder = cursor.u32('refcount_order');
    headerBytes = cursor.u32('header_length');
    if (headerBytes < QCOW2_V3_HEADER_BYTES || headerBytes > clusterBytes || headerBytes % 8 !== 0) {
      throw bad(
        'ERR_WIRE_VALUE',
        `header_length ${headerBytes}, expected a multiple of 8 from ${QCOW2_V3_HEADER_BYTES} to ${clusterBytes}`,
      );
    }
    if (headerBytes > QCOW2_V3_HEADER_BYTES) compressionType = cursor.u8('compression_type');
  }
  if (headerBytes > first.length)
    throw bad('ERR_WIRE_TRUNCATED', `header of ${headerBytes} bytes, ${first.length} there`);

  // QEMU reads up to the name of the backing file, or the end of the cluster.
  if (backingOffset > BigInt(clusterBytes))
    throw bad('ERR_WIRE_VALUE', `backing_file_offset ${backingOffset} outside cluster 0`);
  if (backingOffset !== 0n && Number(backingOffset) < headerBytes) {
    throw bad('ERR_WIRE_VALUE', `backing_file_offset ${backingOffset} inside the header`);
  }
  const extensionsEnd = Math.min(backingOffset === 0n ? clusterBytes : Number(backingOffset), first.length);
  const extensions = decodeExtensions(first.subarray(headerBytes, extensionsEnd));

  const unknown = incompatibleFeatures & ~KNOWN_INCOMPATIBLE;
  if (unknown !== 0n) {
    throw bad('ERR_WIRE_VALUE', `unknown incompatible features: ${featureNames(unknown, extensions.featureNames)}`);
  }
  const has = (bit: number): boolean => (incompatibleFeatures & (1n << BigInt(bit))) !== 0n;
  if (compressionType > 1) throw bad('ERR_WIRE_VALUE', `compression type ${compressionType}, expected 0 or 1`);
  // "If the incompatible bit 'Compression type' is set: the field must be present and non-zero", and the reverse.
  if (has(INCOMPATIBLE.compressionType) !== (compressionType !== 0)) {
    throw bad('ERR_WIRE_VALUE', `compression type ${compressionType} and its feature bit do not agree`);
  }
  if (encryption > 2) throw bad('ERR_WIRE_VALUE', `crypt_method ${encryption}, expected 0, 1 or 2`);
  if (refcountOrder > QCOW2_LIMITS.maxRefcountOrder) {
    throw bad('ERR_WIRE_LIMIT', `refcount_order ${refcountOrder}, limit is ${QCOW2_LIMITS.maxRefcountOrder}`);
  }
  const extendedL2 = has(INCOMPATIBLE.extendedL2);
  if (extendedL2 && clusterBits < QCOW2_LIMITS.minExtendedClusterBits) {
    throw bad('ERR_WIRE_VALUE', `extended L2 entries with cluster_bits ${clusterBits}, minimum is 14`);
  }

  const entryBytes = extendedL2 ? 16 : 8;
  const perL1Entry = (clusterBytes / entryBytes) * clusterBytes;
  const maxSize = BigInt(QCOW2_LIMITS.l1Bytes / 8) * BigInt(perL1Entry);
  if (size > maxSize || size > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw bad('ERR_WIRE_LIMIT', `disk of ${size} bytes, limit is ${maxSize}`);
  }
  if (l1Entries > QCOW2_LIMITS.l1Bytes / 8) {
    throw bad('ERR_WIRE_LIMIT', `l1_size ${l1Entries}, limit is ${QCOW2_LIMITS.l1Bytes / 8}`);
  }
  const l1Needed = Math.ceil(Number(size) / perL1Entry);
  if (l1Entries < l1Needed) throw bad('ERR_WIRE_VALUE', `l1_size ${l1Entries}, the disk needs ${l1Needed}`);
  const l1At = tableOffset(l1Offset, l1Entries * 8, 'L1 table', clusterBytes, fileBytes);
  if (refcountTableClusters === 0) throw bad('ERR_WIRE_VALUE', 'no refcount table');
  const maxTableClusters = Math.max(1, QCOW2_LIMITS.refcountTableBytes / clusterBytes);
  if (refcountTableClusters > maxTableClusters) {
    throw bad('ERR_WIRE_LIMIT', `refcount table of ${refcountTableClusters} clusters, limit is ${maxTableClusters}`);
  }
  const refcountBytes = refcountTableClusters * clusterBytes;
  const refcountsAt = tableOffset(refcountTableOffset, refcountBytes, 'refcount table', clusterBytes, fileBytes);
  if (snapshotCount > QCOW2_LIMITS.snapshots) {
    throw bad('ERR_WIRE_LIMIT', `${snapshotCount} snapshots, limit is ${QCOW2_LIMITS.snapshots}`);
  }
  const snapshotsAt = tableOffset(
    snapshotsOffset,
    snapshotCount === 0 ? 0 : 40,
    'snapshot table',
    clusterBytes,
    fileBytes,
  );

  return {
    version,
    headerBytes,
    clusterBits,
    clusterBytes,
    // As QEMU: what is left of a sector at the end is not there.
    sizeBytes: Math.floor(Number(size) / 512) * 512,
    backingFile: backingName(first, backingOffset, backingBytes, clusterBytes),
    backingFormat: extensions.backingFormat,
    dataFile: extensions.dataFile,
    encryption: encryption as 0 | 1 | 2,
    l1Entries,
    l1Offset: l1At,
    refcountTableOffset: refcountsAt,
    refcountTableClusters,
    refcountOrder,
    snapshotCount,
    snapshotsOffset: snapshotsAt,
    incompatibleFeatures,
    compatibleFeatures,
    autoclearFeatures,
    compression: compressionType === 1 ? 'zstd' : 'zlib',
    extendedL2,
    bitmaps: extensions.bitmaps,
  };
}

/** Encodes cluster 0 of a new image: header, backing format, end marker, backing name; no longer than a cluster. */
export function encodeHeader(
  header: Omit<Qcow2Header, 'headerBytes' | 'clusterBytes' | 'bitmaps' | 'dataFile' | 'extendedL2'>,
): Uint8Array<ArrayBuffer> {
  const utf8 = new TextEncoder();
  const name = utf8.encode(header.backingFile ?? '');
  const format = utf8.encode(header.backingFormat ?? '');
  const headerBytes = header.version === 2 ? QCOW2_V2_HEADER_BYTES : QCOW2_V3_HEADER_BYTES + 8;
  const formatBytes = format.length === 0 ? 0 : 8 + Math.ceil(format.length / 8) * 8;
  const nameAt = headerBytes + formatBytes + 8;
  if (name.length > QCOW2_LIMITS.backingNameBytes || nameAt + name.length > 2 ** header.clusterBits) {
    throw new RangeError(`Cannot write a backing file name of ${name.length} bytes: it does not fit`);
  }
  const out = new Writer(nameAt + name.length);
  out.u32(MAGIC).u32(header.version);
  out.u64(BigInt(name.length === 0 ? 0 : nameAt)).u32(name.length);
  out.u32(header.clusterBits).u64(BigInt(header.sizeBytes)).u32(header.encryption);
  out.u32(header.l1Entries).u64(BigInt(header.l1Offset));
  out.u64(BigInt(header.refcountTableOffset)).u32(header.refcountTableClusters);
  out.u32(header.snapshotCount).u64(BigInt(header.snapshotsOffset));
  if (header.version === 3) {
    out.u64(header.incompatibleFeatures).u64(header.compatibleFeatures).u64(header.autoclearFeatures);
    out.u32(header.refcountOrder).u32(headerBytes);
    out.u8(header.compression === 'zstd' ? 1 : 0).zeroes(7);
  }
  if (format.length > 0) {
    out.u32(EXTENSION.backingFormat).u32(format.length).bytes(format);
    out.zeroes(formatBytes - 8 - format.length);
  }
  return out.u32(EXTENSION.end).u32(0).bytes(name).finish();
}

interface Extensions {
  backingFormat?: string;
  featureNames?: Uint8Array;
  bitmaps?: BitmapsExtension;
  dataFile?: string;
}

function decodeExtensions(area: Uint8Array): Extensions {
  const cursor = new Cursor(area, 'qcow2 header extension');
  const found: Extensions = {};
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
    else if (type === EXTENSION.featureNames) found.featureNames = data.rest();
    else if (type === EXTENSION.bitmaps) found.bitmaps = decodeBitmapsExtension(data);
  }
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

function featureNames(bits: bigint, table: Uint8Array | undefined): string {
  const names = new Map<number, string>();
  // Entries of 48 bytes: type (0 incompatible), bit number, name padded with NUL. Names only decorate an error.
  for (let at = 0; table !== undefined && at + 48 <= table.length; at += 48) {
    if (table[at] !== 0) continue;
    const raw = table.subarray(at + 2, at + 48);
    const end = raw.indexOf(0);
    const text = String.fromCharCode(...raw.subarray(0, end === -1 ? raw.length : end));
    names.set(table[at + 1] ?? 0, text.replace(/[^\x20-\x7e]/g, '?'));
  }
  const listed: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    if ((bits & (1n << BigInt(bit))) !== 0n) listed.push(names.get(bit) ?? `bit ${bit}`);
  }
  return listed.join(', ');
}

function backingName(first: Uint8Array, offset: bigint, length: number, clusterBytes: number): string | undefined {
  if (offset === 0n || length === 0) return undefined;
  const limit = Math.min(QCOW2_LIMITS.backingNameBytes, clusterBytes - Number(offset));
  if (length > limit) throw bad('ERR_WIRE_LIMIT', `backing file name of ${length} bytes, limit is ${limit}`);
  const cursor = new Cursor(first, 'qcow2 header');
  cursor.skip(Number(offset), 'up to the backing file name');
  return cursor.utf8(length, limit, 'backing file name');
}

function clusterBitsOf(cursor: Cursor): number {
  const bits = cursor.u32('cluster_bits');
  const { minClusterBits, maxClusterBits } = QCOW2_LIMITS;
  if (bits < minClusterBits || bits > maxClusterBits) {
    throw bad('ERR_WIRE_VALUE', `cluster_bits ${bits}, expected ${minClusterBits} to ${maxClusterBits}`);
  }
  return bits;
}

/** A table starts at a cluster, not in the header's, and ends inside the file. */
export function tableOffset(
  offset: bigint,
  bytes: number,
  name: string,
  clusterBytes: number,
  fileBytes: number,
): number {
  if (bytes === 0) return 0;
  if (offset === 0n || offset % BigInt(clusterBytes) !== 0n) {
    throw bad('ERR_WIRE_VALUE', `${name} at ${offset}, expected a multiple of ${clusterBytes} above 0`);
  }
  if (offset + BigInt(bytes) > BigInt(fileBytes)) {
    throw bad('ERR_WIRE_VALUE', `${name} of ${bytes} bytes at ${offset}, file ends at ${fileBytes}`);
  }
  return Number(offset);
}

function bad(code: WireError['code'], found: string): WireError {
  return new WireError(code, `Cannot open the qcow2 image: ${found}`, { message: 'qcow2 header' });
}
