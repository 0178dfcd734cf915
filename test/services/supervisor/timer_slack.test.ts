import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import test from 'ava';
import { withExactTimers } from '../../../services/supervisor/timer_slack.ts';

const FILE = '/proc/self/timerslack_ns';

// In a process of its own: tests beside this one start machines, too.
const PROGRAM = `
  import { spawnSync } from 'node:child_process';
  import { readFileSync } from 'node:fs';
  import { withExactTimers } from ${JSON.stringify(new URL('../../../services/supervisor/timer_slack.ts', import.meta.url).href)};
  const slack = () => readFileSync('${FILE}', 'latin1').trim();
  const before = slack();
  const child = withExactTimers(() => spawnSync('cat', ['${FILE}'], { encoding: 'latin1' })).stdout.trim();
  let thrown = false;
  try {
    withExactTimers(() => { throw new Error('not started'); });
  } catch { thrown = true; }
  console.log(JSON.stringify({ before, child, after: slack(), thrown }));
`;

test('a process that is started so has no slack, and the one that starts it has its own again', (t) => {
  if (!existsSync(FILE)) {
    t.is(
      withExactTimers(() => 7),
      7,
    );
    return;
  }
  const run = spawnSync(process.execPath, [...process.execArgv, '--input-type=module', '--eval', PROGRAM], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  t.is(run.status, 0, run.stderr);
  const { before, child, after, thrown } = JSON.parse(run.stdout);
  t.is(child, '1');
  t.is(after, before);
  t.true(thrown);
});
