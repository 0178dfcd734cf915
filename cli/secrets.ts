import { resolve } from 'node:path';
import { readSecret, type SecretSource } from '../services/shared/secret.ts';
import { KeyValues } from './key_value.ts';
import { UsageError } from './usage_error.ts';

const KEYS = ['qom-type', 'id', 'file', 'data', 'format', 'keyid', 'iv'];

/** One `-object secret,…` */
export interface SecretObject {
  readonly id: string;
  readonly source: SecretSource;
}

export function isSecret(object: string): boolean {
  return /^(?:qom-type=)?secret(?:,|$)/.test(object);
}

/** `secret,id=ID,file=FILE|data=TEXT[,format=raw|base64]`. @throws UsageError, which says nothing of the data */
export function parseSecret(option: string, text: string): SecretObject {
  // What does not fit may be a part of the secret, after a comma in it: no error repeats it.
  const unfit = `Cannot use ${option} secret: expected id=ID and file=FILE or data=TEXT; a comma in a value is written twice`;
  let keys: KeyValues;
  try {
    keys = new KeyValues(option, text, 'qom-type');
  } catch {
    throw new UsageError(unfit);
  }
  if ([...keys.takeAll().keys()].some((key) => !KEYS.includes(key))) throw new UsageError(unfit);
  const id = keys.require('id');
  const file = keys.take('file');
  const data = keys.take('data');
  const format = keys.oneOf('format', ['raw', 'base64'], 'raw');
  for (const key of ['keyid', 'iv']) {
    if (keys.take(key) !== undefined) {
      throw new UsageError(`Cannot use ${option} secret ${id} with ${key}=: secrets under secrets are not known here`);
    }
  }
  if ((file === undefined) === (data === undefined)) {
    throw new UsageError(`Cannot use ${option} secret ${id}: expected one of file= and data=`);
  }
  return { id, source: file === undefined ? { data: data!, format } : { file: resolve(file), format } };
}

/** The secrets of one command line, by their ids. */
export class Secrets {
  readonly #option: string;
  readonly #sources = new Map<string, SecretSource>();
  readonly #read: boolean;

  /**
   * `option`: `-object` or `--object`, for errors. `read`: files are read here, once, so that they may be pipes.
   * @throws UsageError where an id comes twice
   */
  constructor(option: string, objects: readonly SecretObject[], { read = false } = {}) {
    this.#option = option;
    this.#read = read;
    for (const { id, source } of objects) {
      if (this.#sources.has(id)) throw new UsageError(`Cannot use ${option}: id ${id} comes twice`);
      this.#sources.set(id, source);
    }
  }

  /** @throws UsageError where there is none, SecretError */
  source(id: string): SecretSource {
    const source = this.#sources.get(id);
    if (source === undefined)
      throw new UsageError(`Cannot use key-secret=${id}: no ${this.#option} secret has this id`);
    if (!this.#read || !('file' in source)) return source;
    const data = { data: readSecret(source) };
    this.#sources.set(id, data);
    return data;
  }

  /** @throws UsageError, SecretError */
  passphrase(id: string): string {
    return readSecret(this.source(id));
  }
}
