import { MAX_HARTS, MAX_RAM_BYTES, MIN_RAM_BYTES } from '../../services/supervisor/mod.ts';
import { didYouMean } from '../suggest.ts';
import { UsageError } from '../usage_error.ts';

export interface DebianCommand {
  readonly help: boolean;
  /** Boot, run one command in the guest, power off */
  readonly smoke: boolean;
  /** Fetch again although the cache holds a guest */
  readonly refresh: boolean;
  /** Only this suite of Debian */
  readonly suite?: string;
  /** In `bytes` */
  readonly ramBytes: number;
  readonly harts: number;
  /** Without the demo disk */
  readonly disk: boolean;
  /** With a screen, and a page that shows it */
  readonly display: boolean;
  /** Where a flame graph goes */
  readonly profile?: string;
}

const DEFAULT_RAM_BYTES = 1 << 30;
const DEFAULT_HARTS = 2;
const OPTIONS = [
  '--help',
  '-h',
  '--smoke',
  '--refresh',
  '--no-disk',
  '--suite',
  '-m',
  '-smp',
  '-nographic',
  '-profile',
];
const UNITS: Readonly<Record<string, number>> = { '': 1 << 20, M: 1 << 20, G: 1 << 30 };

/** @throws UsageError naming the option */
export function parseDebianArguments(args: readonly string[]): DebianCommand {
  let command: DebianCommand = {
    help: false,
    smoke: false,
    refresh: false,
    ramBytes: DEFAULT_RAM_BYTES,
    harts: DEFAULT_HARTS,
    disk: true,
    display: true,
  };
  const rest = [...args];
  for (let word = rest.shift(); word !== undefined; word = rest.shift()) {
    const [name, inline] = /^(--[^=]+)=(.*)$/.exec(word)?.slice(1) ?? [word];
    const value = (): string => {
      const given = inline ?? rest.shift();
      if (given === undefined || given === '') throw new UsageError(`Cannot use ${name}: it needs a value`);
      return given;
    };
    if (name === '--help' || name === '-h') command = { ...command, help: true };
    else if (name === '--smoke') command = { ...command, smoke: true };
    else if (name === '--refresh') command = { ...command, refresh: true };
    else if (name === '--no-disk') command = { ...command, disk: false };
    else if (name === '-nographic' || name === '--nographic') command = { ...command, display: false };
    else if (name === '--suite') command = { ...command, suite: suiteOf(value()) };
    else if (name === '-profile' || name === '--profile') command = { ...command, profile: value() };
    else if (name === '-m') command = { ...command, ramBytes: ramOf(value()) };
    else if (name === '-smp') command = { ...command, harts: hartsOf(value()) };
    else throw unknown(word);
  }
  return command;
}

/** `caisson debian` has a kernel of its own; who knows QEMU may look for the options of a machine here. */
function unknown(word: string): UsageError {
  const others = word.startsWith('-') ? '; more options of a machine has caisson run, with a kernel of yours' : '';
  const instead = didYouMean(word, OPTIONS) || others;
  return new UsageError(`Cannot use ${word} with debian: unknown${instead} (caisson debian --help)`);
}

function suiteOf(text: string): string {
  // It becomes part of an apt source line: nothing but a plain name.
  if (!/^[a-z][a-z0-9-]{0,30}$/.test(text))
    throw new UsageError(`Cannot use the suite ${text}: expected a name like sid`);
  return text;
}

function ramOf(text: string): number {
  const match = /^(\d{1,6})([MG]?)$/.exec(text);
  const bytes = match === null ? Number.NaN : Number(match[1]) * UNITS[match[2]!]!;
  if (!(bytes >= MIN_RAM_BYTES && bytes <= MAX_RAM_BYTES && bytes % MIN_RAM_BYTES === 0))
    throw new UsageError(`Cannot use -m ${text}: expected a size like 512M or 1G, at most ${MAX_RAM_BYTES / 2 ** 20}M`);
  return bytes;
}

function hartsOf(text: string): number {
  const harts = /^\d$/.test(text) ? Number(text) : 0;
  if (harts < 1 || harts > MAX_HARTS) throw new UsageError(`Cannot use -smp ${text}: expected 1 to ${MAX_HARTS}`);
  return harts;
}
