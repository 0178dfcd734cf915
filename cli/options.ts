import { DEFAULT_VM_OPTIONS, type VmOptions } from '../services/supervisor/mod.ts';
import { joinDevices, NETWORK_DEVICES } from './drives.ts';
import { ALIASES, type Draft, RULES } from './option_rules.ts';
import { QEMU_OPTIONS } from './qemu_options.ts';
import { didYouMean } from './suggest.ts';
import { UsageError } from './usage_error.ts';

/** Help lines, one option each. */
export function vmOptionsHelp(): string {
  return Object.entries(RULES)
    .map(([name, { value, help }]) => {
      const left = value === undefined ? name : `${name} ${value}`;
      return left.length <= 26 ? `  ${left.padEnd(27)}${help}` : `  ${left}\n${' '.repeat(29)}${help}`;
    })
    .join('\n');
}

export interface ParsedVm {
  readonly options: VmOptions;
  /** False: the name is a default, another may be taken */
  readonly named: boolean;
}

/**
 * The words of a command line, QEMU's grammar, to options. Nothing is opened here.
 * @throws UsageError naming the option that is wrong, and the nearest one that exists
 */
export function parseVmArguments(args: readonly string[]): ParsedVm {
  const draft: Draft = {
    options: {},
    drives: [],
    nodes: new Map(),
    devices: [],
    objects: [],
    secrets: [],
    serial: undefined,
    headless: false,
    snapshot: false,
    logItems: [],
    logFile: undefined,
  };
  for (let at = 0; at < args.length; at++) {
    const given = args[at]!;
    const name = ALIASES[given] ?? (given.startsWith('--') && given.slice(1) in RULES ? given.slice(1) : given);
    const rule = Object.hasOwn(RULES, name) ? RULES[name] : undefined;
    if (rule === undefined) {
      if (!given.startsWith('-')) throw new UsageError(`Cannot use ${given}: expected an option`);
      throw unknownOption(given);
    }
    if (rule.value === undefined) rule.take(draft, '');
    else {
      const value = args[++at];
      if (value === undefined)
        throw new UsageError(`Cannot use ${given}: its value is missing, expected ${rule.value}`);
      rule.take(draft, value);
    }
  }
  return finish(draft);
}

function unknownOption(given: string): UsageError {
  const word = given.startsWith('--') ? given.slice(1) : given;
  if (Object.hasOwn(QEMU_OPTIONS, word))
    return new UsageError(`Cannot use option ${given}: it is QEMU’s, and not here; ${QEMU_OPTIONS[word]}`);
  return new UsageError(`Cannot use option ${given}: unknown${didYouMean(given, Object.keys(RULES))}`);
}

function finish(draft: Draft): ParsedVm {
  const { options, serial, headless, logItems, logFile } = draft;
  const named = options.name !== undefined;
  const display = options.vnc !== undefined || !headless;
  const { disks, others } = joinDevices(draft);
  return {
    named,
    options: {
      ...DEFAULT_VM_OPTIONS,
      ...options,
      name: options.name ?? 'vm',
      disks,
      display,
      // A display that nobody asked about is seen on a page; its address is printed.
      ...(display && options.vnc === undefined ? { vnc: { host: '127.0.0.1', webPort: 0 } } : {}),
      serial: serial ?? 'stdio',
      ...(logItems.length === 0
        ? {}
        : { log: { items: [...new Set(logItems)], ...(logFile === undefined ? {} : { file: logFile }) } }),
      ...(others.has('virtconsole') ? { virtioConsole: true } : {}),
      network: NETWORK_DEVICES.some((name) => others.has(name)),
    },
  };
}
