/** What a qcow2 file may claim at most; the same numbers as QEMU's, so that no image is good here and bad there. */
export const QCOW2_LIMITS = {
  minClusterBits: 9,
  maxClusterBits: 21,
  /** With 32 subclusters of at least one sector */
  minExtendedClusterBits: 14,
  maxRefcountOrder: 6,
  /** Of the active L1 table or one snapshot's, in `bytes` */
  l1Bytes: 32 << 20,
  /** In `bytes` */
  refcountTableBytes: 8 << 20,
  snapshots: 65_536,
  /** Of one entry of the snapshot table, in `bytes` */
  snapshotExtraBytes: 1024,
  /** Of the whole snapshot table, in `bytes`; QEMU's 1024 x 65 536 would be 64 MiB of names */
  snapshotTableBytes: 16 << 20,
  bitmaps: 65_535,
  /** Of the bitmap directory, in `bytes` */
  bitmapDirectoryBytes: 16 << 20,
  bitmapNameBytes: 1023,
  /** Bits of all bitmaps of an image that are held in memory, in `bytes` */
  bitmapBitsBytes: 256 << 20,
  backingNameBytes: 1023,
  /** Of the header of LUKS with its key material, in `bytes` */
  luksHeaderBytes: 4 << 20,
  extensions: 256,
} as const;
