import * as H from '../kernel/assembly/hart_layout.ts';

/** One counter of a hart. */
export interface CounterDescription {
  readonly name: string;
  /** Offset of its u64 from the hart's base, between HART_COUNTERS and HART_COUNTERS_END */
  readonly offset: number;
  /** Cumulative counts only rise; an instant value is what is there now */
  readonly type: 'cumulative' | 'instant';
  readonly unit?: 'bytes' | 'seconds';
  /** The value is in units of 10^exponent: -9 for nanoseconds */
  readonly exponent?: number;
}

const count = (name: string, offset: number): CounterDescription => ({ name, offset, type: 'cumulative' });

/**
 * What each hart counts, in the order it is shown. To add one: a free COUNT_ offset in hart_layout.ts, a line here,
 * and a store by the hart's own thread (`count()` of the kernel's registers.ts, or {@link addToCounter}).
 */
export const HART_COUNTERS: readonly CounterDescription[] = [
  count('exceptions', H.COUNT_EXCEPTIONS),
  count('interrupts', H.COUNT_INTERRUPTS),
  count('sbi-calls', H.COUNT_SBI),
  count('waits', H.COUNT_WAITS),
  count('fetch-tlb-misses', H.COUNT_FETCH_MISSES),
  count('data-tlb-misses', H.COUNT_DATA_MISSES),
  count('page-walks', H.COUNT_PAGE_WALKS),
  count('tlb-flushes', H.COUNT_TLB_FLUSHES),
  count('tlb-page-flushes', H.COUNT_PAGE_FLUSHES),
  count('tlb-space-flushes', H.COUNT_SPACE_FLUSHES),
  count('mmio-reads', H.COUNT_MMIO_READS),
  count('mmio-writes', H.COUNT_MMIO_WRITES),
  count('mailbox-round-trips', H.COUNT_MAILBOX),
  count('code-pages-predecoded', H.COUNT_CODE_PAGES),
  count('code-pages-invalidated', H.COUNT_CODE_STALE),
  count('code-pages-evicted', H.COUNT_CODE_EVICTED),
  count('instructions-predecoded', H.COUNT_DECODED),
  count('translated-code-entries', H.COUNT_TRANSLATED_ENTRIES),
  count('instructions-in-translated-code', H.COUNT_TRANSLATED_RETIRED),
  count('functions-translated', H.COUNT_TRANSLATED_FUNCTIONS),
  count('instructions-translated', H.COUNT_TRANSLATED_INSTRUCTIONS),
  { ...count('translated-code', H.COUNT_TRANSLATED_BYTES), unit: 'bytes' },
  { ...count('translation-time', H.COUNT_TRANSLATE_TIME), unit: 'seconds', exponent: -6 },
  { ...count('baseline-compilation-time', H.COUNT_COMPILE_TIME), unit: 'seconds', exponent: -6 },
  count('modules-translated', H.COUNT_TRANSLATED_MODULES),
  count('translations-deferred', H.COUNT_TRANSLATIONS_DEFERRED),
  count('translation-flushes', H.COUNT_TRANSLATION_FLUSHES),
];

/** Retired instructions are not a word of their own: they follow from the fuel. */
export const RETIRED: CounterDescription = count('instructions', H.HART_INSTRET_END);

/** Adds to a counter; only on the hart's own thread, so that a plain load and store are enough. */
export function addToCounter(words: BigUint64Array, base: number, offset: number, by = 1n): void {
  const index = (base + offset) >> 3;
  words[index] = words[index]! + by;
}

/** All counters of the hart at `base`, from any thread: one that runs is at most a quantum ahead. */
export function readCounters(buffer: SharedArrayBuffer, base: number): ReadonlyMap<string, bigint> {
  const words = new BigUint64Array(buffer);
  const at = (offset: number): bigint => Atomics.load(words, (base + offset) >> 3);
  const fuel = Atomics.load(new Int32Array(buffer), (base + H.HART_FUEL) >> 2);
  const values = new Map([[RETIRED.name, BigInt.asUintN(64, at(H.HART_INSTRET_END) - BigInt(fuel))]]);
  for (const { name, offset } of HART_COUNTERS) values.set(name, at(offset));
  return values;
}
