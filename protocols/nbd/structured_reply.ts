import { Cursor, Writer } from '../bytes/mod.ts';
import { EXTENDED_REPLY_MAGIC, REPLY_TYPE, STRUCTURED_REPLY_MAGIC } from './constants.ts';
import { MAX_STRING_BYTES } from './limits.ts';
import { boundedText } from './option.ts';

/** Size of a structured reply chunk's header, in `bytes` */
export const CHUNK_HEADER_BYTES = 20;
export interface ChunkHeader {
  /** Bits of REPLY_FLAG_* */
  readonly flags: number;
  /** One of REPLY_TYPE; may be unknown to us */
  readonly type: number;
  readonly cookie: bigint;
  /** Payload in `bytes` */
  readonly length: number;
}

export function encodeChunkHeader(header: ChunkHeader): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(CHUNK_HEADER_BYTES);
  putChunkHeader(new DataView(bytes.buffer), 0, header);
  return bytes;
}

/** Writes the header in place, for replies that are built in a reused buffer. */
export function putChunkHeader(into: DataView, at: number, header: ChunkHeader): void {
  into.setUint32(at, STRUCTURED_REPLY_MAGIC);
  into.setUint16(at + 4, header.flags);
  into.setUint16(at + 6, header.type);
  into.setBigUint64(at + 8, header.cookie);
  into.setUint32(at + 16, header.length);
}

/** Size of a reply header where extended headers were agreed, in `bytes` */
export const EXTENDED_CHUNK_HEADER_BYTES = 32;

/** As putChunkHeader(), with the request's offset, for sessions with extended headers. */
export function putExtendedChunkHeader(into: DataView, at: number, header: ChunkHeader, offset: bigint): void {
  into.setUint32(at, EXTENDED_REPLY_MAGIC);
  into.setUint16(at + 4, header.flags);
  into.setUint16(at + 6, header.type);
  into.setBigUint64(at + 8, header.cookie);
  into.setBigUint64(at + 16, offset);
  into.setBigUint64(at + 24, BigInt(header.length));
}

export function decodeChunkHeader(bytes: Uint8Array): ChunkHeader {
  const cursor = new Cursor(bytes, 'NBD structured reply');
  cursor.expectU32(STRUCTURED_REPLY_MAGIC, 'magic');
  const header = {
    flags: cursor.u16('flags'),
    type: cursor.u16('type'),
    cookie: cursor.u64('cookie'),
    length: cursor.u32('length'),
  };
  cursor.end();
  return header;
}

/** Header of a reply where extended headers were agreed; `length` is rounded from 2^53 up, which nobody accepts. */
export interface ExtendedChunkHeader extends ChunkHeader {
  /** The request's, said again */
  readonly offset: bigint;
}

export function decodeExtendedChunkHeader(bytes: Uint8Array): ExtendedChunkHeader {
  const cursor = new Cursor(bytes, 'NBD extended reply');
  cursor.expectU32(EXTENDED_REPLY_MAGIC, 'magic');
  const header = {
    flags: cursor.u16('flags'),
    type: cursor.u16('type'),
    cookie: cursor.u64('cookie'),
    offset: cursor.u64('offset'),
    length: Number(cursor.u64('length')),
  };
  cursor.end();
  return header;
}

/** Payload of an OFFSET_HOLE chunk */
export interface Hole {
  readonly offset: bigint;
  readonly lengthBytes: number;
}

export function encodeHole(hole: Hole): Uint8Array<ArrayBuffer> {
  return new Writer(12).u64(hole.offset).u32(hole.lengthBytes).finish();
}

export function decodeHole(payload: Uint8Array): Hole {
  const cursor = new Cursor(payload, 'NBD_REPLY_TYPE_OFFSET_HOLE');
  const hole = { offset: cursor.u64('offset'), lengthBytes: cursor.u32('hole size') };
  cursor.end();
  return hole;
}

/** Payload of an ERROR or ERROR_OFFSET chunk */
export interface ReplyError {
  /** One of NBD_ERROR */
  readonly error: number;
  readonly text: string;
  /** Where it went wrong, relative to the export; ERROR_OFFSET only */
  readonly offset?: bigint;
}

export function encodeReplyError(error: ReplyError): Uint8Array<ArrayBuffer> {
  const text = boundedText(error.text);
  const writer = new Writer(14 + text.length).u32(error.error).u16(text.length).bytes(text);
  if (error.offset !== undefined) writer.u64(error.offset);
  return writer.finish();
}

/** `type` is the chunk's type; error chunks of types we do not know start the same way and may go on. */
export function decodeReplyError(type: number, payload: Uint8Array): ReplyError {
  const cursor = new Cursor(payload, 'NBD_REPLY_TYPE_ERROR');
  const error = cursor.u32('error');
  if (error === 0) throw cursor.error('ERR_WIRE_VALUE', 'Cannot accept NBD_REPLY_TYPE_ERROR: error is 0');
  const text = cursor.utf8(cursor.u16('text length'), MAX_STRING_BYTES, 'text');
  if (type === REPLY_TYPE.ERROR_OFFSET) {
    const offset = cursor.u64('offset');
    cursor.end();
    return { error, text, offset };
  }
  if (type === REPLY_TYPE.ERROR) cursor.end();
  return { error, text };
}
