/** What stands behind one cluster or subcluster of the disk. */
export type MappingKind = 'unallocated' | 'zero' | 'data' | 'compressed' | 'invalid';

export interface Mapping {
  readonly kind: MappingKind;
  /** First byte in the file; 0: no space is allocated (a zero cluster may have some) */
  readonly host: number;
  /** Of compressed data, at most, in `bytes` */
  readonly lengthBytes: number;
  /** Refcount is exactly one: may be overwritten in place */
  readonly copied: boolean;
  /** Why `invalid` */
  readonly reason?: string;
}

const COPIED = 0x8000_0000;
const COMPRESSED = 0x4000_0000;

const UNALLOCATED: Mapping = { kind: 'unallocated', host: 0, lengthBytes: 0, copied: false };

function invalid(reason: string): Mapping {
  return { kind: 'invalid', host: 0, lengthBytes: 0, copied: false, reason };
}

/** Decodes an L1 entry from its upper and lower 32 bits: the place of an L2 table, or unallocated. */
export function decodeL1Entry(high: number, low: number, clusterBytes: number): Mapping {
  if ((high & 0x7f00_0000) !== 0 || (low & 0x1ff) !== 0) return invalid('reserved bits of an L1 entry');
  const host = (high & 0x00ff_ffff) * 2 ** 32 + (low >>> 0);
  if (host === 0) return UNALLOCATED;
  // Clusters are at most 2 MiB: the lower word decides.
  if ((low & (clusterBytes - 1)) !== 0) return invalid('an L2 table that is not at a cluster');
  return { kind: 'data', host, lengthBytes: clusterBytes, copied: high >>> 31 === 1 };
}

export interface L2Format {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly extended: boolean;
  /** Clusters lie in an external data file, where the first may have offset 0 */
  readonly external?: boolean;
}

/** Decodes a standard or compressed L2 entry. Of extended ones, {@link decodeSubcluster} reads the bitmap. */
export function decodeL2Entry(high: number, low: number, format: L2Format): Mapping {
  const clusterBytes = 2 ** format.clusterBits;
  if ((high & COMPRESSED) !== 0) {
    // "Compressed Clusters Descriptor": offset in bits 0 to x - 1, sectors after the first in x to 61.
    const countBits = format.clusterBits - 8;
    const sectors = (high & 0x3fff_ffff) >>> (30 - countBits);
    const host = (high & (2 ** (30 - countBits) - 1)) * 2 ** 32 + (low >>> 0);
    if (high >>> 31 === 1) return invalid('a compressed cluster with the COPIED flag');
    return { kind: 'compressed', host, lengthBytes: (sectors + 1) * 512 - (low & 511), copied: false };
  }
  const zero = (low & 1) === 1;
  if ((high & 0x3f00_0000) !== 0 || (low & 0x1fe) !== 0) return invalid('reserved bits of an L2 entry');
  if (zero && (format.version === 2 || format.extended)) return invalid('a zero flag where the format has none');
  const host = (high & 0x00ff_ffff) * 2 ** 32 + ((low & 0xffff_fe00) >>> 0);
  if ((low & 0xffff_fe00 & (clusterBytes - 1)) !== 0) return invalid('a data cluster that is not at a cluster');
  // "The offset may only be 0 with bit 63 set when an external data file is used."
  const copied = high >>> 31 === 1 && (host !== 0 || format.external === true);
  if (zero) return { kind: 'zero', host, lengthBytes: clusterBytes, copied };
  return host === 0 && !copied ? UNALLOCATED : { kind: 'data', host, lengthBytes: clusterBytes, copied };
}

/** One of the 32 subclusters of an extended entry: `zeroBits` the upper, `allocatedBits` the lower half of the bitmap. */
export function decodeSubcluster(
  cluster: Mapping,
  zeroBits: number,
  allocatedBits: number,
  index: number,
  clusterBits: number,
): Mapping {
  if (cluster.kind === 'invalid') return cluster;
  if (cluster.kind === 'compressed') {
    return zeroBits === 0 && allocatedBits === 0 ? cluster : invalid('a subcluster bitmap on a compressed cluster');
  }
  const zero = ((zeroBits >>> index) & 1) === 1;
  const allocated = ((allocatedBits >>> index) & 1) === 1;
  if (zero && allocated) return invalid('a subcluster both allocated and zero');
  if (allocated && cluster.kind !== 'data') return invalid('an allocated subcluster without a host cluster');
  if (!zero && !allocated) return UNALLOCATED;
  const lengthBytes = 2 ** (clusterBits - 5);
  const host = cluster.kind === 'data' ? cluster.host + index * lengthBytes : 0;
  return { kind: zero ? 'zero' : 'data', host, lengthBytes, copied: cluster.copied };
}

/** Upper and lower 32 bits of an L1 or standard L2 entry; `host` 0 without flags is unallocated. */
export function encodeEntry(host: number, flags: { copied: boolean; zero?: boolean }): { high: number; low: number } {
  const high = Math.floor(host / 2 ** 32);
  return {
    high: ((flags.copied ? COPIED : 0) | high) >>> 0,
    low: ((host % 2 ** 32) + (flags.zero === true ? 1 : 0)) >>> 0,
  };
}

/** A whole L2 entry, for whoever changes it. Without extended entries there is one subcluster, the cluster. */
export interface ClusterEntry {
  readonly kind: 'standard' | 'compressed' | 'invalid';
  /** First byte in the file; 0: no space is allocated */
  readonly host: number;
  /** Of compressed data, at most, in `bytes` */
  readonly lengthBytes: number;
  readonly copied: boolean;
  /** One bit for each subcluster that has data in the file, 32 `bits` */
  readonly allocated: number;
  /** One bit for each subcluster that reads as zeroes, 32 `bits` */
  readonly zero: number;
  /** Why `invalid` */
  readonly reason?: string;
}

/** Decodes an entry with its subcluster bitmap: `zeroBits` and `allocatedBits` are not looked at in standard ones. */
export function decodeClusterEntry(
  high: number,
  low: number,
  zeroBits: number,
  allocatedBits: number,
  format: L2Format,
): ClusterEntry {
  const { kind, host, lengthBytes, copied, reason } = decodeL2Entry(high, low, format);
  const entry = { host, lengthBytes, copied, allocated: 0, zero: 0 };
  if (kind === 'invalid') return { ...entry, kind, ...(reason === undefined ? {} : { reason }) };
  if (kind === 'compressed') {
    if (format.extended && (zeroBits !== 0 || allocatedBits !== 0)) {
      return { ...entry, kind: 'invalid', reason: 'a subcluster bitmap on a compressed cluster' };
    }
    return { ...entry, kind };
  }
  if (!format.extended) {
    return { ...entry, kind: 'standard', allocated: kind === 'data' ? 1 : 0, zero: kind === 'zero' ? 1 : 0 };
  }
  if ((zeroBits & allocatedBits) !== 0) {
    return { ...entry, kind: 'invalid', reason: 'a subcluster both allocated and zero' };
  }
  if (allocatedBits !== 0 && kind !== 'data') {
    return { ...entry, kind: 'invalid', reason: 'an allocated subcluster without a host cluster' };
  }
  return { ...entry, kind: 'standard', allocated: allocatedBits >>> 0, zero: zeroBits >>> 0 };
}

/** Upper and lower 32 bits of the entry of a compressed cluster of `lengthBytes` at `host`. */
export function encodeCompressedEntry(
  host: number,
  lengthBytes: number,
  clusterBits: number,
): { high: number; low: number } {
  // Sectors that the data touches, less one; see "Compressed Clusters Descriptor".
  const sectors = Math.floor((host + lengthBytes - 1) / 512) - Math.floor(host / 512);
  const countBits = clusterBits - 8;
  const offsetBits = 62 - countBits;
  if (sectors >= 2 ** countBits || host >= 2 ** Math.min(offsetBits, 53)) {
    throw new RangeError(`Cannot encode a compressed cluster: ${lengthBytes} bytes at ${host}`);
  }
  const high = Math.floor(host / 2 ** 32) + sectors * 2 ** (offsetBits - 32);
  return { high: (COMPRESSED + high) >>> 0, low: (host % 2 ** 32) >>> 0 };
}
