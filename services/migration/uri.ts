import { isIP } from 'node:net';
import { MAX_SOCKET_PATH_BYTES } from '../shared/socket_path.ts';
import { MigrationError } from './migration_error.ts';

export type MigrationAddress =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string };

/**
 * Parses QEMU's `tcp:HOST:PORT` and `unix:PATH`. Plain TCP is for this host only unless it is allowed by name:
 * a guest's memory is everything that it knows.
 * @throws MigrationError
 */
export function parseMigrationUri(uri: unknown, options: { allowPlaintext: boolean }): MigrationAddress {
  if (typeof uri !== 'string' || uri.length > 512) throw refuse('not text of at most 512 characters');
  const colon = uri.indexOf(':');
  const scheme = uri.slice(0, Math.max(colon, 0));
  const rest = uri.slice(colon + 1);
  if (scheme === 'unix') {
    const length = Buffer.byteLength(rest);
    if (length < 1 || length > MAX_SOCKET_PATH_BYTES || rest.includes('\0')) {
      throw refuse(`unix: path of ${length} bytes, expected 1..${MAX_SOCKET_PATH_BYTES}`);
    }
    return { kind: 'unix', path: rest };
  }
  if (scheme !== 'tcp') throw refuse(`${JSON.stringify(scheme.slice(0, 16))}, expected tcp:HOST:PORT or unix:PATH`);
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]*)):(\d{1,5})$/.exec(rest);
  const port = Number(match?.[3] ?? -1);
  if (match === null || port > 65_535) throw refuse('tcp: expected tcp:HOST:PORT');
  const host = match[1] ?? match[2] ?? '';
  if (match[1] !== undefined && isIP(host) !== 6) throw refuse('tcp: not an IPv6 address in brackets');
  if (!options.allowPlaintext && !isLoopback(host)) {
    throw refuse(
      `tcp: ${host || 'any host'} is not this host, and the stream is not encrypted; allow-plaintext lets it (migrate --allow-plaintext)`,
    );
  }
  return { kind: 'tcp', host, port };
}

export function formatMigrationUri(address: MigrationAddress): string {
  if (address.kind === 'unix') return `unix:${address.path}`;
  return isIP(address.host) === 6 ? `tcp:[${address.host}]:${address.port}` : `tcp:${address.host}:${address.port}`;
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
}

function refuse(found: string): MigrationError {
  return new MigrationError('ERR_MIGRATION_URI', `Cannot use the migration URI: ${found}`);
}
