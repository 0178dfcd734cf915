import { setTimeout as sleep } from 'node:timers/promises';
import type { QmpReturn } from '../protocols/qmp/mod.ts';
import { formatBytes, formatDuration } from './format.ts';

export type MigrationInfo = QmpReturn<'query-migrate'>;

const POLL_MS = 100;

/**
 * Follows a migration that has begun until it has ended.
 * @throws what `query` throws
 */
export async function followMigration(
  query: () => Promise<MigrationInfo>,
  show: (info: MigrationInfo) => void,
): Promise<MigrationInfo> {
  for (;;) {
    const info = await query();
    show(info);
    if (info.status === 'completed' || info.status === 'failed' || info.status === 'cancelled') return info;
    await sleep(POLL_MS);
  }
}

/** `round 3: 120 MiB of 1 GiB to go, 830 Mbit/s` */
export function describeProgress(info: MigrationInfo): string {
  const { ram } = info;
  if (ram === undefined) return info.status ?? 'waiting';
  const throttle = info['cpu-throttle-percentage'];
  return (
    `${info.status}, round ${ram['dirty-sync-count']}: ${formatBytes(ram.remaining)} of ${formatBytes(ram.total)} to go, ` +
    `${formatBytes(ram.transferred)} sent, ${Math.round(ram.mbps)} Mbit/s` +
    `${throttle === undefined ? '' : `, guest slowed by ${throttle} %`}`
  );
}

/** What a person wants to know afterwards */
export function describeResult(info: MigrationInfo): string {
  if (info.status !== 'completed') return `Migration ${info.status}: ${info['error-desc'] ?? 'no reason was given'}`;
  const { ram } = info;
  return (
    `Migrated in ${formatDuration(info['total-time'] ?? 0)}: ${ram?.['dirty-sync-count'] ?? 0} rounds, ` +
    `${formatBytes(ram?.transferred ?? 0)} sent (${formatBytes(ram?.total ?? 0)} of memory), ` +
    `downtime ${info.downtime ?? 0} ms`
  );
}
