import { readFileSync, type Stats } from 'node:fs';
import type { Server } from 'node:net';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { lockName, type NameLock } from '../../shared/name_lock.ts';
import { ImageError } from './disk_image.ts';

/** Held while an image is open for writing. */
export interface ImageLock {
  /** A child process that inherits it holds the lock, too; undefined: nothing is held */
  readonly holder?: Server | undefined;
  release(): Promise<void>;
}

/** Bytes that QEMU locks in an image it has open: 100 + permission, 200 + permission that it does not share */
const QEMU_WRITE_PERMISSION_BYTE = 101;
const QEMU_NO_SHARED_WRITE_BYTE = 201;

const LOCK_ATTEMPTS = 4;
const LOCK_PAUSE_MS = 100;

const heldHere = new Set<string>();

/**
 * Refuses a second writer of one file, in this process and in other processes of this project on this machine,
 * and a file that QEMU has open for writing. Advisory: plain Node has no fcntl locks, so QEMU cannot see ours,
 * and processes in other network namespaces are not seen. Gone with the process, however it ends.
 */
export async function lockImage(stats: Pick<Stats, 'dev' | 'ino'>): Promise<ImageLock> {
  const id = `${stats.dev}-${stats.ino}`;
  if (heldHere.has(id)) throw inUse('this process');
  if (qemuWrites(stats)) throw inUse('another program');
  heldHere.add(id);
  let name: NameLock;
  try {
    name = await lockNameSoon(`caisson-image-${process.getuid?.() ?? 0}-${id}`);
  } catch (error) {
    heldHere.delete(id);
    throw error;
  }
  return {
    holder: name.holder,
    async release() {
      heldHere.delete(id);
      await name.release();
    },
  };
}

/**
 * A writer closes its file before it gives up the name, and a new file may get the inode of one that was deleted in
 * between: a name that is taken is tried again before it is believed.
 */
async function lockNameSoon(name: string): Promise<NameLock> {
  for (let attempt = 1; ; attempt++) {
    const lock = await lockName(name);
    if (lock !== undefined) return lock;
    if (attempt === LOCK_ATTEMPTS) throw inUse('another process');
    await sleep(LOCK_PAUSE_MS);
  }
}

function qemuWrites(stats: Pick<Stats, 'dev' | 'ino'>): boolean {
  let locks: string;
  try {
    locks = readFileSync('/proc/locks', 'latin1');
  } catch {
    return false; // not Linux, or hidden
  }
  const major = ((stats.dev >> 8) & 0xfff).toString(16).padStart(2, '0');
  const minor = ((stats.dev & 0xff) | ((stats.dev >> 12) & 0xfff00)).toString(16).padStart(2, '0');
  const file = `${major}:${minor}:${stats.ino}`;
  for (const line of locks.split('\n')) {
    // "1: OFDLCK ADVISORY  READ -1 fe:00:1234 100 101"
    const fields = line.trim().split(/\s+/);
    if (fields[1] !== 'OFDLCK' || fields[5] !== file) continue;
    const first = Number(fields[6]);
    const last = fields[7] === 'EOF' ? Number.POSITIVE_INFINITY : Number(fields[7]);
    for (const byte of [QEMU_WRITE_PERMISSION_BYTE, QEMU_NO_SHARED_WRITE_BYTE]) {
      if (first <= byte && byte <= last) return true;
    }
  }
  return false;
}

function inUse(who: string): ImageError {
  return new ImageError('EPERM', `Cannot lock the image for writing: ${who} has it open for writing`);
}
