import { Cursor, WireError } from '../bytes/mod.ts';

export interface MessagePackLimits {
  /** Lists and maps inside each other */
  readonly maxDepth: number;
  /** Values in all, map keys counted too */
  readonly maxItems: number;
  /** Longest text, in `bytes` */
  readonly maxTextBytes: number;
}

export const DEFAULT_MESSAGEPACK_LIMITS: MessagePackLimits = {
  maxDepth: 32,
  maxItems: 65_536,
  maxTextBytes: 1 << 20,
};

const textDecoder = new TextDecoder('utf-8', { fatal: true });

/** A list or map whose items are still to come */
interface Level {
  left: number;
  /** Keys seen so far; undefined in a list */
  readonly keys: Set<string> | undefined;
  keyNext: boolean;
}

/**
 * Walks one MessagePack value without building it, before any library decoder sees the bytes. Accepts nil,
 * booleans, numbers, valid UTF-8, binaries, lists, and maps with text keys that differ. Refuses extensions
 * (records, dates, errors, class instances: none has a meaning between our roles), the unused byte 0xc1,
 * `__proto__`, depth and counts above the limits, and bytes after the value.
 * @throws WireError
 */
export function checkMessagePack(bytes: Uint8Array, limits: MessagePackLimits = DEFAULT_MESSAGEPACK_LIMITS): void {
  const cursor = new Cursor(bytes, 'MessagePack');
  const levels: Level[] = [];
  let items = 0;
  do {
    const level = levels.at(-1);
    const isKey = level?.keyNext === true;
    if (++items > limits.maxItems) {
      throw cursor.error('ERR_WIRE_LIMIT', `Cannot accept MessagePack: more than ${limits.maxItems} values`);
    }
    const token = cursor.u8('type');
    if (isKey) {
      takeKey(cursor, token, level!, limits);
    } else {
      if (level !== undefined) {
        level.left--;
        if (level.keys !== undefined) level.keyNext = true;
      }
      const opened = takeValue(cursor, token, limits);
      if (opened !== undefined) {
        if (levels.length >= limits.maxDepth) {
          throw cursor.error('ERR_WIRE_LIMIT', `Cannot accept MessagePack: deeper than ${limits.maxDepth}`);
        }
        // Every item takes at least one byte (a map's pair two), so a count that lies is refused before the walk.
        const leastBytes = opened.keys === undefined ? opened.left : opened.left * 2;
        if (leastBytes > cursor.remaining) {
          throw cursor.error(
            'ERR_WIRE_TRUNCATED',
            `Cannot accept MessagePack: ${opened.left} items announced, ${cursor.remaining} bytes left`,
          );
        }
        levels.push(opened);
      }
    }
    while (levels.length > 0 && levels.at(-1)!.left === 0) levels.pop();
  } while (levels.length > 0);
  cursor.end();
}

function takeKey(cursor: Cursor, token: number, level: Level, limits: MessagePackLimits): void {
  const length = textLength(cursor, token);
  if (length === undefined) {
    throw cursor.error(
      'ERR_WIRE_VALUE',
      `Cannot accept a MessagePack map key: type 0x${token.toString(16)}, expected text`,
    );
  }
  const key = takeText(cursor, length, limits);
  if (key === '__proto__') throw cursor.error('ERR_WIRE_VALUE', 'Cannot accept a MessagePack map key: __proto__');
  if (level.keys!.has(key)) throw cursor.error('ERR_WIRE_VALUE', 'Cannot accept a MessagePack map: a key comes twice');
  level.keys!.add(key);
  level.keyNext = false;
}

/** Length of a text in `bytes`, or undefined where the type is another */
function textLength(cursor: Cursor, token: number): number | undefined {
  if (token >= 0xa0 && token <= 0xbf) return token & 0x1f;
  if (token === 0xd9) return cursor.u8('text length');
  if (token === 0xda) return cursor.u16('text length');
  if (token === 0xdb) return cursor.u32('text length');
  return undefined;
}

function takeText(cursor: Cursor, length: number, limits: MessagePackLimits): string {
  if (length > limits.maxTextBytes) {
    throw cursor.error(
      'ERR_WIRE_LIMIT',
      `Cannot accept MessagePack text: ${length} bytes, limit is ${limits.maxTextBytes}`,
    );
  }
  const raw = cursor.bytes(length, 'text');
  try {
    return textDecoder.decode(raw);
  } catch (cause) {
    throw new WireError('ERR_WIRE_TEXT', 'Cannot accept MessagePack text: not UTF-8', {
      message: 'MessagePack',
      offset: cursor.offset,
      cause,
    });
  }
}

function list(left: number): Level {
  return { left, keys: undefined, keyNext: false };
}

function map(left: number): Level {
  return { left, keys: new Set(), keyNext: true };
}

/** Steps over a scalar, or gives the list or map that begins here. */
function takeValue(cursor: Cursor, token: number, limits: MessagePackLimits): Level | undefined {
  if (token <= 0x7f || token >= 0xe0) return undefined;
  if (token <= 0x8f) return map(token & 0x0f);
  if (token <= 0x9f) return list(token & 0x0f);
  const text = textLength(cursor, token);
  if (text !== undefined) {
    takeText(cursor, text, limits);
    return undefined;
  }
  switch (token) {
    case 0xc0: // nil
    case 0xc2: // false
    case 0xc3: // true
      return undefined;
    case 0xc4:
      cursor.bytes(cursor.u8('binary length'), 'binary');
      return undefined;
    case 0xc5:
      cursor.bytes(cursor.u16('binary length'), 'binary');
      return undefined;
    case 0xc6:
      cursor.bytes(cursor.u32('binary length'), 'binary');
      return undefined;
    case 0xcc:
    case 0xd0:
      cursor.bytes(1, 'number');
      return undefined;
    case 0xcd:
    case 0xd1:
      cursor.bytes(2, 'number');
      return undefined;
    case 0xca:
    case 0xce:
    case 0xd2:
      cursor.bytes(4, 'number');
      return undefined;
    case 0xcb:
    case 0xcf:
    case 0xd3:
      cursor.bytes(8, 'number');
      return undefined;
    case 0xdc:
      return list(cursor.u16('list length'));
    case 0xdd:
      return list(cursor.u32('list length'));
    case 0xde:
      return map(cursor.u16('map length'));
    case 0xdf:
      return map(cursor.u32('map length'));
    default:
      throw cursor.error('ERR_WIRE_VALUE', `Cannot accept MessagePack: type 0x${token.toString(16)} is not allowed`);
  }
}
