// Random programs on our engines and on QEMU until enough instructions are compared by every pair.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { Campaign, DifferenceFinder, type Failure } from '../conformance/differential/campaign.ts';
import { ENGINES } from '../conformance/differential/engine_machine.ts';
import { listing } from '../conformance/differential/listing.ts';
import { countNodes, minimise } from '../conformance/differential/minimise.ts';
import { probeQemuSystem } from '../conformance/differential/qemu_machine.ts';
import { scriptArguments } from './script_arguments.ts';

const given = scriptArguments({
  help: `node scripts/run.mjs scripts/differential.ts [OPTIONS]

Runs random programs on the interpreter, the translator and QEMU, and compares registers and memory after each leg, until every
pair has executed enough instructions. What differs is made small and written to a folder: a listing to read, and JSON
that conformance/differential/regressions takes. Exit status 1: something differs.

  --instructions N  until every pair has compared so many (default 1e8)
  --seed N          of the first program; the next ones count on (default 1)
  --leg N           instructions between two comparisons (default 400000)
  --programs N      programs in one image (default 64)
  --keep FOLDER     where failures go (default differential-failures)
  --no-qemu         engine with engine only

  node scripts/run.mjs scripts/differential.ts --instructions 1e8 --seed 12345
`,
  options: {
    instructions: { type: 'string', default: '1e8', number: { least: 1, most: 1e15 } },
    seed: { type: 'string', default: '1', number: { least: 0, most: 2 ** 32 - 1 } },
    leg: { type: 'string', default: '400000', number: { least: 1, most: 1e9 } },
    programs: { type: 'string', default: '64', number: { least: 1, most: 4096 } },
    keep: { type: 'string', default: 'differential-failures' },
    'no-qemu': { type: 'boolean', default: false },
  },
});
const MINIMISED = 3;
const MINIMISER_RUNS = 600;
const MINIMISER_LIMIT = 20e6;

const goal = BigInt(given.number('instructions'));
const folder = given.text('keep')!;
const qemu = probeQemuSystem();
const say = (text: string): void => {
  process.stdout.write(`${text}\n`);
};

async function keep({ pair, program, leg, texts }: Failure): Promise<void> {
  say(`  ${pair}: seed ${program.seed} slot ${program.slot} leg ${leg}: ${texts.join('; ')}`);
  const finder = new DifferenceFinder(pair, MINIMISER_LIMIT);
  const difference = (candidate: typeof program) => finder.find(candidate);
  if ((await difference(program)) === undefined) {
    say('  not alone: needs its neighbours or another timing');
    return;
  }
  const small = await minimise(program, {
    fails: async (candidate) => (await difference(candidate)) !== undefined,
    budget: MINIMISER_RUNS,
    progress: (nodes, runs) => {
      if (runs % 50 === 0) process.stderr.write(`  minimising: ${nodes} items after ${runs} runs\n`);
    },
  });
  const found = (await difference(small)) ?? [];
  mkdirSync(folder, { recursive: true });
  const path = join(folder, `${pair.replace('–', '_')}_${program.seed}`);
  const about = found.join('; ');
  writeFileSync(`${path}.json`, `${JSON.stringify({ about, pair, program: small })}\n`);
  writeFileSync(`${path}.txt`, `${pair}\n${about}\n${listing(small)}`);
  say(`  ${countNodes(program)} → ${countNodes(small)} items: ${path}.txt: ${about}`);
}

const campaign = new Campaign({
  seed: given.number('seed'),
  engines: ENGINES,
  qemu: 'version' in qemu && !given.flag('no-qemu'),
  programs: given.number('programs'),
  instructionsPerLeg: given.number('leg'),
});
say('version' in qemu ? qemu.version : `without QEMU: ${qemu.missing}`);
const started = performance.now();
let kept = 0;
for (;;) {
  const { seed } = campaign;
  const failures = await campaign.step();
  const totals = [...campaign.totals].map(
    ([pair, { instructions, programs, failures: failed }]) =>
      `${pair} ${(Number(instructions) / 1e6).toFixed(1)} M instructions, ${programs} programs, ${failed} mismatches`,
  );
  say(`${((performance.now() - started) / 1000).toFixed(0)} s, seeds from ${seed}: ${totals.join('; ')}`);
  for (const failure of failures) if (kept++ < MINIMISED) await keep(failure);
  if ([...campaign.totals.values()].every(({ instructions }) => instructions >= goal)) break;
}
process.exitCode = [...campaign.totals.values()].some(({ failures }) => failures > 0) ? 1 : 0;
