// Random programs on our engines and on QEMU: registers, flags, memory, page tables and traps must be the same. And our
// engines among themselves, instruction for instruction. `scripts/differential.ts` does the same for hours.
//
//   CAISSON_DIFFERENTIAL_SEED=n CAISSON_DIFFERENTIAL_IMAGES=n  choose the first seed and how many images are run
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { encode } from '../../emulator/isa/mod.ts';
import { Random } from '../isa/random.ts';
import { Campaign, DifferenceFinder, generateImage, runOnEngine } from './campaign.ts';
import { compareRams } from './compare.ts';
import { ENGINES, EngineMachine } from './engine_machine.ts';
import type { Image } from './image.ts';
import { DATA_OFFSET, JUMP_BUFFERS, PAGE, RAM_BASE, RECORD, slotBase } from './layout.ts';
import { listing } from './listing.ts';
import { lockstep } from './lockstep.ts';
import { countNodes, minimise } from './minimise.ts';
import type { ProgramPlan } from './nodes.ts';
import { pageTables } from './page_tables.ts';
import { probeQemuSystem } from './qemu_machine.ts';

const SEED = Number(process.env.CAISSON_DIFFERENTIAL_SEED ?? 1);
const IMAGES = Number(process.env.CAISSON_DIFFERENTIAL_IMAGES ?? 2);
const REGRESSIONS = join(import.meta.dirname, 'regressions');
const LIMIT = 100e6;

const qemu = probeQemuSystem();

test.serial('Random programs end as on QEMU, and as on the other engine after each slice', async (t) => {
  const withQemu = 'version' in qemu;
  t.log(withQemu ? qemu.version : `without QEMU: ${qemu.missing}`);
  const campaign = new Campaign({
    seed: SEED,
    engines: ENGINES,
    qemu: withQemu,
    programs: 48,
    instructionsPerLeg: 60_000,
  });
  for (let image = 0; image < IMAGES; image++) {
    for (const { pair, program, leg, texts } of await campaign.step()) {
      t.fail(`${pair}: seed ${program.seed} leg ${leg}: ${texts.join('; ')}`);
    }
  }
  for (const [pair, { instructions, programs }] of campaign.totals) {
    t.log(`${pair}: seeds from ${SEED}, ${programs} programs, ${instructions} instructions`);
    t.true(instructions > 1_000_000n, `${pair} compared next to nothing`);
  }
});

/** A few programs, run on our first engine */
function runSome(seed: number): { image: Image; machine: EngineMachine; ram: Uint8Array } {
  const image = generateImage(seed, { programs: 3, instructionsPerLeg: 5000 }, true);
  const machine = new EngineMachine(ENGINES[0]);
  runOnEngine(image, machine, new Random(seed));
  return { image, machine, ram: machine.ram.slice() };
}

test.serial('The comparison sees a bit that differs in a register, in memory, and in a page table entry', (t) => {
  const { image, ram } = runSome(SEED);
  t.deepEqual(compareRams(image, ram, ram), []);
  const program = image.programs[1]!;
  const places = [
    image.legs.find((leg) => leg.program === program)!.record + RECORD.x + 8 * 13,
    slotBase(program.slot) + DATA_OFFSET + 0x345,
    pageTables.entries('S', program.slot) + 8 * (DATA_OFFSET / PAGE + 3),
  ];
  for (const address of places) {
    const changed = ram.slice();
    changed[address - RAM_BASE]! ^= 64;
    const found = compareRams(image, ram, changed);
    t.deepEqual(
      found.map((one) => one.program.seed),
      [program.seed],
    );
    t.is(found[0]!.texts.length, 1, found[0]!.texts.join('; '));
  }
});

test.serial('Lockstep sees a register and a byte of memory that differ at some time', (t) => {
  const { image, machine } = runSome(SEED);
  const other = new EngineMachine(ENGINES[0]);
  const options = () => ({ random: new Random(SEED), limit: LIMIT, divide: true });
  t.is(lockstep(image, machine, other, options()).mismatch, undefined);
  const run = other.run.bind(other);
  for (const [change, expected] of [
    [() => other.hart.setX(4, other.hart.x(4) ^ 1n), /^x4 /],
    [
      () => {
        other.ram[JUMP_BUFFERS]! ^= 1;
        other.dirty[JUMP_BUFFERS / PAGE] = 0xff;
      },
      /^\[0x8001f000\]/,
    ],
  ] as const) {
    let runs = 0;
    other.run = (instructions) => {
      const goesOn = run(instructions);
      if (++runs === 5) change();
      return goesOn;
    };
    const { mismatch } = lockstep(image, machine, other, options());
    t.regex(mismatch?.texts.find((text) => expected.test(text)) ?? '', expected);
  }
});

test.serial('The minimiser leaves what a failure needs, and nothing else', async (t) => {
  const { image } = runSome(SEED);
  const wanted = encode('mulhsu', { rd: 31, rs1: 30, rs2: 29 });
  const body = [...image.programs[0]!.functions[0]!.body, { t: 'group', body: [wanted, wanted] } as const];
  const program = image.programs[0]!;
  const planted = { ...program, functions: [{ ...program.functions[0]!, body }, ...program.functions.slice(1)] };
  const small = await minimise(planted, {
    fails: async (candidate) => listing(candidate).includes('mulhsu t6,t5,t4'),
    budget: 2000,
  });
  t.is(countNodes(small), 1);
  t.is(small.legs.length, 1);
  t.deepEqual(small.functions.filter(Boolean).length, 1);
});

interface Regression {
  readonly about: string;
  readonly pair: string;
  readonly program: ProgramPlan;
}

for (const file of readdirSync(REGRESSIONS).filter((name) => name.endsWith('.json'))) {
  test.serial(`Kept: ${file}`, async (t) => {
    const { about, pair, program } = JSON.parse(readFileSync(join(REGRESSIONS, file), 'utf8')) as Regression;
    t.log(`${pair}: ${about}`);
    if (pair.includes('qemu') && 'missing' in qemu) {
      t.log(`SKIPPED: ${qemu.missing}`);
      t.pass();
      return;
    }
    const texts = await new DifferenceFinder(pair, LIMIT).find(program);
    if (texts !== undefined) t.log(listing(program));
    t.deepEqual(texts, undefined);
  });
}
