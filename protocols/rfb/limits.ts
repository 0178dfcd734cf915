// What a client may make us hold or do. Each is checked before anything is buffered or allocated.

/** SetEncodings entries; TigerVNC and noVNC send about 25 */
export const MAX_ENCODINGS = 1024;
/** ClientCutText, in `bytes` */
export const MAX_CUT_TEXT_BYTES = 1 << 20;
/** Fence payload, in `bytes` (§7.4.9 sets this bound itself) */
export const MAX_FENCE_BYTES = 64;
/** SetDesktopSize screens; the field is one byte, no viewer has more monitors than this */
export const MAX_SCREENS = 16;
/** Desktop name, in `bytes` of UTF-8 */
export const MAX_NAME_BYTES = 1024;
/** Side of a framebuffer, in `pixels` */
export const MAX_FRAMEBUFFER_SIDE = 16384;
/** Area of a framebuffer: 64 MiB of it at 32 bits */
export const MAX_FRAMEBUFFER_PIXELS = 1 << 24;
/** Side of a cursor, in `pixels` */
export const MAX_CURSOR_SIDE = 256;
/** The largest client message: ClientCutText with its header */
export const MAX_CLIENT_MESSAGE_BYTES = 8 + MAX_CUT_TEXT_BYTES;
/** Reason strings that we send or accept, in `bytes` */
export const MAX_REASON_BYTES = 1024;
