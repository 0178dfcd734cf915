import { Cursor, WireError } from '../bytes/mod.ts';

/** Size of ProtocolVersion, in `bytes` (§7.1.1) */
export const VERSION_BYTES = 12;

/** The three that the specification knows; every other number maps to one of them or is refused. */
export type ProtocolVersion = '3.3' | '3.7' | '3.8';

/** What the server opens with. */
export const SERVER_VERSION: Uint8Array = new TextEncoder().encode('RFB 003.008\n');

/**
 * Reads the client's ProtocolVersion.
 * 3.4, 3.5 and 3.6 never existed and count as 3.3 (§7.1.1); Apple's 3.889 is 3.8.
 * @throws WireError when it is not a version, or one that this server does not speak
 */
export function decodeVersion(message: Uint8Array): ProtocolVersion {
  const cursor = new Cursor(message, 'ProtocolVersion');
  const raw = cursor.bytes(VERSION_BYTES, 'version');
  cursor.end();
  let text = '';
  for (const byte of raw) text += String.fromCharCode(byte);
  const parts = /^RFB (\d{3})\.(\d{3})\n$/.exec(text);
  if (parts === null) {
    throw cursor.error('ERR_WIRE_MAGIC', 'Cannot accept ProtocolVersion: not "RFB xxx.yyy" with a line feed');
  }
  const major = Number(parts[1]);
  const minor = Number(parts[2]);
  if (major === 3) {
    if (minor === 8 || minor === 889) return '3.8';
    if (minor === 7) return '3.7';
    if (minor >= 3 && minor <= 6) return '3.3';
  }
  throw new WireError('ERR_WIRE_VALUE', `Cannot speak RFB ${major}.${minor}: this server speaks 3.3, 3.7 and 3.8`, {
    message: 'ProtocolVersion',
  });
}
