import { createSecretKey, type KeyObject, X509Certificate } from 'node:crypto';
import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** Largest credential file that is read, in `bytes`: a CA bundle of a whole system is about 200 KiB */
const MAX_FILE_BYTES = 1 << 20;
/** OpenSSL's bound; longer ones could never be used */
const MAX_PSK_IDENTITY_BYTES = 128;
/** psktool writes 32 bytes; below 16 a key can be guessed offline from one recorded handshake */
const MIN_PSK_BYTES = 16;
const MAX_PSK_BYTES = 256;

/** A certificate and the authorities that the other side is judged by; all PEM. */
export interface X509Credentials {
  readonly kind: 'x509';
  readonly ca: Buffer;
  /** A client may have none: servers that ask for one turn it away */
  readonly own: { readonly certificate: Buffer; readonly key: Buffer } | undefined;
  /** Revoked certificates */
  readonly crl: Buffer | undefined;
}

/** Keys that both sides know, by user name. */
export interface PskCredentials {
  readonly kind: 'psk';
  readonly keys: ReadonlyMap<string, KeyObject>;
}

export type TlsCredentials = X509Credentials | PskCredentials;

/** Credentials are missing or wrong, or a handshake failed. */
export class TlsError extends Error {
  override readonly name = 'TlsError';
  readonly code: 'ERR_TLS_CREDENTIALS' | 'ERR_TLS_PEER' | 'ERR_TLS_TIMEOUT' | 'ERR_TLS_UNAUTHORIZED';
  constructor(code: TlsError['code'], text: string, options?: ErrorOptions) {
    super(text, options);
    this.code = code;
  }
}

/**
 * Reads a folder with QEMU's file names: ca-cert.pem, ca-crl.pem (may be missing), and server-cert.pem with
 * server-key.pem, or client-cert.pem with client-key.pem, which a client may do without.
 * @throws TlsError with code ERR_TLS_CREDENTIALS
 */
export function readX509Folder(directory: string, endpoint: 'server' | 'client'): X509Credentials {
  const ca = required(directory, 'ca-cert.pem');
  const crl = readBounded(join(directory, 'ca-crl.pem'));
  const certificate = readBounded(join(directory, `${endpoint}-cert.pem`));
  if (certificate === undefined) {
    if (endpoint === 'server') throw wrong(`Cannot use TLS credentials: server-cert.pem is missing in ${directory}`);
    return { kind: 'x509', ca, own: undefined, crl };
  }
  const key = required(directory, `${endpoint}-key.pem`);
  for (const [name, pem] of [
    ['ca-cert.pem', ca],
    [`${endpoint}-cert.pem`, certificate],
  ] as const) {
    try {
      new X509Certificate(pem);
    } catch (cause) {
      throw wrong(`Cannot use TLS credentials: ${join(directory, name)} is not a certificate in PEM`, { cause });
    }
  }
  return { kind: 'x509', ca, own: { certificate, key }, crl };
}

/**
 * Reads a file of `user:hexkey` lines, as psktool writes it; `#` starts a comment line.
 * @throws TlsError with code ERR_TLS_CREDENTIALS; the text never contains a key
 */
export function readPskFile(path: string): PskCredentials {
  const text = readBounded(path)?.toString('utf8');
  if (text === undefined) throw wrong(`Cannot use TLS credentials: ${path} is missing`);
  const keys = new Map<string, KeyObject>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const where = `${path} line ${index + 1}`;
    const colon = line.lastIndexOf(':');
    const user = line.slice(0, colon);
    const hex = line.slice(colon + 1).trim();
    if (colon < 1) throw wrong(`Cannot use TLS credentials: ${where}: expected user:hexkey`);
    if (Buffer.byteLength(user) > MAX_PSK_IDENTITY_BYTES) {
      throw wrong(`Cannot use TLS credentials: ${where}: user is longer than ${MAX_PSK_IDENTITY_BYTES} bytes`);
    }
    if (keys.has(user)) throw wrong(`Cannot use TLS credentials: ${where}: user is there twice`);
    if (!/^(?:[0-9a-f]{2})+$/i.test(hex) || hex.length < MIN_PSK_BYTES * 2 || hex.length > MAX_PSK_BYTES * 2) {
      throw wrong(
        `Cannot use TLS credentials: ${where}: key is not ${MIN_PSK_BYTES} to ${MAX_PSK_BYTES} bytes in hexadecimal`,
      );
    }
    keys.set(user, createSecretKey(Buffer.from(hex, 'hex')));
  }
  if (keys.size === 0) throw wrong(`Cannot use TLS credentials: ${path} has no key`);
  return { kind: 'psk', keys };
}

/** A file is taken for PSK keys, a folder for X.509, unless the folder has keys.psk. */
export function readTlsCredentials(path: string, endpoint: 'server' | 'client'): TlsCredentials {
  if (!isDirectory(path)) return readPskFile(path);
  const keys = join(path, 'keys.psk');
  return readBounded(keys) === undefined ? readX509Folder(path, endpoint) : readPskFile(keys);
}

function required(directory: string, name: string): Buffer {
  const contents = readBounded(join(directory, name));
  if (contents === undefined) throw wrong(`Cannot use TLS credentials: ${name} is missing in ${directory}`);
  return contents;
}

/** Undefined where there is no such file. */
function readBounded(path: string): Buffer | undefined {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw wrong(`Cannot use TLS credentials: ${path} cannot be opened`, { cause });
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile() || stat.size > MAX_FILE_BYTES) {
      throw wrong(`Cannot use TLS credentials: ${path} is no file of at most ${MAX_FILE_BYTES} bytes`);
    }
    return readFileSync(fd);
  } finally {
    closeSync(fd);
  }
}

function isDirectory(path: string): boolean {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (cause) {
    throw wrong(`Cannot use TLS credentials: ${path} cannot be opened`, { cause });
  }
  try {
    return fstatSync(fd).isDirectory();
  } finally {
    closeSync(fd);
  }
}

function wrong(text: string, options?: ErrorOptions): TlsError {
  return new TlsError('ERR_TLS_CREDENTIALS', text, options);
}
