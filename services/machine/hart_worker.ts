// The thread of one hart. It blocks for the life of the machine, so it has nothing else to do.
import { workerData } from 'node:worker_threads';
import { type HartInit, runHart } from '../../emulator/machine/hart_thread.ts';

runHart(workerData as HartInit);
