import test from 'ava';
import { MemoryImage } from '../../../../services/nbd/images/mod.ts';
import { JobDisk, Throttle, TokenBucket } from '../../../../services/nbd/jobs/mod.ts';

/** Lets requests of `units` through one after the other, with a clock of its own; gives how many in `seconds`. */
function passed(bucket: TokenBucket, units: number, seconds: number): number {
  let nowMs = 0;
  let count = 0;
  while (nowMs < seconds * 1000) {
    const waitMs = bucket.waitMs(nowMs);
    if (waitMs > 0) {
      nowMs += waitMs;
      continue;
    }
    bucket.fill(units);
    count++;
  }
  return count;
}

test('a bucket lets its average through, whatever the size of the requests', (t) => {
  for (const [average, units] of [
    [100, 1],
    [1 << 20, 4096],
    [1 << 20, 1 << 19],
    [10, 1],
  ] as const) {
    const total = passed(new TokenBucket({ average }, 0), units, 10) * units;
    t.true(total >= average * 10 && total <= average * 10.1 + units * 2, `${average}: ${total}`);
  }
});

test('a burst passes at its own rate for its length, then the average counts', (t) => {
  const rate = { average: 100, burst: 1000, burstSeconds: 2 };
  t.true(passed(new TokenBucket(rate, 0), 1, 0.5) <= 610, 'not faster than the burst');
  const two = passed(new TokenBucket(rate, 0), 1, 2);
  t.true(two > 1900 && two < 2300, `${two} in 2 s`);
  const twenty = passed(new TokenBucket(rate, 0), 1, 20);
  t.true(twenty > 3700 && twenty < 4300, `${twenty} in 20 s`);
});

test('a bucket that nobody used for a while is no fuller than empty', (t) => {
  const bucket = new TokenBucket({ average: 100 }, 0);
  t.true(bucket.waitMs(1e6) <= 0);
  let count = 0;
  while (bucket.waitMs(1e6) <= 0) {
    bucket.fill(1);
    count++;
  }
  t.true(count <= 12, `${count} at once`);
});

test('a throttled disk takes the time of its limits, reads and writes by their own, and nothing without them', async (t) => {
  const disk = new JobDisk(new MemoryImage(1 << 20));
  t.true(disk.readNow(0, new Uint8Array(512)));
  disk.throttle = new Throttle({ opsRead: { average: 50 }, bytesWrite: { average: 1 << 20 } });
  t.false(disk.readNow(0, new Uint8Array(512)));
  let startedMs = performance.now();
  await Promise.all(Array.from({ length: 20 }, () => disk.read(0, new Uint8Array(512))));
  const readMs = performance.now() - startedMs;
  // 5 pass at once, the others wait 20 ms each.
  t.true(readMs > 250 && readMs < 3000, `${readMs} ms`);
  startedMs = performance.now();
  for (let count = 0; count < 4; count++) await disk.write(0, new Uint8Array(100_000));
  const writeMs = performance.now() - startedMs;
  t.true(writeMs > 150 && writeMs < 3000, `${writeMs} ms`);
  disk.throttle = new Throttle({});
  t.true(disk.readNow(0, new Uint8Array(512)), 'limits of nothing are none');
});

test('a large request counts as several operations with opBytes', async (t) => {
  const throttle = new Throttle({ opsTotal: { average: 100 }, opBytes: 4096 });
  const startedMs = performance.now();
  for (let count = 0; count < 3; count++) await throttle.take('write', 65_536);
  t.true(performance.now() - startedMs > 150);
});

test('a bucket that is full for months says to wait no longer than a timer can', (t) => {
  const bucket = new TokenBucket({ average: 1 }, 0);
  bucket.fill(2 ** 40);
  const waitMs = bucket.waitMs(1);
  // Beyond 2^31 - 1 ms a timer fires at once, a thousand times a second.
  t.true(waitMs > 3_600_000 && waitMs < 2 ** 31, `${waitMs} ms`);
});
