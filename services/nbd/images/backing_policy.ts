import { realpath, stat } from 'node:fs/promises';
import { dirname, isAbsolute, join, relative } from 'node:path';
import { ImageError } from './disk_image.ts';
import { guessFormat } from './guess_format.ts';
import { IMAGE_FORMATS, type ImageFormat } from './image_format.ts';
import { type ImageSource, MAX_CHAIN } from './open_image.ts';
import { inspectQcow2 } from './qcow2/mod.ts';

export interface BackingPolicy {
  /** Names inside images may lead to files in this folder, and to no others */
  readonly root: string;
  /** Backing files whose format the image does not say are what they look like (default false: they are refused) */
  readonly guess?: boolean;
  /** Where the image itself keeps its data, whatever it says: the caller's word for a file that was moved */
  readonly dataFile?: string;
}

/** "protocol:", as QEMU tells names of protocols from paths */
const PROTOCOL = /^[^/]*:/;

/**
 * Follows the names of backing files and data files that stand inside images, for callers who trust these as far as
 * `policy` says: into one folder, symbolic links resolved, to regular files with a format that the image names, never
 * to a protocol, never twice to one file. What it gives names everything, so that opening it looks at no name again.
 *
 * @throws ImageError saying which image leads where it must not; errno errors of open(2) for `path` itself
 */
export async function resolveChain(path: string, format: ImageFormat, policy: BackingPolicy): Promise<ImageSource> {
  return follow(path, format, { ...policy, root: await realpath(policy.root) }, new Set(), 1);
}

async function follow(
  path: string,
  format: ImageFormat,
  policy: BackingPolicy,
  seen: Set<string>,
  depth: number,
): Promise<ImageSource> {
  await meet(path, seen);
  if (depth > MAX_CHAIN) throw refuse(path, `more than ${MAX_CHAIN} images are under each other`);
  if (format !== 'qcow2') return { path, format };
  const { header } = await inspectQcow2(path);
  const inside = async (what: string, name: string): Promise<string> => {
    if (PROTOCOL.test(name)) throw refuse(path, `its ${what} ${JSON.stringify(name)} names a protocol`);
    const wanted = isAbsolute(name) ? name : join(dirname(path), name);
    let real: string;
    try {
      real = await realpath(wanted);
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      throw refuse(path, `its ${what} ${JSON.stringify(name)} cannot be opened: ${code} (${wanted})`);
    }
    const way = relative(policy.root, real);
    if (way === '' || way.startsWith('..') || isAbsolute(way)) {
      throw refuse(path, `its ${what} ${JSON.stringify(name)} is not inside the folder that is allowed`);
    }
    // Without a folder to stay in, names are shown as they were put together.
    return policy.guess === true ? wanted : real;
  };
  const { backingFile, backingFormat, dataFile } = header;
  const parts: { backing?: ImageSource; dataFile?: { path: string } } = {};
  if (dataFile !== undefined) {
    const data = (depth === 1 ? policy.dataFile : undefined) ?? (await inside('data file', dataFile));
    // An image that is its own data file would let a guest write its tables.
    await meet(data, seen);
    parts.dataFile = { path: data };
  }
  if (backingFile !== undefined) {
    const real = await inside('backing file', backingFile);
    const guessed = backingFormat === undefined && policy.guess === true ? (guessFormat(real) ?? 'raw') : undefined;
    const known = guessed ?? IMAGE_FORMATS.find((name) => name === backingFormat);
    if (known === undefined) {
      const found = backingFormat === undefined ? 'is not said' : `${JSON.stringify(backingFormat)} is not known`;
      throw refuse(path, `the format of its backing file ${found}, and it is never guessed`);
    }
    parts.backing = await follow(real, known, policy, seen, depth + 1);
  }
  return { path, format, ...parts };
}

/** Remembers a file. @throws ImageError where it was met before */
async function meet(path: string, seen: Set<string>): Promise<void> {
  const { dev, ino } = await stat(path);
  const id = `${dev}-${ino}`;
  if (seen.has(id)) throw refuse(path, 'it comes twice in its own chain');
  seen.add(id);
}

function refuse(path: string, found: string): ImageError {
  return new ImageError('EINVAL', `Cannot follow ${path}: ${found}`);
}
