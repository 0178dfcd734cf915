/** Every refusal of bytes from outside carries one of these; the meaning is stable, the text is not. */
export type WireErrorCode =
  /** Fewer bytes than the format needs */
  | 'ERR_WIRE_TRUNCATED'
  /** Bytes left after the message's end */
  | 'ERR_WIRE_TRAILING'
  /** A fixed value (magic, padding, reserved field) is not what the format says */
  | 'ERR_WIRE_MAGIC'
  /** A length, count, depth or size is above the limit that stands beside the parser */
  | 'ERR_WIRE_LIMIT'
  /** A field has a value that the format does not define */
  | 'ERR_WIRE_VALUE'
  /** The message is not allowed in this state of the session */
  | 'ERR_WIRE_STATE'
  /** Text is not the encoding that the format says */
  | 'ERR_WIRE_TEXT'
  /** The peer took longer than the session allows */
  | 'ERR_WIRE_TIMEOUT'
  /** A checksum does not match */
  | 'ERR_WIRE_CHECKSUM';

export interface WireErrorDetail {
  /** Name of the message or structure, as in its specification */
  readonly message?: string;
  /** Where in the message, in `bytes` */
  readonly offset?: number;
  readonly cause?: unknown;
}

/**
 * A peer, guest or file is wrong. The session answers by its protocol, logs and closes;
 * the process never crashes because of one.
 */
export class WireError extends Error {
  override readonly name = 'WireError';
  readonly code: WireErrorCode;
  readonly messageName: string | undefined;
  readonly offset: number | undefined;

  constructor(code: WireErrorCode, text: string, detail: WireErrorDetail = {}) {
    super(text, detail.cause === undefined ? undefined : { cause: detail.cause });
    this.code = code;
    this.messageName = detail.message;
    this.offset = detail.offset;
  }
}
