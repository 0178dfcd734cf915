import { StateError } from './state.ts';

/** Reads fields of an untrusted state value; each getter names the path when it refuses. */
export class StateReader {
  readonly #path: string;
  readonly #fields: Map<string, unknown>;

  constructor(path: string, value: unknown) {
    this.#path = path;
    if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof Uint8Array) {
      throw new StateError(path, 'expected a map');
    }
    this.#fields = new Map(Object.entries(value));
  }

  #fail(field: string, text: string): never {
    throw new StateError(`${this.#path}.${field}`, text);
  }

  #get(field: string): unknown {
    if (!this.#fields.has(field)) this.#fail(field, 'missing');
    return this.#fields.get(field);
  }

  has(field: string): boolean {
    return this.#fields.has(field);
  }

  /** An integer in `min..max` */
  integer(field: string, min: number, max: number): number {
    const raw = this.#get(field);
    const value = typeof raw === 'bigint' ? Number(raw) : raw;
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min || value > max) {
      return this.#fail(field, `expected an integer in ${min}..${max}`);
    }
    return value;
  }

  u32(field: string): number {
    return this.integer(field, 0, 0xffff_ffff);
  }

  /** An unsigned 64-bit integer */
  u64(field: string): bigint {
    const raw = this.#get(field);
    const value = typeof raw === 'number' && Number.isSafeInteger(raw) ? BigInt(raw) : raw;
    if (typeof value !== 'bigint' || value < 0n || value > 0xffff_ffff_ffff_ffffn) {
      return this.#fail(field, 'expected an unsigned 64-bit integer');
    }
    return value;
  }

  boolean(field: string): boolean {
    const value = this.#get(field);
    if (typeof value !== 'boolean') return this.#fail(field, 'expected true or false');
    return value;
  }

  string(field: string, maxLength: number): string {
    const value = this.#get(field);
    if (typeof value !== 'string' || value.length > maxLength) {
      return this.#fail(field, `expected text of at most ${maxLength} characters`);
    }
    return value;
  }

  bytes(field: string, minBytes: number, maxBytes: number): Uint8Array {
    const value = this.#get(field);
    if (!(value instanceof Uint8Array) || value.length < minBytes || value.length > maxBytes) {
      return this.#fail(field, `expected ${minBytes}..${maxBytes} bytes`);
    }
    return value;
  }

  /** A list of at most `maxItems`; each item through `read`, with its own path. */
  list<T>(field: string, maxItems: number, read: (item: unknown, path: string) => T): T[] {
    const value = this.#get(field);
    if (!Array.isArray(value) || value.length > maxItems) {
      return this.#fail(field, `expected a list of at most ${maxItems}`);
    }
    return value.map((item, index) => read(item, `${this.#path}.${field}.${index}`));
  }

  map(field: string): StateReader {
    return new StateReader(`${this.#path}.${field}`, this.#get(field));
  }
}
