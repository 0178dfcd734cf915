import { Cursor, WireError } from '../bytes/mod.ts';
import { decodeExtensions } from './header_extensions.ts';
import {
  INCOMPATIBLE,
  KNOWN_INCOMPATIBLE,
  QCOW2_MAGIC,
  QCOW2_V2_HEADER_BYTES,
  QCOW2_V3_HEADER_BYTES,
  type Qcow2Header,
} from './header_layout.ts';
import { QCOW2_LIMITS } from './limits.ts';

/** The size of the first cluster, in `bytes`: how much of the file {@link decodeHeader} has to see. */
export function peekClusterBytes(start: Uint8Array): number {
  const cursor = new Cursor(start, 'qcow2 header');
  cursor.expectU32(QCOW2_MAGIC, 'magic');
  expectVersion(cursor);
  cursor.skip(12, 'backing_file_offset and backing_file_size');
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
  cursor.expectU32(QCOW2_MAGIC, 'magic');
  const version = expectVersion(cursor);
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

  const encryptionHeader =
    encryption === 2 ? encryptionArea(extensions.encryption, clusterBytes, fileBytes) : undefined;

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
    encryptionHeader,
    backingOffset: Number(backingOffset),
    extensionsEnd: headerBytes + extensions.endsAt,
    featureNames: extensions.featureNames,
    otherExtensions: extensions.others,
  };
}

/** "Full disk encryption header pointer": a LUKS header inside the file, at a cluster. */
function encryptionArea(
  found: { offset: bigint; bytes: bigint } | undefined,
  clusterBytes: number,
  fileBytes: number,
): Qcow2Header['encryptionHeader'] {
  if (found === undefined) throw bad('ERR_WIRE_VALUE', 'encrypted by LUKS, and no pointer to its header');
  const { luksHeaderBytes } = QCOW2_LIMITS;
  if (found.bytes === 0n || found.bytes > BigInt(luksHeaderBytes)) {
    throw bad('ERR_WIRE_LIMIT', `encryption header of ${found.bytes} bytes, limit is ${luksHeaderBytes}`);
  }
  const bytes = Number(found.bytes);
  return { offset: tableOffset(found.offset, bytes, 'encryption header', clusterBytes, fileBytes), bytes };
}

function featureNames(bits: bigint, table: Uint8Array | undefined): string {
  const names = new Map<number, string>();
  // Entries of 48 bytes: type (0 incompatible), bit number, name padded with NUL. Names only decorate an error.
  // The last one may be cut off, where nothing but zeroes is missing.
  for (let at = 0; table !== undefined && at + 2 < table.length; at += 48) {
    if (table[at] !== 0) continue;
    const raw = table.subarray(at + 2, Math.min(at + 48, table.length));
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

function expectVersion(cursor: Cursor): 2 | 3 {
  const version = cursor.u32('version');
  if (version !== 2 && version !== 3) throw bad('ERR_WIRE_VALUE', `version ${version}, expected 2 or 3`);
  return version;
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
