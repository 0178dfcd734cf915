// Litmus tests of the memory model (unprivileged specification, "RVWMO" and its appendix), as data. What is forbidden
// follows from the preserved program order named at each test; everything else is only counted.

export type Location = 'x' | 'y' | 'z';
/** Observed values have names; a location's value at the end has the location's */
export type Register = 'a' | 'b' | 'c' | 'd';

export type Step =
  | { readonly write: Location; readonly value: number }
  /** The value written depends on a register: its data, or by way of a branch */
  | { readonly write: Location; readonly value: number; readonly after: Register; readonly by: 'data' | 'control' }
  | { readonly read: Location; readonly to: Register; readonly address?: Register }
  | { readonly fence: number }
  | { readonly amo: string; readonly location: Location; readonly value: number; readonly to?: Register }
  | { readonly reserve: Location; readonly to: Register }
  /** `to` becomes 0 where it succeeded, 1 where not */
  | { readonly conditional: Location; readonly value: number; readonly to: Register };

export type Outcome = Readonly<Partial<Record<Register | Location, number>>>;

export interface LitmusTest {
  readonly name: string;
  readonly harts: readonly (readonly Step[])[];
  /** Locations whose value at the end belongs to the outcome */
  readonly final?: readonly Location[];
  /** An outcome that has all values of one of these must never be seen */
  readonly forbidden: readonly Outcome[];
}

const write = (location: Location, value = 1): Step => ({ write: location, value });
const read = (to: Register, location: Location): Step => ({ read: location, to });
const fence = (fields: string): Step => {
  const bits = (set: string) => (set.includes('r') ? 2 : 0) | (set.includes('w') ? 1 : 0);
  const [before, after] = fields.split(',') as [string, string];
  return { fence: (bits(before) << 4) | bits(after) };
};
const swap = (suffix: string, location: Location, value: number, to?: Register): Step => ({
  amo: `amoswap.w${suffix}`,
  location,
  value,
  ...(to === undefined ? {} : { to }),
});
/** A load that is an AMO: it changes nothing */
const amoRead = (suffix: string, to: Register, location: Location): Step => ({
  amo: `amoor.w${suffix}`,
  location,
  value: 0,
  to,
});

/** Both threads of a test with a fence between their two steps */
const fenced = (fields: string, steps: readonly Step[]): Step[] => [steps[0]!, fence(fields), steps[1]!];

const MP: readonly (readonly Step[])[] = [
  [write('x'), write('y')],
  [read('a', 'y'), read('b', 'x')],
];
const SB: readonly (readonly Step[])[] = [
  [write('x'), read('a', 'y')],
  [write('y'), read('b', 'x')],
];
const LB: readonly (readonly Step[])[] = [
  [read('a', 'x'), write('y')],
  [read('b', 'y'), write('x')],
];
const MP_BAD: Outcome = { a: 1, b: 0 };
const SB_BAD: Outcome = { a: 0, b: 0 };
const LB_BAD: Outcome = { a: 1, b: 1 };
const IRIW = (between: readonly Step[]): Step[][] => [
  [write('x')],
  [write('y')],
  [read('a', 'x'), ...between, read('b', 'y')],
  [read('c', 'y'), ...between, read('d', 'x')],
];

export const LITMUS_TESTS: readonly LitmusTest[] = [
  // Message passing
  { name: 'MP', harts: MP, forbidden: [] },
  { name: 'MP+fence.rw.rw+fence.rw.rw', harts: MP.map((steps) => fenced('rw,rw', steps)), forbidden: [MP_BAD] },
  { name: 'MP+fence.w.w+fence.r.r', harts: [fenced('w,w', MP[0]!), fenced('r,r', MP[1]!)], forbidden: [MP_BAD] },
  { name: 'MP+fence.w.w', harts: [fenced('w,w', MP[0]!), MP[1]!], forbidden: [] },
  {
    // Rule 9: a syntactic address dependency
    name: 'MP+fence.w.w+addr',
    harts: [fenced('w,w', MP[0]!), [read('a', 'y'), { read: 'x', to: 'b', address: 'a' }]],
    forbidden: [MP_BAD],
  },
  {
    // Rules 5 and 6: acquire, release
    name: 'MP+amo.rl+amo.aq',
    harts: [
      [write('x'), swap('.rl', 'y', 1)],
      [amoRead('.aq', 'a', 'y'), read('b', 'x')],
    ],
    forbidden: [MP_BAD],
  },
  {
    // What was read before must not stand for what is read behind the fence
    name: 'MP+fence.w.w+read ahead, fence.r.r',
    harts: [fenced('w,w', MP[0]!), [read('c', 'x'), read('a', 'y'), fence('r,r'), read('b', 'x')]],
    forbidden: [MP_BAD, { c: 1, b: 0 }],
  },
  {
    name: 'MP+fence.w.w+read ahead, fence.tso',
    harts: [fenced('w,w', MP[0]!), [read('c', 'x'), read('a', 'y'), { fence: 0x833 }, read('b', 'x')]],
    forbidden: [MP_BAD, { c: 1, b: 0 }],
  },
  // Store buffering
  { name: 'SB', harts: SB, forbidden: [] },
  { name: 'SB+fence.rw.rw+fence.rw.rw', harts: SB.map((steps) => fenced('rw,rw', steps)), forbidden: [SB_BAD] },
  { name: 'SB+fence.w.r+fence.w.r', harts: SB.map((steps) => fenced('w,r', steps)), forbidden: [SB_BAD] },
  { name: 'SB+fence.rw.rw', harts: [fenced('rw,rw', SB[0]!), SB[1]!], forbidden: [] },
  {
    name: 'SB+amo.aq+amo.aq',
    harts: [
      [swap('.aq', 'x', 1), read('a', 'y')],
      [swap('.aq', 'y', 1), read('b', 'x')],
    ],
    forbidden: [SB_BAD],
  },
  {
    // Rule 7: both are RCsc
    name: 'SB+amo.rl-amo.aq',
    harts: [
      [swap('.rl', 'x', 1), amoRead('.aq', 'a', 'y')],
      [swap('.rl', 'y', 1), amoRead('.aq', 'b', 'x')],
    ],
    forbidden: [SB_BAD],
  },
  // Load buffering
  { name: 'LB', harts: LB, forbidden: [] },
  { name: 'LB+fence.r.w+fence.r.w', harts: LB.map((steps) => fenced('r,w', steps)), forbidden: [LB_BAD] },
  { name: 'LB+fence.rw.rw+fence.rw.rw', harts: LB.map((steps) => fenced('rw,rw', steps)), forbidden: [LB_BAD] },
  {
    // Rules 10 and 11
    name: 'LB+data+ctrl',
    harts: [
      [read('a', 'x'), { write: 'y', value: 1, after: 'a', by: 'data' }],
      [read('b', 'y'), { write: 'x', value: 1, after: 'b', by: 'control' }],
    ],
    forbidden: [LB_BAD],
  },
  // Coherence
  { name: 'CoRR', harts: [[write('x')], [read('a', 'x'), read('b', 'x')]], forbidden: [{ a: 1, b: 0 }] },
  {
    name: 'CoRR2',
    harts: [[write('x', 1)], [write('x', 2)], [read('a', 'x'), read('b', 'x')], [read('c', 'x'), read('d', 'x')]],
    forbidden: [
      { a: 1, b: 2, c: 2, d: 1 },
      { a: 2, b: 1, c: 1, d: 2 },
      { a: 1, b: 0 },
      { a: 2, b: 0 },
      { c: 1, d: 0 },
      { c: 2, d: 0 },
    ],
  },
  {
    name: 'SB+own store read back',
    harts: [
      [write('x'), read('a', 'x'), read('b', 'y')],
      [write('y'), read('c', 'y'), read('d', 'x')],
    ],
    forbidden: [{ a: 0 }, { c: 0 }],
  },
  { name: 'CoWR', harts: [[write('x', 1), read('a', 'x')], [write('x', 2)]], forbidden: [{ a: 0 }] },
  {
    name: 'CoRW',
    harts: [[read('a', 'x'), write('x', 1)], [write('x', 2)]],
    final: ['x'],
    forbidden: [{ a: 1 }, { x: 0 }, { a: 2, x: 2 }],
  },
  {
    name: '2+2W+fence.w.w',
    harts: [
      [write('x', 1), fence('w,w'), write('y', 2)],
      [write('y', 1), fence('w,w'), write('x', 2)],
    ],
    final: ['x', 'y'],
    forbidden: [{ x: 1, y: 1 }],
  },
  // Three and four harts: stores become visible to all others at once
  {
    name: 'WRC+fence.rw.rw',
    harts: [
      [write('x')],
      [read('a', 'x'), fence('rw,rw'), write('y')],
      [read('b', 'y'), fence('rw,rw'), read('c', 'x')],
    ],
    forbidden: [{ a: 1, b: 1, c: 0 }],
  },
  {
    name: 'ISA2+fences',
    harts: [
      [write('x'), fence('w,w'), write('y')],
      [read('a', 'y'), fence('r,w'), write('z')],
      [read('b', 'z'), fence('r,r'), read('c', 'x')],
    ],
    forbidden: [{ a: 1, b: 1, c: 0 }],
  },
  { name: 'IRIW', harts: IRIW([]), forbidden: [] },
  { name: 'IRIW+fence.rw.rw', harts: IRIW([fence('rw,rw')]), forbidden: [{ a: 1, b: 0, c: 1, d: 0 }] },
  {
    name: 'MP+fences, two readers and a writer of another place',
    harts: [
      [write('x'), fence('w,w'), write('y')],
      [read('a', 'y'), fence('r,r'), read('b', 'x')],
      [read('c', 'y'), fence('r,r'), read('d', 'x')],
      [write('z'), write('z', 2)],
    ],
    forbidden: [
      { a: 1, b: 0 },
      { c: 1, d: 0 },
    ],
  },
  // LR and SC: what the SC replaces is what the LR saw
  {
    name: 'LR-SC against a store',
    harts: [
      [
        { reserve: 'x', to: 'a' },
        { conditional: 'x', value: 1, to: 'b' },
      ],
      [write('x', 2)],
    ],
    final: ['x'],
    forbidden: [{ a: 0, b: 0, x: 1 }, { a: 2, b: 0, x: 2 }, { x: 0 }],
  },
  {
    name: 'LR-SC against LR-SC',
    harts: [
      [
        { reserve: 'x', to: 'a' },
        { conditional: 'x', value: 1, to: 'b' },
      ],
      [
        { reserve: 'x', to: 'c' },
        { conditional: 'x', value: 2, to: 'd' },
      ],
    ],
    final: ['x'],
    // Both succeed on the same value; one succeeds and its value is lost
    forbidden: [
      { a: 0, b: 0, c: 0, d: 0 },
      { b: 0, d: 1, x: 2 },
      { b: 1, d: 0, x: 1 },
    ],
  },
  {
    name: 'LR-SC against an AMO',
    harts: [
      [
        { reserve: 'x', to: 'a' },
        { conditional: 'x', value: 1, to: 'b' },
      ],
      [swap('', 'x', 2, 'c')],
    ],
    final: ['x'],
    forbidden: [
      { a: 0, b: 0, x: 1 },
      { a: 0, b: 0, c: 0 },
      { b: 1, c: 1 },
    ],
  },
  {
    // a=0 b=1 c=0 d=1 is an SC that succeeded although x was stored to since the LR. Our SC compares the value, as
    // QEMU's does, so that it can happen: counted, not refused
    name: 'LR-SC across stores that bring the value back',
    harts: [
      [
        { reserve: 'x', to: 'a' },
        fence('rw,rw'),
        write('y'),
        fence('rw,rw'),
        read('b', 'z'),
        { conditional: 'x', value: 1, to: 'c' },
      ],
      [read('d', 'y'), fence('rw,rw'), write('x', 2), write('x', 0), fence('rw,rw'), write('z')],
    ],
    forbidden: [],
  },
  {
    name: 'AMOs on one place',
    harts: [
      [{ amo: 'amoadd.w', location: 'x', value: 1, to: 'a' }],
      [{ amo: 'amoadd.w', location: 'x', value: 1, to: 'b' }],
    ],
    final: ['x'],
    forbidden: [{ a: 0, b: 0 }, { a: 1, b: 1 }, { x: 1 }, { x: 0 }],
  },
];
