import { getRandomValues } from 'node:crypto';
import process from 'node:process';
import type { MachinePlatform } from '../../emulator/machine/platform.ts';
import { HartThreads } from './hart_threads.ts';
import { LogSink, type LogTarget } from './log_sink.ts';

/** Loaded where a kernel is compressed: it is a tenth of an empty Node. */
const zlib = () => process.getBuiltinModule('node:zlib');

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
      gunzip: (bytes, maxBytes) => zlib().gunzipSync(bytes, { maxOutputLength: maxBytes }),
      unzstd: (bytes, maxBytes) => zlib().zstdDecompressSync(bytes, { maxOutputLength: maxBytes }),
    },
    ...others,
  };
}
