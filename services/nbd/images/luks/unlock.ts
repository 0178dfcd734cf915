import { createHash, pbkdf2, timingSafeEqual } from 'node:crypto';
import {
  decodeLuksHeader,
  LUKS_HEADER_BYTES,
  LUKS_LIMITS,
  type LuksHash,
  type LuksHeader,
} from '../../../../protocols/luks/mod.ts';
import { ImageError } from '../disk_image.ts';
import { SectorCipher } from './sector_cipher.ts';

/** An area that holds a LUKS header and its key material, from its start */
export interface LuksArea {
  readonly lengthBytes: number;
  read(offset: number, into: Uint8Array): Promise<void>;
}

/** @throws WireError */
export async function readLuksHeader(area: LuksArea): Promise<LuksHeader> {
  const bytes = new Uint8Array(Math.min(LUKS_HEADER_BYTES, area.lengthBytes));
  await area.read(0, bytes);
  return decodeLuksHeader(bytes, Math.min(area.lengthBytes, LUKS_LIMITS.headerBytes));
}

/**
 * Tries the passphrase on every key slot in use, as §3.4 of the specification has it, and gives what en- and decrypts.
 * Takes seconds where the header asks for many iterations, on the thread pool. @throws ImageError where none fits
 */
export async function unlockLuks(area: LuksArea, header: LuksHeader, passphrase: Uint8Array): Promise<SectorCipher> {
  return new SectorCipher(await findLuksKey(area, header, passphrase));
}

/** As {@link unlockLuks}: the key of the disk itself. */
export async function findLuksKey(area: LuksArea, header: LuksHeader, passphrase: Uint8Array): Promise<Uint8Array> {
  for (let index = 0; index < header.slots.length; index++) {
    const key = await tryKeySlot(area, header, index, passphrase);
    if (key !== undefined) return key;
  }
  throw new ImageError('EPERM', 'Cannot open the encrypted disk: the passphrase fits no key slot');
}

/** The key of the disk out of one slot; undefined where that is free, or the passphrase does not fit. */
export async function tryKeySlot(
  area: LuksArea,
  header: LuksHeader,
  index: number,
  passphrase: Uint8Array,
): Promise<Uint8Array | undefined> {
  const { hash, keyBytes, digest, digestSalt, digestIterations } = header;
  const slot = header.slots[index];
  if (slot === undefined) return undefined;
  const slotKey = await derive(passphrase, slot.salt, slot.iterations, keyBytes, hash);
  const material = new Uint8Array(keyBytes * LUKS_LIMITS.stripes);
  await area.read(header.materialOffsets[index]!, material);
  new SectorCipher(slotKey).decrypt(material, 0);
  const key = mergeStripes(material, keyBytes, hash);
  const found = await derive(key, digestSalt, digestIterations, digest.length, hash);
  return timingSafeEqual(found, digest) ? key : undefined;
}

export function derive(
  secret: Uint8Array,
  salt: Uint8Array,
  iterations: number,
  bytes: number,
  hash: LuksHash,
): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    pbkdf2(secret, salt, iterations, bytes, hash, (error, key) => (error === null ? resolve(key) : reject(error)));
  });
}

/** "AFmerge": the last stripe, over all others mixed one after the other (§2.4). */
export function mergeStripes(material: Uint8Array, keyBytes: number, hash: LuksHash): Uint8Array {
  const key = new Uint8Array(keyBytes);
  const stripes = material.length / keyBytes;
  for (let stripe = 0; stripe < stripes; stripe++) {
    for (let at = 0; at < keyBytes; at++) key[at]! ^= material[stripe * keyBytes + at]!;
    if (stripe < stripes - 1) diffuse(key, hash);
  }
  return key;
}

/** Each piece as long as a digest becomes the digest of its number and itself. */
export function diffuse(key: Uint8Array, hash: LuksHash): void {
  const digestBytes = { sha1: 20, sha256: 32, sha512: 64 }[hash];
  for (let at = 0, index = 0; at < key.length; at += digestBytes, index++) {
    const piece = key.subarray(at, at + digestBytes);
    const number = new Uint8Array(4);
    new DataView(number.buffer).setUint32(0, index);
    piece.set(createHash(hash).update(number).update(piece).digest().subarray(0, piece.length));
  }
}
