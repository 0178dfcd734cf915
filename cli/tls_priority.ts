import type { TlsServerOptions } from '../services/shared/mod.ts';
import { UsageError } from './usage_error.ts';

/** TLS versions, oldest and newest */
export type TlsVersions = Required<Pick<TlsServerOptions, 'minVersion' | 'maxVersion'>>;

const ORDER = ['TLSv1.2', 'TLSv1.3'] as const;
/** Sets of GnuTLS that have both versions; what they say of ciphers and keys is not ours to weaken or to promise */
const SETS = ['NORMAL', 'PFS', 'SECURE128', 'SECURE192', 'SECURE256', '@SYSTEM'];
/** Versions that are never spoken here: to take them away is done already */
const NEVER = ['SSL3.0', 'TLS1.0', 'TLS1.1', 'DTLS-ALL', 'DTLS1.0', 'DTLS1.2'];

/**
 * QEMU's `priority=` of TLS credentials, as far as it chooses versions: `NORMAL` are 1.2 and 1.3,
 * `NORMAL:-VERS-TLS1.3` and `NORMAL:-VERS-ALL:+VERS-TLS1.2` the older alone. Without it there is 1.3 only. Ciphers and
 * key exchanges are our own, with forward secrecy; a string that asks for others is refused.
 *
 * @throws UsageError
 */
export function tlsVersions(option: string, priority: string): TlsVersions {
  const [set, ...words] = priority.split(':');
  const bad = (what: string): UsageError =>
    new UsageError(
      `Cannot use ${option} with priority=${priority}: ${what}; expected NORMAL, and -VERS-…, +VERS-TLS1.2 or +VERS-TLS1.3`,
    );
  if (set === undefined || !SETS.includes(set)) throw bad(`${set} is no set`);
  const spoken = new Set<(typeof ORDER)[number]>(ORDER);
  for (const word of words) {
    const [, sign, name] = /^([-!+])VERS-(.+)$/.exec(word) ?? [];
    if (sign === undefined || name === undefined) throw bad(`${word} is not about versions`);
    const named =
      name === 'ALL' || name === 'TLS-ALL' ? ORDER : ORDER.filter((it) => it === name.replace('TLS', 'TLSv'));
    if (named.length === 0 && !(NEVER.includes(name) && sign !== '+')) throw bad(`${word} is not spoken here`);
    for (const version of named) {
      if (sign === '+') spoken.add(version);
      else spoken.delete(version);
    }
  }
  const left = ORDER.filter((version) => spoken.has(version));
  if (left.length === 0) throw bad('no version is left');
  return { minVersion: left[0]!, maxVersion: left.at(-1)! };
}
