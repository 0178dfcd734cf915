import { Packr, Unpackr } from 'msgpackr/index-no-eval';
import {
  checkMessagePack,
  DEFAULT_MESSAGEPACK_LIMITS,
  type MessagePackLimits,
} from '../../protocols/messagepack/mod.ts';

/** What goes between roles: null, booleans, numbers, bigints of 64 bits, text, bytes, lists, and plain objects. */
export type PlainValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | readonly PlainValue[]
  | { readonly [key: string]: PlainValue };

const packr = new Packr({ useRecords: false, moreTypes: false, structuredClone: false, variableMapSize: true });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, copyBuffers: true });

/**
 * Encodes plain data. Fields that are undefined are left out, undefined in a list becomes null.
 * @throws TypeError for anything that is not plain data: our own bug, found here and not at the other end
 */
export function encodeMessagePack(value: unknown): Uint8Array {
  return packr.pack(toPlain(value, 0));
}

/**
 * Decodes bytes of a role that may be hostile: checked before the decoder builds anything.
 * @throws WireError
 */
export function decodeMessagePack(
  bytes: Uint8Array,
  limits: MessagePackLimits = DEFAULT_MESSAGEPACK_LIMITS,
): PlainValue {
  checkMessagePack(bytes, limits);
  // As a plain Uint8Array, so that binaries come out as Uint8Array and not as Buffer
  return unpackr.unpack(new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)) as PlainValue;
}

function toPlain(value: unknown, depth: number): PlainValue {
  if (depth > DEFAULT_MESSAGEPACK_LIMITS.maxDepth) throw new TypeError('Cannot encode a value: too deep or cyclic');
  switch (typeof value) {
    case 'undefined':
      return null;
    case 'boolean':
    case 'number':
    case 'string':
      return value;
    case 'bigint':
      if (value < -(1n << 63n) || value >= 1n << 64n) throw new TypeError(`Cannot encode ${value}: above 64 bits`);
      return value;
    case 'object':
      break;
    default:
      throw new TypeError(`Cannot encode a ${typeof value}: not plain data`);
  }
  if (value === null) return null;
  if (value instanceof Uint8Array) return value;
  if (Array.isArray(value)) return value.map((item) => toPlain(item, depth + 1));
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null) {
    throw new TypeError(`Cannot encode a ${(value as object).constructor?.name}: not plain data`);
  }
  const plain: Record<string, PlainValue> = {};
  for (const [key, field] of Object.entries(value as object)) {
    if (key === '__proto__') throw new TypeError('Cannot encode a field named __proto__');
    if (field !== undefined) plain[key] = toPlain(field, depth + 1);
  }
  return plain;
}
