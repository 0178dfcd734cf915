import test from 'ava';
import { GROUPS, parseNbdOptions } from '../../../bench/nbd/options.ts';

test('without words everything is measured, five turns of a second', (t) => {
  const { groups, rounds, runMs, brief, only } = parseNbdOptions([]);
  t.deepEqual([...groups], [...GROUPS]);
  t.deepEqual([rounds, runMs, brief, only], [5, 1000, false, undefined]);
});

test('--quick is one short turn, and what is said beside it stands', (t) => {
  t.like(parseNbdOptions(['tls', '--quick']), { rounds: 1, runMs: 300 });
  t.like(parseNbdOptions(['--quick', '--rounds', '2']), { rounds: 2, runMs: 300 });
});

test('limits are measured where nothing else is asked for, or they are', (t) => {
  t.true(parseNbdOptions([]).limits);
  t.true(parseNbdOptions(['--must']).limits);
  t.false(parseNbdOptions(['--only', 'TLS']).limits);
  t.true(parseNbdOptions(['limits', 'tls', '--only', 'TLS']).limits);
});

for (const [what, args, expected] of [
  ['an unknown group', ['disk'], /^Cannot measure disk: expected random, /],
  ['no turns', ['--rounds', '0'], /^Cannot take --rounds 0: expected 1\.\.100$/],
  ['a time below what fio can do', ['--ms', '10'], /^Cannot take --ms 10: expected 100\.\.60000$/],
  ['an unknown option', ['--fast'], /^Cannot understand the options: /],
] as const) {
  test(`refuses ${what}`, (t) => {
    const error = t.throws(() => parseNbdOptions(args), { message: expected });
    t.is((error as Error & { code?: string }).code, 'ERR_BENCH_USAGE');
    t.regex((error as Error & { usage?: string }).usage ?? '', /^npm run bench -- nbd /);
  });
}
