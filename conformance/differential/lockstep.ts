// Engine against engine, exact to the instruction: both run the same slices, interrupts come at the same counts, and
// after each slice the whole hart and all memory that either has written are compared.
import * as H from '../../emulator/kernel/assembly/hart_layout.ts';
import { DIRTY_MIGRATION } from '../../emulator/machine/machine_api.ts';
import type { Random } from '../isa/random.ts';
import { isCodeMark } from './compare.ts';
import type { EngineMachine } from './engine_machine.ts';
import type { Image } from './image.ts';
import { PAGE, RAM_BASE } from './layout.ts';

export interface LockstepMismatch {
  /** Instructions retired before the slice, by the first engine */
  readonly retired: bigint;
  readonly slice: number;
  /** Where the slice began */
  readonly pc: bigint;
  /** Index in the image's legs, as the runtime counts */
  readonly leg: number;
  readonly texts: readonly string[];
}

export interface LockstepResult {
  readonly instructions: bigint;
  readonly slices: number;
  readonly interrupts: number;
  readonly mismatch: LockstepMismatch | undefined;
  /** False where the limit came first */
  readonly ended: boolean;
}

/** Fields that say how an engine works and not what the hart is: offset and bytes */
const OWN: readonly (readonly [number, number])[] = [
  [H.HART_X_DISCARD, 8],
  [H.HART_FP_FAST, 4],
  [H.HART_TRAPPED, 4],
  [H.HART_INSTRET_END, 8],
  [H.HART_FUEL, 4],
  [H.HART_TLB_USED, 4],
  [H.HART_MMIO_FAULT, 4],
  [H.HART_CODE_NEXT, 4],
  [H.HART_CODE_USED, 4],
  [H.HART_FETCH_ONCE, 4],
];
const NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(H).flatMap(([name, value]) =>
    name.startsWith('HART_') && typeof value === 'number' && value < H.HART_STATE_BYTES && value >= H.HART_FFLAGS
      ? [[value, name.slice(5).toLowerCase()] as const]
      : [],
  ),
);
const SHOWN = 10;

function fieldName(offset: number): string {
  if (offset < H.HART_X_DISCARD) return `x${offset >> 3}`;
  if (offset >= H.HART_F && offset < H.HART_FFLAGS) return `f${(offset - H.HART_F) >> 3}`;
  for (let at = offset; at >= 0; at -= 4) {
    const name = NAMES.get(at);
    if (name !== undefined) return at === offset ? name : `${name}+${offset - at}`;
  }
  return `+0x${offset.toString(16)}`;
}

class StateComparison {
  readonly #a = new Uint8Array(H.HART_STATE_BYTES);
  readonly #b = new Uint8Array(H.HART_STATE_BYTES);

  texts(a: EngineMachine, b: EngineMachine): string[] {
    this.#a.set(a.state);
    this.#b.set(b.state);
    for (const [offset, bytes] of OWN) {
      this.#a.fill(0, offset, offset + bytes);
      this.#b.fill(0, offset, offset + bytes);
    }
    const texts: string[] = [];
    if (a.retired !== b.retired) texts.push(`retired ${b.retired}, expected ${a.retired}`);
    if (Buffer.compare(this.#a, this.#b) === 0) return texts;
    const [ours, theirs] = [new Uint32Array(this.#a.buffer), new Uint32Array(this.#b.buffer)];
    const show = (words: Uint32Array, at: number) =>
      `0x${words[at + 1]!.toString(16)}${words[at]!.toString(16).padStart(8, '0')}`;
    for (let at = 0; at < ours.length; at += 2) {
      if (ours[at] === theirs[at] && ours[at + 1] === theirs[at + 1]) continue;
      const low = ours[at] === theirs[at] ? 1 : 0;
      texts.push(`${fieldName(4 * (at + low))} ${show(theirs, at)}, expected ${show(ours, at)}`);
    }
    return texts;
  }
}

function isMark(ramA: Uint8Array, ramB: Uint8Array, at: number): boolean {
  const entry = (ram: Uint8Array) => new DataView(ram.buffer, ram.byteOffset).getBigUint64(at & ~7, true);
  return isCodeMark(RAM_BASE + (at & ~7), entry(ramB), entry(ramA));
}

/** Pages that either has written since the last look */
function memoryTexts(a: EngineMachine, b: EngineMachine): string[] {
  const texts: string[] = [];
  const [dirtyA, dirtyB] = [a.dirty, b.dirty];
  const [ramA, ramB] = [a.ram, b.ram];
  for (let page = 0; page < dirtyA.length; page++) {
    if (((dirtyA[page]! | dirtyB[page]!) & DIRTY_MIGRATION) === 0) continue;
    dirtyA[page]! &= ~DIRTY_MIGRATION;
    dirtyB[page]! &= ~DIRTY_MIGRATION;
    const [from, to] = [page * PAGE, (page + 1) * PAGE];
    if (Buffer.compare(ramA.subarray(from, to), ramB.subarray(from, to)) === 0) continue;
    for (let at = from; at < to && texts.length < SHOWN; at++) {
      if (ramA[at] !== ramB[at] && isMark(ramA, ramB, at)) continue;
      if (ramA[at] !== ramB[at])
        texts.push(
          `[0x${(RAM_BASE + at).toString(16)}] 0x${ramB[at]!.toString(16)}, expected 0x${ramA[at]!.toString(16)}`,
        );
    }
  }
  return texts;
}

/** Mostly long enough for hot code, often as short as a step */
function sliceOf(random: Random): number {
  switch (random.below(8)) {
    case 0:
      return 1 + random.below(4);
    case 1:
    case 2:
      return 1 + random.below(100);
    case 3:
    case 4:
    case 5:
      return 1 + random.below(5000);
    default:
      return 1 + random.below(60_000);
  }
}

export interface LockstepOptions {
  readonly random: Random;
  /** Instructions after which it gives up */
  readonly limit: number;
  /** The second engine runs each slice in parts: for an engine against itself */
  readonly divide: boolean;
}

/** Runs the image on both until it ends or they differ. The first is taken to be right. */
export function lockstep(image: Image, a: EngineMachine, b: EngineMachine, options: LockstepOptions): LockstepResult {
  const { random, limit, divide } = options;
  const comparison = new StateComparison();
  for (const machine of [a, b]) machine.load(image);
  const start = a.retired;
  let [slices, interrupts, spent] = [0, 0, 0];
  for (;;) {
    if (random.once(4)) {
      a.ringTimer();
      b.ringTimer();
      interrupts++;
    }
    const slice = sliceOf(random);
    const [retired, pc] = [a.retired, a.hart.pc];
    const first = divide && slice > 1 ? 1 + random.below(slice - 1) : slice;
    const aGoesOn = a.run(slice);
    let bGoesOn = b.run(first);
    if (bGoesOn && first < slice && !b.waited) bGoesOn = b.run(slice - first);
    slices++;
    spent += slice;
    const texts = [...comparison.texts(a, b), ...memoryTexts(a, b)];
    if (aGoesOn !== bGoesOn) texts.push(bGoesOn ? 'has not ended' : 'has ended');
    const instructions = a.retired - start;
    if (texts.length > 0) {
      const mismatch = { retired: retired - start, slice, pc, leg: a.leg, texts: texts.slice(0, SHOWN) };
      return { instructions, slices, interrupts, mismatch, ended: false };
    }
    if (!aGoesOn || spent > limit) return { instructions, slices, interrupts, mismatch: undefined, ended: !aGoesOn };
  }
}
