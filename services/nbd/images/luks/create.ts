import { randomBytes, randomUUID } from 'node:crypto';
import { encodeLuksHeader, LUKS_LIMITS, type LuksHash, luksMaterialOffset } from '../../../../protocols/luks/mod.ts';
import { SectorCipher } from './sector_cipher.ts';
import { derive, diffuse } from './unlock.ts';

const KEY_BYTES = 64;
const DIGEST_BYTES = 20;

export interface CreateLuksOptions {
  readonly passphrase: Uint8Array;
  /** Of each PBKDF2 (default 1 000 000: about half a second) */
  readonly iterations?: number;
}

/** A header of version 1 with a new key in its first slot: AES-256-XTS, SHA-256. The disk begins where it ends. */
export async function createLuksHeader({ passphrase, iterations = 1_000_000 }: CreateLuksOptions): Promise<Uint8Array> {
  const hash: LuksHash = 'sha256';
  const key = randomBytes(KEY_BYTES);
  const salt = randomBytes(32);
  const digestSalt = randomBytes(32);
  const payloadOffset = luksMaterialOffset(LUKS_LIMITS.slots, KEY_BYTES);
  const materialOffset = luksMaterialOffset(0, KEY_BYTES);
  const header = encodeLuksHeader({
    hash,
    keyBytes: KEY_BYTES,
    payloadOffset,
    digest: await derive(key, digestSalt, iterations, DIGEST_BYTES, hash),
    digestSalt,
    digestIterations: iterations,
    uuid: randomUUID(),
    slots: [{ iterations, salt, materialOffset }],
  });
  const material = splitStripes(key, hash);
  new SectorCipher(await derive(passphrase, salt, iterations, KEY_BYTES, hash)).encrypt(material, 0);
  const bytes = new Uint8Array(payloadOffset);
  bytes.set(header);
  bytes.set(material, materialOffset);
  return bytes;
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
