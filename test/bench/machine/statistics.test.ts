import test from 'ava';
import { geometricMean, histogram, median, percentile, round, spread } from '../../../bench/machine/statistics.ts';

test('median() is the middle in numeric order, the upper one of two', (t) => {
  t.is(median([10, 9, 100]), 10);
  t.is(median([4, 1, 3, 2]), 3);
  t.is(median([7]), 7);
  t.throws(() => median([]), { instanceOf: RangeError });
});

test('median() leaves what it was given as it was', (t) => {
  const values = [3, 1, 2];
  median(values);
  t.deepEqual(values, [3, 1, 2]);
});

test('geometricMean() takes a doubling and a halving as nothing', (t) => {
  t.true(Math.abs(geometricMean([2, 0.5]) - 1) < 1e-12);
  t.true(Math.abs(geometricMean([1, 10, 100]) - 10) < 1e-9);
  for (const wrong of [[], [1, 0], [1, -2], [Number.NaN]]) {
    t.throws(() => geometricMean(wrong), { instanceOf: RangeError }, JSON.stringify(wrong));
  }
});

test('percentile() is the nearest rank', (t) => {
  const values = Array.from({ length: 100 }, (_, index) => 100 - index);
  t.is(percentile(values, 0), 1);
  t.is(percentile(values, 0.5), 50);
  t.is(percentile(values, 0.99), 99);
  t.is(percentile(values, 1), 100);
  t.is(percentile([5], 0.5), 5);
  t.throws(() => percentile([], 0.5), { instanceOf: RangeError });
});

test('histogram() counts each value once, a value on a bound below it', (t) => {
  t.deepEqual(histogram([0, 10, 11, 100, 101, 5000], [10, 100, 1000]), [2, 2, 1, 1]);
  t.deepEqual(histogram([], [1]), [0, 0]);
});

test('spread() is half the distance of the extremes over the median', (t) => {
  t.is(spread([100, 110, 90]), 0.1);
  t.is(spread([0, 0]), 0);
});

test('round() keeps as many digits as it is told', (t) => {
  t.is(round(1.2345, 2), 1.23);
  t.is(round(1234.5), 1235);
});
