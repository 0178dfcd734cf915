import test from 'ava';
import { Digest } from '../../../protocols/bytes/mod.ts';

test('Digest tells apart what differs in order, length or division', (t) => {
  const of = (words: number[]) => new Digest().words(Uint32Array.from(words)).value;
  t.is(of([1, 2, 3]), of([1, 2, 3]));
  t.not(of([1, 2, 3]), of([1, 3, 2]));
  t.not(of([0, 0]), of([0]));
  t.not(new Digest().text('a').text('b').value, new Digest().text('ab').value);
  t.not(new Digest().bytes(Uint8Array.of(0)).value, new Digest().bytes(Uint8Array.of(0, 0)).value);
});

test('Digest gives what recordings were made with', (t) => {
  t.is(
    new Digest()
      .text('Image')
      .bytes(Uint8Array.of(1, 2, 3, 4, 5))
      .words(Uint32Array.of(7)).value,
    0xdea4_94e5_bc93_d346n,
  );
});
