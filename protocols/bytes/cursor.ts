import { WireError } from './wire_error.ts';

const textDecoder = new TextDecoder('utf-8', { fatal: true });

/**
 * Reads one message from front to back. It is the only thing that indexes bytes from outside:
 * each read checks what remains before it touches or slices (a bare `subarray` clamps).
 * Big-endian by default, as network protocols are; `…le` methods for the others.
 */
export class Cursor {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #message: string;
  #offset = 0;

  /** `message` is the structure's name in its specification, for errors. */
  constructor(bytes: Uint8Array, message: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#message = message;
  }

  /** From the start of the message, in `bytes` */
  get offset(): number {
    return this.#offset;
  }

  /** In `bytes` */
  get remaining(): number {
    return this.#bytes.length - this.#offset;
  }

  u8(field: string): number {
    return this.#view.getUint8(this.#take(1, field));
  }
  u16(field: string): number {
    return this.#view.getUint16(this.#take(2, field));
  }
  u32(field: string): number {
    return this.#view.getUint32(this.#take(4, field));
  }
  u64(field: string): bigint {
    return this.#view.getBigUint64(this.#take(8, field));
  }
  i16(field: string): number {
    return this.#view.getInt16(this.#take(2, field));
  }
  i32(field: string): number {
    return this.#view.getInt32(this.#take(4, field));
  }
  u16le(field: string): number {
    return this.#view.getUint16(this.#take(2, field), true);
  }
  u32le(field: string): number {
    return this.#view.getUint32(this.#take(4, field), true);
  }
  u64le(field: string): bigint {
    return this.#view.getBigUint64(this.#take(8, field), true);
  }

  /** The next `length` bytes, as a view of the input: copy what must outlive it. */
  bytes(length: number, field: string): Uint8Array {
    if (!Number.isSafeInteger(length) || length < 0) {
      throw this.#error('ERR_WIRE_LIMIT', `Cannot read ${field}: length ${length} is not a size`);
    }
    const start = this.#take(length, field);
    return this.#bytes.subarray(start, start + length);
  }

  /** All that is left, as a view of the input. */
  rest(): Uint8Array {
    return this.bytes(this.remaining, 'rest');
  }

  skip(length: number, field: string): void {
    this.bytes(length, field);
  }

  /** UTF-8 of `lengthBytes`, refused above `maxBytes` or when malformed. NUL is refused too. */
  utf8(lengthBytes: number, maxBytes: number, field: string): string {
    if (lengthBytes > maxBytes) {
      throw this.#error('ERR_WIRE_LIMIT', `Cannot read ${field}: ${lengthBytes} bytes, limit is ${maxBytes}`);
    }
    const raw = this.bytes(lengthBytes, field);
    let text: string;
    try {
      text = textDecoder.decode(raw);
    } catch (cause) {
      throw this.#error('ERR_WIRE_TEXT', `Cannot read ${field}: not UTF-8`, cause);
    }
    if (text.includes('\0')) throw this.#error('ERR_WIRE_TEXT', `Cannot read ${field}: contains NUL`);
    return text;
  }

  expectU8(expected: number, field: string): void {
    this.#expect(this.u8(field), expected, field);
  }
  expectU16(expected: number, field: string): void {
    this.#expect(this.u16(field), expected, field);
  }
  expectU32(expected: number, field: string): void {
    this.#expect(this.u32(field), expected, field);
  }
  expectU64(expected: bigint, field: string): void {
    this.#expect(this.u64(field), expected, field);
  }

  /** The message ends here; anything left is an error. */
  end(): void {
    if (this.remaining !== 0) {
      throw this.#error('ERR_WIRE_TRAILING', `Cannot accept ${this.#message}: ${this.remaining} bytes after its end`);
    }
  }

  /** An error that names this message and the current offset. */
  error(code: ConstructorParameters<typeof WireError>[0], text: string): WireError {
    return this.#error(code, text);
  }

  #take(length: number, field: string): number {
    const start = this.#offset;
    if (length > this.#bytes.length - start) {
      throw this.#error(
        'ERR_WIRE_TRUNCATED',
        `Cannot read ${this.#message} ${field}: needs ${length} bytes, ${this.#bytes.length - start} left`,
      );
    }
    this.#offset = start + length;
    return start;
  }

  #expect(found: number | bigint, expected: number | bigint, field: string): void {
    if (found !== expected) {
      throw this.#error(
        'ERR_WIRE_MAGIC',
        `Cannot accept ${this.#message} ${field}: found 0x${found.toString(16)}, expected 0x${expected.toString(16)}`,
      );
    }
  }

  #error(code: ConstructorParameters<typeof WireError>[0], text: string, cause?: unknown): WireError {
    return new WireError(code, text, { message: this.#message, offset: this.#offset, cause });
  }
}
