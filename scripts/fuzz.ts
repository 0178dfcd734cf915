// Changed and random bytes for every decoder. CI gives each target 15 s; a long run gives it hours.
import process from 'node:process';
import { fuzz } from './fuzz_engine.ts';
import { FUZZ_IMAGE_TARGETS } from './fuzz_image_targets.ts';
import { FUZZ_TARGETS } from './fuzz_targets.ts';
import { scriptArguments } from './script_arguments.ts';

const targets = [...FUZZ_TARGETS, ...FUZZ_IMAGE_TARGETS];
const names = targets.map(({ name }) => name);
const given = scriptArguments({
  help: `npm run fuzz -- [OPTIONS] [TARGET…]

Gives decoders broken bytes: changed, cut and random ones. What a target throws other than its own coded error, or takes in
time or memory beyond its limit, is a find: the input is printed, and the exit status is 1.

  TARGET       ${wrapped(names)}
               (default: all, one after the other)
  --seconds N  how long for each target (default 15)
  --inputs N   at most so many inputs for each target (default: no limit)
  --seed N     the same seed gives the same inputs (default: another one each time; it is printed)

  npm run fuzz                                            a quarter of a minute for each
  npm run fuzz -- --seconds 3600 nbd-uri                  one target for an hour
  npm run fuzz -- --seed 7 --inputs 100000 nbd-requests   a find once more, by the seed that it was printed with
`,
  options: {
    seconds: { type: 'string', default: '15', number: { least: 0.01, most: 1e7, fraction: true } },
    inputs: { type: 'string', default: 'Infinity', number: { least: 1, most: Infinity } },
    seed: { type: 'string', default: String(Date.now() % 2 ** 31), number: { least: 0, most: 2 ** 32 - 1 } },
  },
  operands: names,
});
const options = { seconds: given.number('seconds'), inputs: given.number('inputs'), seed: given.number('seed') };

/** Names in lines that stand under each other in the help. */
function wrapped(words: readonly string[]): string {
  const lines = [''];
  for (const word of words) {
    if (`${lines.at(-1)}${word}, `.length > 96) lines.push('');
    lines[lines.length - 1] += word === words.at(-1) ? word : `${word}, `;
  }
  return lines.map((line) => line.trimEnd()).join(`\n${' '.repeat(15)}`);
}
const before = process.memoryUsage().rss;
let finds = 0;
for (const target of targets) {
  if (given.operands.length > 0 && !given.operands.includes(target.name)) continue;
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
