import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { decodeFolded, encodeFolded, MAX_FRAME_LENGTH, MAX_FRAMES } from '../../../protocols/folded/mod.ts';
import { roundTrips, survivesEveryByteChange } from '../../macros/codec.ts';

const STACKS = [
  { frames: ['user', 'main', 'operator new(unsigned long)'], count: 12 },
  { frames: ['supervisor'], count: 1 },
];
const bytes = (text: string) => new TextEncoder().encode(text);

test('folded stacks are what flame graph tools read, and come back as they were', (t) => {
  t.is(new TextDecoder().decode(encodeFolded(STACKS)), 'user;main;operator new(unsigned long) 12\nsupervisor 1\n');
  roundTrips(t, STACKS, encodeFolded, decodeFolded);
  t.deepEqual(decodeFolded(bytes('')), []);
});

test('encodeFolded() keeps what would break a line out of it', (t) => {
  t.deepEqual(decodeFolded(encodeFolded([{ frames: ['a;b', 'c\nd 5', ''], count: 3 }])), [
    { frames: ['a_b', 'c_d 5', '_'], count: 3 },
  ]);
});

test('decodeFolded() refuses every truncation that is no text of whole lines, and survives every byte change', (t) => {
  const whole = encodeFolded(STACKS);
  for (let length = 1; length < whole.length; length++) {
    if (whole[length - 1] === 0x0a) continue;
    t.throws(() => decodeFolded(whole.slice(0, length)), { instanceOf: WireError }, `cut at ${length}`);
  }
  survivesEveryByteChange(t, whole, decodeFolded);
});

test('decodeFolded() refuses lines that are no stack, and more than its limits', (t) => {
  for (const [name, text] of [
    ['no count', 'a;b\n'],
    ['count 0', 'a 0\n'],
    ['negative', 'a -1\n'],
    ['beyond 2^53', 'a 99999999999999999999\n'],
    ['an empty frame', 'a;;b 1\n'],
    ['no frame', ' 1\n'],
    ['control character', 'a\u0007 1\n'],
    ['frames', `${'a;'.repeat(MAX_FRAMES)}a 1\n`],
    ['a long frame', `${'a'.repeat(MAX_FRAME_LENGTH + 1)} 1\n`],
    ['empty line', 'a 1\n\nb 1\n'],
  ]) {
    t.throws(() => decodeFolded(bytes(text!)), { instanceOf: WireError }, name);
  }
});
