export { SharedSource } from './shared_source.ts';
export { SessionWorkers, type SessionWorkersOptions } from './worker_pool.ts';
