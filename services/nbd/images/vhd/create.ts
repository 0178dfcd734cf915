import { randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import {
  coveringGeometry,
  encodeVhdDynamicHeader,
  encodeVhdFooter,
  geometrySectors,
  MAX_GEOMETRY,
  VHD_FOOTER_BYTES,
  VHD_HEADER_BYTES,
  VHD_LIMITS,
  type VhdFooter,
} from '../../../../protocols/vhd/mod.ts';
import { ImageError } from '../disk_image.ts';

const SECTOR_BYTES = 512;
const DEFAULT_BLOCK_BYTES = 2 << 20;

export interface CreateVhdOptions {
  /** Of the disk; rounded up to whole sectors, and without `forceSize` to a whole geometry, in `bytes` */
  readonly sizeBytes: number;
  /** Default dynamic */
  readonly type?: 'fixed' | 'dynamic';
  /** Exactly this size, as Hyper-V takes it. Virtual PC takes the size from the geometry (default false, as QEMU) */
  readonly forceSize?: boolean;
}

/** Size that a VHD image of these options has, in `bytes`. @throws ImageError */
export function vhdDiskBytes(options: CreateVhdOptions): number {
  return geometryFor(options).sectors * SECTOR_BYTES;
}

/** Makes an empty image at `path`, which must not exist. @throws ImageError, or the errno error of open(2) */
export async function createVhd(path: string, options: CreateVhdOptions): Promise<void> {
  const parts = emptyVhd(options);
  const handle = await open(path, 'wx', 0o644);
  try {
    for (const { offset, bytes } of parts) {
      for (let done = 0; done < bytes.length; ) {
        done += (await handle.write(bytes, done, bytes.length - done, offset + done)).bytesWritten;
      }
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** What an empty image consists of; between the parts and before them are zeroes. */
export function emptyVhd(options: CreateVhdOptions): { offset: number; bytes: Uint8Array }[] {
  const { sectors, geometry } = geometryFor(options);
  const dynamic = (options.type ?? 'dynamic') === 'dynamic';
  const sizeBytes = sectors * SECTOR_BYTES;
  const footer: VhdFooter = {
    headerOffset: dynamic ? VHD_FOOTER_BYTES : undefined,
    timeSeconds: Math.floor(Date.now() / 1000),
    // Says where the size is: from the geometry or as it stands.
    creator: options.forceSize === true ? 'qem2' : 'qemu',
    originalBytes: sizeBytes,
    currentBytes: sizeBytes,
    geometry,
    type: dynamic ? 'dynamic' : 'fixed',
    uuid: randomBytes(16),
    savedState: false,
  };
  const footerBytes = encodeVhdFooter(footer);
  if (!dynamic) return [{ offset: sizeBytes, bytes: footerBytes }];
  const tableOffset = VHD_FOOTER_BYTES + VHD_HEADER_BYTES;
  const tableEntries = Math.ceil(sizeBytes / DEFAULT_BLOCK_BYTES);
  const tableBytes = Math.ceil((tableEntries * 4) / SECTOR_BYTES) * SECTOR_BYTES;
  return [
    { offset: 0, bytes: footerBytes },
    {
      offset: VHD_FOOTER_BYTES,
      bytes: encodeVhdDynamicHeader({ tableOffset, tableEntries, blockBytes: DEFAULT_BLOCK_BYTES }),
    },
    { offset: tableOffset, bytes: new Uint8Array(tableBytes).fill(0xff) },
    { offset: tableOffset + tableBytes, bytes: footerBytes },
  ];
}

function geometryFor(options: CreateVhdOptions) {
  const wanted = Math.ceil(options.sizeBytes / SECTOR_BYTES);
  if (!Number.isSafeInteger(wanted) || wanted < 0 || wanted * SECTOR_BYTES > VHD_LIMITS.sizeBytes) {
    const text = `Cannot create a VHD image: ${options.sizeBytes} bytes, limit is ${VHD_LIMITS.sizeBytes}`;
    throw new ImageError('EINVAL', text);
  }
  if (options.forceSize === true) return { sectors: wanted, geometry: MAX_GEOMETRY };
  const geometry = coveringGeometry(wanted);
  // Larger than any geometry: then the size counts, for everybody.
  const covered = geometrySectors(geometry);
  return { sectors: covered === geometrySectors(MAX_GEOMETRY) ? wanted : covered, geometry };
}
