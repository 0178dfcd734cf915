import test from 'ava';
import { parseDebianArguments } from '../../../cli/debian/options.ts';
import { UsageError } from '../../../cli/usage_error.ts';

test('parseDebianArguments() without words is a gibibyte, two harts and a disk', (t) => {
  const expected = {
    help: false,
    smoke: false,
    refresh: false,
    ramBytes: 2 ** 30,
    harts: 2,
    disk: true,
    display: true,
  };
  t.deepEqual(parseDebianArguments([]), expected);
});

test('parseDebianArguments() takes -nographic, and says where the other options of a machine are', (t) => {
  t.false(parseDebianArguments(['-nographic']).display);
  t.throws(() => parseDebianArguments(['-append', 'x']), { message: /unknown; more options .* caisson run/ });
  t.throws(() => parseDebianArguments(['-d', 'int']), { message: /unknown; more options .* caisson run/ });
  t.throws(() => parseDebianArguments(['-nographics']), { message: /did you mean -nographic/ });
});

test('parseDebianArguments() tells how much memory there can be', (t) => {
  t.throws(() => parseDebianArguments(['-m', '9G']), { message: /at most 3072M/ });
});

test('parseDebianArguments() takes QEMU words and its own', (t) => {
  const command = parseDebianArguments(['--smoke', '-m', '512M', '-smp', '4', '--suite=sid', '--no-disk', '--refresh']);
  t.like(command, { smoke: true, ramBytes: 512 << 20, harts: 4, suite: 'sid', disk: false, refresh: true });
  t.is(parseDebianArguments(['-m', '256']).ramBytes, 256 << 20, 'MiB without a unit, as in QEMU');
});

for (const [name, args] of [
  ['an unknown option', ['--smok']],
  ['a file', ['kernel.img']],
  ['a missing value', ['-m']],
  ['an empty value', ['--suite=']],
  ['memory above the limit', ['-m', '4G']],
  ['no memory', ['-m', '0']],
  ['an odd number of MiB', ['-m', '127M']],
  ['harts above the limit', ['-smp', '9']],
  ['no harts', ['-smp', '0']],
  ['a suite that would add to the apt sources', ['--suite', 'sid main\ndeb']],
  ['a suite that is a path', ['--suite', '../x']],
] as const) {
  test(`parseDebianArguments() refuses ${name}`, (t) => {
    t.throws(() => parseDebianArguments(args), { instanceOf: UsageError });
  });
}
