import test from 'ava';
import { checkResults, parseFigures, parseResult } from '../../../bench/machine/bare_metal.ts';

test('parseResult() reads result, ticks and instructions', (t) => {
  const { result, guestMs, retired } = parseResult('ff3bc2d236a2b4a0 0000000000002710 00000000000000ff');
  t.is(result, 'ff3bc2d236a2b4a0');
  t.is(guestMs, 1);
  t.is(retired, 255);
  t.notThrows(() => parseResult('ff3bc2d236a2b4a0 0000000000002710 00000000000000ff\r'));
});

for (const wrong of [
  '',
  'ff3bc2d236a2b4a0 0000000000002710',
  'ff3bc2d236a2b4a0 0000000000002710 00000000000000f',
  'ff3bc2d236a2b4a0 0000000000002710 00000000000000ff0',
  'FF3bc2d236a2b4a0 0000000000002710 00000000000000ff',
]) {
  test(`parseResult() refuses ${JSON.stringify(wrong)}`, (t) => {
    t.throws(() => parseResult(wrong), { message: /Cannot read the guest's result/ });
  });
}

test('parseFigures() takes the lines that are figures, in order, the same name again', (t) => {
  const text =
    'noise\n@late 0000000000000010\r\n@late 000000000000000a\n @late 0000000000000001\n@short 12\n@x-y 00000000000000ff\n';
  t.deepEqual(parseFigures(text), [
    { name: 'late', value: 16 },
    { name: 'late', value: 10 },
    { name: 'x-y', value: 255 },
  ]);
});

test('checkResults() throws where two sides computed different things', (t) => {
  t.notThrows(() => checkResults('x', ['a', 'a']));
  t.throws(() => checkResults('x', ['a', 'b']), { message: /x: the machines disagree: a, b/ });
});
