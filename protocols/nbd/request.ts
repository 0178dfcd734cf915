import { Cursor, WireError, Writer } from '../bytes/mod.ts';
import { CMD, CMD_FLAG, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC } from './constants.ts';

/** Size of a transmission-phase request header, in `bytes` ("Request message") */
export const REQUEST_HEADER_BYTES = 28;
/** Size of a request header where extended headers were agreed, in `bytes` */
export const EXTENDED_REQUEST_HEADER_BYTES = 32;

export interface Request {
  /** Bits of CMD_FLAG */
  readonly flags: number;
  /** Command as sent; may be unknown to us */
  readonly type: number;
  /** Chosen by the client, echoed in the reply */
  readonly cookie: bigint;
  /** First byte, relative to the export, in `bytes` */
  readonly offset: bigint;
  /** Length in `bytes`; from 2^53 up, which only extended headers can say, it is rounded: no export reaches there */
  readonly length: number;
}

/**
 * Decodes one request header: shape only. An unknown type is not an error here, because the protocol answers it
 * with EINVAL instead of closing; range, flags and size are for validateRequest(), which knows the session.
 * A wrong magic leaves no way to find the next request: the session must end.
 */
export function decodeRequest(header: Uint8Array): Request {
  return readRequest(viewOf(header, REQUEST_HEADER_BYTES), 0, false);
}

/**
 * As decodeRequest(), from a view of more than a header: whoever has seen that all of it is there saves a check for each
 * field, and the view throws rather than read beyond its end. `extended`: the session has extended headers
 */
export function readRequest(view: DataView, at: number, extended: boolean): Request {
  expectMagic(view.getUint32(at), extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC);
  return {
    flags: view.getUint16(at + 4),
    type: view.getUint16(at + 6),
    cookie: view.getBigUint64(at + 8),
    offset: view.getBigUint64(at + 16),
    length: extended ? Number(view.getBigUint64(at + 24)) : view.getUint32(at + 24),
  };
}

export function encodeRequest(request: Request): Uint8Array<ArrayBuffer> {
  return writeHeader(new Writer(REQUEST_HEADER_BYTES), REQUEST_MAGIC, request).u32(request.length).finish();
}

/** As decodeRequest(), for sessions with extended headers. */
export function decodeExtendedRequest(header: Uint8Array): Request {
  return readRequest(viewOf(header, EXTENDED_REQUEST_HEADER_BYTES), 0, true);
}

/** Of exactly one header. */
function viewOf(header: Uint8Array, lengthBytes: number): DataView {
  const cursor = new Cursor(header, 'NBD request');
  const bytes = cursor.bytes(lengthBytes, 'header');
  cursor.end();
  return new DataView(bytes.buffer, bytes.byteOffset, lengthBytes);
}

function expectMagic(found: number, expected: number): void {
  if (found === expected) return;
  throw new WireError(
    'ERR_WIRE_MAGIC',
    `Cannot accept NBD request magic: found 0x${found.toString(16)}, expected 0x${expected.toString(16)}`,
    { message: 'NBD request', offset: 0 },
  );
}

/** `length` as a bigint, for lengths that no number holds */
export function encodeExtendedRequest(
  request: Omit<Request, 'length'> & { readonly length: bigint },
): Uint8Array<ArrayBuffer> {
  const writer = new Writer(EXTENDED_REQUEST_HEADER_BYTES);
  return writeHeader(writer, EXTENDED_REQUEST_MAGIC, request).u64(request.length).finish();
}

/** All but the length */
function writeHeader(writer: Writer, magic: number, request: Omit<Request, 'length'>): Writer {
  return writer.u32(magic).u16(request.flags).u16(request.type).u64(request.cookie).u64(request.offset);
}

/** Bytes that follow the header on the stream: with extended headers the flag says so, whatever the command. */
export function requestPayloadBytes(request: Request, extended = false): number {
  if (extended) return (request.flags & CMD_FLAG.PAYLOAD_LEN) !== 0 ? request.length : 0;
  return request.type === CMD.WRITE ? request.length : 0;
}
