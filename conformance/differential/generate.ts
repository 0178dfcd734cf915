// A program from a seed: functions from the last to the first, so that a call's cost is known where it is made.
import { encode } from '../../emulator/isa/mod.ts';
import { Random } from '../isa/random.ts';
import { BodyGenerator, type BodyRules, type Weights } from './body_generator.ts';
import { X } from './handlers.ts';
import { FAR_PIECES } from './layout.ts';
import type { FunctionPlan, LegPlan, Mode, Node, ProgramPlan, Word } from './nodes.ts';
import { WINDOW_FUNCTIONS } from './nodes.ts';
import { COUNTERS } from './scope.ts';
import { Words } from './words.ts';

export interface GenerateOptions {
  readonly seed: number;
  readonly slot: number;
  /** Leaves out what QEMU 7.2 does not know or does otherwise */
  readonly forQemu: boolean;
  /** Instructions that a leg executes, about */
  readonly instructions: number;
  readonly satpToggle: bigint;
}

const MAX_FUNCTIONS = 14;

/** Emphases: a program has one, and some of everything */
const EMPHASES: readonly Partial<Weights>[] = [
  {},
  { integer: 60, memory: 30 },
  { float: 80 },
  { float: 60, system: 20, memory: 20 },
  { memory: 70 },
  { control: 40, loop: 20 },
  { call: 50, control: 10 },
  { trap: 10, memory: 20 },
  { atomic: 20, memory: 20 },
  { patch: 8, call: 20 },
  { pages: 30, call: 10 },
  { pages: 20, memory: 20, trap: 6 },
];
const PLAIN: Weights = {
  integer: 24, float: 12, memory: 16, control: 10, loop: 6, call: 12, system: 3, trap: 2, atomic: 3, patch: 1, pages: 4,
}; // biome-ignore format: a table

function randomLegs(random: Random): LegPlan[] {
  const leg = (mode: Mode, paging: boolean): LegPlan => ({
    mode,
    paging,
    space: random.once(2) ? 1 : 0,
    medeleg: random.once(3) ? 0 : random.u32() & 0xb1ff,
    sum: random.once(2),
    mxr: random.once(2),
  });
  if (random.once(12)) return [leg('M', true)];
  // One program in three also runs without paging; then it keeps to what bare machines agree on
  if (random.once(3)) return [leg('M', false), leg('S', true), leg('U', random.once(2))];
  return [leg('S', true), leg('U', true)];
}

export function generateProgram(options: GenerateOptions): ProgramPlan {
  const { seed, slot, forQemu } = options;
  const random = new Random(seed);
  const legs = randomLegs(random);
  const weights = { ...PLAIN, ...random.pick(EMPHASES) };
  // Some programs never trap
  if (random.once(4)) Object.assign(weights, { trap: 0, pages: 0 });
  const count = 3 + random.below(MAX_FUNCTIONS - 2);
  const millicode = new Set<number>();
  for (let index = 1; index < count; index++) if (random.once(7)) millicode.add(index);
  const skips = new Map<number, boolean | 'outlined' | 'maybe'>();
  for (let index = 1; index < count; index++) {
    if (!random.once(7)) continue;
    skips.set(index, millicode.has(index) ? true : random.pick([true, 'outlined', 'outlined', 'maybe'] as const));
  }
  // Of every second program some functions are far away
  const isSpread = random.once(2);
  const costs = new Map<number, number>();
  const rules: BodyRules = {
    random,
    forQemu,
    weights,
    bare: legs.some(({ paging, mode }) => !paging || mode === 'M'),
    borrows: legs.every(({ paging, mode }) => paging && mode === 'M'),
    anyMachine: legs.some(({ mode }) => mode === 'M'),
    anySupervisor: legs.some(({ mode }) => mode === 'S'),
    satpToggle: options.satpToggle,
    costs,
    keepRa: new Set(),
    changers: new Set(),
    kindOf: (index) => `${millicode.has(index)} ${skips.has(index)}`,
  };
  const functions: FunctionPlan[] = [];
  for (let index = count - 1; index > 0; index--) {
    // Called often: small ones at the bottom, larger ones above
    const budget = Math.min(options.instructions / 16, 40 * 3 ** Math.min(6, (count - 1 - index) / 2));
    // The last one may be called by all
    const changes = index === count - 1 && !millicode.has(index) && weights.pages > 0 && !random.once(4);
    const isShort = changes || (millicode.has(index) ? random.once(2) : random.once(5));
    const plan = isShort
      ? makeShort(rules, millicode.has(index), changes)
      : makeFunction(rules, budget, index, millicode.has(index));
    const far = isSpread && !random.once(3) ? random.below(FAR_PIECES) : undefined;
    functions[index] = { ...plan.plan, skips: skips.get(index) ?? false, far };
    costs.set(index, plan.cost);
    if (plan.changes) rules.changers.add(index);
    if (millicode.has(index) && (plan.plan.leaf || plan.plan.keepsRa)) rules.keepRa.add(index);
  }
  functions[0] = makeMain(rules, options.instructions);
  const words = new Words(random, forQemu);
  const windows = [0, 1].map(() => Array.from({ length: WINDOW_FUNCTIONS }, () => windowFunction(random, words)));
  const frm = random.once(3) ? random.below(5) : 0;
  return { seed, slot, functions, windows, legs, short: !random.once(4), frm, timerMoves: !forQemu };
}

function chooseSaves(random: Random, atLeast: number): number[] {
  const saves = COUNTERS.slice(0, atLeast + random.below(3)) as number[];
  // x8 and x9 have short forms
  if (random.once(2)) saves.push(8);
  if (random.once(2)) saves.push(9);
  return saves;
}

interface Made {
  readonly plan: FunctionPlan;
  readonly cost: number;
  /** Does nothing but change pages or rights */
  readonly changes?: boolean;
}

const alignment = (random: Random): number => (random.once(6) ? 256 : random.once(2) ? 2 : 16);

function makeFunction(rules: BodyRules, budget: number, index: number, millicode: boolean): Made {
  const { random } = rules;
  const leaf = random.once(4);
  const saves = chooseSaves(random, leaf ? 1 : 3);
  const twice = random.once(2);
  const recursion =
    !leaf && !millicode && random.once(8)
      ? {
          counter: saves[0]!,
          depth: twice ? 1 + random.below(7) : random.once(4) ? 100 + random.below(200) : 1 + random.below(12),
          twice,
        }
      : undefined;
  const calls = recursion === undefined ? 1 : twice ? 2 ** (recursion.depth * 0.8) : recursion.depth + 1;
  const body = new BodyGenerator(rules, recursion ? saves.slice(1) : saves, { leaf, millicode });
  const nodes = body.items(3 + random.below(8), budget / calls);
  nodes.push(body.fold());
  if (!leaf && random.once(6)) nodes.splice(random.below(nodes.length), 0, ...body.jumpOut());
  const own = body.costOf(nodes) + 2 * saves.length + 8;
  const tails = [...rules.costs.keys()].filter(
    (callee) => callee > index && rules.kindOf(callee) === rules.kindOf(index),
  );
  const tail = recursion === undefined && tails.length > 0 && random.once(6) ? random.pick(tails) : undefined;
  const cost = own * calls + (tail === undefined ? 0 : rules.costs.get(tail)!);
  const routines = { saves: random.once(2), restores: random.pick(['call', 'tail', 'no'] as const) };
  const outlined = !millicode && random.once(4) ? routines : undefined;
  const keepsRa = millicode && !leaf && random.once(2);
  return {
    plan: { saves, leaf, millicode, keepsRa, outlined, recursion, align: alignment(random), body: nodes, tail },
    cost,
  };
}

/** A few instructions without a frame, which may call what keeps ra: called by way of ra or, as the prologues of size-optimised code, t0 */
function makeShort(rules: BodyRules, millicode: boolean, changes: boolean): Made {
  const { random } = rules;
  const plain: Weights = {
    ...rules.weights,
    control: 0,
    loop: 0,
    call: millicode ? 0 : 8,
    trap: 0,
    patch: 0,
    memory: millicode ? 0 : 4,
    atomic: 0,
    system: 0,
    pages: 0,
  };
  const body = new BodyGenerator({ ...rules, weights: { ...plain, integer: 10, float: 5 } }, [], {
    leaf: true,
    millicode,
  });
  const change = changes ? body.change() : undefined;
  const nodes = change ?? body.items(1 + random.below(4), 100);
  return {
    plan: { saves: [], leaf: true, millicode, align: alignment(random), body: nodes },
    cost: body.costOf(nodes) + 2,
    changes: change !== undefined,
  };
}

/** A few phases; each is a loop that runs as often as the budget allows */
function makeMain(rules: BodyRules, instructions: number): FunctionPlan {
  const { random } = rules;
  const saves = COUNTERS.slice(0, 8) as number[];
  const phases = 1 + random.below(4);
  const body: Node[] = [];
  const calling = { ...rules, weights: { ...rules.weights, call: rules.weights.call + 30 } };
  for (let phase = 0; phase < phases; phase++) {
    const generator = new BodyGenerator(calling, saves.slice(1), { leaf: false, millicode: false });
    const nodes = generator.items(3 + random.below(8), instructions / 32);
    nodes.push(generator.fold());
    const rounds = Math.max(4, Math.floor(instructions / phases / (3 + generator.costOf(nodes))));
    body.push({ t: 'loop', counter: saves[0]!, rounds, up: random.once(2), body: nodes });
  }
  return { saves, leaf: false, millicode: false, align: 2, body };
}

function windowFunction(random: Random, words: Words): Word[] {
  const registers = { destination: () => 10 + random.below(6), source: () => 8 + random.below(10) };
  const body = Array.from({ length: 1 + random.below(10) }, () => words.integer(registers)).flat();
  return [...body, encode('xor', { rd: X.tp, rs1: X.tp, rs2: 10 + random.below(6) })];
}
