import { MAX_DEPTH, MAX_VALUES } from './limits.ts';
import { QmpError } from './qmp_error.ts';

/** Objects have no prototype: every key is data, `__proto__` too. Integers beyond 2^53 are bigints. */
export type JsonValue = null | boolean | number | bigint | string | readonly JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: JsonValue;
}

export interface JsonLimits {
  readonly maxDepth: number;
  readonly maxValues: number;
}

const LIMITS: JsonLimits = { maxDepth: MAX_DEPTH, maxValues: MAX_VALUES };
const INT64_MIN = -(1n << 63n);
const UINT64_MAX = (1n << 64n) - 1n;

const textDecoder = new TextDecoder('utf-8', { fatal: true });
const KEYWORDS = new Map<string, JsonValue>([
  ['true', true],
  ['false', false],
  ['null', null],
]);
const ESCAPES = new Map([
  ['"', '"'],
  ["'", "'"],
  ['\\', '\\'],
  ['/', '/'],
  ['b', '\b'],
  ['f', '\f'],
  ['n', '\n'],
  ['r', '\r'],
  ['t', '\t'],
]);

/**
 * Parses one JSON value as QMP reads it: RFC 8259, and texts in single quotes too (qmp-spec §2.1). Stricter than
 * JSON.parse(): a key that comes twice, lone surrogates, numbers that are not finite, bytes that are not UTF-8, depth and counts above the limits are refused.
 * @throws QmpError
 */
export function parseJson(bytes: Uint8Array, limits: JsonLimits = LIMITS): JsonValue {
  let text: string;
  try {
    text = textDecoder.decode(bytes);
  } catch {
    throw parseError('invalid UTF-8'); // where in the bytes is of no use to a client
  }
  const parser = new Parser(text, limits);
  return parser.document();
}

function parseError(found: string): QmpError {
  return new QmpError(`JSON parse error, ${found}`);
}

class Parser {
  readonly #text: string;
  readonly #limits: JsonLimits;
  #at = 0;
  #values = 0;

  constructor(text: string, limits: JsonLimits) {
    this.#text = text;
    this.#limits = limits;
  }

  document(): JsonValue {
    const value = this.#value(0);
    this.#space();
    if (this.#at < this.#text.length) throw parseError(`unexpected ${quote(this.#text[this.#at]!)} after the value`);
    return value;
  }

  #value(depth: number): JsonValue {
    if (depth > this.#limits.maxDepth) throw new QmpError('JSON nesting depth limit exceeded');
    if (++this.#values > this.#limits.maxValues) throw new QmpError('JSON token count limit exceeded');
    this.#space();
    const first = this.#text[this.#at];
    if (first === undefined) throw parseError('premature EOI');
    if (first === '{') return this.#object(depth);
    if (first === '[') return this.#list(depth);
    if (first === '"' || first === "'") return this.#string(first);
    if (first === '-' || (first >= '0' && first <= '9')) return this.#number();
    return this.#keyword();
  }

  #object(depth: number): JsonObject {
    const object: Record<string, JsonValue> = Object.create(null);
    this.#at++;
    this.#space();
    if (this.#take('}')) return object;
    do {
      this.#space();
      const first = this.#text[this.#at];
      if (first !== '"' && first !== "'") throw parseError('key is not a string in object');
      const key = this.#string(first);
      if (key in object) throw parseError('duplicate key');
      this.#space();
      if (!this.#take(':')) throw parseError('missing : in object pair');
      object[key] = this.#value(depth + 1);
      this.#space();
    } while (this.#take(','));
    if (!this.#take('}')) throw parseError('expected separator in dict');
    return object;
  }

  #list(depth: number): JsonValue[] {
    const list: JsonValue[] = [];
    this.#at++;
    this.#space();
    if (this.#take(']')) return list;
    do {
      list.push(this.#value(depth + 1));
      this.#space();
    } while (this.#take(','));
    if (!this.#take(']')) throw parseError('expected separator in list');
    return list;
  }

  #string(quoteMark: string): string {
    this.#at++;
    let value = '';
    for (;;) {
      const unit = this.#text[this.#at++];
      if (unit === undefined) throw parseError('unterminated string');
      if (unit === quoteMark) return value;
      if (unit < ' ') throw parseError('control character in string');
      value += unit === '\\' ? this.#escape() : unit;
    }
  }

  #escape(): string {
    const letter = this.#text[this.#at++];
    if (letter !== 'u') {
      const plain = letter === undefined ? undefined : ESCAPES.get(letter);
      if (plain === undefined) throw parseError('invalid escape sequence in string');
      return plain;
    }
    const high = this.#hex4();
    if (high < 0xd800 || high > 0xdfff) return String.fromCharCode(high);
    // RFC 8259 §7: beyond the basic plane two escapes make one character; half of one is none.
    if (high <= 0xdbff && this.#text.startsWith('\\u', this.#at)) {
      this.#at += 2;
      const low = this.#hex4();
      if (low >= 0xdc00 && low <= 0xdfff) return String.fromCharCode(high, low);
    }
    throw parseError(`\\u${high.toString(16)} is not a valid Unicode character`);
  }

  #hex4(): number {
    const digits = this.#text.slice(this.#at, this.#at + 4);
    if (!/^[0-9a-fA-F]{4}$/.test(digits)) throw parseError('invalid hex escape in string');
    this.#at += 4;
    return Number.parseInt(digits, 16);
  }

  #number(): number | bigint {
    const pattern = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (match === null) throw parseError('invalid number');
    this.#at += match[0].length;
    const after = this.#text[this.#at];
    if (after !== undefined && /[0-9A-Za-z.+-]/.test(after)) throw parseError('invalid number');
    const value = Number(match[0]);
    if (!Number.isFinite(value)) throw parseError('number out of range');
    if (match[1] !== undefined || match[2] !== undefined) return value;
    if (Number.isSafeInteger(value)) return value === 0 ? 0 : value;
    if (match[0].length > 20) return value;
    const exact = BigInt(match[0]);
    // QEMU's JSON has 64-bit integers; beyond them a number is a double.
    return exact < INT64_MIN || exact > UINT64_MAX ? value : exact;
  }

  #keyword(): JsonValue {
    const pattern = /[a-z]+/y;
    pattern.lastIndex = this.#at;
    const word = pattern.exec(this.#text)?.[0];
    if (word === undefined) {
      const found = this.#text[this.#at]!;
      throw parseError(',:]}'.includes(found) ? 'expecting value' : `stray ${quote(found)}`);
    }
    const value = KEYWORDS.get(word);
    if (value === undefined) throw parseError(`invalid keyword ${quote(word.slice(0, 32))}`);
    this.#at += word.length;
    return value;
  }

  #space(): void {
    while (' \t\r\n'.includes(this.#text[this.#at] ?? '#')) this.#at++;
  }

  #take(expected: string): boolean {
    if (this.#text[this.#at] !== expected) return false;
    this.#at++;
    return true;
  }
}

function quote(text: string): string {
  return `'${text}'`;
}

/**
 * Formats as QMP sends (qmp-spec §2.1): ASCII only, no line ends inside. Undefined fields are left out.
 * @throws TypeError for what is not JSON: our own bug
 */
export function formatJson(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return formatText(value);
    case 'number':
      if (!Number.isFinite(value)) throw new TypeError(`Cannot format ${value} as JSON`);
      return String(value);
    case 'bigint':
    case 'boolean':
      return String(value);
    case 'object':
      break;
    default:
      throw new TypeError(`Cannot format a ${typeof value} as JSON`);
  }
  if (value === null) return 'null';
  if (Array.isArray(value)) return `[${value.map(formatJson).join(', ')}]`;
  const fields = Object.entries(value as object)
    .filter(([, field]) => field !== undefined)
    .map(([key, field]) => `${formatText(key)}: ${formatJson(field)}`);
  return `{${fields.join(', ')}}`;
}

function formatText(text: string): string {
  return JSON.stringify(text).replace(
    /[\u007f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`,
  );
}
