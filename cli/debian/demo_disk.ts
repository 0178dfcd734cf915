import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { DebianError, makeExt4Disk } from '../../guests/debian/mod.ts';

const SIZE_MIB = 256;
const LABEL = 'caisson';

export interface DemoDisk extends Disposable {
  readonly file: string;
  /** For the user; undefined where all is as usual */
  readonly notice?: string;
}

/** What machines keep between runs; what can be fetched again is elsewhere. */
export function stateFolder(environment: NodeJS.ProcessEnv = process.env): string {
  const base = environment.XDG_STATE_HOME;
  return join(base?.startsWith('/') ? base : join(homedir(), '.local', 'state'), 'caisson');
}

/** A disk that goes with this process. */
export async function makeTemporaryDisk(): Promise<DemoDisk> {
  const folder = mkdtempSync(join(tmpdir(), 'caisson-disk-'));
  const file = join(folder, 'disk.img');
  try {
    await makeExt4Disk(file, SIZE_MIB, LABEL);
  } catch (error) {
    rmSync(folder, { recursive: true });
    throw error;
  }
  return { file, [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }) };
}

/**
 * The disk of `caisson debian`, made at the first run and kept. Two machines on one file system would destroy it: while
 * another process has it, this one gets a disk of its own that goes at the end.
 */
export async function openDemoDisk(folder: string = stateFolder()): Promise<DemoDisk> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const file = join(folder, 'debian.img');
  const lock = `${file}.lock`;
  const owner = takeLock(lock);
  if (owner !== undefined) {
    const temporary = await makeTemporaryDisk();
    const notice = `process ${owner} runs ${file}; this machine gets an empty disk that goes when it ends`;
    return { file: temporary.file, notice, [Symbol.dispose]: () => temporary[Symbol.dispose]() };
  }
  const release = () => rmSync(lock, { force: true });
  try {
    if (existsSync(file)) return { file, [Symbol.dispose]: release };
    await makeExt4Disk(file, SIZE_MIB, LABEL);
    return { file, notice: `made ${file}, an empty ext4 disk of ${SIZE_MIB} MiB`, [Symbol.dispose]: release };
  } catch (error) {
    release();
    throw error;
  }
}

/** Undefined where the lock is ours now; else the process that holds it. */
function takeLock(lock: string): number | undefined {
  for (let tries = 0; tries < 3; tries++) {
    try {
      writeFileSync(lock, `${process.pid}\n`, { flag: 'wx' });
      return undefined;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const owner = Number(readFileSync(lock, 'utf8').trim());
    if (owner > 0 && isAlive(owner)) return owner;
    rmSync(lock, { force: true }); // its process was killed
  }
  throw new DebianError('ERR_DEBIAN_TOOL', `Cannot lock the disk: ${lock} comes back again and again`);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
