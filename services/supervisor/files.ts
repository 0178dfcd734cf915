import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  ftruncateSync,
  openSync,
  rmSync,
  type Stats,
  writeFileSync,
} from 'node:fs';
import { copyFile, mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ImageSource } from '../nbd/images/open_image.ts';
import { readSecret } from '../shared/secret.ts';
import { systemReason } from '../shared/system_error.ts';
import type { DiskFile, DiskSource, FileSource } from './vm_options.ts';

// Descriptors here are plain numbers, not FileHandles: they are handed over to roles, and a FileHandle would close
// its descriptor again when it is collected.

/** Kernel, initrd and device tree are read whole, in `bytes` */
const MAX_BOOT_FILE_BYTES = 1 << 30;

/** The user named a file that cannot be used. */
export class FileError extends Error {
  override readonly name = 'FileError';
  readonly code = 'ERR_FILE';
}

/**
 * Opens a boot file for reading: a regular file, nothing that blocks or has effects when opened. The caller closes it.
 * @throws FileError
 */
export async function openBootFile(what: string, source: FileSource): Promise<number> {
  if ('builtin' in source) {
    const { firmwareElf } = await import('../../guests/firmware/mod.ts');
    return openBytes(firmwareElf());
  }
  return openChecked(what, source.file, constants.O_RDONLY, (facts) =>
    facts.isFile() && facts.size <= MAX_BOOT_FILE_BYTES
      ? undefined
      : `${kindOf(facts)} of ${facts.size} bytes, expected a file of at most ${MAX_BOOT_FILE_BYTES}`,
  );
}

/** Descriptors of an image and of what belongs to it. */
export interface OpenedDisk {
  readonly fd: number;
  readonly backing?: OpenedDisk;
  readonly dataFd?: number;
}

/**
 * Opens a disk image: a regular file or block device, read-only where the guest may not write, and what is named
 * under it read-only. With `snapshot` it is a copy without a name, which goes when the last descriptor is closed
 * (copy-on-write where the file system can).
 * @throws FileError; nothing stays open then
 */
export async function openDisk(disk: DiskSource): Promise<OpenedDisk> {
  const what = `disk ${disk.id}`;
  if (disk.snapshot && disk.dataFile !== undefined) {
    throw new FileError(`Cannot use ${disk.dataFile} as ${what}: a disk with snapshot=on cannot have a data file`);
  }
  const opened: number[] = [];
  const keep = (fd: number): number => {
    opened.push(fd);
    return fd;
  };
  const layers = (layer: DiskFile, readOnly: boolean): OpenedDisk => {
    const flags = readOnly ? constants.O_RDONLY : constants.O_RDWR;
    const open = (path: string): number => keep(openChecked(what, path, flags, (facts) => refuseDisk(facts, false)));
    return {
      fd: open(layer.file),
      ...(layer.dataFile === undefined ? {} : { dataFd: open(layer.dataFile) }),
      ...(layer.backing === undefined ? {} : { backing: layers(layer.backing, true) }),
    };
  };
  try {
    if (!disk.snapshot) return layers(disk, disk.readOnly);
    const fd = keep(await openCopy(what, disk.file));
    return { fd, ...(disk.backing === undefined ? {} : { backing: layers(disk.backing, true) }) };
  } catch (error) {
    for (const fd of opened) closeSync(fd);
    throw error;
  }
}

/**
 * Opens a file that a block job works with: a regular file or block device, never through a symbolic link where it is
 * made. @throws FileError
 */
export function openTarget(path: string, flags: number): number {
  return openChecked('a block job’s image', path, flags, (facts) => refuseDisk(facts, false));
}

/**
 * What the disk role gets of an image and what is under it: descriptors, formats and passphrases, no paths.
 * @throws SecretError
 */
export function imageSource(source: DiskFile, opened: OpenedDisk, mapFd: (fd: number) => number): ImageSource {
  const { dataFd, backing } = opened;
  return {
    fd: mapFd(opened.fd),
    format: source.format,
    ...(source.secret === undefined ? {} : { passphrase: readSecret(source.secret) }),
    ...(dataFd === undefined ? {} : { dataFile: { fd: mapFd(dataFd) } }),
    ...(backing === undefined ? {} : { backing: imageSource(source.backing!, backing, mapFd) }),
  };
}

/** All descriptors of a disk */
export function descriptorsOf({ fd, dataFd, backing }: OpenedDisk): number[] {
  return [fd, ...(dataFd === undefined ? [] : [dataFd]), ...(backing === undefined ? [] : descriptorsOf(backing))];
}

async function openCopy(what: string, path: string): Promise<number> {
  closeSync(openChecked(what, path, constants.O_RDONLY, (facts) => refuseDisk(facts, true)));
  return withNamelessFile(async (copy) => {
    await copyFile(path, copy, constants.COPYFILE_FICLONE);
    const fd = openSync(copy, constants.O_RDWR);
    fchmodSync(fd, 0o600);
    return fd;
  });
}

function refuseDisk(facts: Stats, snapshot: boolean): string | undefined {
  return facts.isFile() || (facts.isBlockDevice() && !snapshot) ? undefined : `${kindOf(facts)}, expected a file`;
}

/**
 * Creates or overwrites a regular file of the user's: never through a symbolic link, never a device.
 * @throws FileError
 */
export function writeUserFile(path: string, bytes: Uint8Array): void {
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW;
  const fd = openChecked('output', path, flags, (facts) =>
    facts.isFile() ? undefined : `${kindOf(facts)}, expected a regular file`,
  );
  try {
    ftruncateSync(fd, 0);
    writeFileSync(fd, bytes);
  } finally {
    closeSync(fd);
  }
}

/**
 * Opens a file for a log that a role writes, emptied: a regular file, never through a symbolic link. The caller closes it.
 * @throws FileError
 */
export function openLogFile(path: string): number {
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND | constants.O_NOFOLLOW;
  const fd = openChecked('log', path, flags, (facts) =>
    facts.isFile() ? undefined : `${kindOf(facts)}, expected a regular file`,
  );
  ftruncateSync(fd, 0);
  return fd;
}

/** Opens a recording to replay it: a regular file. The caller closes it. @throws FileError */
export function openReplayFile(path: string): number {
  return openChecked('recording', path, constants.O_RDONLY, (facts) =>
    facts.isFile() ? undefined : `${kindOf(facts)}, expected a regular file`,
  );
}

/** A descriptor for bytes that have no file. */
function openBytes(bytes: Uint8Array): Promise<number> {
  return withNamelessFile(async (path) => {
    writeFileSync(path, bytes, { mode: 0o600 });
    return openSync(path, constants.O_RDONLY);
  });
}

async function withNamelessFile(make: (path: string) => Promise<number>): Promise<number> {
  const directory = await mkdtemp(join(tmpdir(), 'caisson-file-'));
  try {
    return await make(join(directory, 'bytes'));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function openChecked(what: string, path: string, flags: number, refuse: (facts: Stats) => string | undefined): number {
  let fd: number;
  try {
    // O_NONBLOCK: a FIFO in place of the file would hang the supervisor
    fd = openSync(path, flags | constants.O_NONBLOCK, 0o600);
  } catch (cause) {
    throw new FileError(`Cannot open ${path} as ${what}: ${systemReason(cause)}`, { cause });
  }
  const found = refuse(fstatSync(fd));
  if (found === undefined) return fd;
  closeSync(fd);
  throw new FileError(`Cannot use ${path} as ${what}: ${found}`);
}

function kindOf(facts: Stats): string {
  if (facts.isFile()) return 'a file';
  if (facts.isDirectory()) return 'a directory';
  return facts.isFIFO() ? 'a FIFO' : 'a device or socket';
}
