import { Cursor, type FrameSize, Writer } from '../bytes/mod.ts';
import { OPTION_MAGIC, OPTION_REPLY_MAGIC } from './constants.ts';
import { MAX_INFO_REQUESTS, MAX_META_QUERIES, MAX_STRING_BYTES } from './limits.ts';

/** Size of an option's header, in `bytes` */
export const OPTION_HEADER_BYTES = 16;
/** Size of an option reply's header, in `bytes` */
export const OPTION_REPLY_HEADER_BYTES = 20;

const textEncoder = new TextEncoder();

/** One option of the client, data not looked into. */
export interface Option {
  readonly option: number;
  readonly data: Uint8Array;
}

/** Framing of the option haggling, for FrameDecoder: a wrong magic ends the session before its length is believed. */
export function optionFrameSize(head: Uint8Array): FrameSize {
  if (head.length < OPTION_HEADER_BYTES) return { need: OPTION_HEADER_BYTES };
  const cursor = new Cursor(head, 'NBD option');
  cursor.expectU64(OPTION_MAGIC, 'magic');
  cursor.skip(4, 'option');
  return { bytes: OPTION_HEADER_BYTES + cursor.u32('length') };
}

export function encodeOption(option: number, data: Uint8Array = new Uint8Array(0)): Uint8Array<ArrayBuffer> {
  return new Writer(OPTION_HEADER_BYTES + data.length)
    .u64(OPTION_MAGIC)
    .u32(option)
    .u32(data.length)
    .bytes(data)
    .finish();
}

export function decodeOption(bytes: Uint8Array): Option {
  const cursor = new Cursor(bytes, 'NBD option');
  cursor.expectU64(OPTION_MAGIC, 'magic');
  const option = cursor.u32('option');
  const data = cursor.bytes(cursor.u32('length'), 'data');
  cursor.end();
  return { option, data };
}

/** One answer of the server to an option, data not looked into. */
export interface OptionReply {
  /** The option that it answers */
  readonly option: number;
  /** One of REP */
  readonly type: number;
  readonly data: Uint8Array;
}

/** Framing of the server's answers, for FrameDecoder */
export function optionReplyFrameSize(head: Uint8Array): FrameSize {
  if (head.length < OPTION_REPLY_HEADER_BYTES) return { need: OPTION_REPLY_HEADER_BYTES };
  const cursor = new Cursor(head, 'NBD option reply');
  cursor.expectU64(OPTION_REPLY_MAGIC, 'magic');
  cursor.skip(8, 'option and type');
  return { bytes: OPTION_REPLY_HEADER_BYTES + cursor.u32('length') };
}

export function encodeOptionReply(
  option: number,
  type: number,
  data: Uint8Array = new Uint8Array(0),
): Uint8Array<ArrayBuffer> {
  return new Writer(OPTION_REPLY_HEADER_BYTES + data.length)
    .u64(OPTION_REPLY_MAGIC)
    .u32(option)
    .u32(type)
    .u32(data.length)
    .bytes(data)
    .finish();
}

export function decodeOptionReply(bytes: Uint8Array): OptionReply {
  const cursor = new Cursor(bytes, 'NBD option reply');
  cursor.expectU64(OPTION_REPLY_MAGIC, 'magic');
  const option = cursor.u32('option');
  const type = cursor.u32('type');
  const data = cursor.bytes(cursor.u32('length'), 'data');
  cursor.end();
  return { option, type, data };
}

/**
 * UTF-8 of a text that we send, cut to the protocol's 4096 bytes between two characters.
 * A name close to the limit inside a message about it is what CVE-2020-10761 asserted on.
 */
export function boundedText(text: string): Uint8Array {
  const bytes = textEncoder.encode(text);
  if (bytes.length <= MAX_STRING_BYTES) return bytes;
  let end = MAX_STRING_BYTES;
  while (end > 0 && (bytes[end]! & 0xc0) === 0x80) end--;
  return bytes.subarray(0, end);
}

/** Data of NBD_OPT_EXPORT_NAME: the bare name */
export function decodeExportName(data: Uint8Array): string {
  const cursor = new Cursor(data, 'NBD_OPT_EXPORT_NAME');
  return cursor.utf8(cursor.remaining, MAX_STRING_BYTES, 'name');
}

/** Data of NBD_OPT_INFO and NBD_OPT_GO */
export interface InfoRequest {
  readonly name: string;
  /** Numbers of INFO; unknown ones are for the server to ignore */
  readonly requests: readonly number[];
}

export function encodeInfoRequest(request: InfoRequest): Uint8Array<ArrayBuffer> {
  const name = textEncoder.encode(request.name);
  const writer = new Writer(6 + name.length + request.requests.length * 2)
    .u32(name.length)
    .bytes(name)
    .u16(request.requests.length);
  for (const info of request.requests) writer.u16(info);
  return writer.finish();
}

export function decodeInfoRequest(data: Uint8Array): InfoRequest {
  const cursor = new Cursor(data, 'NBD_OPT_INFO');
  const name = cursor.utf8(cursor.u32('name length'), MAX_STRING_BYTES, 'name');
  const count = cursor.u16('number of requests');
  if (count * 2 !== cursor.remaining) {
    throw cursor.error(
      'ERR_WIRE_VALUE',
      `Cannot read NBD_OPT_INFO: ${count} requests announced, ${cursor.remaining} bytes follow`,
    );
  }
  if (count > MAX_INFO_REQUESTS) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot read NBD_OPT_INFO: ${count} requests, limit is ${MAX_INFO_REQUESTS}`);
  }
  const requests: number[] = [];
  for (let index = 0; index < count; index++) {
    const info = cursor.u16('information type');
    if (requests.includes(info)) {
      throw cursor.error('ERR_WIRE_VALUE', `Cannot read NBD_OPT_INFO: information ${info} is asked twice`);
    }
    requests.push(info);
  }
  cursor.end();
  return { name, requests };
}

/** Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT */
export interface MetaContextRequest {
  readonly exportName: string;
  readonly queries: readonly string[];
}

export function encodeMetaContextRequest(request: MetaContextRequest): Uint8Array<ArrayBuffer> {
  const name = textEncoder.encode(request.exportName);
  const writer = new Writer(64).u32(name.length).bytes(name).u32(request.queries.length);
  for (const query of request.queries) {
    const bytes = textEncoder.encode(query);
    writer.u32(bytes.length).bytes(bytes);
  }
  return writer.finish();
}

export function decodeMetaContextRequest(data: Uint8Array): MetaContextRequest {
  const cursor = new Cursor(data, 'NBD_OPT_SET_META_CONTEXT');
  const exportName = cursor.utf8(cursor.u32('export name length'), MAX_STRING_BYTES, 'export name');
  const count = cursor.u32('number of queries');
  // Before the count is believed: each query has at least its length.
  if (count * 4 > cursor.remaining) {
    throw cursor.error(
      'ERR_WIRE_VALUE',
      `Cannot read NBD_OPT_SET_META_CONTEXT: ${count} queries announced, ${cursor.remaining} bytes follow`,
    );
  }
  if (count > MAX_META_QUERIES) {
    throw cursor.error(
      'ERR_WIRE_LIMIT',
      `Cannot read NBD_OPT_SET_META_CONTEXT: ${count} queries, limit is ${MAX_META_QUERIES}`,
    );
  }
  const queries: string[] = [];
  for (let index = 0; index < count; index++) {
    queries.push(cursor.utf8(cursor.u32('query length'), MAX_STRING_BYTES, 'query'));
  }
  cursor.end();
  return { exportName, queries };
}
