/** The longest disk request, and what stands before its data, in `bytes` */
export const MAX_BODY_BYTES = (32 << 20) + 64;
/** Bytes of a terminal in one record */
export const MAX_TEXT_BYTES = 65_536;
export const MAX_DISKS = 64;
/** 2^10 ns for each instruction, as QEMU */
export const MAX_SHIFT = 10;
