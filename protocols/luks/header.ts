import { Cursor, WireError, Writer } from '../bytes/mod.ts';
import { LUKS_LIMITS } from './limits.ts';

const MAGIC = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe];
/** Of the header of version 1, in `bytes` */
export const LUKS_HEADER_BYTES = 592;
const SECTOR_BYTES = 512;
/** Key material begins at multiples of it */
const ALIGN_BYTES = 4096;
/** Of the first key slot in the header, and from each to the next, in `bytes` */
const SLOTS_OFFSET = 208;
const SLOT_BYTES = 48;
const SALT_BYTES = 32;
const SLOT_ENABLED = 0x00ac71f3;
const SLOT_DISABLED = 0x0000dead;

export type LuksHash = 'sha1' | 'sha256' | 'sha512';
const HASHES: readonly LuksHash[] = ['sha1', 'sha256', 'sha512'];

export interface LuksKeySlot {
  readonly iterations: number;
  readonly salt: Uint8Array;
}

/** Version 1, with the one cipher that is served: AES-XTS with sector numbers of 64 bits */
export interface LuksHeader {
  readonly hash: LuksHash;
  /** Both halves of an XTS key: 32 or 64 `bytes` */
  readonly keyBytes: 32 | 64;
  /** Where the disk begins, from the start of the header, in `bytes` */
  readonly payloadOffset: number;
  readonly digest: Uint8Array;
  readonly digestSalt: Uint8Array;
  readonly digestIterations: number;
  readonly uuid: string;
  /** Undefined where a slot is not in use */
  readonly slots: readonly (LuksKeySlot | undefined)[];
  /** Of the key material of each slot, from the start of the header, in `bytes`; unchecked where it is not in use */
  readonly materialOffsets: readonly number[];
}

/**
 * Decodes a header of LUKS version 1 ("LUKS On-Disk Format Specification Version 1.2.3", §2) and refuses ciphers that
 * are not served and key material that is not inside `areaBytes`. @throws WireError
 */
export function decodeLuksHeader(bytes: Uint8Array, areaBytes: number): LuksHeader {
  const cursor = new Cursor(bytes, 'LUKS header');
  for (const byte of MAGIC) cursor.expectU8(byte, 'magic');
  cursor.expectU16(1, 'version');
  const name = text(cursor, 32, 'cipher-name');
  const mode = text(cursor, 32, 'cipher-mode');
  if (name !== 'aes' || mode !== 'xts-plain64') throw bad(`cipher ${name}-${mode}, expected aes-xts-plain64`);
  const hashSpec = text(cursor, 32, 'hash-spec');
  const hash = HASHES.find((known) => known === hashSpec);
  if (hash === undefined) throw bad(`hash ${hashSpec}, expected ${HASHES.join(', ')}`);
  const payloadOffset = cursor.u32('payload-offset') * SECTOR_BYTES;
  const keyBytes = cursor.u32('key-bytes');
  if (keyBytes !== 32 && keyBytes !== 64) throw bad(`a key of ${keyBytes} bytes, expected 32 or 64`);
  const digest = cursor.bytes(20, 'mk-digest').slice();
  const digestSalt = cursor.bytes(32, 'mk-digest-salt').slice();
  const digestIterations = iterationsOf(cursor, 'mk-digest-iter');
  const uuid = text(cursor, 40, 'uuid');
  const slots: (LuksKeySlot | undefined)[] = [];
  const materialOffsets: number[] = [];
  const taken: { from: number; to: number }[] = [{ from: 0, to: LUKS_HEADER_BYTES }];
  const materialBytes = keyBytes * LUKS_LIMITS.stripes;
  let totalIterations = 0;
  for (let index = 0; index < LUKS_LIMITS.slots; index++) {
    const active = cursor.u32('active');
    const iterations = cursor.u32('iterations');
    const salt = cursor.bytes(SALT_BYTES, 'salt').slice();
    const materialOffset = cursor.u32('key-material-offset') * SECTOR_BYTES;
    const stripes = cursor.u32('stripes');
    materialOffsets.push(materialOffset);
    if (active === SLOT_DISABLED) {
      slots.push(undefined);
      continue;
    }
    if (active !== SLOT_ENABLED) throw bad(`key slot ${index} is neither in use nor free`);
    if (stripes !== LUKS_LIMITS.stripes) throw bad(`${stripes} stripes in key slot ${index}, expected 4000`);
    if (iterations === 0 || iterations > LUKS_LIMITS.iterations) throw tooMany(iterations);
    totalIterations += iterations + digestIterations;
    const to = materialOffset + materialBytes;
    if (to > areaBytes) throw bad(`key material of slot ${index} up to ${to}, the header ends at ${areaBytes}`);
    if (taken.some((other) => materialOffset < other.to && other.from < to)) {
      throw bad(`key material of slot ${index} overlaps another part`);
    }
    taken.push({ from: materialOffset, to });
    slots.push({ iterations, salt });
  }
  if (totalIterations > LUKS_LIMITS.totalIterations) {
    throw tooMany(totalIterations, 'iterations of all key slots together', LUKS_LIMITS.totalIterations);
  }
  if (taken.some(({ to }) => to > payloadOffset && payloadOffset > 0)) throw bad('key material inside the disk');
  return { hash, keyBytes, payloadOffset, digest, digestSalt, digestIterations, uuid, slots, materialOffsets };
}

/** Where the key material of a slot lies in headers that we make, in `bytes`; that of slot 8 would be the disk. */
export function luksMaterialOffset(slot: number, keyBytes: number): number {
  return ALIGN_BYTES + slot * Math.ceil((keyBytes * LUKS_LIMITS.stripes) / ALIGN_BYTES) * ALIGN_BYTES;
}

export function encodeLuksHeader(header: LuksHeader): Uint8Array<ArrayBuffer> {
  const out = new Writer(LUKS_HEADER_BYTES);
  const padded = (value: string, bytes: number): void => {
    const raw = new TextEncoder().encode(value);
    out.bytes(raw).zeroes(bytes - raw.length);
  };
  out.bytes(Uint8Array.from(MAGIC)).u16(1);
  padded('aes', 32);
  padded('xts-plain64', 32);
  padded(header.hash, 32);
  out.u32(header.payloadOffset / SECTOR_BYTES).u32(header.keyBytes);
  out.bytes(header.digest).bytes(header.digestSalt).u32(header.digestIterations);
  padded(header.uuid, 40);
  for (let index = 0; index < LUKS_LIMITS.slots; index++) {
    const slot = header.slots[index];
    // Free slots have places, too, which others check.
    out.u32(slot === undefined ? SLOT_DISABLED : SLOT_ENABLED);
    out.u32(slot?.iterations ?? 0).bytes(slot?.salt ?? new Uint8Array(SALT_BYTES));
    out.u32(header.materialOffsets[index]! / SECTOR_BYTES).u32(LUKS_LIMITS.stripes);
  }
  return out.finish();
}

/** Where the fields of one key slot lie, from the start of the header, and what goes there. */
export interface LuksSlotField {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/** Whether a slot is in use: alone in its sector's write, so that no power cut leaves a half of it. */
export function encodeLuksSlotState(index: number, active: boolean): LuksSlotField {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, active ? SLOT_ENABLED : SLOT_DISABLED);
  return { offset: SLOTS_OFFSET + index * SLOT_BYTES, bytes };
}

/** The other fields of a slot, which may lie in two sectors; of a free one zeroes for both. */
export function encodeLuksSlot(index: number, slot: LuksKeySlot, materialOffset: number): LuksSlotField {
  const out = new Writer(SLOT_BYTES - 4).u32(slot.iterations).bytes(slot.salt);
  out.u32(materialOffset / SECTOR_BYTES).u32(LUKS_LIMITS.stripes);
  return { offset: SLOTS_OFFSET + index * SLOT_BYTES + 4, bytes: out.finish() };
}

function iterationsOf(cursor: Cursor, field: string): number {
  const iterations = cursor.u32(field);
  if (iterations === 0 || iterations > LUKS_LIMITS.iterations) throw tooMany(iterations);
  return iterations;
}

/** Padded with NUL; only what a name of a cipher or a UUID may have */
function text(cursor: Cursor, bytes: number, field: string): string {
  const raw = cursor.bytes(bytes, field);
  const end = raw.indexOf(0);
  const value = String.fromCharCode(...raw.subarray(0, end === -1 ? bytes : end));
  if (!/^[\x20-\x7e]*$/.test(value)) throw bad(`${field} is not printable`);
  return value;
}

function tooMany(iterations: number, what = 'iterations', limit: number = LUKS_LIMITS.iterations): WireError {
  return new WireError('ERR_WIRE_LIMIT', `Cannot open the LUKS disk: ${iterations} ${what}, limit is ${limit}`, {
    message: 'LUKS header',
  });
}

function bad(found: string): WireError {
  return new WireError('ERR_WIRE_VALUE', `Cannot open the LUKS disk: ${found}`, { message: 'LUKS header' });
}
