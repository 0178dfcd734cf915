import process from 'node:process';
import { parseArgs } from 'node:util';
import { didYouMean } from '../cli/suggest.ts';

/** The words after a script's name are not what it takes. */
export class ScriptUsageError extends Error {
  override readonly name = 'ScriptUsageError';
  readonly code = 'ERR_SCRIPT_USAGE';
}

export interface ScriptOption {
  readonly type: 'string' | 'boolean';
  readonly default?: string | boolean;
  /** The value is a number of this range; `whole` unless said otherwise */
  readonly number?: { readonly least: number; readonly most: number; readonly fraction?: boolean };
  /** The value is one of these */
  readonly oneOf?: readonly string[];
}

export interface ScriptUsage {
  /** What `--help` prints */
  readonly help: string;
  readonly options: Readonly<Record<string, ScriptOption>>;
  /** What words without a dash may be; absent: there are none */
  readonly operands?: readonly string[];
}

export interface ScriptValues {
  /** Of an option that has a default, or that was given */
  text(name: string): string | undefined;
  number(name: string): number;
  flag(name: string): boolean;
  readonly operands: readonly string[];
}

/** @throws ScriptUsageError whose text is one line */
export function parseScriptArguments(args: readonly string[], usage: ScriptUsage): ScriptValues {
  const known = Object.keys(usage.options);
  const options = Object.fromEntries(known.map((name) => [name, { type: usage.options[name]!.type }]));
  const { tokens } = parseArgs({ args: [...args], options, strict: false, allowPositionals: true, tokens: true });
  const values = new Map<string, string | boolean>();
  for (const name of known) {
    const fallback = usage.options[name]!.default;
    if (fallback !== undefined) values.set(name, fallback);
  }
  const operands: string[] = [];
  for (const token of tokens) {
    if (token.kind === 'positional') operands.push(token.value);
    if (token.kind !== 'option') continue;
    const { rawName, name, value } = token;
    const option = Object.hasOwn(usage.options, name) && rawName.startsWith('--') ? usage.options[name]! : undefined;
    if (option === undefined) {
      const near = didYouMean(rawName, [...known.map((each) => `--${each}`), '--help']);
      throw new ScriptUsageError(`Cannot use ${rawName}: unknown${near}`);
    }
    if (option.type === 'boolean') {
      if (value !== undefined) throw new ScriptUsageError(`Cannot use ${rawName}=${value}: it takes no value`);
      values.set(name, true);
    } else {
      if (value === undefined) throw new ScriptUsageError(`Cannot use ${rawName}: its value is missing`);
      values.set(name, checked(rawName, value, option));
    }
  }
  const wrong = operands.find((word) => usage.operands?.includes(word) !== true);
  if (wrong !== undefined) {
    const expected = usage.operands === undefined ? 'nothing there' : usage.operands.join(', ');
    throw new ScriptUsageError(`Cannot use ${wrong}: expected ${expected}${didYouMean(wrong, usage.operands ?? [])}`);
  }
  return {
    operands,
    text: (name) => values.get(name) as string | undefined,
    number: (name) => Number(values.get(name)),
    flag: (name) => values.get(name) === true,
  };
}

function checked(rawName: string, value: string, { number, oneOf }: ScriptOption): string {
  if (oneOf !== undefined && !oneOf.includes(value)) {
    throw new ScriptUsageError(`Cannot use ${rawName} ${value}: expected ${oneOf.join(' or ')}`);
  }
  if (number === undefined) return value;
  const { least, most, fraction = false } = number;
  const given = value.trim() === '' ? Number.NaN : Number(value);
  if (!(given >= least && given <= most) || (!fraction && !Number.isInteger(given) && given !== Infinity)) {
    const kind = fraction ? 'a number' : 'a whole number';
    throw new ScriptUsageError(`Cannot use ${rawName} ${value}: expected ${kind} from ${least} to ${most}`);
  }
  return value;
}

/** True where the words ask for help before anything else. */
export function asksForHelp(args: readonly string[]): boolean {
  const end = args.indexOf('--');
  return args.slice(0, end === -1 ? args.length : end).some((word) => word === '--help' || word === '-h');
}

/** Prints why the words cannot be used, in one line, and ends with status 2. */
export function failUsage(error: Error): never {
  process.stderr.write(`${error.message} (--help tells what there is)\n`);
  process.exit(2);
}

/** What the script was given. `--help` is answered, and wrong words are told, here: the process ends then. */
export function scriptArguments(usage: ScriptUsage, args: readonly string[] = process.argv.slice(2)): ScriptValues {
  if (asksForHelp(args)) {
    process.stdout.write(usage.help);
    process.exit(0);
  }
  try {
    return parseScriptArguments(args, usage);
  } catch (error) {
    if (error instanceof ScriptUsageError) failUsage(error);
    throw error;
  }
}
