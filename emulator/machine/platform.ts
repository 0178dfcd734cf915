import type * as icount from '../icount/mod.ts';
import type { HartInit } from './hart_thread.ts';
import type { Decompressors } from './kernel_file.ts';

/** A thread that runs one hart (see `runHart`). */
export interface HartThreadHandle {
  /** Resolves when the thread has ended: undefined after ATTENTION_EXIT, the error where it broke */
  readonly ended: Promise<Error | undefined>;
  /** Ends it at once, whatever it does */
  terminate(): void;
}

/** What the machine needs of the platform it runs on; services give Node's, a browser page its own. */
export interface MachinePlatform {
  /** Starts a thread that calls `runHart(init)` */
  startHart(init: HartInit): HartThreadHandle;
  /** From the platform's generator; at most 65536 bytes */
  fillRandom(bytes: Uint8Array<ArrayBuffer>): void;
  /** Runs a task after the host's events that wait (default: a zero timeout) */
  readonly soon?: (task: () => void) => void;
  /** Takes text of the log where harts run on this thread */
  readonly writeLog?: (text: string) => void;
  readonly decompressors?: Decompressors;
  /** icount/mod.ts, for a machine with `icount`: the others need not load it, nor harts and engines on their main thread */
  readonly icount?: typeof icount;
  /** For the log: a driver broke a device, a hart's thread failed */
  readonly onProblem?: (text: string) => void;
}
