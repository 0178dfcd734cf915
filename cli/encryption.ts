import type { ImageFormat, ImageSource } from '../services/nbd/mod.ts';
import { readSecret } from '../services/shared/secret.ts';
import type { DiskFile } from '../services/supervisor/mod.ts';
import type { Secrets } from './secrets.ts';
import { UsageError } from './usage_error.ts';

/** An image as its words name it: its passphrase still by the id of an -object. */
export interface ImageWords extends DiskFile {
  readonly backing?: ImageWords;
  readonly keySecret?: string;
}

/**
 * `encrypt.format=luks,encrypt.key-secret=ID` of a qcow2 image, `key-secret=ID` of a luks one, as QEMU has them. `tree`:
 * the image's words, with `encrypt` nested. @throws UsageError
 */
export function keySecretOf(
  option: string,
  format: ImageFormat,
  tree: { readonly encrypt?: unknown; readonly keySecret?: unknown },
): { keySecret?: string } {
  const { encrypt, keySecret } = tree;
  const refuse = (key: string, why: string) => new UsageError(`Cannot use ${option} with ${key}=: ${why}`);
  if (keySecret !== undefined && format !== 'luks') {
    throw refuse('key-secret', format === 'qcow2' ? 'for qcow2 it is encrypt.key-secret=' : `${format} has no secrets`);
  }
  if (encrypt === undefined) return typeof keySecret === 'string' ? { keySecret } : {};
  if (format !== 'qcow2' || typeof encrypt !== 'object' || encrypt === null) {
    throw refuse('encrypt', `images of format ${format} have no such option`);
  }
  const { format: kind = 'luks', 'key-secret': id, ...rest } = encrypt as Record<string, unknown>;
  if (kind !== 'luks') throw refuse('encrypt.format', `found ${String(kind)}, expected luks`);
  for (const key of Object.keys(rest)) throw refuse(`encrypt.${key}`, 'unknown for an image that is there');
  if (typeof id !== 'string' || id === '') throw refuse('encrypt.key-secret', 'it is missing');
  return { keySecret: id };
}

/** The same image, with where its secrets are. @throws UsageError where no object has an id */
export function withSecrets({ keySecret, backing, ...image }: ImageWords, secrets: Secrets): DiskFile {
  return {
    ...image,
    ...(keySecret === undefined ? {} : { secret: secrets.source(keySecret) }),
    ...(backing === undefined ? {} : { backing: withSecrets(backing, secrets) }),
  };
}

/** The same image, for whoever does not look behind its encryption. */
export function withoutSecrets({ keySecret: _, backing, ...image }: ImageWords): DiskFile {
  return { ...image, ...(backing === undefined ? {} : { backing: withoutSecrets(backing) }) };
}

/** As this process itself opens it: passphrases are read. @throws SecretError */
export function toImageSource({ file, format, backing, dataFile, secret }: DiskFile): ImageSource {
  return {
    path: file,
    format,
    ...(dataFile === undefined ? {} : { dataFile: { path: dataFile } }),
    ...(secret === undefined ? {} : { passphrase: readSecret(secret) }),
    ...(backing === undefined ? {} : { backing: toImageSource(backing) }),
  };
}
