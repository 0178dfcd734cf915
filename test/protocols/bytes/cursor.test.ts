import test from 'ava';
import { Cursor, WireError } from '../../../protocols/bytes/mod.ts';

test('Cursor refuses a read past the end and names message, field and offset', (t) => {
  const cursor = new Cursor(Uint8Array.of(1, 2, 3), 'thing');
  cursor.u16('kind');
  const error = t.throws(() => cursor.u16('size'), { instanceOf: WireError });
  t.is(error.code, 'ERR_WIRE_TRUNCATED');
  t.is(error.messageName, 'thing');
  t.is(error.offset, 2);
  t.regex(error.message, /thing size: needs 2 bytes, 1 left/);
});

test('Cursor.bytes() refuses lengths that are not sizes', (t) => {
  const cursor = new Cursor(new Uint8Array(8), 'thing');
  for (const length of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
    t.throws(() => cursor.bytes(length, 'data'), { instanceOf: WireError });
  }
  t.is(cursor.remaining, 8);
});

test('Cursor.utf8() refuses malformed text, NUL and too much', (t) => {
  t.throws(() => new Cursor(Uint8Array.of(0xff), 'x').utf8(1, 8, 'name'), { code: 'ERR_WIRE_TEXT' });
  t.throws(() => new Cursor(Uint8Array.of(0), 'x').utf8(1, 8, 'name'), { code: 'ERR_WIRE_TEXT' });
  t.throws(() => new Cursor(new Uint8Array(9), 'x').utf8(9, 8, 'name'), { code: 'ERR_WIRE_LIMIT' });
});

test('Cursor.end() refuses trailing bytes', (t) => {
  t.throws(() => new Cursor(Uint8Array.of(1), 'x').end(), { code: 'ERR_WIRE_TRAILING' });
});
