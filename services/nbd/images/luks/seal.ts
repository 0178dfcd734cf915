import { randomBytes } from 'node:crypto';
import process from 'node:process';
import { LUKS_LIMITS, type LuksHash, type LuksKeySlot } from '../../../../protocols/luks/mod.ts';
import { SectorCipher } from './sector_cipher.ts';
import { derive, diffuse } from './unlock.ts';

export interface IterationOptions {
  /** Of each PBKDF2 (default 1 000 000: about half a second) */
  readonly iterations?: number;
  /** Instead: what a PBKDF2 shall take of this machine's processor, in `ms` */
  readonly iterationMs?: number;
}

const DEFAULT_ITERATIONS = 1_000_000;
const MIN_ITERATIONS = 1000;
const TRIAL_ITERATIONS = 50_000;
const SALT_BYTES = 32;

/** By the time of the processor: other work on this machine must not make a disk easier to open. */
export async function iterationsOf(options: IterationOptions, hash: LuksHash, keyBytes: number): Promise<number> {
  const { iterations, iterationMs } = options;
  if (iterationMs === undefined) return iterations ?? DEFAULT_ITERATIONS;
  const before = process.cpuUsage();
  await derive(new Uint8Array(16), new Uint8Array(SALT_BYTES), TRIAL_ITERATIONS, keyBytes, hash);
  const { user, system } = process.cpuUsage(before);
  const wanted = Math.round((TRIAL_ITERATIONS * iterationMs * 1000) / Math.max(1, user + system));
  return Math.min(LUKS_LIMITS.iterations, Math.max(MIN_ITERATIONS, wanted));
}

/** A disk's key as a key slot keeps it: the slot's fields, and the key material, under a new salt. */
export async function sealKey(
  key: Uint8Array,
  passphrase: Uint8Array,
  iterations: number,
  hash: LuksHash,
): Promise<{ slot: LuksKeySlot; material: Uint8Array }> {
  const salt = randomBytes(SALT_BYTES);
  const material = splitStripes(key, hash);
  new SectorCipher(await derive(passphrase, salt, iterations, key.length, hash)).encrypt(material, 0);
  return { slot: { iterations, salt }, material };
}

/** "AFsplit" (§2.4): noise, and a last stripe that makes the key of all of them. */
function splitStripes(key: Uint8Array, hash: LuksHash): Uint8Array {
  const material = randomBytes(key.length * LUKS_LIMITS.stripes);
  const mixed = new Uint8Array(key.length);
  const last = LUKS_LIMITS.stripes - 1;
  for (let stripe = 0; stripe < last; stripe++) {
    for (let at = 0; at < key.length; at++) mixed[at]! ^= material[stripe * key.length + at]!;
    diffuse(mixed, hash);
  }
  for (let at = 0; at < key.length; at++) material[last * key.length + at] = mixed[at]! ^ key[at]!;
  return material;
}
