/** One message of a client, in `bytes` */
export const MAX_MESSAGE_BYTES = 1 << 20;
/** Lists and objects inside each other (QEMU allows 1024) */
export const MAX_DEPTH = 64;
/** Values in one message */
export const MAX_VALUES = 65_536;
/** An `id` is echoed in the answer, so its text is capped, in `bytes` */
export const MAX_ID_BYTES = 4096;
/** Text arguments: paths, names, URIs, in `bytes` */
export const MAX_TEXT_BYTES = 4096;
