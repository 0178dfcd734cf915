import {
  decodeVhdFooter,
  diskBytes,
  looksLikeVhdFooter,
  VHD_FOOTER_BYTES,
  type VhdFooter,
  type VhdType,
} from '../../../../protocols/vhd/mod.ts';
import type { BlockMap, Place } from '../block_map.ts';
import { ImageError } from '../disk_image.ts';
import { MappedImage, type MappedImageOptions } from '../mapped_image.ts';
import { FdImageFile, type ImageFile } from '../qcow2/mod.ts';
import { bad, VhdBlockTable } from './block_table.ts';

/** What a VHD file says of itself. */
export interface VhdDetails {
  readonly type: VhdType;
  readonly footer: VhdFooter;
  /** Of the disk, in `bytes` */
  readonly sizeBytes: number;
  /** False where only the copy at the start of the file is there: the file was cut off */
  readonly footerAtEnd: boolean;
  /** Of a dynamic or differencing disk, in `bytes` */
  readonly blockBytes?: number;
  readonly tableOffset?: number;
  /** Of a differencing disk: text of the image, not to be opened by itself */
  readonly parentName?: string | undefined;
}

export interface VhdMap extends BlockMap {
  readonly details: VhdDetails;
}

/**
 * Opens a VHD image (QEMU: vpc): fixed and dynamic ones for reading and writing, differencing ones for reading, over
 * the parent that the caller gives.
 * @throws WireError where the image is wrong, ImageError where it cannot be served, errno errors of open(2)
 */
export async function openVhd(source: string | number, options: MappedImageOptions): Promise<MappedImage<VhdMap>> {
  const file = FdImageFile.from(source, options);
  return openVhdFile(file, options);
}

export function openVhdFile(file: ImageFile, options: MappedImageOptions): Promise<MappedImage<VhdMap>> {
  return MappedImage.open(file, () => load(file, options), options);
}

/** What the image at `path` says of itself; opens no other file. @throws WireError, ImageError */
export async function inspectVhd(path: string): Promise<VhdDetails> {
  const file = FdImageFile.open(path, true);
  try {
    const { details, footer } = await readFooter(file);
    if (details.type === 'fixed') return details;
    return (await VhdBlockTable.load(file, details, footer, false)).details;
  } finally {
    await file.close();
  }
}

async function load(file: ImageFile, options: MappedImageOptions): Promise<VhdMap> {
  const { details, footer } = await readFooter(file);
  const { type } = details;
  if (type === 'differencing' && options.backing === undefined)
    throw bad('it is a differencing disk, and no parent was given');
  if (type !== 'differencing' && options.backing !== undefined) throw bad('a backing file was given, it has none');
  if (type !== 'fixed') return VhdBlockTable.load(file, details, footer, !options.readOnly);
  if (details.sizeBytes > file.sizeBytes - VHD_FOOTER_BYTES) {
    throw bad(`a fixed disk of ${details.sizeBytes} bytes, the file has ${file.sizeBytes - VHD_FOOTER_BYTES}`);
  }
  return new FixedVhd(file, details);
}

/**
 * The footer at the end decides. Its copy at the start counts only where the end is none, because the start of a fixed
 * disk is its first sector, which the guest writes.
 */
async function readFooter(file: ImageFile): Promise<{ details: VhdDetails; footer: Uint8Array }> {
  if (file.sizeBytes < VHD_FOOTER_BYTES) throw bad(`its file has ${file.sizeBytes} bytes, a footer has 512`);
  const footer = new Uint8Array(VHD_FOOTER_BYTES);
  await file.read(file.sizeBytes - VHD_FOOTER_BYTES, footer);
  const footerAtEnd = looksLikeVhdFooter(footer);
  if (!footerAtEnd) await file.read(0, footer);
  const decoded = decodeVhdFooter(footer);
  if (!footerAtEnd && decoded.type === 'fixed') throw bad('it has no footer at its end');
  const sizeBytes = diskBytes(decoded.geometry, decoded.currentBytes, decoded.creator);
  return { details: { type: decoded.type, footer: decoded, sizeBytes, footerAtEnd }, footer };
}

/** The disk from the first byte of the file, and the footer behind it. */
class FixedVhd implements VhdMap {
  readonly details: VhdDetails;
  readonly sizeBytes: number;
  readonly changes: { allocate: () => Promise<void>; flush: () => Promise<void> };
  readonly #file: ImageFile;

  constructor(file: ImageFile, details: VhdDetails) {
    this.#file = file;
    this.details = details;
    this.sizeBytes = details.sizeBytes;
    this.changes = {
      allocate: () => Promise.reject(new ImageError('EIO', 'Cannot write: a fixed disk has all its space')),
      flush: () => file.sync(),
    };
  }

  lookupNow(offset: number, lengthBytes: number): Place {
    return { kind: 'data', lengthBytes, file: this.#file, host: offset };
  }

  async lookup(offset: number, lengthBytes: number): Promise<Place> {
    return this.lookupNow(offset, lengthBytes);
  }
}
