// A: unprivileged specification, "Zalrsc" and "Zaamo". aq and rl are honoured by sequentially consistent accesses.
import type { AmoName } from './emitter.ts';
import { amo, type Row } from './row.ts';

const WIDTHS = [
  { suffix: 'w', width: 2, bytes: 4 },
  { suffix: 'd', width: 3, bytes: 8 },
] as const;

const AMOS: readonly (readonly [string, number, AmoName])[] = [
  ['amoadd', 0x00, 'add'],
  ['amoswap', 0x01, 'xchg'],
  ['amoxor', 0x04, 'xor'],
  ['amoor', 0x08, 'or'],
  ['amoand', 0x0c, 'and'],
  ['amomin', 0x10, 'min'],
  ['amomax', 0x14, 'max'],
  ['amominu', 0x18, 'minu'],
  ['amomaxu', 0x1c, 'maxu'],
];

export const ATOMIC_ROWS: readonly Row[] = WIDTHS.flatMap(({ suffix, width, bytes }) => [
  amo(`lr.${suffix}`, 0x02, width, (e) => e.loadReserved(bytes)),
  amo(`sc.${suffix}`, 0x03, width, (e) => e.storeConditional(bytes)),
  ...AMOS.map(([name, f5, op]) => amo(`${name}.${suffix}`, f5, width, (e) => e.amo(op, bytes))),
]);
