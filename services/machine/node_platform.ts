import { getRandomValues } from 'node:crypto';
import process from 'node:process';
import { Worker } from 'node:worker_threads';
import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import type { HartThreadHandle, MachinePlatform } from '../../emulator/machine/platform.ts';
import type { HartWorkerData } from './hart_worker.ts';
import { LogSink, type LogTarget } from './log_sink.ts';

/** Translated guest functions call each other on the thread's stack */
const HART_STACK_MB = 32;

/** Harts in worker threads, randomness and decompression from Node. */
export function nodePlatform(options: { onProblem?: (text: string) => void; log?: LogTarget } = {}): MachinePlatform {
  const { log, ...others } = options;
  return {
    startHart: (init) => startHart(log === undefined ? { init } : { init, log }),
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

function startHart(data: HartWorkerData): HartThreadHandle {
  const worker = new Worker(new URL('./hart_worker.ts', import.meta.url), {
    // The order of plain accesses is the processor's: x86 keeps that of its memory model in compiled code too
    workerData: { ...data, strongOrder: process.arch === 'x64' },
    resourceLimits: { stackSizeMb: HART_STACK_MB },
    // A hart needs no environment, arguments or standard streams of the process
    env: {},
    argv: [],
  });
  const ended = new Promise<Error | undefined>((resolve) => {
    worker.once('error', (error) => resolve(error instanceof Error ? error : new Error(String(error))));
    worker.once('exit', (code) => resolve(code === 0 ? undefined : new Error(`exit code ${code}`)));
  });
  return {
    ended,
    terminate: () => {
      void worker.terminate();
    },
  };
}
