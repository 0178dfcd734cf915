/** One entry of an archive. `path` is relative, without a leading slash; parents come before their children. */
export type CpioEntry =
  | { readonly kind: 'file'; readonly path: string; readonly mode: number; readonly bytes: Uint8Array }
  | { readonly kind: 'directory'; readonly path: string; readonly mode: number }
  | { readonly kind: 'symlink'; readonly path: string; readonly target: string }
  | {
      readonly kind: 'character-device';
      readonly path: string;
      readonly mode: number;
      readonly major: number;
      readonly minor: number;
    };

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;
const S_IFCHR = 0o020000;
const encoder = new TextEncoder();

/**
 * Writes a cpio archive in the "newc" form that the kernel unpacks (Documentation/driver-api/early-userspace/
 * buffer-format.rst). All entries belong to root, and times are zero: the same entries give the same bytes.
 */
export function encodeCpio(entries: readonly CpioEntry[]): Uint8Array<ArrayBuffer> {
  const parts: Uint8Array[] = [];
  let length = 0;
  const put = (bytes: Uint8Array) => {
    parts.push(bytes);
    length += bytes.length;
    const pad = -length & 3; // names and data end on a multiple of 4
    if (pad > 0) {
      parts.push(new Uint8Array(pad));
      length += pad;
    }
  };
  let inode = 0;
  const putEntry = (path: string, mode: number, data: Uint8Array, major = 0, minor = 0) => {
    if (path.startsWith('/') || path.includes('\0'))
      throw new RangeError(`Cannot archive ${path}: not a relative path`);
    if (data.length > 0xffff_ffff)
      throw new RangeError(`Cannot archive ${path}: ${data.length} bytes, limit is 2^32-1`);
    const name = encoder.encode(`${path}\0`);
    inode += 1;
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    const fields = [inode, mode, 0, 0, 1, 0, data.length, 0, 0, major, minor, name.length, 0];
    const header = encoder.encode(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`);
    const head = new Uint8Array(header.length + name.length);
    head.set(header);
    head.set(name, header.length);
    put(head);
    put(data);
  };
  const none = new Uint8Array();
  const seen = new Set<string>();
  for (const entry of entries) {
    if (seen.has(entry.path)) throw new RangeError(`Cannot archive ${entry.path}: it is there twice`);
    seen.add(entry.path);
    if (entry.kind === 'file') putEntry(entry.path, S_IFREG | entry.mode, entry.bytes);
    else if (entry.kind === 'directory') putEntry(entry.path, S_IFDIR | entry.mode, none);
    else if (entry.kind === 'symlink') putEntry(entry.path, S_IFLNK | 0o777, encoder.encode(entry.target));
    else putEntry(entry.path, S_IFCHR | entry.mode, none, entry.major, entry.minor);
  }
  putEntry('TRAILER!!!', 0, none);
  const archive = new Uint8Array(length);
  let offset = 0;
  for (const part of parts) {
    archive.set(part, offset);
    offset += part.length;
  }
  return archive;
}
