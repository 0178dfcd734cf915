import { closeSync, constants, existsSync, openSync } from 'node:fs';
import type { ImageSource } from '../images/mod.ts';

/** Where a process finds its own descriptors as names, on Linux */
export const FD_FOLDER = '/proc/self/fd';

/**
 * An image and all that is under it, each opened once by its path and kept: every process that serves it opens these
 * descriptors anew, so that all have the same files whatever happens to the paths, and each has a file description of
 * its own. That matters for writes that fail late: the kernel tells each description once.
 */
export class SharedSource {
  readonly #source: ImageSource;
  /** Data file and image of each layer, the nearest first */
  readonly fds: readonly number[];
  #closed = false;

  private constructor(source: ImageSource, fds: readonly number[]) {
    this.#source = source;
    this.fds = fds;
  }

  /** Whether this system lets one process open what another one has open */
  static get isPossible(): boolean {
    return existsSync(FD_FOLDER);
  }

  /** @throws Error of open(2) */
  static open(source: ImageSource, { readOnly }: { readonly readOnly: boolean }): SharedSource {
    const fds: number[] = [];
    try {
      for (const [index, path] of pathsOf(source).entries()) {
        // O_NONBLOCK: a FIFO must be refused by whoever opens the image, not waited for.
        const access = readOnly || index > 0 ? constants.O_RDONLY : constants.O_RDWR;
        fds.push(openSync(path, access | constants.O_NONBLOCK));
      }
    } catch (error) {
      for (const fd of fds) closeSync(fd);
      throw error;
    }
    return new SharedSource(source, fds);
  }

  /** The source as this process opens it. */
  get here(): ImageSource {
    return renamed(this.#source, [...this.fds]);
  }

  /** The source as a process opens it that has inherited {@link fds} as `first` and what follows. */
  inheritedFrom(first: number): ImageSource {
    return renamed(
      this.#source,
      this.fds.map((_fd, index) => first + index),
    );
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const fd of this.fds) closeSync(fd);
  }
}

function pathsOf({ path, dataFile, backing }: ImageSource): string[] {
  const own = [path, dataFile?.path].filter((name) => name !== undefined);
  return [...own, ...(backing === undefined ? [] : pathsOf(backing))];
}

/** Takes as many of `fds` as {@link pathsOf} has names, in its order. */
function renamed(source: ImageSource, fds: number[]): ImageSource {
  const { dataFile, backing } = source;
  const next = (): string => `${FD_FOLDER}/${fds.shift()}`;
  return {
    ...source,
    path: next(),
    ...(dataFile === undefined ? {} : { dataFile: { path: next() } }),
    ...(backing === undefined ? {} : { backing: renamed(backing, fds) }),
  };
}
