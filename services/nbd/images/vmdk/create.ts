import { randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import { basename } from 'node:path';
import {
  directoryBytesOf,
  encodeVmdkDescriptor,
  encodeVmdkSparseHeader,
  VMDK_FLAG,
  VMDK_LIMITS,
  type VmdkAdapter,
} from '../../../../protocols/vmdk/mod.ts';
import { ImageError } from '../disk_image.ts';

const SECTOR_BYTES = 512;
const GRAIN_BYTES = 64 << 10;
const TABLE_ENTRIES = 512;
const TABLE_BYTES = TABLE_ENTRIES * 4;
const DESCRIPTOR_BYTES = 20 * SECTOR_BYTES;

export interface CreateVmdkOptions {
  /** Of the disk; rounded up to whole sectors, in `bytes` */
  readonly sizeBytes: number;
  /** Default monolithicSparse. A stream is written once, in whole grains, and then only read */
  readonly type?: 'monolithicSparse' | 'streamOptimized';
  /** The disk controller that the guest is to have (default ide) */
  readonly adapterType?: VmdkAdapter;
  /** Version of the virtual hardware (default 4) */
  readonly hardwareVersion?: number;
  /** What the descriptor calls the file (default: the last part of its path) */
  readonly name?: string;
}

/** Makes an empty image at `path`, which must not exist. @throws ImageError, or the errno error of open(2) */
export async function createVmdk(path: string, options: CreateVmdkOptions): Promise<void> {
  const image = emptyVmdk(options, options.name ?? basename(path));
  const handle = await open(path, 'wx', 0o644);
  try {
    for (let done = 0; done < image.length; ) {
      done += (await handle.write(image, done, image.length - done, done)).bytesWritten;
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Header, descriptor, and both sets of directory and grain tables, all of which are there from the start. */
export function emptyVmdk(options: CreateVmdkOptions, name: string): Uint8Array {
  const type = options.type ?? 'monolithicSparse';
  const sizeBytes = Math.ceil(options.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
  // Places are numbers of 32 bits, in sectors: the whole disk, once written, has to be within them.
  const limit = Math.min(VMDK_LIMITS.sizeBytes, 2 ** 41 - 2 ** 33);
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0 || sizeBytes > limit) {
    throw new ImageError('EINVAL', `Cannot create a VMDK image: ${options.sizeBytes} bytes, limit is ${limit}`);
  }
  const header = { sizeBytes, grainBytes: GRAIN_BYTES, tableEntries: TABLE_ENTRIES };
  const tables = directoryBytesOf(header) / 4;
  const directoryBytes = Math.ceil((tables * 4) / SECTOR_BYTES) * SECTOR_BYTES;
  const setBytes = directoryBytes + tables * TABLE_BYTES;
  const redundantAt = SECTOR_BYTES + DESCRIPTOR_BYTES;
  const primaryAt = redundantAt + setBytes;
  const overheadBytes = Math.ceil((primaryAt + setBytes) / GRAIN_BYTES) * GRAIN_BYTES;
  const stream = type === 'streamOptimized';
  const image = new Uint8Array(overheadBytes);
  image.set(
    encodeVmdkSparseHeader({
      version: stream ? 3 : 1,
      flags: VMDK_FLAG.newLines | VMDK_FLAG.redundantTables | (stream ? VMDK_FLAG.compressed | VMDK_FLAG.markers : 0),
      ...header,
      descriptorOffset: SECTOR_BYTES,
      descriptorBytes: DESCRIPTOR_BYTES,
      redundantDirectoryOffset: redundantAt,
      directoryOffset: primaryAt,
      overheadBytes,
      uncleanShutdown: false,
      compression: stream ? 1 : 0,
    }),
  );
  const cid = randomBytes(4).readUInt32BE() & 0x7fff_ffff;
  const descriptor = encodeVmdkDescriptor({ ...options, cid, createType: type, sizeBytes, name });
  image.set(new TextEncoder().encode(descriptor), SECTOR_BYTES);
  const view = new DataView(image.buffer);
  for (const setAt of [redundantAt, primaryAt]) {
    for (let index = 0; index < tables; index++) {
      const host = setAt + directoryBytes + index * TABLE_BYTES;
      view.setUint32(setAt + index * 4, host / SECTOR_BYTES, true);
    }
  }
  return image;
}
