import { randomBytes, randomUUID } from 'node:crypto';
import { open } from 'node:fs/promises';
import process from 'node:process';
import { encodeLuksHeader, LUKS_LIMITS, type LuksHash, luksMaterialOffset } from '../../../../protocols/luks/mod.ts';
import { SectorCipher } from './sector_cipher.ts';
import { derive, diffuse } from './unlock.ts';

const KEY_BYTES = 64;
const DIGEST_BYTES = 20;

export interface CreateLuksOptions {
  readonly passphrase: Uint8Array;
  /** Of each PBKDF2 (default 1 000 000: about half a second) */
  readonly iterations?: number;
  /** Instead: what a PBKDF2 shall take of this machine's processor, in `ms` */
  readonly iterationMs?: number;
}

const DEFAULT_ITERATIONS = 1_000_000;
const MIN_ITERATIONS = 1000;
const TRIAL_ITERATIONS = 50_000;

/**
 * Makes a raw disk behind a new LUKS header at `path`, which must not exist; what is on it is noise until it is
 * written. @throws the errno error of open(2)
 */
export async function createLuks(path: string, sizeBytes: number, options: CreateLuksOptions): Promise<void> {
  const header = await createLuksHeader(options);
  const handle = await open(path, 'wx', 0o600);
  try {
    for (let done = 0; done < header.length; ) {
      done += (await handle.write(header, done, header.length - done, done)).bytesWritten;
    }
    await handle.truncate(header.length + Math.ceil(sizeBytes / 512) * 512);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** By the time of the processor: other work on this machine must not make a disk easier to open. */
async function iterationsOf({ iterations, iterationMs }: CreateLuksOptions): Promise<number> {
  if (iterationMs === undefined) return iterations ?? DEFAULT_ITERATIONS;
  const before = process.cpuUsage();
  await derive(new Uint8Array(16), new Uint8Array(32), TRIAL_ITERATIONS, KEY_BYTES, 'sha256');
  const { user, system } = process.cpuUsage(before);
  const wanted = Math.round((TRIAL_ITERATIONS * iterationMs * 1000) / Math.max(1, user + system));
  return Math.min(LUKS_LIMITS.iterations, Math.max(MIN_ITERATIONS, wanted));
}

/** A header of version 1 with a new key in its first slot: AES-256-XTS, SHA-256. The disk begins where it ends. */
export async function createLuksHeader(options: CreateLuksOptions): Promise<Uint8Array> {
  const { passphrase } = options;
  const iterations = await iterationsOf(options);
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
