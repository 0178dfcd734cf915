// Where jumps and calls by register go: what was seen, and what their registers say now. Guesses, all of them: code that
// goes by one compares the real target.
import * as H from '../kernel/assembly/hart_layout.ts';
import { writesX } from './analysis.ts';
import type { Instruction } from './instruction.ts';
import type { Region } from './region.ts';

/** Places that one indirect jump is remembered to go to */
const MAX_JUMP_TARGETS = 250;
/** Indirect jumps that are remembered: the guest decides how many there are */
const MAX_JUMPS = 4096;
/** Bytes to a function that a call by register is guessed to go to: farther, it has no place in the caller's region */
const MAX_GUESS = 0x2_0000;
const SP = 2;

export class JumpTargets {
  readonly #view: DataView;
  readonly #hart: number;
  /** By host address of a jump: distances that it went */
  readonly #seen = new Map<number, Set<number>>();
  /** What writes each register of a region that is looked at: a guest may call by register at every instruction */
  readonly #writers = new WeakMap<Region, ReadonlyMap<number, readonly Instruction[]>>();

  constructor(view: DataView, hart: number) {
    this.#view = view;
    this.#hart = hart;
  }

  /** Where the jump at a host address was seen to go, as distances from it */
  of(jump: number): readonly number[] {
    return [...(this.#seen.get(jump) ?? [])];
  }

  /** The jump at the host address `jump` may have gone to HART_PC, which is at `host`: if its register says so. */
  remember(jump: number, host: number): void {
    if (!this.#goesToPc(jump)) return;
    // A guess where host pages are no neighbours
    let known = this.#seen.get(jump);
    if (known === undefined) {
      if (this.#seen.size === MAX_JUMPS) this.#seen.clear();
      known = new Set();
      this.#seen.set(jump, known);
    }
    if (known.size < MAX_JUMP_TARGETS) known.add(host - jump);
  }

  /** Whether the jump or call by register at a host address goes to HART_PC by what its register holds now. */
  #goesToPc(jump: number): boolean {
    const low = this.#view.getUint16(jump, true);
    // c.jr and c.jalr, or jalr with rd = x0 or ra
    const compressed = (low & 3) !== 3;
    const word = compressed || (jump & 0xfff) === 0xffe ? low : this.#view.getInt32(jump, true);
    if (compressed ? (low & 0xe07f) !== 0x8002 : (word & 0xf7f) !== 0x67) return false;
    const base = this.#register(compressed ? (word >>> 7) & 31 : (word >>> 15) & 31);
    const target = BigInt.asUintN(64, base + BigInt(compressed ? 0 : word >> 20)) & ~1n;
    return target === this.#view.getBigUint64(this.#hart + H.HART_PC, true);
  }

  /**
   * Where a call by register in `region` may go, as offsets from its base page `va`, likely ones first: where it was seen
   * to go, or where its register, or one that is moved to it, points now.
   */
  guess(call: Instruction, region: Region, va: bigint): readonly number[] {
    const page = region.pages.get(call.at >> 12)!;
    const seen = this.of(page.host + (call.at & 0xfff));
    if (seen.length > 0) return seen.length === 1 ? [call.at + seen[0]!] : [];
    const moved = (this.#writersIn(region).get(call.rs1) ?? []).map(movedFrom);
    if (moved.includes(undefined)) return [];
    const targets = [...moved, call.rs1].map((register) =>
      Number(BigInt.asIntN(64, this.#register(register!) + BigInt(call.imm) - va)),
    );
    return targets.filter((target) => Math.abs(target) < MAX_GUESS && target % 2 === 0);
  }

  #register(number: number): bigint {
    return this.#view.getBigUint64(this.#hart + H.HART_X + number * 8, true);
  }

  #writersIn(region: Region): ReadonlyMap<number, readonly Instruction[]> {
    let writers = this.#writers.get(region);
    if (writers === undefined) {
      writers = registerWriters(region);
      this.#writers.set(region, writers);
    }
    return writers;
  }
}

/** What writes each integer register, beside the loads that a function ends with */
function registerWriters({ blocks }: Region): Map<number, Instruction[]> {
  const writers = new Map<number, Instruction[]>();
  for (const { instructions } of blocks.values()) {
    for (const instruction of instructions) {
      if (writesX(instruction) === 0 || isRestore(instruction)) continue;
      const known = writers.get(instruction.rd);
      if (known === undefined) writers.set(instruction.rd, [instruction]);
      else known.push(instruction);
    }
  }
  return writers;
}
/** The register that an instruction copies, as `mv` is encoded; undefined for all others */
function movedFrom({ facts, imm, rs1, rs2 }: Instruction): number | undefined {
  if (facts.row.name === 'addi') return imm === 0 ? rs1 : undefined;
  return facts.row.name === 'add' && rs1 === 0 ? rs2 : undefined;
}
/** A load from the stack, as functions end with for the registers that they saved */
function isRestore({ facts, rs1 }: Instruction): boolean {
  return facts.row.name === 'ld' && rs1 === SP;
}
