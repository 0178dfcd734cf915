import { closeSync, fstatSync, readSync } from 'node:fs';
import { BootError } from '../../emulator/machine/boot_error.ts';
import { type ByteSource, readAll } from '../../protocols/bytes/mod.ts';

/**
 * A boot file by its descriptor. What is read goes where it is wanted, which may be guest RAM: no copy of a kernel of
 * 40 MB stands beside it. Always by offset, since others may hold the same open file.
 */
export class BootDescriptor {
  readonly #fd: number;
  readonly #what: string;

  /** `what` names it in messages. */
  constructor(fd: number, what: string) {
    this.#fd = fd;
    this.#what = what;
  }

  /** As long as it is now. @throws BootError */
  open(): ByteSource {
    const length = this.#attempt(() => fstatSync(this.#fd).size);
    return { length, read: (offset, into) => this.#read(offset, into) };
  }

  #read(offset: number, into: Uint8Array): void {
    let done = 0;
    while (done < into.length) {
      const read = this.#attempt(() => readSync(this.#fd, into, done, into.length - done, offset + done));
      if (read === 0) throw this.#error(`it ends at ${offset + done}, ${into.length - done} bytes before it should`);
      done += read;
    }
  }

  #attempt<T>(call: () => T): T {
    try {
      return call();
    } catch (cause) {
      throw this.#error((cause as NodeJS.ErrnoException).code ?? String(cause), cause);
    }
  }

  #error(found: string, cause?: unknown): BootError {
    return new BootError('ERR_BOOT_READ', `Cannot read ${this.#what}: ${found}`, { cause });
  }
}

/** A copy of a file that is parsed, not run. Closes the descriptor. @throws BootError */
export function readDescriptor(fd: number, what: string): Uint8Array {
  try {
    return readAll(new BootDescriptor(fd, what).open());
  } finally {
    closeSync(fd);
  }
}
