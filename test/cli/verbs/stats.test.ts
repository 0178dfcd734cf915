import test from 'ava';
import { renderStats, statsVerb } from '../../../cli/verbs/stats.ts';

const hart = (entries: Record<string, number>) => new Map(Object.entries(entries));

test('renderStats() shows totals, and with an earlier sample what they rise a second', (t) => {
  const before = { atMs: 1000, harts: [hart({ instructions: 1_000_000, waits: 5 })] };
  const now = { atMs: 3000, harts: [hart({ instructions: 201_000_000, waits: 7 })] };
  t.is(renderStats(before), '                    hart 0\ninstructions         1.00M\nwaits                    5\n');
  const rows = renderStats(now, before).split('\n');
  t.regex(rows[1]!, /^instructions +201M +100M\/s$/);
  t.regex(rows[2]!, /^waits +7 +1\/s$/);
});

test('renderStats() has the units of what is no number', (t) => {
  const rows = renderStats({ atMs: 0, harts: [hart({ waits: 1, 'translated-code': 2, 'translation-time': 3 })] });
  t.regex(rows, /^waits +1$/m);
  t.regex(rows, /^translated-code \(bytes\) +2$/m);
  t.regex(rows, /^translation-time \(µs\) +3$/m);
});

test('stats refuses options that do not exist and intervals that make no sense', async (t) => {
  await t.throwsAsync(statsVerb.run(['vm', '--often']), { message: /Cannot use --often/ });
  await t.throwsAsync(statsVerb.run(['vm', '--interval', '0']), { message: /expected 0.1..3600/ });
  await t.throwsAsync(statsVerb.run([]), { message: /VM is missing/ });
});
