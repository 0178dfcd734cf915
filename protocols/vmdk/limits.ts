/** What a VMDK file may claim at most. */
export const VMDK_LIMITS = {
  /** Of the disk and of each extent, in `bytes`: 128 TiB */
  sizeBytes: 2 ** 47,
  /** Of the descriptor's text, in `bytes`; QEMU's limit. Real ones are shorter than 10 KiB */
  descriptorBytes: (1 << 20) - 1,
  /** A disk of 128 TiB in extents of 2 GiB has more; nobody keeps so many files */
  extents: 4096,
  /** Of a name in the descriptor, in `characters` */
  nameLength: 255,
  /** A power of two, in `bytes` */
  minGrainBytes: 512,
  maxGrainBytes: 2 << 20,
  /** Of one grain table, in `entries`; "the number of entries in a grain table is 512" */
  tableEntries: 512,
  /** Of the grain directory, in `bytes` */
  directoryBytes: 32 << 20,
  /** Of those of all extents, with their copies: the largest disk in grains of 64 KiB needs half of it. In `bytes` */
  directoriesBytes: 64 << 20,
} as const;
