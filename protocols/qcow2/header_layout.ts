// Facts of the format: numbers of the specification, and the header as a value.

export const QCOW2_MAGIC = 0x514649fb;
export const QCOW2_V2_HEADER_BYTES = 72;
export const QCOW2_V3_HEADER_BYTES = 104;
/** Enough of a file to learn the size of its first cluster, in `bytes` */
export const QCOW2_PEEK_BYTES = 24;

/** Bits of `incompatibleFeatures` */
export const INCOMPATIBLE = { dirty: 0, corrupt: 1, externalDataFile: 2, compressionType: 3, extendedL2: 4 } as const;
/** Bits of `compatibleFeatures` */
export const COMPATIBLE = { lazyRefcounts: 0 } as const;
/** Bits of `autoclearFeatures` */
export const AUTOCLEAR = { bitmaps: 0, rawExternalData: 1 } as const;
export const KNOWN_INCOMPATIBLE = 0x1fn;

/** Where fields that change while the image is open lie in the header, in `bytes` */
export const HEADER_FIELD = {
  /** refcount_table_offset, 8 bytes, and refcount_table_clusters, 4 bytes */
  refcountTable: 48,
  incompatibleFeatures: 72,
  autoclearFeatures: 88,
} as const;

export const EXTENSION = {
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

export interface HeaderExtension {
  readonly type: number;
  readonly data: Uint8Array;
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
  /** Where the LUKS header lies, with `encryption` 2 */
  readonly encryptionHeader: { readonly offset: number; readonly bytes: number } | undefined;
  /** Where the backing file's name stands; 0: there is none */
  readonly backingOffset: number;
  /** Up to the end marker of the extensions, in `bytes` from the start of the file */
  readonly extensionsEnd: number;
  /** The table of feature names as it stands in the file */
  readonly featureNames: Uint8Array | undefined;
  /** Extensions that we do not know: kept when the header is written */
  readonly otherExtensions: readonly HeaderExtension[];
}

/** Whether a bit of `incompatibleFeatures` is set */
export function hasFeature(header: Pick<Qcow2Header, 'incompatibleFeatures'>, bit: number): boolean {
  return (header.incompatibleFeatures & (1n << BigInt(bit))) !== 0n;
}

/** What the bits are called in the table of feature names, for the errors of programs that do not know one */
const FEATURES: readonly (readonly [type: 0 | 1 | 2, bit: number, name: string])[] = [
  [0, INCOMPATIBLE.dirty, 'dirty bit'],
  [0, INCOMPATIBLE.corrupt, 'corrupt bit'],
  [0, INCOMPATIBLE.externalDataFile, 'external data file'],
  [0, INCOMPATIBLE.compressionType, 'compression type'],
  [0, INCOMPATIBLE.extendedL2, 'extended L2 entries'],
  [1, COMPATIBLE.lazyRefcounts, 'lazy refcounts'],
  [2, AUTOCLEAR.bitmaps, 'bitmaps'],
  [2, AUTOCLEAR.rawExternalData, 'raw external data'],
];
const FEATURE_BYTES = 48;
/** Clusters of this size and less have no room for the table, in `bytes` */
const SMALL_CLUSTER_BYTES = 4096;

/** "Feature name table": what version 3 images with clusters that are large enough say of the features we know. */
export function featureNamesFor(version: 2 | 3, clusterBytes: number): Uint8Array | undefined {
  if (version === 2 || clusterBytes <= SMALL_CLUSTER_BYTES) return undefined;
  const table = new Uint8Array(FEATURES.length * FEATURE_BYTES);
  for (const [index, [type, bit, name]] of FEATURES.entries()) {
    table.set([type, bit], index * FEATURE_BYTES);
    table.set(new TextEncoder().encode(name), index * FEATURE_BYTES + 2);
  }
  return table;
}
