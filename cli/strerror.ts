/** What the C library says of an error, as QEMU's programs print it */
const WORDS: Readonly<Record<string, string>> = {
  EACCES: 'Permission denied',
  EADDRINUSE: 'Address already in use',
  EADDRNOTAVAIL: 'Cannot assign requested address',
  EBUSY: 'Device or resource busy',
  ECONNREFUSED: 'Connection refused',
  ECONNRESET: 'Connection reset by peer',
  EDQUOT: 'Disk quota exceeded',
  EEXIST: 'File exists',
  EFBIG: 'File too large',
  EHOSTUNREACH: 'No route to host',
  EINVAL: 'Invalid argument',
  EIO: 'Input/output error',
  EISDIR: 'Is a directory',
  ELOOP: 'Too many levels of symbolic links',
  EMFILE: 'Too many open files',
  ENAMETOOLONG: 'File name too long',
  ENETUNREACH: 'Network is unreachable',
  ENFILE: 'Too many open files in system',
  ENODEV: 'No such device',
  ENOENT: 'No such file or directory',
  ENOMEM: 'Cannot allocate memory',
  ENOSPC: 'No space left on device',
  ENOTDIR: 'Not a directory',
  ENXIO: 'No such device or address',
  EPERM: 'Operation not permitted',
  EROFS: 'Read-only file system',
  ETIMEDOUT: 'Connection timed out',
  ETXTBSY: 'Text file busy',
  // Of getaddrinfo(3)
  EAI_AGAIN: 'Temporary failure in name resolution',
  ENOTFOUND: 'Name or service not known',
};

/** The words for `ENOENT` and its like; of others the code itself. */
export function strerror(code: string): string {
  return WORDS[code] ?? code;
}

/** For scripts that look for QEMU's words: what a failed connect() or look-up of a name is called there, if it was one. */
export function connectError(text: string, port?: number): string | undefined {
  const failed = /^connect (E[A-Z0-9]+)(?:: [^:]+?)? (\S+)( - Local .*)?$/s.exec(text);
  if (failed !== null) {
    const [, code, address] = failed as unknown as [string, string, string];
    if (code === 'EINVAL' && address.startsWith('/')) return pathTooLong(address);
    return `Failed to connect to '${address}': ${strerror(code)}`;
  }
  const unknown = /^getaddrinfo (E[A-Z_]+) (\S+)$/.exec(text);
  if (unknown === null) return undefined;
  const [, code, host] = unknown as unknown as [string, string, string];
  return `address resolution failed for ${host}${port === undefined ? '' : `:${port}`}: ${strerror(code)}`;
}

/** Of a UNIX socket */
export function pathTooLong(path: string): string {
  return `UNIX socket path '${path}' is too long\nPath must be less than 108 bytes`;
}
