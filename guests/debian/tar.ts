import { closeSync, fstatSync, openSync, readSync } from 'node:fs';

/** What a Debian package's data archive may hold at most */
export const MAX_TAR_ENTRIES = 100_000;
const BLOCK = 512;
const MAX_LONG_NAME = 4096;

/** A tar file on disk, indexed once; members are read when asked for. */
export class TarFile implements Disposable {
  readonly #fd: number;
  /** Path without a leading `./` → where its bytes are; regular files only */
  readonly #members = new Map<string, { offset: number; length: number }>();

  /** @throws Error where the file is not a tar archive, or is cut short */
  constructor(path: string) {
    this.#fd = openSync(path, 'r');
    try {
      this.#index();
    } catch (error) {
      closeSync(this.#fd);
      throw error;
    }
  }

  get paths(): IterableIterator<string> {
    return this.#members.keys();
  }

  read(path: string): Uint8Array {
    const member = this.#members.get(path);
    if (member === undefined) throw new Error(`Cannot read ${path}: the package does not hold it`);
    return this.#bytes(member.offset, member.length);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  #index(): void {
    const size = fstatSync(this.#fd).size;
    let longName: string | undefined;
    for (let offset = 0, count = 0; offset + BLOCK <= size; count++) {
      if (count > MAX_TAR_ENTRIES) throw new Error(`Cannot read the package: more than ${MAX_TAR_ENTRIES} entries`);
      const header = this.#bytes(offset, BLOCK);
      if (header.every((byte) => byte === 0)) return; // two zero blocks end the archive
      const text = Buffer.from(header.buffer, header.byteOffset, BLOCK);
      if (text.toString('latin1', 257, 262) !== 'ustar')
        throw new Error(`Cannot read the package: no tar header at ${offset}`);
      const length = Number.parseInt(cString(text, 124, 12).trim() || '0', 8);
      if (!Number.isSafeInteger(length) || length < 0 || length > size - offset - BLOCK)
        throw new Error(`Cannot read the package: an entry of ${length} bytes at ${offset} does not fit`);
      const type = text.toString('latin1', 156, 157);
      const data = offset + BLOCK;
      if (type === 'L') {
        // GNU: the next entry's name, when it is longer than 100 bytes
        if (length > MAX_LONG_NAME) throw new Error(`Cannot read the package: a name of ${length} bytes`);
        longName = cString(Buffer.from(this.#bytes(data, length)), 0, length);
      } else {
        const prefix = text.toString('latin1', 257, 265) === 'ustar\u000000' ? cString(text, 345, 155) : '';
        const short = cString(text, 0, 100);
        const name = longName ?? (prefix === '' ? short : `${prefix}/${short}`);
        longName = undefined;
        if (type === '0' || type === '\0') this.#members.set(name.replace(/^\.?\//, ''), { offset: data, length });
      }
      offset = data + Math.ceil(length / BLOCK) * BLOCK;
    }
    throw new Error('Cannot read the package: the archive is cut short');
  }

  #bytes(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const count = readSync(this.#fd, bytes, done, length - done, offset + done);
      if (count === 0) throw new Error('Cannot read the package: the archive is cut short');
      done += count;
    }
    return bytes;
  }
}

function cString(bytes: Buffer, offset: number, length: number): string {
  const field = bytes.subarray(offset, offset + length);
  const end = field.indexOf(0);
  return field.toString('utf8', 0, end < 0 ? length : end);
}
