// A random program as a tree: what the generator makes, the minimiser prunes, and a kept failure is stored as (JSON).
import type { BranchName } from './assembly.ts';

/** An instruction word of 16 or 32 bits that does not leave the straight line by itself */
export type Word = number;

export type Node =
  | Word
  /** Instructions that belong together; how many are run for them, where that is more than there are */
  | { readonly t: 'group'; readonly body: readonly Node[]; readonly cost?: number }
  /** rd = constant, hexadecimal */
  | { readonly t: 'constant'; readonly rd: number; readonly value: string }
  /** rd = address in the program's data */
  | { readonly t: 'data'; readonly rd: number; readonly offset: number }
  /** `body` `rounds` times; `counter` is the loop's own. `middle`: the first round begins at this item of the body */
  | {
      readonly t: 'loop';
      readonly counter: number;
      readonly rounds: number;
      readonly up: boolean;
      readonly middle?: number;
      readonly body: readonly Node[];
    }
  | {
      readonly t: 'if';
      readonly on: BranchName;
      readonly rs1: number;
      readonly rs2: number;
      readonly yes: readonly Node[];
      readonly no: readonly Node[];
    }
  /** Leaves the `depth`-th loop around, 0 the innermost, or goes on with its next round */
  | {
      readonly t: 'leave';
      readonly on: BranchName;
      readonly rs1: number;
      readonly rs2: number;
      readonly depth: number;
      readonly next: boolean;
    }
  /** By the low bits of `index`, through a table of addresses in the code or of offsets in it. Cases: a power of two */
  | {
      readonly t: 'switch';
      readonly index: number;
      readonly temporary: number;
      readonly relative: boolean;
      readonly cases: readonly (readonly Node[])[];
    }
  /**
   * By the low bits of `index`, through a table of words in a page of its own, each relative to the table. What is beyond
   * the cases goes behind them all: by a comparison, or because the table says so. `swaps`: two of the words change
   * places before each jump
   */
  | {
      readonly t: 'jumpTable';
      readonly index: number;
      readonly t1: number;
      readonly t2: number;
      readonly t3: number;
      readonly t4: number;
      readonly compared: boolean;
      readonly swaps: boolean;
      readonly cases: readonly (readonly Node[])[];
    }
  /** A loop of `rounds` steps; each step ends in a jump to the next, chosen by the hash: threaded code */
  | {
      readonly t: 'threaded';
      readonly counter: number;
      readonly rounds: number;
      readonly temporary: number;
      readonly steps: readonly (readonly Node[])[];
    }
  | {
      readonly t: 'call';
      readonly callee: number;
      readonly how: 'jal' | 'far' | 'register' | 'table';
      readonly temporary: number;
      /** For `table`: the other functions that the hash may choose */
      readonly others: readonly number[];
    }
  /** Calls a function of the window's code: another one in each address space */
  | { readonly t: 'windowCall'; readonly offset: number; readonly temporary: number }
  /** Changes bits of an entry of the window in both of the supervisor's spaces, then fences */
  | {
      readonly t: 'remap';
      readonly page: number;
      readonly bits: number;
      readonly fence: 'all' | 'page' | 'space' | 'pageOfSpace';
      readonly t1: number;
      readonly t2: number;
    }
  /** Stores one of `words`, chosen by the low bits of `index`, over the instruction that follows, then fence.i */
  | {
      readonly t: 'patch';
      readonly index: number;
      readonly t1: number;
      readonly t2: number;
      readonly words: readonly Word[];
    }
  /** The same on the instruction at the start of another function */
  | {
      readonly t: 'patchOther';
      readonly callee: number;
      readonly index: number;
      readonly t1: number;
      readonly t2: number;
      readonly words: readonly Word[];
    }
  /** Reads, changes and writes back words that stand between instructions */
  | { readonly t: 'codeData'; readonly t1: number; readonly t2: number; readonly store: Word; readonly load: Word }
  /** LR, then `body`, then SC, until it succeeds */
  | {
      readonly t: 'reserve';
      readonly pointer: number;
      readonly value: number;
      readonly status: number;
      readonly double: boolean;
      readonly body: readonly Node[];
    }
  /** setjmp, body; a `longjmp` with its number that runs meanwhile comes back to the end of it */
  | {
      readonly t: 'setjmp';
      readonly slot: number;
      readonly t1: number;
      readonly t2: number;
      readonly body: readonly Node[];
    }
  | { readonly t: 'longjmp'; readonly slot: number; readonly t1: number; readonly t2: number; readonly on: number };

export type NodeOf<T extends string> = Extract<Node, { readonly t: T }>;

export interface FunctionPlan {
  /** Saved on entry, restored on return */
  readonly saves: readonly number[];
  /** Saves nothing on behalf of calls: the return address stays in its register */
  readonly leaf: boolean;
  /** Called through t0 */
  readonly millicode: boolean;
  /** Of millicode that calls others: saves ra, too, so that who calls it need not */
  readonly keepsRa?: boolean | undefined;
  /** By routines that are called through t0: what saves registers, what loads them; `tail` returns, too */
  readonly outlined?: { readonly saves: boolean; readonly restores: 'call' | 'tail' | 'no' } | undefined;
  /** The piece of far code that it is in, from 0; undefined: with the rest of the program */
  readonly far?: number | undefined;
  /** How deep it calls itself at its end, counted in the register, which it saves; twice as the Fibonacci numbers do */
  readonly recursion?: { readonly counter: number; readonly depth: number; readonly twice: boolean } | undefined;
  readonly align: number;
  /** Returns behind the instruction after the call; or a routine that is called through t0 changes ra so, or may */
  readonly skips?: boolean | 'outlined' | 'maybe';
  readonly body: readonly Node[];
  /** Jumps there at its end instead of returning */
  readonly tail?: number | undefined;
}

export type Mode = 'M' | 'S' | 'U';

export interface LegPlan {
  readonly mode: Mode;
  readonly paging: boolean;
  readonly space: 0 | 1;
  readonly medeleg: number;
  readonly sum: boolean;
  readonly mxr: boolean;
}

export interface ProgramPlan {
  readonly seed: number;
  /** Where in the image: addresses flow into the results */
  readonly slot: number;
  /** The first is the one that runs, the others are called; null where the minimiser took one out */
  readonly functions: readonly (FunctionPlan | null)[];
  /** Functions of the two windows; each page starts them at multiples of WINDOW_FUNCTION_BYTES */
  readonly windows: readonly (readonly (readonly Word[])[])[];
  readonly legs: readonly LegPlan[];
  /** 16-bit branches and jumps where they fit */
  readonly short: boolean;
  readonly frm: number;
  /** Timer interrupts change the window's moving pages, too: for comparisons where they come at the same instruction */
  readonly timerMoves?: boolean;
}

export const WINDOW_FUNCTION_BYTES = 256;
/** Of the page that differs. The last one runs over into the page that is shared, whose functions call those of the first */
export const WINDOW_FUNCTIONS = 16;
