import type { FoldedStack } from '../../protocols/folded/mod.ts';
import { type Sample, SampleRing } from './sample_ring.ts';
import type { SymbolTable } from './symbols.ts';

/** Time between two looks is one of these, in `ms`: at equal distances it would keep step with the guest's own timer */
const LOOKS_MS = [2, 3];
/** Rings are emptied after this many looks: half of what fits */
const DRAIN_LOOKS = 100;
/** Distinct stacks; what is new beyond it is counted without its callers */
const MAX_STACKS = 100_000;
/** Characters of all stacks together: the answer to the supervisor is bounded */
const MAX_TEXT_LENGTH = 12 << 20;
const MAX_CACHED_NAMES = 1 << 17;
const MODES = ['user', 'supervisor', 'reserved', 'machine'];

export interface ProfileResult {
  readonly stacks: readonly FoldedStack[];
  /** Looks at harts that ran, and at harts that slept */
  readonly samples: number;
  readonly idle: number;
  /** Samples without a place in a ring */
  readonly lost: number;
  /** In `ms` */
  readonly durationMs: number;
  readonly harts: number;
}

/** Asks the harts for samples at random moments and counts the stacks that come. On the main thread. */
export class Profiler {
  readonly rings: readonly SharedArrayBuffer[];
  readonly #rings: readonly SampleRing[];
  readonly #symbols: SymbolTable;
  readonly #counts = new Map<string, number>();
  readonly #names = new Map<bigint, string>();
  readonly #startedMs = performance.now();
  #textLength = 0;
  #samples = 0;
  #looks = 0;
  #random = 0x2545_f491;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(harts: number, symbols: SymbolTable) {
    this.rings = Array.from({ length: harts }, () => SampleRing.allocate());
    this.#rings = this.rings.map((ring) => new SampleRing(ring));
    this.#symbols = symbols;
  }

  start(): void {
    const look = (): void => {
      for (const ring of this.#rings) ring.request();
      if (++this.#looks % DRAIN_LOOKS === 0) this.#drain();
      this.#timer = setTimeout(look, this.#pause());
    };
    this.#timer = setTimeout(look, 1);
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#drain();
  }

  /** What was counted so far, by weight. */
  result(): ProfileResult {
    this.#drain();
    const lost = this.#rings.reduce((total, ring) => total + ring.lost, 0);
    return {
      stacks: [...this.#counts]
        .map(([text, count]) => ({ frames: text.split('\n'), count }))
        .sort((a, b) => b.count - a.count),
      samples: this.#samples,
      // Who slept gave no sample
      idle: Math.max(0, this.#looks * this.#rings.length - this.#samples - lost),
      lost,
      durationMs: Math.round(performance.now() - this.#startedMs),
      harts: this.#rings.length,
    };
  }

  #pause(): number {
    // xorshift32
    this.#random ^= this.#random << 13;
    this.#random ^= this.#random >>> 17;
    this.#random ^= this.#random << 5;
    return LOOKS_MS[(this.#random >>> 16) & 1]!;
  }

  #drain(): void {
    for (const ring of this.#rings) ring.drain((sample) => this.#count(sample));
  }

  #count(sample: Sample): void {
    this.#samples += sample.weight;
    let text = foldSample(sample, (address, isReturn) => this.#name(address, isReturn)).join('\n');
    const known = this.#counts.get(text);
    if (known === undefined) {
      if (this.#counts.size >= MAX_STACKS || this.#textLength + text.length > MAX_TEXT_LENGTH) {
        text = `${MODES[sample.privilege]}\n(too many different stacks)`;
      } else this.#textLength += text.length;
    }
    this.#counts.set(text, (this.#counts.get(text) ?? 0) + sample.weight);
  }

  /** A return address stands behind its call, maybe already in the next function. */
  #name(address: bigint, isReturn: boolean): string {
    const at = isReturn ? address - 1n : address;
    const known = this.#names.get(at);
    if (known !== undefined) return known;
    // Without a symbol, all of a page is one function
    const name = this.#symbols.find(at)?.name ?? `[0x${(at >> 12n).toString(16)}000]`;
    if (this.#names.size >= MAX_CACHED_NAMES) this.#names.clear();
    this.#names.set(at, name);
    return name;
  }
}

/** Frames from the root: mode, outermost caller … innermost function. */
export function foldSample(sample: Sample, nameOf: (address: bigint, isReturn: boolean) => string): string[] {
  const { pc, ra, callers, privilege } = sample;
  const here = nameOf(pc, false);
  const outer = callers.map((address) => nameOf(address, true));
  // A leaf, or a function that has not made its frame yet: only ra knows its caller, and fp is the caller's. Where ra
  // lies in the function itself, it is what an earlier call left; where the first frame has it, it is counted already.
  if (ra !== 0n && ra !== callers[0]) {
    const caller = nameOf(ra, true);
    if (caller !== here && caller !== outer[0]) outer.unshift(caller);
  }
  return [MODES[privilege]!, ...outer.reverse(), here];
}
