import { closeSync, constants, openSync } from 'node:fs';
import { dirname, join } from 'node:path';
import {
  decodeVmdkDescriptor,
  VMDK_LIMITS,
  VMDK_NO_PARENT,
  type VmdkDescriptor,
  type VmdkExtentLine,
} from '../../../../protocols/vmdk/mod.ts';
import type { BlockMap, BlockMapChanges, Place } from '../block_map.ts';
import { ImageError } from '../disk_image.ts';
import { MappedImage, type MappedImageOptions } from '../mapped_image.ts';
import { FdImageFile, type ImageFile } from '../qcow2/mod.ts';
import { bad, isSparse, readArea, SparseExtent } from './sparse_extent.ts';

/** Disks in one file, and disks of several */
const ONE_FILE = ['monolithicSparse', 'streamOptimized'];
const SEVERAL_FILES = ['monolithicFlat', 'twoGbMaxExtentSparse', 'twoGbMaxExtentFlat', 'vmfs'];

export interface VmdkOptions extends MappedImageOptions {
  /**
   * Lets a descriptor open the files that it names, where these are plain names in its own folder and no links. Default
   * false: whoever could write the descriptor would choose what is read.
   */
  readonly allowExtents?: boolean;
}

/** What a VMDK file says of itself. */
export interface VmdkDetails {
  readonly createType: string;
  readonly cid: number;
  readonly parentCid: number;
  /** Text of the image */
  readonly parentName: string | undefined;
  readonly extents: readonly VmdkExtentDetails[];
  /** Of the disk, in `bytes` */
  readonly sizeBytes: number;
}

export interface VmdkExtentDetails {
  /** As QEMU names it: SPARSE, FLAT …; '' for the one extent of a disk in one file */
  readonly type: string;
  /** Text of the image; undefined where it is this file */
  readonly file: string | undefined;
  /** In `bytes` */
  readonly lengthBytes: number;
  /** Undefined where the extent's file was not opened, or it has none */
  readonly grainBytes: number | undefined;
  readonly compressed: boolean;
}

export interface VmdkMap extends BlockMap {
  readonly details: VmdkDetails;
  /** The one extent of a disk in one file */
  readonly sparse: SparseExtent | undefined;
}

/**
 * Opens a VMDK image: monolithicSparse for reading and writing; streamOptimized, and with `allowExtents` the kinds
 * with several files, for reading.
 * @throws WireError where the image is wrong, ImageError where it cannot be served, errno errors of open(2)
 */
export async function openVmdk(source: string | number, options: VmdkOptions): Promise<MappedImage<VmdkMap>> {
  const path = typeof source === 'string' ? source : undefined;
  const file = FdImageFile.from(source, options);
  return openVmdkFile(file, path, options);
}

/** `path`: of the file, for extents beside it. */
export function openVmdkFile(
  file: ImageFile,
  path: string | undefined,
  options: VmdkOptions,
): Promise<MappedImage<VmdkMap>> {
  return MappedImage.open(file, () => load(file, path, options), options);
}

/** What the image at `path` says of itself; opens no other file. @throws WireError, ImageError */
export async function inspectVmdk(path: string): Promise<VmdkDetails> {
  const file = FdImageFile.open(path, true);
  try {
    if (await isSparse(file)) return (await loadSparse(file, false)).details;
    return detailsOf(await readDescriptor(file));
  } finally {
    await file.close();
  }
}

async function load(file: ImageFile, path: string | undefined, options: VmdkOptions): Promise<VmdkMap> {
  if (await isSparse(file)) {
    const map = await loadSparse(file, !options.readOnly);
    expectParent(map.details, options);
    return map;
  }
  const descriptor = await readDescriptor(file);
  expectParent(descriptor, options);
  if (options.allowExtents !== true) {
    throw bad('its data is in other files, which it names; allow that (--allow-extents) only if you trust who made it');
  }
  if (path === undefined) throw bad('its data is in other files, and it was opened without a folder');
  if (!options.readOnly) throw bad('disks of several files are only read');
  return loadSeveral(dirname(path), descriptor);
}

async function loadSparse(file: ImageFile, forWriting: boolean): Promise<VmdkMap & { readonly sparse: SparseExtent }> {
  const sparse = await SparseExtent.load(file, 0, forWriting);
  const { descriptorOffset, descriptorBytes, sizeBytes, grainBytes } = sparse.header;
  let descriptor: VmdkDescriptor | undefined;
  if (descriptorOffset > 0) {
    if (descriptorOffset + descriptorBytes > file.sizeBytes) throw bad('its descriptor is behind the end of the file');
    const bytes = await readArea(file, descriptorOffset, Math.min(descriptorBytes, VMDK_LIMITS.descriptorBytes));
    descriptor = decodeVmdkDescriptor(bytes);
    if (!ONE_FILE.includes(descriptor.createType)) {
      throw bad(`a disk in one file of type ${descriptor.createType}, expected ${ONE_FILE.join(' or ')}`);
    }
  }
  const details: VmdkDetails = {
    createType: descriptor?.createType ?? '',
    cid: descriptor?.cid ?? 0,
    parentCid: descriptor?.parentCid ?? VMDK_NO_PARENT,
    parentName: descriptor?.parentName,
    // The name in the one line is what the file was called when it was made.
    extents: [{ type: '', file: undefined, lengthBytes: sizeBytes, grainBytes, compressed: sparse.compressed }],
    sizeBytes,
  };
  return new ExtentMap(details, [{ start: 0, lengthBytes: sizeBytes, part: sparse }], sparse, []) as VmdkMap & {
    readonly sparse: SparseExtent;
  };
}

async function loadSeveral(folder: string, descriptor: VmdkDescriptor): Promise<VmdkMap> {
  const files: ImageFile[] = [];
  const extents: Extent[] = [];
  const shown: VmdkExtentDetails[] = [];
  try {
    let start = 0;
    let directoriesBytes = 0;
    for (const line of descriptor.extents) {
      const file = line.type === 'ZERO' ? undefined : openExtent(folder, line);
      if (file !== undefined) files.push(file);
      const part = await partOf(line, file, start);
      extents.push({ start, lengthBytes: line.lengthBytes, part });
      const sparse = part instanceof SparseExtent ? part : undefined;
      directoriesBytes += sparse?.directoriesBytes ?? 0;
      if (directoriesBytes > VMDK_LIMITS.directoriesBytes) {
        throw bad(`grain directories of ${directoriesBytes} bytes in all, limit is ${VMDK_LIMITS.directoriesBytes}`);
      }
      const { type, lengthBytes } = line;
      const grainBytes = sparse?.header.grainBytes;
      shown.push({ type, file: line.file, lengthBytes, grainBytes, compressed: sparse?.compressed ?? false });
      start += lengthBytes;
    }
  } catch (error) {
    for (const file of files) await file.close();
    throw error;
  }
  return new ExtentMap({ ...detailsOf(descriptor), extents: shown }, extents, undefined, files);
}

async function partOf(line: VmdkExtentLine, file: ImageFile | undefined, start: number): Promise<ExtentPart> {
  if (file === undefined || line.access === 'NOACCESS') {
    return { lookupNow: (_offset, lengthBytes) => ({ kind: 'hole', lengthBytes }) };
  }
  if (line.type === 'SPARSE') {
    const sparse = await SparseExtent.load(file, start, false);
    if (sparse.header.sizeBytes < line.lengthBytes) {
      throw bad(`an extent has ${sparse.header.sizeBytes} bytes, its line says ${line.lengthBytes}`);
    }
    return sparse;
  }
  if (line.offset + line.lengthBytes > file.sizeBytes) {
    throw bad(`an extent's file has ${file.sizeBytes} bytes, its line says ${line.lengthBytes} from ${line.offset} on`);
  }
  return {
    lookupNow: (offset, lengthBytes) => ({ kind: 'data', lengthBytes, file, host: line.offset + offset }),
  };
}

/**
 * The rule for names in a descriptor: plain names, of regular files, in the descriptor's own folder. No path, no
 * protocol, no link that leads elsewhere. CVE-2022-47951 was a descriptor that named any file of the host.
 */
function openExtent(folder: string, { file: name }: VmdkExtentLine): ImageFile {
  const refuse = (why: string) => bad(`it names the extent ${JSON.stringify(name?.slice(0, 80))}, ${why}`);
  if (name === undefined || name === '.' || name === '..' || /[/\\\p{Cc}]/u.test(name)) {
    throw refuse('expected a plain name in its own folder');
  }
  if (/^[A-Za-z][\w+.-]*:/.test(name)) throw refuse('protocols are not followed');
  let fd: number;
  try {
    fd = openSync(join(folder, name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw new ImageError('EINVAL', refuse(code === 'ELOOP' ? 'a link' : `which cannot be opened: ${code}`).message, {
      cause,
    });
  }
  try {
    return new FdImageFile(fd);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

async function readDescriptor(file: ImageFile): Promise<VmdkDescriptor> {
  if (file.sizeBytes > VMDK_LIMITS.descriptorBytes) {
    throw bad(`neither a sparse disk nor a descriptor: ${file.sizeBytes} bytes without "KDMV" at their start`);
  }
  const descriptor = decodeVmdkDescriptor(await readArea(file, 0, file.sizeBytes));
  if (!SEVERAL_FILES.includes(descriptor.createType)) {
    throw bad(`disks of type ${descriptor.createType} are not supported, expected ${SEVERAL_FILES.join(', ')}`);
  }
  return descriptor;
}

function detailsOf(descriptor: VmdkDescriptor): VmdkDetails {
  const { cid, parentCid, parentName, createType } = descriptor;
  const extents = descriptor.extents.map(({ type, file, lengthBytes }) => {
    return { type, file, lengthBytes, grainBytes: undefined, compressed: false };
  });
  const sizeBytes = extents.reduce((sum, extent) => sum + extent.lengthBytes, 0);
  return { cid, parentCid, parentName, createType, extents, sizeBytes };
}

function expectParent({ parentCid }: Pick<VmdkDetails, 'parentCid'>, options: VmdkOptions): void {
  if (parentCid !== VMDK_NO_PARENT && options.backing === undefined) throw bad('it has a parent, and none was given');
  if (parentCid !== VMDK_NO_PARENT && !options.readOnly) throw bad('disks with a parent are only read');
  if (parentCid === VMDK_NO_PARENT && options.backing !== undefined) throw bad('a backing file was given, it has none');
}

/** `offset` counts from the extent's start. */
interface ExtentPart {
  lookupNow(offset: number, lengthBytes: number): Place | undefined;
  lookup?(offset: number, lengthBytes: number): Promise<Place>;
}

interface Extent {
  readonly start: number;
  readonly lengthBytes: number;
  readonly part: ExtentPart;
}

/** Extents one after the other. */
class ExtentMap implements VmdkMap {
  readonly details: VmdkDetails;
  readonly sizeBytes: number;
  readonly sparse: SparseExtent | undefined;
  readonly changes?: BlockMapChanges;
  readonly #extents: readonly Extent[];
  readonly #files: readonly ImageFile[];

  constructor(
    details: VmdkDetails,
    extents: readonly Extent[],
    sparse: SparseExtent | undefined,
    files: readonly ImageFile[],
  ) {
    this.details = details;
    this.sizeBytes = details.sizeBytes;
    this.#extents = extents;
    this.#files = files;
    this.sparse = sparse;
    if (sparse?.changes !== undefined) this.changes = sparse.changes;
  }

  lookupNow(offset: number, lengthBytes: number): Place | undefined {
    const { start, part, lengthBytes: there } = this.#extentAt(offset);
    return part.lookupNow(offset - start, Math.min(lengthBytes, start + there - offset));
  }

  async lookup(offset: number, lengthBytes: number): Promise<Place> {
    const { start, part, lengthBytes: there } = this.#extentAt(offset);
    const run = Math.min(lengthBytes, start + there - offset);
    const place = await (part.lookup?.(offset - start, run) ?? part.lookupNow(offset - start, run));
    if (place === undefined) throw new ImageError('EIO', 'Cannot read the VMDK image: no place is known');
    return place;
  }

  async close(): Promise<void> {
    for (const file of this.#files) await file.close();
  }

  #extentAt(offset: number): Extent {
    let low = 0;
    let high = this.#extents.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.#extents[middle]!.start <= offset) low = middle;
      else high = middle - 1;
    }
    return this.#extents[low]!;
  }
}
