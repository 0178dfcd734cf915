import { Cursor, WireError, Writer } from '../bytes/mod.ts';
import { INIT_MAGIC, OLDSTYLE_MAGIC, OPTION_MAGIC } from './constants.ts';

/** Size of the newstyle greeting, in `bytes` */
export const GREETING_BYTES = 18;
/** Size of the client's flags, in `bytes` */
export const CLIENT_FLAGS_BYTES = 4;
/** Zeroes after the answer to NBD_OPT_EXPORT_NAME, unless both sides said NO_ZEROES */
export const EXPORT_NAME_PADDING_BYTES = 124;

export interface Greeting {
  /** Bits of HANDSHAKE_FLAG; unknown ones are kept */
  readonly flags: number;
}

export function encodeGreeting(greeting: Greeting): Uint8Array<ArrayBuffer> {
  return new Writer(GREETING_BYTES).u64(INIT_MAGIC).u64(OPTION_MAGIC).u16(greeting.flags).finish();
}

/** Decodes a server's first message. Oldstyle servers are refused by name: they cannot negotiate anything. */
export function decodeGreeting(bytes: Uint8Array): Greeting {
  const cursor = new Cursor(bytes, 'NBD greeting');
  cursor.expectU64(INIT_MAGIC, 'NBDMAGIC');
  const style = cursor.u64('IHAVEOPT');
  if (style === OLDSTYLE_MAGIC) {
    throw new WireError('ERR_WIRE_VALUE', 'Cannot talk to the NBD server: it speaks oldstyle, expected newstyle', {
      message: 'NBD greeting',
      offset: 8,
    });
  }
  if (style !== OPTION_MAGIC) throw cursor.error('ERR_WIRE_MAGIC', `Cannot accept NBD greeting: magic ${style}`);
  const greeting = { flags: cursor.u16('handshake flags') };
  cursor.end();
  return greeting;
}

export function encodeClientFlags(flags: number): Uint8Array<ArrayBuffer> {
  return new Writer(CLIENT_FLAGS_BYTES).u32(flags).finish();
}

export function decodeClientFlags(bytes: Uint8Array): number {
  const cursor = new Cursor(bytes, 'NBD client flags');
  const flags = cursor.u32('flags');
  cursor.end();
  return flags;
}

/** The answer to NBD_OPT_EXPORT_NAME, which has no reply header. */
export interface ExportNameReply {
  readonly sizeBytes: bigint;
  /** Bits of TRANSMISSION_FLAG */
  readonly flags: number;
}

export function encodeExportNameReply(reply: ExportNameReply, noZeroes: boolean): Uint8Array<ArrayBuffer> {
  const writer = new Writer(10 + EXPORT_NAME_PADDING_BYTES).u64(reply.sizeBytes).u16(reply.flags);
  if (!noZeroes) writer.zeroes(EXPORT_NAME_PADDING_BYTES);
  return writer.finish();
}

export function decodeExportNameReply(bytes: Uint8Array, noZeroes: boolean): ExportNameReply {
  const cursor = new Cursor(bytes, 'NBD_OPT_EXPORT_NAME reply');
  const reply = { sizeBytes: cursor.u64('size'), flags: cursor.u16('transmission flags') };
  if (!noZeroes) cursor.skip(EXPORT_NAME_PADDING_BYTES, 'zeroes');
  cursor.end();
  return reply;
}
