// `node scripts/run.mjs scripts/litmus.ts [--rounds N] [--engine NAME] [--test NAME]`: every litmus test, or those
// whose name begins so, and every counter, N rounds each, with the outcomes that were seen.
import process from 'node:process';
import { parseArgs } from 'node:util';
import { ENGINES } from '../conformance/differential/engine_machine.ts';
import { HARTS, runLitmus } from '../conformance/litmus/run.ts';

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '1e6' },
    engine: { type: 'string' },
    test: { type: 'string', default: '' },
  },
});
const TIMEOUT_MS = 3_600_000;
const engines = ENGINES.filter((engine) => values.engine === undefined || values.engine === engine);
let bad = 0;
for (const engine of engines) {
  for (const harts of HARTS) {
    const started = performance.now();
    const { rounds, results, counts } = await runLitmus(harts, Number(values.rounds), engine, TIMEOUT_MS, values.test);
    const seconds = ((performance.now() - started) / 1000).toFixed(0);
    process.stdout.write(`${engine}, ${harts} harts, ${rounds} rounds of each test, ${seconds} s\n`);
    for (const { test, histogram, forbidden } of results) {
      const outcomes = [...histogram].map(([outcome, count]) => `${outcome}: ${count}`).join(' | ');
      bad += forbidden.size;
      process.stdout.write(`  ${forbidden.size > 0 ? 'FORBIDDEN ' : ''}${test.name}\n    ${outcomes}\n`);
    }
    for (const [counter, count] of counts) {
      const lost = harts * rounds - count;
      bad += lost === 0 ? 0 : 1;
      process.stdout.write(`  ${counter}: ${count} of ${harts * rounds}\n`);
    }
  }
}
process.exitCode = bad > 0 ? 1 : 0;
