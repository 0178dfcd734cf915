import { UsageError } from './usage_error.ts';

const UNITS: Readonly<Record<string, number>> = { '': 0, B: 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 };

/** `512M`, `1G`; a bare number counts in `bareUnit` bytes. @throws UsageError */
export function parseSize(option: string, text: string, bareUnit: number): number {
  const match = /^([0-9]{1,12})([BKMG]?)(?:iB)?$/i.exec(text);
  const unit = match === null ? undefined : UNITS[match[2]!.toUpperCase()];
  if (match === null || unit === undefined)
    throw new UsageError(`Cannot use ${option} ${text}: expected a size like 512M or 1G`);
  const bytes = Number(match[1]) * (unit === 0 ? bareUnit : unit);
  if (!Number.isSafeInteger(bytes)) throw new UsageError(`Cannot use ${option} ${text}: too large`);
  return bytes;
}

/** @throws UsageError */
export function parseInteger(option: string, text: string, min: number, max: number): number {
  const value = Number(text);
  if (!/^[0-9]{1,15}$/.test(text) || value < min || value > max) {
    throw new UsageError(`Cannot use ${option} ${text}: expected a number in ${min}..${max}`);
  }
  return value;
}
