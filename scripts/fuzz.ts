// `node scripts/run.mjs scripts/fuzz.ts [--seconds N] [--seed N] [--inputs N] [TARGET…]`: changed and random bytes for
// every decoder of NBD. What a target throws other than WireError, or takes longer or more memory than it may, is a
// find: the input is printed, and the exit status is 1. CI gives each target 15 s; a long run gives it hours.
import process from 'node:process';
import { parseArgs } from 'node:util';
import { fuzz } from './fuzz_engine.ts';
import { FUZZ_TARGETS } from './fuzz_targets.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '15' },
    inputs: { type: 'string', default: 'Infinity' },
    seed: { type: 'string', default: String(Date.now() % 2 ** 31) },
  },
});
const unknown = positionals.find((name) => !FUZZ_TARGETS.some((target) => target.name === name));
if (unknown !== undefined) {
  process.stderr.write(`Cannot fuzz ${unknown}: expected ${FUZZ_TARGETS.map(({ name }) => name).join(', ')}\n`);
  process.exit(2);
}
const options = { seconds: Number(values.seconds), inputs: Number(values.inputs), seed: Number(values.seed) };
const before = process.memoryUsage().rss;
let finds = 0;
for (const target of FUZZ_TARGETS) {
  if (positionals.length > 0 && !positionals.includes(target.name)) continue;
  const startMs = performance.now();
  const outcome = fuzz(target, options);
  finds += outcome.finds;
  const seconds = (performance.now() - startMs) / 1000;
  process.stdout.write(
    `${target.name}: ${outcome.inputs} inputs in ${seconds.toFixed(1)} s, ${outcome.refused} refused, ` +
      `${outcome.finds} finds, seed ${options.seed}\n`,
  );
}
process.stdout.write(`memory grew by ${Math.round((process.memoryUsage().rss - before) / 2 ** 20)} MiB\n`);
process.exitCode = finds === 0 ? 0 : 1;
