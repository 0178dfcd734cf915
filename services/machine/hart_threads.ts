import { getCompileCacheDir } from 'node:module';
import { dirname } from 'node:path';
import process from 'node:process';
import { Worker } from 'node:worker_threads';
import type { HartThreadHandle } from '../../emulator/machine/platform.ts';
import type { HartWork } from './hart_worker.ts';

/** Translated guest functions call each other on the thread's stack */
const HART_STACK_MB = 32;
/**
 * A hart's thread makes garbage only where it translates. V8 would let its young generation grow to 32 MiB and more for
 * that; a third of this is one semi-space
 */
const HART_YOUNG_MB = 12;

/** Threads for harts; some may be started before there is a machine, and wait for their hart. */
export class HartThreads {
  readonly #waiting: HartThread[] = [];

  constructor(ahead = 0) {
    for (let i = 0; i < ahead; i++) this.#waiting.push(new HartThread());
  }

  start(work: HartWork): HartThreadHandle {
    const thread = this.#waiting.shift() ?? new HartThread();
    thread.run(work);
    return thread;
  }

  /** Ends those that no hart was started on. */
  close(): void {
    for (const thread of this.#waiting.splice(0)) thread.terminate();
  }
}

class HartThread implements HartThreadHandle {
  readonly ended: Promise<Error | undefined>;
  readonly #worker = makeWorker();

  constructor() {
    // From its start: one that fails while it waits has ended for who starts a hart on it later
    this.ended = new Promise((resolve) => {
      this.#worker.once('error', (error) => resolve(error instanceof Error ? error : new Error(String(error))));
      this.#worker.once('exit', (code) => resolve(code === 0 ? undefined : new Error(`exit code ${code}`)));
    });
  }

  run(work: HartWork): void {
    // The order of plain accesses is the processor's: x86 keeps that of its memory model in compiled code too
    this.#worker.postMessage({ ...work, init: { ...work.init, strongOrder: process.arch === 'x64' } });
  }

  terminate(): void {
    void this.#worker.terminate();
  }
}

function makeWorker(): Worker {
  const cache = getCompileCacheDir();
  return new Worker(new URL('./hart_entry.mjs', import.meta.url), {
    resourceLimits: { stackSizeMb: HART_STACK_MB, maxYoungGenerationSizeMb: HART_YOUNG_MB },
    // A hart needs no environment, arguments or standard streams of the process; only its code, as fast as it can
    env: cache === undefined ? {} : { NODE_COMPILE_CACHE: dirname(cache) },
    argv: [],
  });
}
