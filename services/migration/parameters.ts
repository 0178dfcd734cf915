import { MAX_PASSES } from '../../protocols/migration/mod.ts';
import { MigrationError } from './migration_error.ts';

/** QEMU's words where the concept is QEMU's. */
export interface MigrationParameters {
  /** In `bytes` a second over passes while the guest runs; 0 is no limit */
  readonly 'max-bandwidth': number;
  /** The guest may stand this long, in `ms` */
  readonly 'downtime-limit': number;
  /** Slow the guest down when passes do not get smaller */
  readonly 'auto-converge': boolean;
  /** In percent of the time */
  readonly 'cpu-throttle-initial': number;
  readonly 'cpu-throttle-increment': number;
  readonly 'max-cpu-throttle': number;
  readonly 'max-passes': number;
  /** For the passes, in `ms`; 0 is none */
  readonly deadline: number;
  /** What to do after `deadline` or `max-passes` */
  readonly 'at-deadline': 'cancel' | 'stop-and-copy';
  /** The guest runs on here when the destination is not ready this long after it was paused, in `ms` */
  readonly 'switchover-timeout': number;
  /** Both ends compute the digest of all RAM again while the guest stands: slower, and proof of the dirty marks too */
  readonly 'verify-ram': boolean;
  /** Plain TCP to hosts other than this one */
  readonly 'allow-plaintext': boolean;
}

export const DEFAULT_PARAMETERS: MigrationParameters = {
  'max-bandwidth': 0,
  'downtime-limit': 300,
  'auto-converge': true,
  'cpu-throttle-initial': 20,
  'cpu-throttle-increment': 10,
  'max-cpu-throttle': 99,
  'max-passes': 200,
  deadline: 0,
  'at-deadline': 'cancel',
  'switchover-timeout': 10_000,
  'verify-ram': false,
  'allow-plaintext': false,
};

const RANGES: { readonly [name: string]: readonly [min: number, max: number] } = {
  'max-bandwidth': [0, 2 ** 53 - 1],
  'downtime-limit': [0, 2_000_000],
  'cpu-throttle-initial': [1, 99],
  'cpu-throttle-increment': [1, 99],
  'max-cpu-throttle': [1, 99],
  'max-passes': [1, MAX_PASSES - 1],
  deadline: [0, 2_000_000_000],
  'switchover-timeout': [100, 2_000_000],
};

/**
 * Merges plain data over parameters; unknown names and wrong values are refused before anything changes.
 * @throws MigrationError
 */
export function mergeParameters(base: MigrationParameters, changes: unknown): MigrationParameters {
  if (changes === undefined || changes === null) return base;
  if (typeof changes !== 'object' || Array.isArray(changes)) throw refuse('parameters', 'expected a map');
  const merged: Record<string, unknown> = { ...base };
  for (const [name, value] of Object.entries(changes)) {
    if (!Object.hasOwn(DEFAULT_PARAMETERS, name)) throw refuse(name.slice(0, 64), 'unknown');
    const range = Object.hasOwn(RANGES, name) ? RANGES[name] : undefined;
    if (range !== undefined) {
      const [min, max] = range;
      if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min || value > max) {
        throw refuse(name, `${String(value)}, expected ${min}..${max}`);
      }
    } else if (name === 'at-deadline') {
      if (value !== 'cancel' && value !== 'stop-and-copy') {
        throw refuse(name, `${String(value)}, expected cancel or stop-and-copy`);
      }
    } else if (typeof value !== 'boolean') {
      throw refuse(name, 'expected true or false');
    }
    merged[name] = value;
  }
  return merged as unknown as MigrationParameters;
}

function refuse(name: string, found: string): MigrationError {
  return new MigrationError('ERR_MIGRATION_PARAMETER', `Cannot set ${name}: ${found}`);
}
