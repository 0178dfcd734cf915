// Numbers of the NBD protocol, under the names of its specification (doc/proto.md) without the NBD_ prefix.

/** "NBDMAGIC", first eight bytes of every greeting */
export const INIT_MAGIC = 0x4e42_444d_4147_4943n;
/** "IHAVEOPT": newstyle greeting, and the start of every option */
export const OPTION_MAGIC = 0x4948_4156_454f_5054n;
/** Second magic of an oldstyle greeting, which we refuse by name */
export const OLDSTYLE_MAGIC = 0x0000_4202_8186_1253n;
export const OPTION_REPLY_MAGIC = 0x0003_e889_0455_65a9n;
export const REQUEST_MAGIC = 0x2560_9513;
export const SIMPLE_REPLY_MAGIC = 0x6744_6698;
export const STRUCTURED_REPLY_MAGIC = 0x668e_33ef;
export const EXTENDED_REQUEST_MAGIC = 0x21e4_1c71;
export const EXTENDED_REPLY_MAGIC = 0x6e8a_278c;

/** Handshake flags of the server */
export const HANDSHAKE_FLAG = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const;
/** Handshake flags of the client */
export const CLIENT_FLAG = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const;

/** Transmission flags: what the server allows on an export */
export const TRANSMISSION_FLAG = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
  BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const;

export const OPT = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  PEEK_EXPORT: 4,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

export const REP = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x8000_0001,
  ERR_POLICY: 0x8000_0002,
  ERR_INVALID: 0x8000_0003,
  ERR_PLATFORM: 0x8000_0004,
  ERR_TLS_REQD: 0x8000_0005,
  ERR_UNKNOWN: 0x8000_0006,
  ERR_SHUTDOWN: 0x8000_0007,
  ERR_BLOCK_SIZE_REQD: 0x8000_0008,
  ERR_TOO_BIG: 0x8000_0009,
  ERR_EXT_HEADER_REQD: 0x8000_000a,
} as const;

export const INFO = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

export const CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
  RESIZE: 8,
} as const;

export const CMD_FLAG = {
  FUA: 1 << 0,
  NO_HOLE: 1 << 1,
  DF: 1 << 2,
  REQ_ONE: 1 << 3,
  FAST_ZERO: 1 << 4,
  PAYLOAD_LEN: 1 << 5,
} as const;

export const REPLY_FLAG_DONE = 1 << 0;

export const REPLY_TYPE = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;
/** Reply types from here up end a request in an error, known or not */
export const REPLY_TYPE_ERROR_BIT = 0x8000;

/** The eight error numbers that the protocol knows; a peer's other numbers mean EINVAL */
export const NBD_ERROR = {
  OK: 0,
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;
export type NbdErrorName = Exclude<keyof typeof NBD_ERROR, 'OK'>;

/** The one context that every server of structured replies should have */
export const BASE_ALLOCATION = 'base:allocation';
/** QEMU's context of the depth in a chain: 0 is not allocated anywhere, 1 in the image itself, 2 in the one under it */
export const QEMU_ALLOCATION_DEPTH = 'qemu:allocation-depth';
/** QEMU's contexts of dirty bitmaps; the bitmap's name follows */
export const QEMU_DIRTY_BITMAP = 'qemu:dirty-bitmap:';
/** Extent flag of qemu:dirty-bitmap */
export const STATE_DIRTY = 1 << 0;
/** Extent flags of base:allocation */
export const STATE = { HOLE: 1 << 0, ZERO: 1 << 1 } as const;

const errorNames = new Map<number, NbdErrorName>(
  Object.entries(NBD_ERROR)
    .filter(([name]) => name !== 'OK')
    .map(([name, value]) => [value, name as NbdErrorName]),
);

/** The name of an error number from the wire. Unknown ones are EINVAL ("Error values": clients should treat them so). */
export function errorName(value: number): NbdErrorName {
  return errorNames.get(value) ?? 'EINVAL';
}

/** `NBD_OPT_GO` for 7, for texts; the bare number where it is unknown */
export function optionName(option: number): string {
  for (const [name, value] of Object.entries(OPT)) if (value === option) return `NBD_OPT_${name}`;
  return `option ${option}`;
}

const commandNames = new Map<number, string>(Object.entries(CMD).map(([name, value]) => [value, `NBD_CMD_${name}`]));

/** `NBD_CMD_READ` for 0, for texts */
export function commandName(type: number): string {
  return commandNames.get(type) ?? `command ${type}`;
}
