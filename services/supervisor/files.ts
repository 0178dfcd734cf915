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
import { firmwareElf } from '../../guests/firmware/mod.ts';
import type { DiskSource, FileSource } from './vm_options.ts';

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
  if ('builtin' in source) return openBytes(firmwareElf());
  return openChecked(what, source.file, constants.O_RDONLY, (facts) =>
    facts.isFile() && facts.size <= MAX_BOOT_FILE_BYTES
      ? undefined
      : `${kindOf(facts)} of ${facts.size} bytes, expected a file of at most ${MAX_BOOT_FILE_BYTES}`,
  );
}

/**
 * Opens a disk image: a regular file or block device, read-only where the guest may not write. With `snapshot` it is
 * a copy without a name, which goes when the last descriptor is closed (copy-on-write where the file system can).
 * @throws FileError
 */
export async function openDisk(disk: DiskSource): Promise<number> {
  const what = `disk ${disk.id}`;
  const original = openChecked(
    what,
    disk.file,
    disk.readOnly || disk.snapshot ? constants.O_RDONLY : constants.O_RDWR,
    (facts) =>
      facts.isFile() || (facts.isBlockDevice() && !disk.snapshot) ? undefined : `${kindOf(facts)}, expected a file`,
  );
  if (!disk.snapshot) return original;
  closeSync(original);
  return withNamelessFile(async (path) => {
    await copyFile(disk.file, path, constants.COPYFILE_FICLONE);
    const fd = openSync(path, constants.O_RDWR);
    fchmodSync(fd, 0o600);
    return fd;
  });
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
    throw new FileError(`Cannot open ${path} as ${what}: ${(cause as NodeJS.ErrnoException).code}`, { cause });
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
