import { getRandomValues } from 'node:crypto';
import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import type { MachinePlatform } from '../../emulator/machine/platform.ts';
import { HartThreads } from './hart_threads.ts';
import { LogSink, type LogTarget } from './log_sink.ts';

/** Harts in worker threads, randomness and decompression from Node. */
export function nodePlatform(
  options: { threads?: HartThreads; onProblem?: (text: string) => void; log?: LogTarget } = {},
): MachinePlatform {
  const { threads = new HartThreads(), log, ...others } = options;
  return {
    startHart: (init) => threads.start(log === undefined ? { init } : { init, log }),
    soon: (task) => void setImmediate(task),
    ...(log === undefined ? {} : { writeLog: new LogSink(log).write }),
    fillRandom: (bytes) => {
      getRandomValues(bytes);
    },
    decompressors: {
      gunzip: (bytes, maxBytes) => gunzipSync(bytes, { maxOutputLength: maxBytes }),
      unzstd: (bytes, maxBytes) => zstdDecompressSync(bytes, { maxOutputLength: maxBytes }),
    },
    ...others,
  };
}
