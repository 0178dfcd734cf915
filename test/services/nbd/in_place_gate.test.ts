import { existsSync } from 'node:fs';
import test from 'ava';
import { InPlaceGate } from '../../../services/nbd/images/in_place_gate.ts';
import { CoreAtHand, type SlowReason, StorageReads } from '../../../services/nbd/images/slow_reason.ts';

const BLOCK_BYTES = 4096;
const CACHED_MS = 0.004;
const SLOW_MS = 1;
/** From here on an access is late: as {@link StorageReads} has it */
const LATE_MS = new StorageReads().slowMs;

/** A gate with a clock that only goes on while something is accessed. */
class Timed {
  readonly gate: InPlaceGate;
  #nowMs = 0;

  constructor(reason?: SlowReason) {
    this.gate = new InPlaceGate(reason, () => this.#nowMs);
  }

  /** The one that has entered takes `ms`. */
  takes(ms: number): void {
    this.#nowMs += ms;
    this.gate.done(BLOCK_BYTES);
  }

  /** One in place that takes `ms` */
  inPlace(ms: number): void {
    if (!this.gate.enter()) throw new Error('not in place');
    this.takes(ms);
  }

  slowly(): void {
    this.inPlace(SLOW_MS);
  }

  fast(count: number): void {
    for (let tries = 0; tries < count; tries++) this.inPlace(CACHED_MS);
  }

  /** How many go to the pool, each taking `pooledMs` there, before one enters. */
  away(pooledMs: number, most = 100_000): number {
    let count = 0;
    while (count < most && !this.gate.enter()) {
      count++;
      this.gate.pooled(BLOCK_BYTES, pooledMs);
    }
    return count;
  }
}

interface Host {
  /** Every so many accesses one is to data that is not cached */
  readonly missEvery: number;
  readonly missMs: number;
  /** How long the pool takes beside that, access by access */
  poolMs(index: number): number;
  /** The system does not tell what it has read from storage */
  readonly silent?: boolean;
}

/** What part of 20 000 accesses runs in place. */
function inPlaceShare({ missEvery, missMs, poolMs, silent }: Host): number {
  let missedBytes = 0;
  const timed = new Timed({
    slowMs: LATE_MS,
    share: (lengthBytes) => {
      const share = silent ? 1 : missedBytes / lengthBytes;
      missedBytes = 0;
      return share;
    },
  });
  const accesses = 20_000;
  let inPlace = 0;
  for (let index = 1; index <= accesses; index++) {
    const isMissed = index % missEvery === 0;
    if (isMissed) missedBytes += BLOCK_BYTES;
    const waitMs = isMissed ? missMs : 0;
    if (timed.gate.enter()) {
      inPlace++;
      timed.takes(CACHED_MS + waitMs);
    } else timed.gate.pooled(BLOCK_BYTES, poolMs(index) + waitMs);
  }
  return inPlace / accesses;
}

const QUIET = (): number => 0.06;
const BUSY = (): number => 0.4;
/** Threads wait for each other, or for a core, now and then: more often than the longest penalty is over */
const UNEVEN = (index: number): number => (index % 100 === 0 ? 0.5 : 0.06);

test('a slow access in place sends the next ones to the pool, twice as many while slow ones go on', (t) => {
  const timed = new Timed();
  for (const expected of [8, 16, 32, 64, 128, 256, 256]) {
    timed.slowly();
    t.is(timed.away(0.05), expected);
    // `away` ended with an access in place: it counts as slow only when it is told so.
  }
});

test('while the pool is slow, nothing is tried in place; at last it is, all the same', (t) => {
  const timed = new Timed();
  timed.slowly();
  const count = timed.away(5);
  t.true(count > 1000 && count < 1100, `${count}`);
});

test('when the pool gets fast, so many fast ones bring it back as the penalty says', (t) => {
  const timed = new Timed();
  timed.slowly();
  for (let tries = 0; tries < 100; tries++) {
    t.false(timed.gate.enter());
    timed.gate.pooled(BLOCK_BYTES, 5);
  }
  // Now the penalty is 16: the next slow access in place would have it.
  t.is(timed.away(0.05), 16);
});

test('large accesses may take longer, and what ran late in the pool does not count while all is well', (t) => {
  const timed = new Timed();
  timed.gate.pooled(BLOCK_BYTES, 100);
  timed.slowly();
  for (let tries = 0; tries < 8; tries++) {
    t.false(timed.gate.enter());
    timed.gate.pooled(1 << 20, 0.8);
  }
  t.true(timed.gate.enter());
});

test('fast accesses pay for a slow one that comes after them, and only for as much as they have saved', (t) => {
  const timed = new Timed();
  timed.fast(15);
  timed.inPlace(0.25);
  t.is(timed.away(0.05), 0, '15 times 20 µs are enough');
  timed.takes(CACHED_MS);
  timed.inPlace(0.25);
  t.is(timed.away(0.05), 8, 'what is left of it and one more are not');
  timed.takes(CACHED_MS);
  timed.fast(1000);
  timed.inPlace(2);
  t.is(timed.away(0.05), 8, 'an hour of fast ones does not pay for a disk that has to seek');
});

test('slow accesses that storage has no part in change nothing, unless there are many', (t) => {
  let storage = 0;
  const timed = new Timed({ slowMs: LATE_MS, share: () => storage });
  timed.fast(16);
  timed.slowly();
  timed.fast(16);
  for (let tries = 0; tries < 4; tries++) timed.slowly();
  t.is(timed.away(0.05), 8, 'four in a row');
  timed.takes(SLOW_MS);
  t.is(timed.away(0.05), 16, 'and then each of them');
  timed.takes(CACHED_MS);
  timed.fast(63);
  storage = 1;
  timed.inPlace(2);
  t.is(timed.away(0.05), 8, 'forgiven, and storage had to be read');
});

test('a pool that is slow without storage is left again', (t) => {
  const timed = new Timed({ slowMs: LATE_MS, share: () => 0 });
  for (let tries = 0; tries < 4; tries++) timed.slowly();
  const count = timed.away(5);
  t.true(count >= 64 && count < 80, `${count}`);
});

test('a cached image runs in place, also where a page is missing here and there and the host is busy', (t) => {
  for (const poolMs of [QUIET, BUSY, UNEVEN]) {
    for (const missEvery of [1000, 100, 30]) {
      const share = inPlaceShare({ missEvery, missMs: 0.3, poolMs });
      t.true(share > 0.95, `${share} in place, one of ${missEvery} missing, ${poolMs(1)} ms`);
    }
  }
});

test('a cold image runs in the pool, whatever the pool takes', (t) => {
  for (const poolMs of [QUIET, BUSY, UNEVEN]) {
    for (const missEvery of [1, 3]) {
      const share = inPlaceShare({ missEvery, missMs: 0.3, poolMs });
      t.true(share < 0.03, `${share} in place, one of ${missEvery} missing, ${poolMs(1)} ms`);
    }
    // What seeks is not waited for even where most is cached.
    const share = inPlaceShare({ missEvery: 20, missMs: 8, poolMs });
    t.true(share < 0.15, `${share} in place, one of 20 seeks, ${poolMs(1)} ms`);
  }
});

test('a disk that answers within 80 µs is a cold one, too: its requests run side by side', (t) => {
  for (const poolMs of [QUIET, BUSY, UNEVEN]) {
    for (const missEvery of [1, 2, 3]) {
      const share = inPlaceShare({ missEvery, missMs: 0.08, poolMs });
      t.true(share < 0.03, `${share} in place, one of ${missEvery} missing, ${poolMs(1)} ms`);
    }
  }
});

test('where nobody else waits, a cold access runs in place, unless it takes long', (t) => {
  const timed = new Timed();
  timed.slowly();
  t.false(timed.gate.enter(), 'others wait');
  for (let tries = 0; tries < 100; tries++) {
    t.true(timed.gate.enter(true));
    timed.takes(0.1);
  }
  timed.gate.enter(true);
  timed.takes(8);
  t.true(timed.gate.enter(true), 'one that seeks is paid for by the others');
  timed.takes(8);
  let inPlace = 0;
  for (let tries = 0; tries < 5000; tries++) {
    if (timed.gate.enter(true)) {
      inPlace++;
      timed.takes(8);
    } else timed.gate.pooled(BLOCK_BYTES, 8);
  }
  t.true(inPlace < 100, `${inPlace} of 5000 while all of them seek`);
});

test('where the system does not tell, a slow pool is left after a while', (t) => {
  const share = inPlaceShare({ missEvery: 2000, missMs: 2, poolMs: BUSY, silent: true });
  t.true(share > 0.4 && share < 0.9, `${share} in place`);
});

test('StorageReads: nothing is read from storage while nothing is', (t) => {
  const reads = new StorageReads();
  reads.share(BLOCK_BYTES);
  const shares = [1, 2, 3, 4, 5].map(() => reads.share(BLOCK_BYTES));
  if (existsSync('/proc/self/io')) t.true(shares.includes(0));
  else t.deepEqual(shares, [1, 1, 1, 1, 1]);
});

test('CoreAtHand: a thread that had to wait for a core is told from one that had one', (t) => {
  const core = new CoreAtHand();
  const told = Array.from({ length: 50 }, () => core.share());
  // On any host a turn of microseconds is one without a wait, most of the time
  t.true(told.includes(1));
});
