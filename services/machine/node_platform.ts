import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import process from 'node:process';
import type { MachinePlatform } from '../../emulator/machine/platform.ts';
import { HartThreads } from './hart_threads.ts';
import { LogSink, type LogTarget } from './log_sink.ts';

/** Loaded where a kernel is compressed: it is a tenth of an empty Node. */
const zlib = () => process.getBuiltinModule('node:zlib');

/**
 * The kernel's generator, of which node:crypto is a long way: loading that takes longer than making a machine. Where it
 * cannot be had so, by node:crypto.
 */
export function fillRandom(bytes: Uint8Array<ArrayBuffer>, device = '/dev/urandom'): void {
  if (!fillFromDevice(bytes, device)) process.getBuiltinModule('node:crypto').getRandomValues(bytes);
}

function fillFromDevice(bytes: Uint8Array<ArrayBuffer>, device: string): boolean {
  let fd: number | undefined;
  try {
    fd = openSync(device, 'r');
    // A file in its place would give the same bytes each time
    if (!fstatSync(fd).isCharacterDevice()) return false;
    for (let done = 0; done < bytes.length; ) {
      const read = readSync(fd, bytes, done, bytes.length - done, null);
      if (read === 0) return false;
      done += read;
    }
    return true;
  } catch {
    return false;
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

/** Harts in worker threads, randomness and decompression from Node. */
export function nodePlatform(
  options: { threads?: HartThreads; onProblem?: (text: string) => void; log?: LogTarget } = {},
): MachinePlatform {
  const { threads = new HartThreads(), log, ...others } = options;
  return {
    startHart: (init) => threads.start(log === undefined ? { init } : { init, log }),
    soon: (task) => void setImmediate(task),
    ...(log === undefined ? {} : { writeLog: new LogSink(log).write }),
    fillRandom,
    decompressors: {
      gunzip: (bytes, maxBytes) => zlib().gunzipSync(bytes, { maxOutputLength: maxBytes }),
      unzstd: (bytes, maxBytes) => zlib().zstdDecompressSync(bytes, { maxOutputLength: maxBytes }),
    },
    ...others,
  };
}
