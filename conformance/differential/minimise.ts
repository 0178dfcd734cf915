// Makes a failing program small: legs, functions, then items by halves, then loops unrolled into their bodies and fewer
// rounds, as long as it goes on failing.
import type { Node, ProgramPlan } from './nodes.ts';

export interface MinimiseOptions {
  /** True where the program still fails */
  readonly fails: (program: ProgramPlan) => Promise<boolean>;
  /** Runs of `fails` at most */
  readonly budget: number;
  readonly progress?: (nodes: number, runs: number) => void;
}

/** A mutable copy: plain data all through */
type Draft<T> = T extends object ? { -readonly [K in keyof T]: Draft<T[K]> } : T;
type DraftNode = Draft<Node>;

/** Every list of items in the program, outermost first */
function bodiesOf(program: Draft<ProgramPlan>): DraftNode[][] {
  const all: DraftNode[][] = [];
  const visit = (body: DraftNode[]): void => {
    all.push(body);
    for (const node of body) if (typeof node === 'object') for (const inner of innerBodies(node)) visit(inner);
  };
  for (const plan of program.functions) if (plan) visit(plan.body as DraftNode[]);
  return all;
}

function innerBodies(node: DraftNode & object): DraftNode[][] {
  switch (node.t) {
    case 'group':
    case 'loop':
    case 'reserve':
    case 'setjmp':
      return [node.body as DraftNode[]];
    case 'if':
      return [node.yes, node.no] as DraftNode[][];
    case 'switch':
    case 'jumpTable':
      return node.cases as DraftNode[][];
    case 'threaded':
      return node.steps as DraftNode[][];
    default:
      return [];
  }
}

export const countNodes = (program: ProgramPlan): number =>
  bodiesOf(program as Draft<ProgramPlan>).reduce((sum, body) => sum + body.length, 0);

class Minimiser {
  readonly #options: MinimiseOptions;
  program: ProgramPlan;
  #runs = 0;

  constructor(program: ProgramPlan, options: MinimiseOptions) {
    this.program = program;
    this.#options = options;
  }

  get exhausted(): boolean {
    return this.#runs >= this.#options.budget;
  }

  /** Keeps the change where the program goes on failing */
  async attempt(change: (draft: Draft<ProgramPlan>) => void): Promise<boolean> {
    if (this.exhausted) return false;
    const draft = structuredClone(this.program) as Draft<ProgramPlan>;
    change(draft);
    this.#runs++;
    let fails = false;
    try {
      fails = await this.#options.fails(draft as ProgramPlan);
    } catch {
      // What cannot be assembled or run does not fail in the way that is looked for
    }
    if (fails) this.program = draft as ProgramPlan;
    this.#options.progress?.(countNodes(this.program), this.#runs);
    return fails;
  }

  async legs(): Promise<void> {
    // Without paging, a pointer that lost its set-up may reach what only one machine has: another difference
    await this.attempt((draft) => {
      draft.legs = draft.legs.filter(({ paging }) => paging);
    });
    for (let i = this.program.legs.length - 1; i >= 0 && this.program.legs.length > 1; i--) {
      await this.attempt((draft) => draft.legs.splice(i, 1));
    }
  }

  async functions(): Promise<void> {
    for (let i = this.program.functions.length - 1; i > 0; i--) {
      if (!this.program.functions[i]) continue;
      const removed = await this.attempt((draft) => {
        // Calls of it become nothing
        draft.functions[i] = null;
      });
      if (!removed) {
        await this.attempt((draft) => {
          draft.functions[i]!.body = [];
        });
      }
    }
  }

  /** What only makes the listing longer */
  async frames(): Promise<void> {
    for (let i = 0; i < this.program.functions.length; i++) {
      if (!this.program.functions[i]) continue;
      await this.attempt((draft) => {
        draft.functions[i]!.saves = [];
      });
    }
  }

  /** Takes out runs of items, the long ones first */
  async items(): Promise<boolean> {
    let smaller = false;
    for (let list = 0; list < bodiesOf(this.program as Draft<ProgramPlan>).length; list++) {
      const length = () => bodiesOf(this.program as Draft<ProgramPlan>)[list]?.length ?? 0;
      for (let chunk = length(); chunk >= 1; chunk = Math.floor(chunk / 2)) {
        for (let at = length() - chunk; at >= 0; at -= chunk) {
          if (await this.attempt((draft) => bodiesOf(draft)[list]?.splice(at, chunk))) smaller = true;
          if (this.exhausted) return smaller;
        }
      }
    }
    return smaller;
  }

  /** Replaces what has bodies by one of them, and shortens loops */
  async structure(): Promise<boolean> {
    let smaller = false;
    for (let list = 0; list < bodiesOf(this.program as Draft<ProgramPlan>).length; list++) {
      const body = () => bodiesOf(this.program as Draft<ProgramPlan>)[list] ?? [];
      for (let at = 0; at < body().length; at++) {
        const node = body()[at];
        if (node === undefined || typeof node !== 'object') continue;
        for (let inner = 0; inner < innerBodies(node).length; inner++) {
          const unwrapped = await this.attempt((draft) => {
            const target = bodiesOf(draft)[list]!;
            target.splice(at, 1, ...innerBodies(target[at] as DraftNode & object)[inner]!);
          });
          if (unwrapped) {
            smaller = true;
            break;
          }
        }
        if (this.exhausted) return smaller;
        if (await this.#shorten(list, at)) smaller = true;
      }
    }
    return smaller;
  }

  async #shorten(list: number, at: number): Promise<boolean> {
    let smaller = false;
    for (;;) {
      const node = bodiesOf(this.program as Draft<ProgramPlan>)[list]?.[at];
      if (typeof node !== 'object' || (node.t !== 'loop' && node.t !== 'threaded') || node.rounds <= 1) return smaller;
      const fewer = node.rounds >> 1;
      const done = await this.attempt((draft) => {
        (bodiesOf(draft)[list]![at] as Draft<Node & { rounds: number }>).rounds = fewer;
      });
      if (!done) return smaller;
      smaller = true;
    }
  }
}

/** Gives the smallest program that was found to fail; the one given where nothing can go. */
export async function minimise(program: ProgramPlan, options: MinimiseOptions): Promise<ProgramPlan> {
  const minimiser = new Minimiser(program, options);
  await minimiser.legs();
  await minimiser.functions();
  for (let again = true; again && !minimiser.exhausted; ) {
    again = await minimiser.items();
    if (await minimiser.structure()) again = true;
    if (again) await minimiser.functions();
  }
  await minimiser.frames();
  return minimiser.program;
}
