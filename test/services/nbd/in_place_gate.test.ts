import { existsSync } from 'node:fs';
import test from 'ava';
import { InPlaceGate } from '../../../services/nbd/images/in_place_gate.ts';
import { CoreAtHand, StorageReads } from '../../../services/nbd/images/slow_reason.ts';

/** Waits in place, as an access that has to wait for a disk does. */
function slowly(gate: InPlaceGate): void {
  if (!gate.enter()) throw new Error('not in place');
  for (const start = performance.now(); performance.now() - start < 1; );
  gate.done(4096);
}

/** How many go to the pool, each taking `pooledMs` there, before one may run in place. */
function away(gate: InPlaceGate, pooledMs: number, most = 100_000): number {
  let count = 0;
  while (count < most && !gate.enter()) {
    count++;
    gate.pooled(4096, pooledMs);
  }
  return count;
}

test('a slow access in place sends the next ones to the pool, twice as many while slow ones go on', (t) => {
  const gate = new InPlaceGate();
  for (const expected of [8, 16, 32, 64, 128, 256, 256]) {
    slowly(gate);
    t.is(away(gate, 0.05), expected);
    // `away` ended with an access in place: it counts as slow only when it is told so.
  }
});

test('while the pool is slow, nothing is tried in place; at last it is, all the same', (t) => {
  const gate = new InPlaceGate();
  slowly(gate);
  const count = away(gate, 5);
  t.true(count > 8000 && count < 8200, `${count}`);
});

test('when the pool gets fast, so many fast ones bring it back as the penalty says', (t) => {
  const gate = new InPlaceGate();
  slowly(gate);
  for (let tries = 0; tries < 100; tries++) {
    t.false(gate.enter());
    gate.pooled(4096, 5);
  }
  // Now the penalty is 16: the next slow access in place would have it.
  t.is(away(gate, 0.05), 16);
});

test('large accesses may take longer, and what ran late in the pool does not count while all is well', (t) => {
  const gate = new InPlaceGate();
  gate.pooled(4096, 100);
  t.true(gate.enter());
  slowly(gate);
  for (let tries = 0; tries < 8; tries++) {
    t.false(gate.enter());
    gate.pooled(1 << 20, 0.8);
  }
  t.true(gate.enter());
});

test('slow accesses that storage has no part in change nothing, unless there are many', (t) => {
  let storage = false;
  const gate = new InPlaceGate({ since: () => storage });
  const fast = (count: number): void => {
    for (let tries = 0; tries < count; tries++) {
      t.true(gate.enter());
      gate.done(4096);
    }
  };
  fast(16);
  slowly(gate);
  fast(16);
  for (let tries = 0; tries < 4; tries++) slowly(gate);
  t.is(away(gate, 0.05), 8, 'four in a row');
  slowly(gate);
  t.is(away(gate, 0.05), 16, 'and then each of them');
  gate.done(4096);
  fast(63);
  storage = true;
  slowly(gate);
  t.is(away(gate, 0.05), 8, 'forgiven, and storage had to be read');
});

test('a pool that is slow without storage is left again', (t) => {
  const gate = new InPlaceGate({ since: () => false });
  for (let tries = 0; tries < 4; tries++) slowly(gate);
  const count = away(gate, 5);
  t.true(count >= 64 && count < 80, `${count}`);
});

test('StorageReads: nothing is read from storage while nothing is', (t) => {
  const reads = new StorageReads();
  reads.since();
  if (existsSync('/proc/self/io')) t.true([1, 2, 3, 4, 5].some(() => !reads.since()));
  else t.true(reads.since());
});

test('CoreAtHand: a thread that had to wait for a core is told from one that had one', (t) => {
  const core = new CoreAtHand();
  const told = Array.from({ length: 50 }, () => core.since());
  // On any host a turn of microseconds is one without a wait, most of the time
  t.true(told.includes(true));
});
