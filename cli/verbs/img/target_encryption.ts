import type { CreateLuksOptions } from '../../../services/nbd/images/mod.ts';
import type { KeyValues } from '../../key_value.ts';
import { parseInteger } from '../../numbers.ts';
import type { Secrets } from '../../secrets.ts';
import { UsageError } from '../../usage_error.ts';

/** How a new image will be encrypted. */
export interface TargetEncryption {
  readonly passphrase: string;
  readonly create: CreateLuksOptions;
  /** qemu-img's words of it, with a space in front of each */
  readonly description: string;
}

/** The one way in which we encrypt, in QEMU's words: others are refused, not ignored */
const FIXED = {
  'cipher-alg': 'aes-256',
  'cipher-mode': 'xts',
  'ivgen-alg': 'plain64',
  'hash-alg': 'sha256',
} as const;

export const ENCRYPTION_HELP = [
  ['key-secret=<str>', 'ID of the --object secret with the passphrase'],
  ['iter-time=<num>', 'Processor time that trying a passphrase takes, in ms (default: a million iterations)'],
  ...Object.entries(FIXED).map(([key, value]) => [`${key}=<str>`, value] as const),
] as const;

/** `prefix`: `encrypt.` for qcow2, nothing for luks. Undefined where no key-secret is asked for. @throws UsageError */
export function takeEncryption(
  keys: KeyValues,
  prefix: '' | 'encrypt.',
  secrets: Secrets,
): TargetEncryption | undefined {
  const id = keys.take(`${prefix}key-secret`);
  const time = keys.take(`${prefix}iter-time`);
  for (const [key, value] of Object.entries(FIXED)) keys.oneOf(`${prefix}${key}`, [value], value);
  if (id === undefined) {
    if (time !== undefined) throw new UsageError(`Cannot use -o ${prefix}iter-time= without ${prefix}key-secret=`);
    return undefined;
  }
  const passphrase = secrets.passphrase(id);
  const iterationMs = time === undefined ? undefined : parseInteger(`-o ${prefix}iter-time=`, time, 1, 3_600_000);
  const create = {
    passphrase: new TextEncoder().encode(passphrase),
    ...(iterationMs === undefined ? {} : { iterationMs }),
  };
  const words = ` ${prefix}key-secret=${id}${time === undefined ? '' : ` ${prefix}iter-time=${time}`}`;
  return { passphrase, create, description: words };
}
