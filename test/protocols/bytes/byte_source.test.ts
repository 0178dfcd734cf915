import test from 'ava';
import { byteSource, partOf, readAll, readHead, readPart, WireError } from '../../../protocols/bytes/mod.ts';

const source = byteSource(Uint8Array.of(0, 1, 2, 3, 4, 5, 6, 7));

test('readPart(), readHead() and partOf() give copies of what is there', (t) => {
  t.deepEqual([...readPart(source, 3, 2, 'x')], [3, 4]);
  t.deepEqual([...readPart(source, 8, 0, 'x')], []);
  t.deepEqual([...readHead(source, 3)], [0, 1, 2]);
  t.is(readHead(source, 100).length, 8);
  const inner = partOf(partOf(source, 2, 5), 1, 3);
  t.is(inner.length, 3);
  t.deepEqual([...readAll(inner)], [3, 4, 5]);
});

test('readPart() and partOf() refuse what is not there, before they take memory for it', (t) => {
  for (const [offset, length] of [
    [0, 9],
    [8, 1],
    [9, 0],
    [-1, 2],
    [0, -1],
    [1, Number.MAX_SAFE_INTEGER],
    [Number.MAX_SAFE_INTEGER, 1],
  ] as const) {
    t.throws(() => readPart(source, offset, length, 'x'), { instanceOf: WireError, code: 'ERR_WIRE_TRUNCATED' });
    t.throws(() => partOf(source, offset, length), { instanceOf: WireError, code: 'ERR_WIRE_TRUNCATED' });
  }
});
