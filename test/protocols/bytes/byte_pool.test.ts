import test from 'ava';
import { BytePool } from '../../../protocols/bytes/mod.ts';

const KIB = 1024;

function pool(maxIdleBytes: number): { pool: BytePool; made: number[] } {
  const made: number[] = [];
  const allocate = (lengthBytes: number) => {
    made.push(lengthBytes);
    return new Uint8Array(lengthBytes);
  };
  return { pool: new BytePool(allocate, maxIdleBytes), made };
}

test('a buffer that was given back is taken again for what fits it, and for no less than half of it', (t) => {
  const { pool: buffers, made } = pool(1 << 20);
  const first = buffers.take(9 * KIB);
  t.is(first.length, 16 * KIB);
  buffers.give(first);
  t.is(buffers.idleBytes, 16 * KIB);
  t.not(buffers.take(8 * KIB), first, 'a smaller class');
  t.is(buffers.take(16 * KIB), first);
  t.is(buffers.idleBytes, 0);
  t.is(buffers.takeIdle(16 * KIB), undefined);
  t.deepEqual(made, [16 * KIB, 8 * KIB]);
});

test('large buffers do not begin where the C library gives memory: the kernel copies slowly there', (t) => {
  const { pool: buffers, made } = pool(4 << 20);
  const large = buffers.take(1 << 20);
  t.is(large.length, 1 << 20);
  t.is(large.byteOffset, 48);
  t.deepEqual(made, [(1 << 20) + 48]);
  buffers.give(large);
  t.is(buffers.take(600 * KIB), large);
  t.is(buffers.take(64 * KIB).byteOffset, 0);
});

test('no more is kept than was said, nor parts, nor what is larger than the largest class', (t) => {
  const { pool: buffers } = pool(40 * KIB);
  const taken = [1, 2, 3].map(() => buffers.take(16 * KIB));
  for (const buffer of taken) buffers.give(buffer);
  t.is(buffers.idleBytes, 32 * KIB);
  buffers.give(new Uint8Array(100));
  buffers.give(new Uint8Array(12 * KIB));
  t.is(buffers.idleBytes, 32 * KIB);
  const large = pool(1 << 30).pool;
  const huge = large.take((32 << 20) + 1);
  t.is(huge.length, (32 << 20) + 1);
  large.give(huge);
  t.is(large.idleBytes, 0);
  const single = pool(0).pool;
  single.give(single.take(1));
  t.false(single.recycles);
  t.is(single.idleBytes, 0);
});
