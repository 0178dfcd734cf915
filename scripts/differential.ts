// `node scripts/run.mjs scripts/differential.ts [--instructions N] [--seed S] [--leg N] [--programs N] [--keep FOLDER]
// [--no-qemu]`: random programs on our engines and on QEMU until N instructions are compared by every pair. Failures
// are made small and written to FOLDER, as a listing and as what conformance/differential/regressions takes.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { Campaign, DifferenceFinder, type Failure } from '../conformance/differential/campaign.ts';
import { ENGINES } from '../conformance/differential/engine_machine.ts';
import { listing } from '../conformance/differential/listing.ts';
import { countNodes, minimise } from '../conformance/differential/minimise.ts';
import { probeQemuSystem } from '../conformance/differential/qemu_machine.ts';

const { values } = parseArgs({
  options: {
    instructions: { type: 'string', default: '1e8' },
    seed: { type: 'string', default: '1' },
    leg: { type: 'string', default: '400000' },
    programs: { type: 'string', default: '64' },
    keep: { type: 'string', default: 'differential-failures' },
    'no-qemu': { type: 'boolean', default: false },
  },
});
const MINIMISED = 3;
const MINIMISER_RUNS = 600;
const MINIMISER_LIMIT = 20e6;

const goal = BigInt(Number(values.instructions));
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
  mkdirSync(values.keep, { recursive: true });
  const path = join(values.keep, `${pair.replace('–', '_')}_${program.seed}`);
  const about = found.join('; ');
  writeFileSync(`${path}.json`, `${JSON.stringify({ about, pair, program: small })}\n`);
  writeFileSync(`${path}.txt`, `${pair}\n${about}\n${listing(small)}`);
  say(`  ${countNodes(program)} → ${countNodes(small)} items: ${path}.txt: ${about}`);
}

const campaign = new Campaign({
  seed: Number(values.seed),
  engines: ENGINES,
  qemu: 'version' in qemu && !values['no-qemu'],
  programs: Number(values.programs),
  instructionsPerLeg: Number(values.leg),
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
