import { Writer } from '../bytes/mod.ts';
import { encodeExtensions } from './header_extensions.ts';
import { QCOW2_MAGIC, QCOW2_V2_HEADER_BYTES, QCOW2_V3_HEADER_BYTES, type Qcow2Header } from './header_layout.ts';
import { QCOW2_LIMITS } from './limits.ts';

const SECTOR_BYTES = 512;
/** A new header may be longer: nothing has to be changed at once */
const MAX_NEW_BYTES = 2048;

/** A header to write: what decoding derives from other fields is left out. */
export type HeaderFields = Omit<
  Qcow2Header,
  | 'headerBytes'
  | 'clusterBytes'
  | 'extendedL2'
  | 'backingOffset'
  | 'extensionsEnd'
  | 'dataFile'
  | 'bitmaps'
  | 'encryptionHeader'
  | 'featureNames'
  | 'otherExtensions'
> &
  Partial<Pick<Qcow2Header, 'dataFile' | 'bitmaps' | 'encryptionHeader' | 'featureNames' | 'otherExtensions'>>;

/**
 * Encodes the header with its extensions, up to the end marker, and says where the backing file's name stands.
 * What is needed comes first, so that all of it lies in the first sector of most images and can be changed at once;
 * names of features are left out where they do not end in the first `roomBytes`.
 *
 * @throws RangeError where it does not fit into a cluster
 */
export function encodeHeaderArea(
  header: HeaderFields,
  nameAt: (endBytes: number) => number,
  roomBytes: number = SECTOR_BYTES,
): Uint8Array<ArrayBuffer> {
  const headerBytes = header.version === 2 ? QCOW2_V2_HEADER_BYTES : QCOW2_V3_HEADER_BYTES + 8;
  const extensions = encodeExtensions(header, roomBytes - headerBytes);
  const end = headerBytes + extensions.length;
  if (end > 2 ** header.clusterBits) throw new RangeError(`Cannot write a qcow2 header of ${end} bytes`);
  const nameBytes = new TextEncoder().encode(header.backingFile ?? '').length;
  const out = new Writer(end);
  out.u32(QCOW2_MAGIC).u32(header.version);
  out.u64(BigInt(nameBytes === 0 ? 0 : nameAt(end))).u32(nameBytes);
  out.u32(header.clusterBits).u64(BigInt(header.sizeBytes)).u32(header.encryption);
  out.u32(header.l1Entries).u64(BigInt(header.l1Offset));
  out.u64(BigInt(header.refcountTableOffset)).u32(header.refcountTableClusters);
  out.u32(header.snapshotCount).u64(BigInt(header.snapshotsOffset));
  if (header.version === 3) {
    out.u64(header.incompatibleFeatures).u64(header.compatibleFeatures).u64(header.autoclearFeatures);
    out.u32(header.refcountOrder).u32(headerBytes);
    out.u8(header.compression === 'zstd' ? 1 : 0).zeroes(7);
  }
  return out.bytes(extensions).finish();
}

/** Encodes cluster 0 of a new image: header, extensions and the backing file's name; no longer than a cluster. */
export function encodeHeader(header: HeaderFields): Uint8Array<ArrayBuffer> {
  const name = new TextEncoder().encode(header.backingFile ?? '');
  const area = encodeHeaderArea(header, (end) => end, Math.min(MAX_NEW_BYTES, 2 ** header.clusterBits));
  if (name.length > QCOW2_LIMITS.backingNameBytes || area.length + name.length > 2 ** header.clusterBits) {
    throw new RangeError(`Cannot write a backing file name of ${name.length} bytes: it does not fit`);
  }
  return new Writer(area.length + name.length).bytes(area).bytes(name).finish();
}
