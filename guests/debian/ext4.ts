import { existsSync } from 'node:fs';
import { open, rm } from 'node:fs/promises';
import { DebianError } from './debian_error.ts';
import { runTool } from './tool.ts';

/** mke2fs lives in /usr/sbin, which is not on every user's PATH. */
const MKE2FS = ['/usr/sbin/mke2fs', '/sbin/mke2fs'];

/**
 * Makes a sparse raw image with an empty ext4 file system, by mke2fs of the package e2fsprogs.
 * @param label at most 16 bytes
 * @throws DebianError ERR_DEBIAN_TOOL
 */
export async function makeExt4Disk(path: string, sizeMib: number, label: string): Promise<void> {
  if (!Number.isInteger(sizeMib) || sizeMib < 8 || sizeMib > 1 << 20)
    throw new RangeError(`Cannot make a disk of ${sizeMib} MiB: 8 to ${1 << 20} MiB are possible`);
  const program = MKE2FS.find((candidate) => existsSync(candidate)) ?? 'mke2fs';
  const handle = await open(path, 'wx', 0o600);
  try {
    await handle.truncate(sizeMib * (1 << 20));
  } finally {
    await handle.close();
  }
  const run = await runTool(program, ['-q', '-F', '-t', 'ext4', '-L', label, path]).catch((error: unknown) => error);
  if (run instanceof Error || (run as { status: number }).status !== 0) {
    await rm(path, { force: true });
    if (run instanceof Error) throw run;
    throw new DebianError('ERR_DEBIAN_TOOL', `Cannot make ${path}: ${(run as { errorText: string }).errorText.trim()}`);
  }
}
