import { didYouMean } from './suggest.ts';
import { UsageError } from './usage_error.ts';

/**
 * QEMU's `key=value,key=value`: a comma in a value is written twice. A first part without `=` is the value of
 * `implied` where there is one; any other such part is a flag, `on`, or `off` with `no` before it.
 */
export class KeyValues {
  readonly #option: string;
  readonly #values = new Map<string, string>();
  readonly #seen = new Set<string>();

  /** `option`: its name, for errors. @throws UsageError */
  constructor(option: string, text: string, implied?: string) {
    this.#option = option;
    for (const [index, part] of splitCommas(text).entries()) {
      const equals = part.indexOf('=');
      if (equals > 0) this.#set(part.slice(0, equals), part.slice(equals + 1));
      else if (equals === 0 || part === '') throw new UsageError(`Cannot read ${option} ${text}: expected key=value`);
      else if (index === 0 && implied !== undefined) this.#set(implied, part);
      else this.#set(part, 'on');
    }
  }

  take(key: string): string | undefined {
    this.#seen.add(key);
    return this.#values.get(key);
  }

  takeAll(): ReadonlyMap<string, string> {
    for (const key of this.#values.keys()) this.#seen.add(key);
    return this.#values;
  }

  /** The keys that begin with `prefix.`, without it: `backing.file.filename` … */
  takeUnder(prefix: string): ReadonlyMap<string, string> {
    const found = new Map<string, string>();
    for (const [key, value] of this.#values) {
      if (!key.startsWith(`${prefix}.`)) continue;
      this.#seen.add(key);
      found.set(key.slice(prefix.length + 1), value);
    }
    return found;
  }

  /** @throws UsageError */
  require(key: string): string {
    const value = this.take(key);
    if (value === undefined || value === '') throw new UsageError(`Cannot use ${this.#option}: ${key}= is missing`);
    return value;
  }

  /** `on`, `off`, and their other spellings, which are QEMU's */
  flag(key: string, otherwise: boolean): boolean {
    const value = this.take(key);
    if (value === undefined) return otherwise;
    if (['on', 'yes', 'true', 'y'].includes(value)) return true;
    if (['off', 'no', 'false', 'n'].includes(value)) return false;
    throw new UsageError(`Cannot use ${this.#option} with ${key}=${value}: expected on or off`);
  }

  oneOf<T extends string>(key: string, allowed: readonly T[], otherwise: T): T {
    const value = this.take(key) ?? otherwise;
    const found = allowed.find((candidate) => candidate === value);
    if (found !== undefined) return found;
    throw new UsageError(`Cannot use ${this.#option} with ${key}=${value}: expected ${allowed.join(' or ')}`);
  }

  /** Keys that nobody took are unknown. @throws UsageError */
  end(): void {
    for (const key of this.#values.keys()) {
      if (!this.#seen.has(key)) {
        throw new UsageError(`Cannot use ${this.#option} with ${key}=: unknown${didYouMean(key, this.#seen)}`);
      }
    }
  }

  #set(key: string, value: string): void {
    if (this.#values.has(key)) throw new UsageError(`Cannot use ${this.#option}: ${key}= comes twice`);
    this.#values.set(key, value);
  }
}

function splitCommas(text: string): string[] {
  const parts: string[] = [];
  let part = '';
  for (let at = 0; at < text.length; at++) {
    if (text[at] !== ',') part += text[at];
    else if (text[at + 1] === ',') {
      part += ',';
      at++;
    } else {
      parts.push(part);
      part = '';
    }
  }
  return [...parts, part];
}
