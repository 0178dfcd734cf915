/** The middle value; of an even count the upper one, so that it is always one that was measured. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError('Cannot take the median of no values');
  return values.toSorted((a, b) => a - b)[values.length >> 1]!;
}

/** @throws RangeError for none, or one that is not above 0 */
export function geometricMean(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError('Cannot take the mean of no values');
  let logarithms = 0;
  for (const value of values) {
    if (!(value > 0)) throw new RangeError(`Cannot take the geometric mean: ${value} is not above 0`);
    logarithms += Math.log(value);
  }
  return Math.exp(logarithms / values.length);
}

/** Nearest rank: the smallest value that `share` (0..1) of all do not exceed. */
export function percentile(values: readonly number[], share: number): number {
  if (values.length === 0) throw new RangeError('Cannot take a percentile of no values');
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)]!;
}

/** How many values are at most each bound and above the one before; the last count is of those above all bounds. */
export function histogram(values: readonly number[], bounds: readonly number[]): number[] {
  const counts = new Array<number>(bounds.length + 1).fill(0);
  for (const value of values) {
    const at = bounds.findIndex((bound) => value <= bound);
    counts[at < 0 ? bounds.length : at]!++;
  }
  return counts;
}

/** Half the distance between largest and smallest, as a share of the median: how far the rounds lie apart. */
export function spread(values: readonly number[]): number {
  const middle = median(values);
  return middle === 0 ? 0 : (Math.max(...values) - Math.min(...values)) / 2 / middle;
}

export function round(value: number, digits = 0): number {
  return Math.round(value * 10 ** digits) / 10 ** digits;
}
