import { open } from 'node:fs/promises';
import {
  AUTOCLEAR,
  COMPATIBLE,
  type CompressionType,
  encodeHeader,
  featureNamesFor,
  INCOMPATIBLE,
  QCOW2_LIMITS,
  refcountsPerBlock,
  writeRefcount,
} from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';

export interface CreateQcow2Options {
  /** Of the disk; rounded up to whole sectors, in `bytes` */
  readonly sizeBytes: number;
  /** A power of two from 512 to 2 MiB (default 64 KiB), in `bytes` */
  readonly clusterBytes?: number;
  /** Default 3 */
  readonly version?: 2 | 3;
  /** Width of a refcount, a power of two from 1 to 64 (default 16), in `bits` */
  readonly refcountBits?: number;
  /** Of compressed clusters (default zlib) */
  readonly compression?: CompressionType;
  /** 32 subclusters for each cluster (default false); version 3, clusters of 16 KiB and more */
  readonly extendedL2?: boolean;
  /** Refcounts may be wrong after a power cut, and are mended then (default false); version 3 */
  readonly lazyRefcounts?: boolean;
  /** Clusters go to another file, whose name is written into the image as it is; `raw`: that file stays a raw image */
  readonly dataFile?: { readonly file: string; readonly raw: boolean };
  /** A LUKS header, as createLuksHeader() makes it: clusters are encrypted with its key */
  readonly luksHeader?: Uint8Array;
  /** Written into the image as it is, and not looked at */
  readonly backing?: { readonly file: string; readonly format: string };
}

/** Makes an empty image at `path`, which must not exist. @throws ImageError, or the errno error of open(2) */
export async function createQcow2(path: string, options: CreateQcow2Options): Promise<void> {
  const image = emptyImage(options);
  const handle = await open(path, 'wx', 0o644);
  try {
    let done = 0;
    while (done < image.length) done += (await handle.write(image, done, image.length - done, done)).bytesWritten;
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Header, refcount table, refcount blocks, L1 table: all clusters of an empty image. */
export function emptyImage(options: CreateQcow2Options): Uint8Array {
  const { clusterBytes = 65_536, version = 3, refcountBits = 16, compression = 'zlib', backing } = options;
  const sizeBytes = Math.ceil(options.sizeBytes / 512) * 512;
  const clusterBits = Math.log2(clusterBytes);
  const refcountOrder = Math.log2(refcountBits);
  const refuse = (why: string): never => {
    throw new ImageError('EINVAL', `Cannot create a qcow2 image: ${why}`);
  };
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) refuse(`${options.sizeBytes} is not a size`);
  const { minClusterBits, maxClusterBits, maxRefcountOrder } = QCOW2_LIMITS;
  if (!Number.isInteger(clusterBits) || clusterBits < minClusterBits || clusterBits > maxClusterBits) {
    refuse(`clusters of ${clusterBytes} bytes, expected a power of two from 512 to 2097152`);
  }
  if (!Number.isInteger(refcountOrder) || refcountOrder < 0 || refcountOrder > maxRefcountOrder) {
    refuse(`refcounts of ${refcountBits} bits, expected a power of two from 1 to 64`);
  }
  if (version === 2 && (refcountBits !== 16 || compression !== 'zlib')) refuse('version 2 has 16 bits and zlib only');
  const { extendedL2 = false, lazyRefcounts = false, dataFile } = options;
  if (version === 2 && (extendedL2 || lazyRefcounts || dataFile !== undefined)) {
    refuse('extended L2 entries, lazy refcounts and data files need version 3');
  }
  if (extendedL2 && clusterBits < QCOW2_LIMITS.minExtendedClusterBits) {
    refuse(`extended L2 entries with clusters of ${clusterBytes} bytes, expected 16384 or more`);
  }
  if (dataFile?.raw === true && backing !== undefined) refuse('a raw data file has no room for a backing file');
  const l1Entries = Math.ceil(sizeBytes / ((clusterBytes / (extendedL2 ? 16 : 8)) * clusterBytes));
  if (l1Entries * 8 > QCOW2_LIMITS.l1Bytes) refuse(`${sizeBytes} bytes are too many for clusters of ${clusterBytes}`);

  const luksClusters = Math.ceil((options.luksHeader?.length ?? 0) / clusterBytes);
  const l1Clusters = Math.max(1, Math.ceil((l1Entries * 8) / clusterBytes));
  const perBlock = refcountsPerBlock(clusterBytes, refcountOrder);
  let blocks = 1;
  let tableClusters = 1;
  for (;;) {
    const total = 1 + tableClusters + blocks + l1Clusters + luksClusters;
    const neededBlocks = Math.ceil(total / perBlock);
    const neededTable = Math.ceil((neededBlocks * 8) / clusterBytes);
    if (neededBlocks <= blocks && neededTable <= tableClusters) break;
    blocks = Math.max(blocks, neededBlocks);
    tableClusters = Math.max(tableClusters, neededTable);
  }
  const blocksAt = 1 + tableClusters;
  const luksAt = (blocksAt + blocks + l1Clusters) * clusterBytes;
  const total = blocksAt + blocks + l1Clusters + luksClusters;
  const image = new Uint8Array(total * clusterBytes);
  const view = new DataView(image.buffer);
  image.set(
    encodeHeader({
      version,
      clusterBits,
      sizeBytes,
      backingFile: backing?.file,
      backingFormat: backing?.format,
      encryption: options.luksHeader === undefined ? 0 : 2,
      encryptionHeader:
        options.luksHeader === undefined ? undefined : { offset: luksAt, bytes: options.luksHeader.length },
      l1Entries: Math.max(1, l1Entries),
      l1Offset: (blocksAt + blocks) * clusterBytes,
      refcountTableOffset: clusterBytes,
      refcountTableClusters: tableClusters,
      refcountOrder,
      snapshotCount: 0,
      snapshotsOffset: 0,
      incompatibleFeatures: bits(
        [INCOMPATIBLE.compressionType, compression === 'zstd'],
        [INCOMPATIBLE.extendedL2, extendedL2],
        [INCOMPATIBLE.externalDataFile, dataFile !== undefined],
      ),
      compatibleFeatures: bits([COMPATIBLE.lazyRefcounts, lazyRefcounts]),
      autoclearFeatures: bits([AUTOCLEAR.rawExternalData, dataFile?.raw === true]),
      dataFile: dataFile?.file,
      compression,
      featureNames: featureNamesFor(version, clusterBytes),
    }),
  );
  if (options.luksHeader !== undefined) image.set(options.luksHeader, luksAt);
  for (let block = 0; block < blocks; block++) {
    const host = (blocksAt + block) * clusterBytes;
    view.setBigUint64(clusterBytes + block * 8, BigInt(host));
    const counts = new DataView(image.buffer, host, clusterBytes);
    for (let slot = 0; slot < Math.min(perBlock, total - block * perBlock); slot++) {
      writeRefcount(counts, slot, refcountOrder, 1);
    }
  }
  return image;
}

function bits(...set: readonly (readonly [bit: number, on: boolean])[]): bigint {
  return set.reduce((all, [bit, on]) => (on ? all | (1n << BigInt(bit)) : all), 0n);
}
