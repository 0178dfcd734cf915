/** Parameters of a control message are not what they should be. */
export class ParameterError extends Error {
  override readonly name = 'ParameterError';
  readonly code = 'ERR_PARAMETER';
}

/** Longest text that any parameter may have */
const MAX_TEXT_LENGTH = 4096;

export function recordOf(value: unknown, what: string): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ParameterError(`Cannot read ${what}: expected an object`);
  }
  return value as Readonly<Record<string, unknown>>;
}

export function textField(record: Readonly<Record<string, unknown>>, field: string): string {
  const value = Object.hasOwn(record, field) ? record[field] : undefined;
  if (typeof value !== 'string' || value.length > MAX_TEXT_LENGTH || value.includes('\0')) {
    throw new ParameterError(`Cannot read ${field}: expected a text of at most ${MAX_TEXT_LENGTH} characters`);
  }
  return value;
}

export function optionalTextField(record: Readonly<Record<string, unknown>>, field: string): string | undefined {
  return record[field] === undefined || record[field] === null ? undefined : textField(record, field);
}

export function numberField(
  record: Readonly<Record<string, unknown>>,
  field: string,
  min: number,
  max: number,
): number {
  const value = record[field];
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    throw new ParameterError(`Cannot read ${field}: expected a number from ${min} to ${max}`);
  }
  return value;
}

export function flagField(record: Readonly<Record<string, unknown>>, field: string, absent: boolean): boolean {
  const value = record[field];
  if (value === undefined || value === null) return absent;
  if (typeof value !== 'boolean') throw new ParameterError(`Cannot read ${field}: expected true or false`);
  return value;
}
