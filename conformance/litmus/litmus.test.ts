// The memory model with several harts at work: no outcome that it forbids is seen, and no count is lost.
// `scripts/litmus.ts` runs the same for longer.
//
//   CAISSON_LITMUS_ROUNDS=n  chooses how often each test is run
import test from 'ava';
import { ENGINES } from '../differential/engine_machine.ts';
import { LITMUS_TESTS } from './litmus_tests.ts';
import { isForbidden } from './program.ts';
import { HARTS, runLitmus } from './run.ts';

const ROUNDS = Number(process.env.CAISSON_LITMUS_ROUNDS ?? 2000);
const TIMEOUT_MS = 10 * 60_000;

for (const engine of ENGINES) {
  for (const harts of HARTS) {
    test.serial(`${harts} harts on the ${engine}: nothing that the memory model forbids, no count lost`, async (t) => {
      const { rounds, results, counts } = await runLitmus(harts, ROUNDS, engine, TIMEOUT_MS);
      for (const { test: litmus, histogram, forbidden } of results) {
        const text = [...histogram].map(([outcome, count]) => `${outcome}: ${count}`).join(' | ');
        t.log(`${litmus.name}: ${text}`);
        t.deepEqual(forbidden, new Map(), litmus.name);
        const total = [...histogram.values()].reduce((sum, count) => sum + count, 0);
        t.is(total, rounds, `${litmus.name}: rounds counted`);
      }
      // Harts that never meet would prove nothing
      const varied = results.filter(({ histogram }) => histogram.size > 1);
      t.true(
        2 * varied.length > results.length,
        `${varied.length} of ${results.length} tests had more than one outcome`,
      );
      for (const [counter, count] of counts) t.is(count, harts * rounds, `${counter}: counts lost`);
      t.log(`${rounds} rounds, ${results.length} tests, ${counts.size} counters`);
    });
  }
}

test('What is forbidden is recognised, and what is allowed is not', (t) => {
  const named = (name: string) => LITMUS_TESTS.find((one) => one.name === name)!;
  t.true(isForbidden(named('MP+fence.rw.rw+fence.rw.rw'), 'a=1 b=0'));
  t.false(isForbidden(named('MP+fence.rw.rw+fence.rw.rw'), 'a=0 b=1'));
  t.false(isForbidden(named('SB'), 'a=0 b=0'));
  t.true(isForbidden(named('IRIW+fence.rw.rw'), 'a=1 b=0 c=1 d=0'));
  t.true(isForbidden(named('LR-SC against a store'), 'a=0 b=0 x=1'));
});
