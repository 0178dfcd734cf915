import type { Cursor } from '../bytes/mod.ts';

export const NO_GUID = '00000000-0000-0000-0000-000000000000';

/** A GUID as text, lower case: its first three fields are little-endian in the file. */
export function decodeGuid(cursor: Cursor, field: string): string {
  const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
  const first = hex(cursor.u32le(field), 8);
  const second = hex(cursor.u16le(field), 4);
  const third = hex(cursor.u16le(field), 4);
  const rest = Array.from({ length: 8 }, () => hex(cursor.u8(field), 2)).join('');
  return `${first}-${second}-${third}-${rest.slice(0, 4)}-${rest.slice(4)}`;
}
