export { type BackupOptions, BackupWork } from './backup.ts';
export { BlockJob, JobError, type JobEvent, type JobInfo, type JobType, type JobWork } from './block_job.ts';
export { Layers } from './chain.ts';
export { CommitWork } from './commit.ts';
export { JobControl } from './job_control.ts';
export { JobDisk, type WriteWatcher } from './job_disk.ts';
export { type MirrorOptions, MirrorWork } from './mirror.ts';
export { StreamWork } from './stream.ts';
export { Throttle, type ThrottleLimits, type ThrottleRate, TokenBucket } from './throttle.ts';
