import type { BlockSizes, Extent } from '../../protocols/nbd/mod.ts';

/** Options of a status query. */
export interface NbdStatusOptions {
  /** Names of the contexts that matter (default: all that were selected) */
  readonly contexts?: readonly string[];
  /** Only the first extent of each */
  readonly oneExtent?: boolean;
}

export interface NbdZeroOptions {
  readonly mayUnmap?: boolean;
  readonly fua?: boolean;
  /** Fail with ENOTSUP rather than write the zeroes out */
  readonly fast?: boolean;
}

/**
 * An export, as its user sees it: one session ({@link NbdClient}), or several with reconnection
 * ({@link NbdReconnectingClient}). Every method fails with NbdError.
 */
export interface NbdDisk {
  /** In `bytes` */
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly blockSizes: BlockSizes;
  readonly canTrim: boolean;
  readonly canWriteZeroes: boolean;
  readonly canFastZero: boolean;
  readonly canCache: boolean;
  /** Names of the meta contexts that were selected */
  readonly contexts: readonly string[];
  /** Fills `into` from `offset` */
  read(offset: number, into: Uint8Array): Promise<void>;
  /** `data` must not change until the promise settles */
  write(offset: number, data: Uint8Array, options?: { readonly fua?: boolean }): Promise<void>;
  /** Everything written and answered before is on stable storage */
  flush(): Promise<void>;
  /** A hint that the range is not needed any more; ENOTSUP where not advertised */
  trim(offset: number, lengthBytes: number): Promise<void>;
  /** ENOTSUP where not advertised, or where `fast` was asked for and is not possible */
  writeZeroes(offset: number, lengthBytes: number, options?: NbdZeroOptions): Promise<void>;
  /** Asks the server to have the range ready; ENOTSUP where not advertised */
  cache(offset: number, lengthBytes: number): Promise<void>;
  /** Extents of each context from `offset` on; may describe less than was asked, never nothing */
  status(
    offset: number,
    lengthBytes: number,
    options?: NbdStatusOptions,
  ): Promise<ReadonlyMap<string, readonly Extent[]>>;
  /** Waits for what is under way and says goodbye */
  close(): Promise<void>;
}

/**
 * Splits a range by what the server takes at once, runs the pieces side by side, and waits for all of them, so that
 * no piece touches the caller's memory after the first has failed.
 */
export async function runPieces(
  offset: number,
  lengthBytes: number,
  maxBytes: number,
  run: (at: number, length: number) => Promise<unknown>,
): Promise<void> {
  if (lengthBytes === 0) return;
  if (lengthBytes <= maxBytes) {
    await run(offset, lengthBytes);
    return;
  }
  const runs: Promise<unknown>[] = [];
  for (let done = 0; done < lengthBytes; done += maxBytes) {
    runs.push(run(offset + done, Math.min(maxBytes, lengthBytes - done)));
  }
  const results = await Promise.allSettled(runs);
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
}
