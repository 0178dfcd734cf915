// Every litmus test and every counter, many rounds each, with the outcomes that were seen.
import process from 'node:process';
import { ENGINES } from '../conformance/differential/engine_machine.ts';
import { HARTS, runLitmus } from '../conformance/litmus/run.ts';
import { scriptArguments } from './script_arguments.ts';

const given = scriptArguments({
  help: `node scripts/run.mjs scripts/litmus.ts [OPTIONS]

Runs small programs on two to four harts whose outcomes tell whether memory is ordered as the specification says (RVWMO), and
counters that lose no count if atomic instructions are atomic. Prints how often each outcome was seen. Exit status 1: one
that is forbidden, or a lost count.

  --rounds N     of each test (default 1e6)
  --engine NAME  ${ENGINES.join(' or ')} (default: each)
  --test NAME    only tests whose name begins so

  node scripts/run.mjs scripts/litmus.ts --rounds 1e5 --engine translator --test SB
`,
  options: {
    rounds: { type: 'string', default: '1e6', number: { least: 1, most: 1e9 } },
    engine: { type: 'string', oneOf: ENGINES },
    test: { type: 'string', default: '' },
  },
});
const TIMEOUT_MS = 3_600_000;
const wanted = given.text('engine');
const engines = ENGINES.filter((engine) => wanted === undefined || wanted === engine);
let bad = 0;
for (const engine of engines) {
  for (const harts of HARTS) {
    const started = performance.now();
    const { rounds, results, counts } = await runLitmus(
      harts,
      given.number('rounds'),
      engine,
      TIMEOUT_MS,
      given.text('test'),
    );
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
