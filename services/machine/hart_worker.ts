// The thread of one hart. It blocks for the life of the machine, so it has nothing else to do.
import { parentPort } from 'node:worker_threads';
import { type HartInit, runHart } from '../../emulator/machine/hart_thread.ts';
import { LogSink, type LogTarget } from './log_sink.ts';

/** The one message that the thread gets */
export interface HartWork {
  readonly init: HartInit;
  readonly log?: LogTarget;
}

parentPort!.once('message', ({ init, log }: HartWork) => {
  // There with --expose-gc, which the machine's process has
  const collect = globalThis.gc;
  runHart(init, {
    ...(log === undefined ? {} : { writeLog: new LogSink(log).write }),
    ...(collect === undefined ? {} : { collect: () => collect() }),
  });
});
