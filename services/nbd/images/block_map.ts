import type { ImageFile } from './qcow2/mod.ts';

/** Where a run of a disk's bytes is. */
export type Place =
  | {
      readonly kind: 'data';
      readonly lengthBytes: number;
      readonly file: ImageFile;
      readonly host: number;
      /** To be written only after allocate(), which then changes something beside the block */
      readonly unready?: boolean;
    }
  /** Has its space in the image, and reads as zeroes */
  | { readonly kind: 'zero'; readonly lengthBytes: number }
  /** The image has nothing: what is under it shows, or zeroes */
  | { readonly kind: 'hole'; readonly lengthBytes: number }
  /** `skip`: of the bytes that unpack() gives. `key`: the same for all runs that unpack to the same bytes */
  | {
      readonly kind: 'packed';
      readonly lengthBytes: number;
      readonly key: number;
      readonly skip: number;
      unpack(): Promise<Uint8Array>;
    };

/**
 * What one image format knows: which run of the disk is where. Offsets and lengths were checked against the size. All
 * that a file says is checked before it is followed; what is wrong is an ImageError with EIO.
 */
export interface BlockMap {
  /** Of the disk, in `bytes` */
  readonly sizeBytes: number;
  /** The run that begins at `offset`, one byte to `lengthBytes`; undefined where a table has to be read first */
  lookupNow(offset: number, lengthBytes: number): Place | undefined;
  lookup(offset: number, lengthBytes: number): Promise<Place>;
  /** Absent where the format, or this image, is only read */
  readonly changes?: BlockMapChanges;
  /** Other files than the one that the image was opened from */
  close?(): Promise<void>;
}

export interface BlockMapChanges {
  /** Makes the block around `offset` a `data` place that may be written; a new one reads as zeroes. One call at a time */
  allocate(offset: number): Promise<void>;
  /** All blocks, and then the tables that name them, are on stable storage */
  flush(): Promise<void>;
}
