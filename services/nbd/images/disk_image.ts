import type { Extent } from '../../../protocols/nbd/mod.ts';
import type { DirtyBitmaps } from './dirty_bitmap.ts';

/** Why an image could not do it, under the names of NBD and errno. */
export type ImageErrorCode = 'EIO' | 'ENOSPC' | 'EPERM' | 'EINVAL' | 'ENOTSUP' | 'ENOMEM' | 'ESHUTDOWN';

/** The image could not do it: the peer gets the code, the log gets the rest, the session lives. */
export class ImageError extends Error {
  override readonly name = 'ImageError';
  readonly code: ImageErrorCode;
  /** Where on the disk it went wrong, in `bytes`, if it has a place */
  readonly offset: number | undefined;
  constructor(code: ImageErrorCode, text: string, options?: ErrorOptions & { readonly offset?: number }) {
    super(text, options);
    this.code = code;
    this.offset = options?.offset;
  }
}

/** Any failure of an image, by its errno where it has one. No host path reaches the text. */
export function asImageError(error: unknown): ImageError {
  if (error instanceof ImageError) return error;
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  switch (code) {
    case 'ENOSPC':
    case 'EDQUOT':
    case 'EFBIG':
      return new ImageError('ENOSPC', 'Cannot write: no space left', { cause: error });
    case 'EPERM':
    case 'EACCES':
    case 'EROFS':
    case 'EBADF':
      return new ImageError('EPERM', 'Cannot access the image: not permitted', { cause: error });
    default:
      return new ImageError('EIO', `Cannot access the image: ${code ?? 'I/O error'}`, { cause: error });
  }
}

export interface ZeroOptions {
  /** The range may lose its allocation */
  readonly mayUnmap: boolean;
  /** Fail with ENOTSUP, contents untouched, rather than write the zeroes out; only where `canFastZero` */
  readonly fast: boolean;
}

/** What one request may look at in the tables of all images of a chain together, so that no chain is too long for it. */
export interface StatusBudget {
  /** Entries of tables; where none is left, one more for each image, so that there is an answer */
  left: number;
}

/**
 * A disk's blocks, whatever keeps them. Offsets and lengths were checked against `sizeBytes` by whoever turns
 * a peer's bytes into requests. One object serves everyone who looks at the disk: the guest and outside readers
 * see the same bytes, and a flush covers the writes of all.
 */
export interface DiskImage {
  /** Exact size, in `bytes`; any number, not only whole sectors */
  readonly sizeBytes: number;
  /** Every writing method fails with EPERM */
  readonly readOnly: boolean;
  /** Least unit of access, in `bytes`, a power of two */
  readonly blockBytes: number;
  /** writeZeroes() with `fast` is worth trying */
  readonly canFastZero: boolean;
  /** Fills all of `into`, or fails: bytes that were not read never stay in it unnoticed */
  read(offset: number, into: Uint8Array): Promise<void>;
  write(offset: number, data: Uint8Array): Promise<void>;
  /** All writes that were answered before are on stable storage when it resolves */
  flush(): Promise<void>;
  /** May do less than asked, never more; what the range reads as afterwards is undefined */
  discard(offset: number, lengthBytes: number): Promise<void>;
  /** The range reads as zeroes afterwards */
  writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void>;
  /** Extents from `offset` on, flags of base:allocation; may cover less than `lengthBytes`, not nothing */
  blockStatus(offset: number, lengthBytes: number, maxExtents: number, budget?: StatusBudget): Promise<Extent[]>;
  /** What records its changes; absent: nothing can */
  readonly bitmaps?: DirtyBitmaps;
  /** Names of the dirty bitmaps that may be read; absent: it has none */
  dirtyBitmaps?(): readonly string[];
  /** Extents of a dirty bitmap from `offset` on, STATE_DIRTY or 0; may cover less than `lengthBytes`, not nothing */
  dirtyBitmap?(name: string, offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]>;
  /** Extents by where they are allocated: 0 nowhere, 1 in this image, 2 in the one under it, and so on */
  allocationDepth?(offset: number, lengthBytes: number, maxExtents: number, budget?: StatusBudget): Promise<Extent[]>;
  /** Changes `sizeBytes`; what is new reads as zeroes. No other access is under way meanwhile */
  resize?(sizeBytes: number): Promise<void>;
  /**
   * Reads in place where that should not block, or may since `alone`: nobody else waits for the event loop (default
   * false). False: use read()
   */
  readNow(offset: number, into: Uint8Array, alone?: boolean): boolean;
  /** Writes in place where that should not block. False: use write() */
  writeNow(offset: number, data: Uint8Array): boolean;
  /** sendNow() is worth trying (default false) */
  readonly canSend?: boolean;
  /**
   * Hands bytes to a socket without copying them, where that should not block, and gives how many went: 0 where the socket
   * takes nothing now, and where something is wrong, which read() will say. Undefined: use read()
   */
  sendNow?(socket: number, offset: number, lengthBytes: number): number | undefined;
  /** A range that is to be sent is not at hand: what is behind the image may fetch it meanwhile */
  willSend?(offset: number, lengthBytes: number): void;
  /** Becomes the one writer of what is behind the image; absent where nobody else can be */
  activate?(): Promise<void>;
  /** Flushes, and stops being the writer */
  inactivate?(): Promise<void>;
  /** Waits for nothing: call flush() before, and have no request in flight */
  close(): Promise<void>;
}
