import { getRandomValues } from 'node:crypto';
import process from 'node:process';
import { Worker } from 'node:worker_threads';
import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import type { HartInit } from '../../emulator/machine/hart_thread.ts';
import type { HartThreadHandle, MachinePlatform } from '../../emulator/machine/platform.ts';

/** Translated guest functions call each other on the thread's stack */
const HART_STACK_MB = 32;

/** Harts in worker threads, randomness and decompression from Node. */
export function nodePlatform(options: { onProblem?: (text: string) => void } = {}): MachinePlatform {
  return {
    startHart,
    fillRandom: (bytes) => {
      getRandomValues(bytes);
    },
    decompressors: {
      gunzip: (bytes, maxBytes) => gunzipSync(bytes, { maxOutputLength: maxBytes }),
      unzstd: (bytes, maxBytes) => zstdDecompressSync(bytes, { maxOutputLength: maxBytes }),
    },
    ...options,
  };
}

function startHart(init: HartInit): HartThreadHandle {
  const worker = new Worker(new URL('./hart_worker.ts', import.meta.url), {
    // The order of plain accesses is the processor's: x86 keeps that of its memory model in compiled code too
    workerData: { ...init, strongOrder: process.arch === 'x64' } satisfies HartInit,
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
