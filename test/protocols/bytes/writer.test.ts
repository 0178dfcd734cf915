import test from 'ava';
import { Cursor, Writer } from '../../../protocols/bytes/mod.ts';

test('Writer keeps every value when it grows in the middle of one', (t) => {
  for (let capacity = 1; capacity < 50; capacity++) {
    const bytes = new Writer(capacity)
      .u8(0x11)
      .u16(0x2233)
      .u32(0x4455_6677)
      .u64(0x8899_aabb_ccdd_eeffn)
      .i32(-2)
      .u16le(0x2233)
      .u32le(0x4455_6677)
      .u64le(0x8899_aabb_ccdd_eeffn)
      .finish();
    const cursor = new Cursor(bytes, 'test');
    t.is(cursor.u8('a'), 0x11);
    t.is(cursor.u16('b'), 0x2233);
    t.is(cursor.u32('c'), 0x4455_6677);
    t.is(cursor.u64('d'), 0x8899_aabb_ccdd_eeffn);
    t.is(cursor.i32('e'), -2);
    t.is(cursor.u16le('f'), 0x2233);
    t.is(cursor.u32le('g'), 0x4455_6677);
    t.is(cursor.u64le('h'), 0x8899_aabb_ccdd_eeffn);
    cursor.end();
  }
});
