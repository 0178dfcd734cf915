import { LUKS_LIMITS } from '../../../protocols/luks/mod.ts';
import type { AddKey, EraseKeys } from '../../../services/nbd/images/mod.ts';
import type { KeyValues } from '../../key_value.ts';
import { parseInteger } from '../../numbers.ts';
import type { Secrets } from '../../secrets.ts';
import { UsageError } from '../../usage_error.ts';

export const KEY_HELP = [
  ['state=<str>', 'active adds a passphrase, inactive erases some'],
  ['new-secret=<str>', 'ID of the --object secret to add'],
  ['old-secret=<str>', 'ID of the --object secret to erase, from all key slots that have it'],
  ['keyslot=<num>', 'One of the 8 key slots (default: the first that is free)'],
  ['iter-time=<num>', 'Processor time that trying the new passphrase takes, in ms (default: a million iterations)'],
] as const;

/** What `state=` and its like ask for, in QEMU's words; undefined where none is given. @throws UsageError, SecretError */
export function takeKeyChange(
  keys: KeyValues,
  prefix: '' | 'encrypt.',
  secrets: Secrets,
  force: boolean,
): AddKey | EraseKeys | undefined {
  const refuse = (key: string, why: string) => new UsageError(`Cannot use -o with ${prefix}${key}=: ${why}`);
  const [newId, oldId, slotText, time] = ['new-secret', 'old-secret', 'keyslot', 'iter-time'].map((key) =>
    keys.take(`${prefix}${key}`),
  );
  if (prefix !== '') keys.oneOf('encrypt.format', ['luks'], 'luks');
  const state = keys.oneOf(`${prefix}state`, ['', 'active', 'inactive'], '');
  if (state === '') {
    const alone = Object.entries({ newId, oldId, slotText, time }).find(([, value]) => value !== undefined);
    if (alone === undefined) return undefined;
    throw refuse('state', 'it is missing: active, or inactive');
  }
  const slot =
    slotText === undefined ? undefined : parseInteger(`-o ${prefix}keyslot=`, slotText, 0, LUKS_LIMITS.slots - 1);
  const where = { ...(slot === undefined ? {} : { slot }), force };
  const passphrase = (id: string): Uint8Array => new TextEncoder().encode(secrets.passphrase(id));
  if (state === 'active') {
    if (newId === undefined) throw refuse('new-secret', 'it is missing');
    if (oldId !== undefined) throw refuse('old-secret', 'it is for state=inactive');
    const iterationMs = time === undefined ? undefined : parseInteger(`-o ${prefix}iter-time=`, time, 1, 3_600_000);
    return {
      kind: 'add',
      newPassphrase: passphrase(newId),
      ...(iterationMs === undefined ? {} : { iterationMs }),
      ...where,
    };
  }
  if (newId !== undefined) throw refuse('new-secret', 'it is for state=active');
  if (time !== undefined) throw refuse('iter-time', 'it is for state=active');
  if (slot === undefined && oldId === undefined) throw refuse('keyslot', 'it is missing, and old-secret= is, too');
  return { kind: 'erase', ...(oldId === undefined ? {} : { oldPassphrase: passphrase(oldId) }), ...where };
}
