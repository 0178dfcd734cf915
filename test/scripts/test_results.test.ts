import test from 'ava';
import { countResults } from '../../scripts/test_results.ts';

const LOG = `
  ✔ a › one (1.2s)
    ℹ SKIPPED: no peer
    ℹ SKIPPED: said twice
  ✔ a › two
    ℹ seed 1
  - [skip] a › three
  ✘ [fail]: b › four expected
  ✔ [expected fail] b › five
  ─

  b › four

  1 test failed
`;

test('countResults() counts a test that logged SKIPPED as skipped, not as passed', (t) => {
  t.deepEqual(countResults(LOG, 1), { passed: 2, failed: 1, skipped: 2, reasons: ['no peer', 'said twice'] });
});

test('countResults() reads coloured lines', (t) => {
  t.is(countResults('  \x1b[32m✔\x1b[39m a › one\n', 0).passed, 1);
});

test('countResults() counts a file that died', (t) => {
  t.is(countResults('  ✔ a\n  ✘ test/x.test.ts exited with a non-zero exit code: 3\n', 1).failed, 1);
});

test('countResults() never calls a run good that ended badly', (t) => {
  t.deepEqual(countResults('  ✔ a\n', 1), { passed: 1, failed: 1, skipped: 0, reasons: [] });
  t.is(countResults('', 127).failed, 1);
  t.is(countResults('', 0).failed, 0);
});
