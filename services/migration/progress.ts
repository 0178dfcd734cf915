import { PAGE_BYTES } from '../../protocols/migration/mod.ts';

/** QMP's MigrationStatus, those of its values that occur here */
export type MigrationStatus =
  | 'none'
  | 'setup'
  | 'active'
  | 'device'
  | 'cancelling'
  | 'cancelled'
  | 'completed'
  | 'failed';

export interface MigrationProgress {
  readonly status: MigrationStatus;
  readonly side: 'source' | 'destination';
  /** Of the pass that runs, from 1; 0 before the first */
  readonly round: number;
  readonly totalBytes: number;
  /** On the wire, in `bytes` */
  readonly transferredBytes: number;
  readonly remainingBytes: number;
  /** Sent or stored, in pages */
  readonly normalPages: number;
  readonly zeroPages: number;
  /** Pages a second over the last pass */
  readonly dirtyPagesRate: number;
  /** Acknowledged, over the last pass that could be measured */
  readonly megabitsPerSecond: number;
  /** In percent */
  readonly throttle: number;
  readonly expectedDowntimeMs: number;
  /** From pausing here to `Running` of the destination; 0 before */
  readonly downtimeMs: number;
  readonly setupMs: number;
  readonly totalMs: number;
  readonly error?: { readonly code: string; readonly message: string };
}

export const NO_PROGRESS: MigrationProgress = {
  status: 'none',
  side: 'source',
  round: 0,
  totalBytes: 0,
  transferredBytes: 0,
  remainingBytes: 0,
  normalPages: 0,
  zeroPages: 0,
  dirtyPagesRate: 0,
  megabitsPerSecond: 0,
  throttle: 0,
  expectedDowntimeMs: 0,
  downtimeMs: 0,
  setupMs: 0,
  totalMs: 0,
};

/** The answer of QMP's `query-migrate`: whole numbers, and no field before it means something. */
export function toQueryMigrate(progress: MigrationProgress): Record<string, unknown> {
  const { status, error } = progress;
  if (status === 'none') return {};
  const answer: Record<string, unknown> = { status };
  if (error !== undefined) answer['error-desc'] = error.message;
  answer['total-time'] = Math.round(progress.totalMs);
  if (progress.side === 'destination' && status !== 'completed') return answer;
  answer['setup-time'] = Math.round(progress.setupMs);
  if (status === 'completed') answer.downtime = Math.round(progress.downtimeMs);
  else answer['expected-downtime'] = Math.round(progress.expectedDowntimeMs);
  if (progress.throttle > 0) answer['cpu-throttle-percentage'] = progress.throttle;
  answer.ram = {
    transferred: progress.transferredBytes,
    remaining: progress.remainingBytes,
    total: progress.totalBytes,
    duplicate: progress.zeroPages,
    skipped: 0,
    normal: progress.normalPages,
    'normal-bytes': progress.normalPages * PAGE_BYTES,
    'dirty-pages-rate': Math.round(progress.dirtyPagesRate),
    mbps: progress.megabitsPerSecond,
    'dirty-sync-count': progress.round,
    'postcopy-requests': 0,
    'page-size': PAGE_BYTES,
    'multifd-bytes': 0,
    'pages-per-second': Math.round((progress.megabitsPerSecond * 1e6) / 8 / PAGE_BYTES),
    'precopy-bytes': progress.transferredBytes,
    'downtime-bytes': 0,
    'postcopy-bytes': 0,
    'dirty-sync-missed-zero-copy': 0,
  };
  return answer;
}
