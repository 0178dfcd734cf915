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
  const copied = host !== 0 && high >>> 31 === 1;
  if (zero) return { kind: 'zero', host, lengthBytes: clusterBytes, copied };
  return host === 0 ? UNALLOCATED : { kind: 'data', host, lengthBytes: clusterBytes, copied };
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
  if (allocated && cluster.host === 0) return invalid('an allocated subcluster without a host cluster');
  if (!zero && !allocated) return UNALLOCATED;
  const lengthBytes = 2 ** (clusterBits - 5);
  const host = cluster.host === 0 ? 0 : cluster.host + index * lengthBytes;
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
