/** What a VHDX file may claim at most. */
export const VHDX_LIMITS = {
  /** 64 TiB, the format's own limit, in `bytes` */
  sizeBytes: 2 ** 46,
  minBlockBytes: 1 << 20,
  maxBlockBytes: 256 << 20,
  /** Of both tables: "The maximum value is 2,047" */
  entries: 2047,
  /** Of the log, in `bytes`; Hyper-V and QEMU make 1 MiB */
  logBytes: 32 << 20,
  /** What checksums of log entries may cover in all, in `bytes`: entries may claim to overlap */
  logChecksumBytes: 64 << 20,
  /** Zeroed by the log's entries in all, in `bytes` */
  logZeroBytes: 256 << 20,
} as const;
