import test from 'ava';
import { canonicalText } from '../../../emulator/state/state.ts';

test('canonicalText() does not care for order and kind of number', (t) => {
  t.is(canonicalText({ b: 1n, a: [1, Uint8Array.of(255)] }), canonicalText({ a: [1n, Uint8Array.of(255)], b: 1 }));
  t.not(canonicalText('1'), canonicalText(1));
});
