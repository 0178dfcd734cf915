// The thread of one hart. It blocks for the life of the machine, so it has nothing else to do.
import { workerData } from 'node:worker_threads';
import { type HartInit, runHart } from '../../emulator/machine/hart_thread.ts';
import { LogSink, type LogTarget } from './log_sink.ts';

/** What the platform starts it with */
export interface HartWorkerData {
  readonly init: HartInit;
  readonly log?: LogTarget;
}

const { init, log } = workerData as HartWorkerData;
runHart(init, log === undefined ? {} : { writeLog: new LogSink(log).write });
