import { PassThrough } from 'node:stream';
import test from 'ava';
import { SerialLine } from '../../../bench/machine/serial_line.ts';

function make() {
  const from = new PassThrough();
  const to = new PassThrough();
  return { from, to, line: new SerialLine(from, to) };
}

test('SerialLine takes what comes before each marker, also one that arrives in pieces', async (t) => {
  const { from, line } = make();
  from.write('boot\n<do');
  const first = line.until('<done', 5000);
  await new Promise((resolve) => setTimeout(resolve, 5));
  from.write('ne 0>rest<done');
  t.is(await first, 'boot\n');
  t.is(await line.until('<done', 5000), ' 0>rest');
});

test('SerialLine takes megabytes in small pieces, each looked through once', async (t) => {
  const { from, line } = make();
  const whole = line.until('=', 30_000);
  const piece = 'x'.repeat(64);
  for (let i = 0; i < 40_000; i++) from.write(piece);
  from.write('=end');
  t.is((await whole).length, 64 * 40_000);
  from.write('\n');
  t.is(await line.until('\n', 1000), 'end');
});

test('SerialLine says what the guest said instead, after the time or when the line ends', async (t) => {
  const { from, line } = make();
  from.write('panic');
  await t.throwsAsync(line.until('ready', 20), { message: /did not say "ready" \(not in 20 ms\): …"panic"/ });
  const waiting = line.until('ready', 5000);
  from.end();
  await t.throwsAsync(waiting, { message: /its line has ended/ });
});

test('SerialLine writes bytes, not UTF-8', (t) => {
  const { to, line } = make();
  line.write('\u00e4\n');
  t.deepEqual([...(to.read() as Buffer)], [0xe4, 10]);
});
