/** Pages as the guest's page tables know them, in `bytes` */
export const PAGE_BYTES = 4096;

/** One control message, in `bytes`, without its length field */
export const MAX_CONTROL_BYTES = 64 * 1024;
/** A record with bytes behind its header: 256 pages */
export const MAX_RUN_PAGES = 256;
/** A record of zero pages has no payload, but the receiver works for each page: 64 MiB */
export const MAX_ZERO_PAGES = 16_384;
/** First page of a run, exclusive */
export const MAX_PAGE_INDEX = 2 ** 40;

/** Names of RAM blocks, devices, features: printable ASCII */
export const MAX_NAME_LENGTH = 255;
export const MAX_REASON_LENGTH = 1024;
export const MAX_REASONS = 16;
export const MAX_FEATURES = 32;
export const MAX_RAM_BLOCKS = 32;
export const MAX_DEVICES = 256;
export const SESSION_ID_BYTES = 16;
export const DIGEST_BYTES = 32;
/** The machine's configuration in the manifest, in `bytes` of MessagePack */
export const MAX_CONFIG_BYTES = 16 * 1024;
/** The whole state of all devices, in `bytes` of MessagePack */
export const MAX_DEVICE_STATE_BYTES = 64 << 20;
/** A part of it in one control message, in `bytes` */
export const DEVICE_STATE_CHUNK_BYTES = 48 * 1024;
/** Passes over RAM in one session */
export const MAX_PASSES = 10_000;
/** Pages that one session may make the receiver store, as a multiple of its RAM */
export const MAX_PAGE_WORK_FACTOR = 1_000;
/** Messages that wait for our reading: the protocol never needs more */
export const MAX_WAITING_MESSAGES = 8;

export const HANDSHAKE_TIMEOUT_MS = 10_000;
/** For one whole frame: a peer that sends a byte now and then does not stretch it */
export const IDLE_TIMEOUT_MS = 30_000;
