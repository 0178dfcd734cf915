import { Cursor, Writer } from '../bytes/mod.ts';
import { SIMPLE_REPLY_MAGIC } from './constants.ts';

/** Size of a simple reply's header, in `bytes`; a successful READ's data follows it */
export const SIMPLE_REPLY_BYTES = 16;

export interface SimpleReply {
  /** One of NBD_ERROR */
  readonly error: number;
  readonly cookie: bigint;
}

export function encodeSimpleReply(reply: SimpleReply): Uint8Array<ArrayBuffer> {
  return new Writer(SIMPLE_REPLY_BYTES).u32(SIMPLE_REPLY_MAGIC).u32(reply.error).u64(reply.cookie).finish();
}

/** Writes the header in place, for replies that are built in a reused buffer. */
export function putSimpleReply(into: DataView, at: number, error: number, cookie: bigint): void {
  into.setUint32(at, SIMPLE_REPLY_MAGIC);
  into.setUint32(at + 4, error);
  into.setBigUint64(at + 8, cookie);
}

export function decodeSimpleReply(bytes: Uint8Array): SimpleReply {
  const cursor = new Cursor(bytes, 'NBD simple reply');
  cursor.expectU32(SIMPLE_REPLY_MAGIC, 'magic');
  const reply = { error: cursor.u32('error'), cookie: cursor.u64('cookie') };
  cursor.end();
  return reply;
}
