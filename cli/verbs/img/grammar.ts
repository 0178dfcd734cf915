import { didYouMean } from '../../suggest.ts';
import { UsageError } from '../../usage_error.ts';

/** One option of a subcommand: QEMU's have one letter, or a long name, seldom both. */
export interface OptionRule {
  readonly short?: string;
  readonly long?: string;
  /** What its value is called in the help; absent: the option takes none */
  readonly value?: string;
  readonly help: string;
  /** Of a value that is accepted and changes nothing: throws for one that is none. @throws UsageError */
  readonly check?: (value: string, option: string) => void;
  /** May be given more than once */
  readonly repeats?: true;
}

export interface Subcommand {
  readonly name: string;
  readonly summary: string;
  /** What follows the options: `FILE`, `SOURCE … TARGET` */
  readonly operands: string;
  readonly options: readonly OptionRule[];
  /** What it does, for the help */
  readonly text: string;
  /** Lines that can be typed, for the help */
  readonly examples: string;
  run(given: Given): Promise<number>;
}

/** What was given to a subcommand. */
export class Given {
  readonly #command: string;
  readonly #values: ReadonlyMap<string, readonly string[]>;
  readonly operands: readonly string[];
  /** Answers as qemu-img: formats are guessed, and names inside images followed */
  readonly asQemu: boolean;

  constructor(
    command: string,
    values: ReadonlyMap<string, readonly string[]>,
    operands: readonly string[],
    asQemu = false,
  ) {
    this.#command = command;
    this.#values = values;
    this.operands = operands;
    this.asQemu = asQemu;
  }

  has(name: string): boolean {
    return this.#values.has(name);
  }

  text(name: string): string | undefined {
    return this.#values.get(name)?.at(-1);
  }

  /** Names of the options in the order in which they came first */
  get order(): readonly string[] {
    return [...this.#values.keys()];
  }

  all(name: string): readonly string[] {
    return this.#values.get(name) ?? [];
  }

  oneOf<T extends string>(name: string, allowed: readonly T[], otherwise: T): T {
    const value = this.text(name);
    if (value === undefined) return otherwise;
    const found = allowed.find((candidate) => candidate === value);
    if (found !== undefined) return found;
    throw this.usage(`${shown(name)} ${value}: expected ${allowed.join(' or ')}${didYouMean(value, allowed)}`);
  }

  /** `4096`, `64k`, `1.5G`: in `bytes` */
  size(name: string): number | undefined {
    const value = this.text(name);
    return value === undefined ? undefined : parseSize(value, shown(name));
  }

  /** Puts the file that an operand is about in its place. */
  replaceOperand(index: number, text: string): void {
    (this.operands as string[])[index] = text;
  }

  /** Exactly so many operands, called as in `names`. @throws UsageError */
  expect(...names: string[]): readonly string[] {
    const missing = names[this.operands.length];
    if (missing !== undefined) throw this.usage(`its ${missing} is missing`);
    const more = this.operands[names.length];
    if (more !== undefined) throw this.usage(`${more} is too much`);
    return this.operands;
  }

  usage(text: string): UsageError {
    return new UsageError(`Cannot run ${this.#command}: ${text} (caisson img ${this.#command} --help)`);
  }
}

/**
 * `-f X`, `-fX`, `-pq`, `--output X`, `--output=X`, and `--` before operands; `-1G` is a size, not an option.
 * @throws UsageError
 */
export function parseGiven(command: Subcommand, args: readonly string[], asQemu = false): Given {
  const values = new Map<string, string[]>();
  const operands: string[] = [];
  const queue = [...args];
  const nameOf = (rule: OptionRule): string => rule.long ?? rule.short!;
  const usage = (text: string): UsageError => new Given(command.name, values, operands).usage(text);
  const set = (rule: OptionRule, as: string, attached: string | undefined): void => {
    if (rule.value === undefined) {
      if (attached !== undefined) throw usage(`${as} takes no value`);
      values.set(nameOf(rule), ['']);
      return;
    }
    const value = attached ?? queue.shift();
    if (value === undefined) throw usage(`${as} needs its ${rule.value}`);
    rule.check?.(value, as);
    const before = values.get(nameOf(rule)) ?? [];
    if (before.length > 0 && rule.repeats !== true && !asQemu) throw usage(`${as} comes twice`);
    values.set(nameOf(rule), [...before, value]);
  };
  for (let arg = queue.shift(); arg !== undefined; arg = queue.shift()) {
    if (arg === '--') operands.push(...queue.splice(0));
    else if (arg.startsWith('--')) {
      const equals = arg.indexOf('=');
      const name = arg.slice(2, equals < 0 ? undefined : equals);
      const rule = longRule(command, name);
      if (rule === undefined) {
        const known = command.options.flatMap(({ long }) => (long === undefined ? [] : [`--${long}`]));
        throw usage(`--${name} is unknown${didYouMean(`--${name}`, known)}`);
      }
      set(rule, `--${name}`, equals < 0 ? undefined : arg.slice(equals + 1));
    } else if (/^-\D/.test(arg)) {
      for (let at = 1; at < arg.length; at++) {
        const letter = arg[at]!;
        const rule = command.options.find((known) => known.short === letter);
        if (rule === undefined) throw usage(`-${letter} is unknown`);
        const rest = arg.slice(at + 1);
        set(rule, `-${letter}`, rule.value !== undefined && rest !== '' ? rest : undefined);
        if (rule.value !== undefined) break;
      }
    } else operands.push(arg);
  }
  return new Given(command.name, values, operands, asQemu);
}

/** A long name may be cut short where it is still one option's. */
function longRule(command: Subcommand, name: string): OptionRule | undefined {
  const begins = command.options.filter(({ long }) => long?.startsWith(name));
  return begins.find(({ long }) => long === name) ?? (begins.length === 1 ? begins[0] : undefined);
}

export function helpOf(command: Subcommand): string {
  const lines = command.options.map((rule) => {
    const value = rule.value ?? '';
    const words = [
      ...(rule.short === undefined
        ? []
        : [`-${rule.short}${rule.long === undefined && value !== '' ? ` ${value}` : ''}`]),
      ...(rule.long === undefined ? [] : [`--${rule.long}${value === '' ? '' : `=${value}`}`]),
    ];
    return `  ${words.join(', ').padEnd(24)} ${rule.help}`;
  });
  const usage = ['caisson img', command.name, '[OPTIONS]', command.operands].join(' ').trimEnd();
  return `${usage}\n${command.text}\n\n${lines.join('\n')}\n\n${command.examples}\n`;
}

const UNITS = 'bkmgtpe';

/** QEMU's sizes: a number, also with a fraction, and a letter, powers of 1024. @throws UsageError */
export function parseSize(text: string, what: string): number {
  const hex = /^0x[0-9a-f]{1,13}$/i.test(text);
  const match = hex ? [text, String(Number(text))] : /^(\d+(?:\.\d*)?)([bkmgtpe])?$/i.exec(text);
  const [, digits = '', unit = 'b'] = match ?? [];
  const bytes = Number(digits) * 1024 ** UNITS.indexOf(unit.toLowerCase());
  // A part of a byte is a mistake; a part of a larger unit is rounded to whole bytes.
  const broken = unit.toLowerCase() === 'b' && !Number.isInteger(bytes);
  if (match === null || broken || !Number.isSafeInteger(Math.round(bytes))) {
    throw new UsageError(`Cannot use ${what} ${text}: expected a size in bytes, or with k, M, G or T: 512M, 1.5G`);
  }
  return Math.round(bytes);
}

/** What a disk of whole sectors can be made to have, in `bytes`. @throws UsageError */
export function wholeSectors(given: Given, sizeBytes: number): number {
  if (sizeBytes % 512 === 0) return sizeBytes;
  throw given.usage(`a new size of ${sizeBytes} bytes is no multiple of 512`);
}

function shown(name: string): string {
  return name.length === 1 ? `-${name}` : `--${name}`;
}
