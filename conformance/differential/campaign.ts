// A campaign: images of random programs, each run by every engine, by QEMU, and by pairs of engines in lockstep.
import { Random } from '../isa/random.ts';
import { compareRams, firstTrapDifference } from './compare.ts';
import { type Engine, EngineMachine } from './engine_machine.ts';
import { generateProgram } from './generate.ts';
import { buildImage, type Image } from './image.ts';
import { RAM_BASE, RECORD, SLOTS } from './layout.ts';
import { lockstep } from './lockstep.ts';
import type { ProgramPlan } from './nodes.ts';
import { pageTables } from './page_tables.ts';
import { runOnQemu } from './qemu_machine.ts';

/** Of an image's run; a program that takes longer has gone astray */
const LIMIT = 400e6;
/** Interrupts of an engine's own run come about so many instructions apart */
const SLICE = 30_000;

export interface Failure {
  /** `interpreter–qemu`, say */
  readonly pair: string;
  readonly program: ProgramPlan;
  /** Index in the program's legs, where it is known */
  readonly leg: number | undefined;
  readonly texts: readonly string[];
}

export interface PairTotal {
  instructions: bigint;
  programs: number;
  failures: number;
}

export interface CampaignOptions {
  readonly seed: number;
  /** Compared with QEMU and with each other; the first is the measure for the others */
  readonly engines: readonly Engine[];
  readonly qemu: boolean;
  /** Programs of one image, at most SLOTS */
  readonly programs: number;
  /** Of a leg, about */
  readonly instructionsPerLeg: number;
}

/** Programs of consecutive seeds, one a slot */
export function generateImage(
  seed: number,
  options: Pick<CampaignOptions, 'programs' | 'instructionsPerLeg'>,
  forQemu: boolean,
): Image {
  const programs = Array.from({ length: Math.min(options.programs, SLOTS) }, (_, slot) =>
    generateProgram({
      seed: seed + slot,
      slot,
      forQemu,
      instructions: options.instructionsPerLeg,
      satpToggle: pageTables.satpToggle.S,
    }),
  );
  return buildImage(programs);
}

/** Runs the image to its end with interrupts now and then; false where it takes too long. */
export function runOnEngine(
  image: Image,
  machine: EngineMachine,
  random: Random,
  limit = LIMIT,
): { ended: boolean; instructions: bigint } {
  machine.load(image);
  const start = machine.retired;
  for (let spent = 0; spent < limit; ) {
    const slice = 1 + random.below(2 * SLICE);
    spent += slice;
    if (random.once(2)) machine.ringTimer();
    if (!machine.run(slice)) return { ended: true, instructions: machine.retired - start };
  }
  return { ended: false, instructions: machine.retired - start };
}

export class Campaign {
  readonly #options: CampaignOptions;
  readonly #machines: ReadonlyMap<Engine, EngineMachine>;
  /** A second machine for each engine's comparison with itself or the first */
  readonly #reference: EngineMachine;
  readonly totals = new Map<string, PairTotal>();
  #seed: number;

  constructor(options: CampaignOptions) {
    this.#options = options;
    this.#seed = options.seed;
    this.#machines = new Map(options.engines.map((engine) => [engine, new EngineMachine(engine)]));
    this.#reference = new EngineMachine(options.engines[0]!);
  }

  /** The seed of the next image */
  get seed(): number {
    return this.#seed;
  }

  #count(pair: string, instructions: bigint, programs: number, failures: number): void {
    const total = this.totals.get(pair) ?? { instructions: 0n, programs: 0, failures: 0 };
    this.totals.set(pair, total);
    total.instructions += instructions;
    total.programs += programs;
    total.failures += failures;
  }

  /** One image for QEMU, one for the engines among themselves. */
  async step(): Promise<Failure[]> {
    const seed = this.#seed;
    this.#seed += this.#options.programs;
    const failures: Failure[] = [];
    if (this.#options.qemu) failures.push(...(await this.#againstQemu(seed)));
    failures.push(...this.#amongEngines(seed));
    return failures;
  }

  async #againstQemu(seed: number): Promise<Failure[]> {
    const image = generateImage(seed, this.#options, true);
    const failures: Failure[] = [];
    let theirs = await runOnQemu(image);
    // A busy host has starved QEMU once: what hangs, hangs again
    if (!theirs.ended) theirs = await runOnQemu(image);
    for (const [engine, machine] of this.#machines) {
      const pair = `${engine}–qemu`;
      const { ended, instructions } = runOnEngine(image, machine, new Random(seed));
      const found = ended && theirs.ended ? compareRams(image, machine.ram, theirs.ram) : hung(image, machine, theirs);
      failures.push(...found.map(({ program, leg, texts }) => ({ pair, program, leg, texts })));
      this.#count(pair, instructions, image.programs.length, found.length);
    }
    return failures;
  }

  #amongEngines(seed: number): Failure[] {
    const image = generateImage(seed, this.#options, false);
    const failures: Failure[] = [];
    const [first] = this.#options.engines;
    for (const [engine, machine] of this.#machines) {
      // An engine alone is compared with itself, stepping otherwise
      if (engine === first && this.#machines.size > 1) continue;
      const pair = `${first}–${engine}`;
      const options = { random: new Random(seed), limit: LIMIT, divide: engine === first };
      const { instructions, mismatch, ended } = lockstep(image, this.#reference, machine, options);
      this.#count(pair, instructions, image.programs.length, ended ? 0 : 1);
      if (ended) continue;
      const at = image.legs[mismatch?.leg ?? this.#reference.leg];
      const texts = mismatch
        ? [
            `after ${mismatch.retired} instructions, in ${mismatch.slice} from 0x${mismatch.pc.toString(16)}`,
            ...mismatch.texts,
          ]
        : ['did not end'];
      if (at) failures.push({ pair, program: at.program, leg: at.program.legs.indexOf(at.plan), texts });
    }
    return failures;
  }
}

/** Where one side did not end: the first leg that one side has finished and the other has not */
function hung(image: Image, machine: EngineMachine, theirs: { ram: Uint8Array; ended: boolean }) {
  const done = (ram: Uint8Array, record: number) => ram[record - RAM_BASE + RECORD.done] === 1;
  const leg = image.legs.find(({ record }) => !done(machine.ram, record) || !done(theirs.ram, record));
  if (leg === undefined) return [];
  const ours = done(machine.ram, leg.record) ? 'ended' : 'did not end';
  const texts = [`ours ${ours}, QEMU ${done(theirs.ram, leg.record) ? 'ended' : 'did not end'}`];
  return [{ program: leg.program, leg: leg.program.legs.indexOf(leg.plan), texts }];
}

/** Orders of slices and interrupts that a program alone is tried with */
const TIMINGS = 6;

/** Looks for what a program alone does differently on a pair, in the way that was found first. */
export class DifferenceFinder {
  readonly #engines: readonly [Engine, Engine | 'qemu'];
  readonly #limit: number;
  readonly #first: EngineMachine;
  #timing = 0;

  /** @param pair as in a `Failure`. @param limit instructions after which a run does not count */
  constructor(pair: string, limit: number) {
    this.#engines = pair.split('–') as [Engine, Engine | 'qemu'];
    this.#limit = limit;
    this.#first = new EngineMachine(this.#engines[0]);
  }

  /** Undefined where both do the same */
  async find(program: ProgramPlan): Promise<readonly string[] | undefined> {
    const image = buildImage([program]);
    const [first, second] = this.#engines;
    if (second === 'qemu') return this.#againstQemu(program, image);
    for (let i = 0; i < TIMINGS; i++) {
      const timing = (this.#timing + i) % TIMINGS;
      const options = { random: new Random(program.seed + timing), limit: this.#limit, divide: first === second };
      // What an engine has learned from another program must not decide
      const { mismatch } = lockstep(image, this.#first, new EngineMachine(second), options);
      if (mismatch === undefined) continue;
      this.#timing = timing;
      return mismatch.texts;
    }
    return undefined;
  }

  async #againstQemu(program: ProgramPlan, image: Image): Promise<readonly string[] | undefined> {
    const machine = new EngineMachine(this.#engines[0]);
    if (!runOnEngine(image, machine, new Random(program.seed), this.#limit).ended) return undefined;
    const theirs = await runOnQemu(image, 10_000);
    if (!theirs.ended) return undefined;
    const texts = compareRams(image, machine.ram, theirs.ram)[0]?.texts;
    if (texts === undefined) return undefined;
    const trap = program.legs.length === 1 ? firstTrapDifference(machine.ram, theirs.ram) : undefined;
    return trap === undefined ? texts : [...texts, trap];
  }
}
