import process from 'node:process';
import { WireError } from '../protocols/bytes/mod.ts';
import type { FuzzTarget } from './fuzz_targets.ts';

/** One input must be done in this time of the processor, in `ms`; a collection of garbage may lie in between */
const MAX_INPUT_MS = 1000;
const MAX_INPUT_BYTES = 4096;
const REPORT_MS = 10_000;

/** xorshift128: fast, and the same everywhere for one seed. */
class Random {
  readonly #state = new Uint32Array(4);
  constructor(seed: number) {
    this.#state.set([seed, seed ^ 0x9e37_79b9, seed ^ 0x85eb_ca6b, (seed ^ 0xc2b2_ae35) | 1]);
    for (let round = 0; round < 16; round++) this.next();
  }
  next(): number {
    const state = this.#state;
    let t = state[3]!;
    const s = state[0]!;
    state[3] = state[2]!;
    state[2] = state[1]!;
    state[1] = s;
    t ^= t << 11;
    t ^= t >>> 8;
    state[0] = t ^ s ^ (s >>> 19);
    return state[0]!;
  }
  below(limit: number): number {
    return Math.floor((this.next() / 2 ** 32) * limit);
  }
}

/** Values that lengths and counts break on */
const EDGES = [0, 1, 7, 8, 16, 0x7f, 0x80, 0xff, 0x100, 0xfff, 0x1000, 0x1001, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

/** A new input out of the seeds and what was interesting before. */
function mutate(random: Random, corpus: readonly Uint8Array[]): Uint8Array {
  const base = corpus[random.below(corpus.length)]!;
  let bytes: Uint8Array = base.slice(0, MAX_INPUT_BYTES);
  for (let rounds = 1 + random.below(4); rounds > 0; rounds--) {
    const at = random.below(bytes.length + 1);
    switch (random.below(8)) {
      case 0:
        if (bytes.length > 0) bytes[at % bytes.length] = random.below(256);
        break;
      case 1:
        if (bytes.length > 0) bytes[at % bytes.length]! ^= 1 << random.below(8);
        break;
      case 2: // an edge, as 2, 4 or 8 bytes
        bytes = withEdge(random, bytes, at);
        break;
      case 3:
        bytes = bytes.slice(0, at);
        break;
      case 4: // a piece twice
        bytes = join(bytes.subarray(0, at), bytes.subarray(random.below(at + 1)));
        break;
      case 5: // another seed in the middle
        bytes = join(bytes.subarray(0, at), corpus[random.below(corpus.length)]!);
        break;
      case 6:
        bytes = join(
          bytes,
          Uint8Array.from({ length: random.below(32) }, () => random.below(256)),
        );
        break;
      default: // without a piece
        bytes = join(bytes.subarray(0, at), bytes.subarray(Math.min(at + random.below(16), bytes.length)));
    }
  }
  return bytes.length > MAX_INPUT_BYTES ? bytes.slice(0, MAX_INPUT_BYTES) : bytes;
}

function withEdge(random: Random, bytes: Uint8Array, at: number): Uint8Array {
  const width = [2, 4, 8][random.below(3)]!;
  if (bytes.length < width) return bytes;
  const start = Math.min(at, bytes.length - width);
  const view = new DataView(bytes.buffer, bytes.byteOffset + start, width);
  const edge = EDGES[random.below(EDGES.length)]!;
  if (width === 2) view.setUint16(0, edge & 0xffff);
  else if (width === 4) view.setUint32(0, edge);
  else view.setBigUint64(0, random.below(2) === 0 ? BigInt(edge) : 2n ** 64n - 1n - BigInt(edge));
  return bytes;
}

function join(...parts: Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** How a run went. */
export interface Outcome {
  readonly inputs: number;
  readonly refused: number;
  readonly finds: number;
}

/** Runs one target until its time or its inputs are used up. Finds are printed. */
export function fuzz(target: FuzzTarget, options: { seconds: number; inputs: number; seed: number }): Outcome {
  const random = new Random(options.seed);
  const corpus = target.seeds();
  /** Texts of refusals that were seen: an input with a new one has gone where none went before */
  const refusals = new Set<string>();
  const stackTraceLimit = Error.stackTraceLimit;
  Error.stackTraceLimit = 0;
  const startMs = performance.now();
  let reportMs = startMs + REPORT_MS;
  const outcome = { inputs: 0, refused: 0, finds: 0 };
  while (outcome.inputs < options.inputs) {
    const now = performance.now();
    if (now - startMs >= options.seconds * 1000) break;
    if (now >= reportMs) {
      reportMs = now + REPORT_MS;
      process.stderr.write(`${target.name}: ${outcome.inputs} inputs, corpus ${corpus.length}\n`);
    }
    // The clock is asked once for many: it would cost more than the decoder.
    for (let batch = 0; batch < 256; batch++) {
      const input = mutate(random, corpus);
      const begun = batch === 0 ? processorMs() : 0;
      outcome.inputs++;
      try {
        target.run(input);
      } catch (error) {
        if (error instanceof WireError) {
          outcome.refused++;
          const kind = `${error.code} ${error.message.replace(/[0-9]+|0x[0-9a-f]+|".*"/g, '#')}`;
          if (!refusals.has(kind) && refusals.size < 1000) {
            refusals.add(kind);
            corpus.push(input);
          }
        } else {
          outcome.finds++;
          report(target, input, withStack(target, input, error));
        }
      }
      if (batch === 0 && processorMs() - begun > MAX_INPUT_MS) {
        outcome.finds++;
        report(target, input, new Error(`took ${Math.round(processorMs() - begun)} ms`));
      }
    }
  }
  Error.stackTraceLimit = stackTraceLimit;
  return outcome;
}

/** What this process has computed: on a machine that is busy with others the clock says nothing of an input. */
function processorMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

function report(target: FuzzTarget, input: Uint8Array, error: unknown): void {
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  process.stdout.write(`FOUND in ${target.name}: ${text}\n  input (hex): ${Buffer.from(input).toString('hex')}\n`);
}

/** Stacks are off in the loop, where nearly every input is refused: one more run tells where it was. */
function withStack(target: FuzzTarget, input: Uint8Array, error: unknown): unknown {
  Error.stackTraceLimit = 20;
  try {
    target.run(input);
  } catch (again) {
    return again;
  } finally {
    Error.stackTraceLimit = 0;
  }
  return error;
}
