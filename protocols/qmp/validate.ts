import type { JsonObject, JsonValue } from './json.ts';
import { MAX_TEXT_BYTES } from './limits.ts';
import { QmpError } from './qmp_error.ts';
import { QMP_SCHEMA } from './schema.ts';
import type {
  QmpArguments,
  QmpCommand,
  QmpCommandName,
  QmpEventName,
  QmpMembers,
  QmpReturn,
  QmpSchema,
  QmpTypeRef,
} from './schema_types.ts';

const SCHEMA: QmpSchema = QMP_SCHEMA;
const textEncoder = new TextEncoder();

/** Ranges of the integer types; all are exact as a number. */
const INTEGERS = new Map<string, readonly [min: number, max: number]>([
  ['int', [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER]],
  ['size', [0, Number.MAX_SAFE_INTEGER]],
  ['uint8', [0, 0xff]],
  ['uint16', [0, 0xffff]],
  ['uint32', [0, 0xffff_ffff]],
]);

/** A checked command: its name is in the schema and its arguments have the shape of it. */
export type QmpCall = {
  [N in QmpCommandName]: { readonly name: N; readonly arguments: QmpArguments<N> };
}[QmpCommandName];

export function isQmpCommand(name: string): name is QmpCommandName {
  return Object.hasOwn(SCHEMA.commands, name);
}

export function isQmpEvent(name: string): name is QmpEventName {
  return Object.hasOwn(SCHEMA.events, name);
}

/**
 * Checks the arguments of a command against the schema, before anything is done.
 * @throws QmpError: CommandNotFound, or GenericError that names the parameter
 */
export function validateCommand(name: string, given: JsonObject | undefined): QmpCall {
  if (!isQmpCommand(name)) {
    throw new QmpError(`The command ${printable(name)} has not been found`, 'CommandNotFound');
  }
  const command: QmpCommand = SCHEMA.commands[name]!;
  const fields = given ?? {};
  const checked =
    typeof command.arguments === 'string'
      ? checkValue(command.arguments, fields, '')
      : checkMembers(command.arguments ?? {}, fields, '');
  return { name, arguments: checked } as unknown as QmpCall;
}

/**
 * Takes from a role's answer what the schema promises, and nothing else: roles may be taken over by their peers.
 * @throws QmpError where a field is missing or of another type
 */
export function projectReturn<N extends QmpCommandName>(name: N, value: unknown): QmpReturn<N> {
  const { returns } = SCHEMA.commands[name]!;
  if (returns === undefined) return {} as QmpReturn<N>;
  return checkValue(returns, value as JsonValue, '', 'known') as QmpReturn<N>;
}

/** `all`: a member that the schema does not have is an error; `known`: it is left out */
type Members = 'all' | 'known';

function checkValue(ref: QmpTypeRef, value: JsonValue, path: string, take: Members = 'all'): unknown {
  if (typeof ref !== 'string') {
    if (!Array.isArray(value)) throw wrongType(path, 'array');
    return value.map((item: JsonValue) => checkValue(ref[0], item, path, take));
  }
  const range = INTEGERS.get(ref);
  if (range !== undefined) return checkInteger(range, value, path);
  switch (ref) {
    case 'str':
      return checkText(value, path);
    case 'bool':
      if (typeof value !== 'boolean') throw wrongType(path, 'boolean');
      return value;
    case 'number':
      if (typeof value !== 'number' || !Number.isFinite(value)) throw wrongType(path, 'number');
      return value;
    case 'any':
      return value;
  }
  const type = SCHEMA.types[ref];
  if (type === undefined) throw new TypeError(`The schema has no type ${ref}`);
  if ('enum' in type) {
    if (typeof value !== 'string') throw wrongType(path, 'string');
    if (!type.enum.includes(value)) {
      throw new QmpError(`Parameter '${path}' does not accept value '${printable(value)}'`);
    }
    return value;
  }
  const fields = asObject(value);
  if (fields === undefined) throw wrongType(path, 'object');
  if ('struct' in type) return checkMembers(type.struct, fields, path, take);
  const { base, discriminator, variants } = type.union;
  const tag = fields[discriminator];
  if (tag === undefined) throw missing(join(path, discriminator));
  const chosen = checkValue(base[discriminator]!, tag, join(path, discriminator)) as string;
  const variant = SCHEMA.types[variants[chosen]!];
  if (variant === undefined || !('struct' in variant)) throw new TypeError(`The schema has no variant for ${chosen}`);
  return checkMembers({ ...base, ...variant.struct }, fields, path, take);
}

function checkMembers(
  members: QmpMembers,
  fields: JsonObject,
  path: string,
  take: Members = 'all',
): Record<string, unknown> {
  const checked: Record<string, unknown> = Object.create(null);
  const known = new Set<string>();
  for (const [key, ref] of Object.entries(members)) {
    const optional = key.startsWith('*');
    const name = optional ? key.slice(1) : key;
    known.add(name);
    const value = Object.hasOwn(fields, name) ? fields[name] : undefined;
    if (value !== undefined) checked[name] = checkValue(ref, value, join(path, name), take);
    else if (!optional) throw missing(join(path, name));
  }
  if (take === 'known') return checked;
  for (const name of Object.keys(fields)) {
    if (!known.has(name)) throw new QmpError(`Parameter '${join(path, printable(name))}' is unexpected`);
  }
  return checked;
}

function checkInteger([min, max]: readonly [number, number], value: JsonValue, path: string): number {
  if (typeof value === 'bigint') throw new QmpError(`Parameter '${path}' expects ${min}..${max}`);
  if (typeof value !== 'number' || !Number.isSafeInteger(value)) throw wrongType(path, 'integer');
  if (value < min || value > max) throw new QmpError(`Parameter '${path}' expects ${min}..${max}`);
  return value;
}

function checkText(value: JsonValue, path: string): string {
  if (typeof value !== 'string') throw wrongType(path, 'string');
  const length = textEncoder.encode(value).length;
  if (length > MAX_TEXT_BYTES) {
    throw new QmpError(`Parameter '${path}' is too long: ${length} bytes, limit is ${MAX_TEXT_BYTES}`);
  }
  // No command of ours has a use for these, and a path or a log line with one in it is never what it seems.
  if ([...value].some((unit) => unit < ' ' || unit === '\x7f')) {
    throw new QmpError(`Parameter '${path}' has a control character`);
  }
  return value;
}

function asObject(value: JsonValue): JsonObject | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as JsonObject) : undefined;
}

function join(path: string, name: string): string {
  return path === '' ? name : `${path}.${name}`;
}

function wrongType(path: string, expected: string): QmpError {
  return new QmpError(`Invalid parameter type for '${path}', expected: ${expected}`);
}

function missing(path: string): QmpError {
  return new QmpError(`Parameter '${path}' is missing`);
}

/** A name from the client, short enough to say back */
function printable(text: string): string {
  return text.length > 64 ? `${text.slice(0, 64)}…` : text;
}
