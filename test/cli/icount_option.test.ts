import test from 'ava';
import { parseIcount } from '../../cli/icount_option.ts';
import { parseVmArguments } from '../../cli/options.ts';

test('-icount takes QEMU’s words', (t) => {
  t.deepEqual(parseIcount('3'), { shift: 3, sleep: true });
  t.deepEqual(parseIcount('shift=0,sleep=off'), { shift: 0, sleep: false });
  t.deepEqual(parseIcount('auto,align=off'), { shift: 'auto', sleep: true });
  t.deepEqual(parseIcount('shift=7,rr=record,rrfile=/tmp/r'), {
    shift: 7,
    sleep: true,
    rr: { mode: 'record', file: '/tmp/r' },
  });
  const { options } = parseVmArguments(['-kernel', 'builtin:firmware', '-icount', '7,rr=replay,rrfile=/tmp/r']);
  t.deepEqual(options.icount?.rr, { mode: 'replay', file: '/tmp/r' });
});

test('-icount refuses what it cannot do, by name', (t) => {
  for (const [value, message] of [
    ['11', /shift=11: expected 0\.\.10 or auto/],
    ['shift=x', /shift=x/],
    ['sleep=on', /shift= is missing/],
    ['3,align=on', /align=on/],
    ['3,rr=record', /rrfile= is missing/],
    ['3,rrfile=/tmp/r', /rr=record or rr=replay is missing/],
    ['3,rr=play,rrfile=/tmp/r', /rr=play: expected record or replay/],
    ['auto,rr=record,rrfile=/tmp/r', /shift=auto/],
    ['3,rrfiles=/tmp/r', /rrfiles=: unknown; did you mean rrfile/],
  ] as const) {
    t.throws(() => parseIcount(value), { message }, value);
  }
});
