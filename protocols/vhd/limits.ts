/** What a VHD file may claim at most. */
export const VHD_LIMITS = {
  /** 2040 GiB, the largest disk that the format knows, in `bytes` */
  sizeBytes: 0xff00_0000 * 512,
  /** In `bytes`; a power of two. The default is 2 MiB */
  minBlockBytes: 4096,
  maxBlockBytes: 256 << 20,
  /** Of the part of the block allocation table that the disk needs, in `bytes`: 2040 GiB in blocks of 256 KiB */
  tableBytes: 32 << 20,
} as const;
