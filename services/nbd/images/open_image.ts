import { type DiskImage, ImageError } from './disk_image.ts';
import { IMAGE_FORMATS, type ImageFormat } from './image_format.ts';
import { RawImage } from './raw_image.ts';

/** More images under each other are a mistake, or somebody's trick */
export const MAX_CHAIN = 16;

/** An image file: one of `fd` and `path`. The format is always said, never found by looking. */
export interface ImageSource {
  /** Taken over */
  readonly fd?: number;
  readonly path?: string;
  readonly format: ImageFormat;
  /** What is under an image with a backing file or parent; the name inside the image opens nothing */
  readonly backing?: ImageSource;
  /** Lets a vmdk descriptor open plain names in its own folder (default false) */
  readonly allowExtents?: boolean;
  /** Id or name of a snapshot inside a qcow2 image: the disk as it was then, read-only */
  readonly snapshot?: string;
  /** Where a qcow2 image keeps its clusters, if that is another file: one of `fd` and `path` */
  readonly dataFile?: { readonly fd?: number; readonly path?: string };
  /** Of an image that is encrypted; UTF-8 */
  readonly passphrase?: string;
}

export interface OpenImageOptions {
  readonly readOnly: boolean;
  /** Refuse an image that another writer has open (default true) */
  readonly lock?: boolean;
  /** Not locked and not written to until activate() */
  readonly inactive?: boolean;
  /** Raw images: ask the file system for holes, and give it space back (default false); see RawImageOptions */
  readonly unmap?: boolean;
  /** Raw images: ask the file system for holes (default false); see RawImageOptions */
  readonly holes?: boolean;
  /** Raw images: data may go to sockets by sendfile(2) (default false); see RawImageOptions */
  readonly sendfile?: boolean;
  /** flush() does nothing, and writes have no order: a power cut may cost the image (default false) */
  readonly unsafe?: boolean;
  /** Called for each image of the chain once it is open, the lowest first */
  readonly onLayer?: (image: DiskImage, source: ImageSource) => void;
}

/** Opens an image with all that is under it, which is read-only. @throws ImageError, WireError, errno errors of open(2) */
export async function openImage(source: ImageSource, options: OpenImageOptions): Promise<DiskImage> {
  return openChain(source, options, 1);
}

async function openChain(source: ImageSource, options: OpenImageOptions, depth: number): Promise<DiskImage> {
  const image = await openOne(source, options, depth);
  options.onLayer?.(image, source);
  return image;
}

async function openOne(source: ImageSource, options: OpenImageOptions, depth: number): Promise<DiskImage> {
  const { fd, path, format } = source;
  const file = fd ?? path;
  if (file === undefined || (fd !== undefined && path !== undefined)) {
    throw new ImageError('EINVAL', 'Cannot open the image: expected one of a path and a descriptor');
  }
  if (depth > MAX_CHAIN)
    throw new ImageError('EINVAL', `Cannot open the image: more than ${MAX_CHAIN} under each other`);
  if (!IMAGE_FORMATS.includes(format)) {
    throw new ImageError(
      'EINVAL',
      `Cannot open the image: format ${String(format)}, expected ${IMAGE_FORMATS.join(' or ')}`,
    );
  }
  if (format === 'raw' || format === 'luks') {
    if (source.backing !== undefined) {
      throw new ImageError('EINVAL', `Cannot open the image: ${format} images have nothing under them`);
    }
    if (format === 'luks') {
      const { LuksImage } = await import('./luks/mod.ts');
      return LuksImage.open(file, { ...options, ...passphraseOf(source) });
    }
    return typeof file === 'string' ? RawImage.open(file, options) : RawImage.fromFd(file, options);
  }
  const { dataFile } = source;
  if (dataFile !== undefined && format !== 'qcow2') {
    throw new ImageError('EINVAL', 'Cannot open the image: only qcow2 images have a data file');
  }
  if (dataFile !== undefined && (dataFile.fd === undefined) === (dataFile.path === undefined)) {
    throw new ImageError('EINVAL', 'Cannot open the image: expected one of a path and a descriptor for its data file');
  }
  const { onLayer, holes } = options;
  const under = {
    readOnly: true,
    ...(onLayer === undefined ? {} : { onLayer }),
    ...(holes === undefined ? {} : { holes }),
  };
  const backing = source.backing === undefined ? undefined : await openChain(source.backing, under, depth + 1);
  const all = { ...options, ...(backing === undefined ? {} : { backing }) };
  try {
    // Each is loaded when one of its images is opened: a server of raw disks has no use for their code.
    if (format === 'vpc') return await (await import('./vhd/mod.ts')).openVhd(file, all);
    if (format === 'vhdx') return await (await import('./vhdx/mod.ts')).openVhdx(file, all);
    if (format === 'vmdk') {
      const { openVmdk } = await import('./vmdk/mod.ts');
      return await openVmdk(file, { ...all, allowExtents: source.allowExtents === true });
    }
    const { FdImageFile, Qcow2Image } = await import('./qcow2/mod.ts');
    return await Qcow2Image.open(file, {
      ...all,
      ...passphraseOf(source),
      ...(source.snapshot === undefined ? {} : { snapshot: source.snapshot }),
      ...(dataFile === undefined
        ? {}
        : {
            dataFile:
              dataFile.fd === undefined
                ? FdImageFile.open(dataFile.path!, options.readOnly)
                : new FdImageFile(dataFile.fd),
          }),
    });
  } catch (error) {
    await backing?.close();
    throw error;
  }
}

function passphraseOf({ passphrase }: ImageSource): { passphrase?: Uint8Array } {
  return passphrase === undefined ? {} : { passphrase: new TextEncoder().encode(passphrase) };
}
