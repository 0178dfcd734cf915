import { closeSync, openSync, readSync } from 'node:fs';
import { systemReason } from './system_error.ts';

/** A passphrase, by where it is: read when it is needed, and kept out of command lines and logs. */
export type SecretSource = (
  | {
      /** A path, also of a pipe: all of it counts, a line end, too */
      readonly file: string;
    }
  | { readonly data: string }
) & {
  /** Default raw */
  readonly format?: 'raw' | 'base64';
};

const MAX_SECRET_BYTES = 64 << 10;
const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/;

/** A secret that cannot be used; the text never has any of it. */
export class SecretError extends Error {
  override readonly name = 'SecretError';
  readonly code = 'ERR_SECRET';
}

/** @throws SecretError */
export function readSecret(source: SecretSource): string {
  const bytes = 'file' in source ? readBounded(source.file) : Buffer.from(source.data);
  if (source.format !== 'base64') return asText(bytes);
  const text = bytes.toString('latin1').replace(/[\r\n]/g, '');
  if (!BASE64.test(text)) throw new SecretError('Cannot use the secret: it is not base64');
  return asText(Buffer.from(text, 'base64'));
}

function readBounded(path: string): Buffer {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (cause) {
    throw new SecretError(`Cannot read the secret in ${path}: ${systemReason(cause)}`, { cause });
  }
  try {
    const bytes = Buffer.alloc(MAX_SECRET_BYTES + 1);
    let length = 0;
    for (;;) {
      const count = readSync(fd, bytes, length, bytes.length - length, null);
      length += count;
      if (length > MAX_SECRET_BYTES) {
        throw new SecretError(`Cannot read the secret in ${path}: more than ${MAX_SECRET_BYTES} bytes`);
      }
      if (count === 0) return bytes.subarray(0, length);
    }
  } catch (cause) {
    if (cause instanceof SecretError) throw cause;
    throw new SecretError(`Cannot read the secret in ${path}: ${systemReason(cause)}`, { cause });
  } finally {
    closeSync(fd);
  }
}

function asText(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new SecretError('Cannot use the secret as a passphrase: it is not UTF-8', { cause });
  }
}
