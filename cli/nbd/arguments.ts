import { NBD_PORT } from '../../protocols/nbd/mod.ts';
import { IMAGE_FORMATS } from '../../services/nbd/images/image_format.ts';
import { didYouMean } from '../suggest.ts';
import { UsageError } from '../usage_error.ts';

interface OptionRule {
  readonly long: string;
  readonly short?: string;
  /** What its value is called in the help; absent: the option takes none */
  readonly value?: string;
  /** Absent: taken as qemu-nbd has it, and without effect or use here; not in the help */
  readonly help?: string;
  /** May be given more than once */
  readonly repeats?: true;
}

const RULES: readonly OptionRule[] = [
  { long: 'socket', short: 'k', value: 'PATH', help: 'listen on a UNIX socket' },
  { long: 'port', short: 'p', value: 'PORT', help: `listen on a TCP port (default ${NBD_PORT}; 0 takes a free one)` },
  { long: 'bind', short: 'b', value: 'ADDRESS', help: 'listen on this address (default 127.0.0.1)' },
  { long: 'format', short: 'f', value: 'FORMAT', help: `format of IMAGE, ${IMAGE_FORMATS.join(', ')}; never guessed` },
  {
    long: 'backing',
    value: 'F:PATH',
    help: 'image of format F under an IMAGE that has one; again: under that one',
    repeats: true,
  },
  { long: 'backing-root', value: 'DIR', help: 'let names in images open files below DIR, but none elsewhere' },
  { long: 'allow-extents', help: 'let a vmdk IMAGE open the files that it names in its own folder' },
  { long: 'image-opts', help: 'IMAGE is driver=FORMAT,file.filename=PATH,…; of an encrypted one also …key-secret=ID' },
  { long: 'export-name', short: 'x', value: 'NAME', help: "name of the export (default '')" },
  { long: 'description', short: 'D', value: 'TEXT', help: 'description of the export' },
  {
    long: 'discard',
    value: 'ignore|unmap',
    help: 'unmap: a raw IMAGE gives space back on TRIM and zeroes (default ignore)',
  },
  { long: 'read-only', short: 'r', help: 'open and export IMAGE read-only' },
  { long: 'load-snapshot', short: 'l', value: 'NAME', help: 'serve this snapshot inside a qcow2 IMAGE, read-only' },
  { long: 'snapshot', short: 's', help: 'what clients write goes to a file without a name, and is forgotten' },
  { long: 'offset', short: 'o', value: 'BYTES', help: 'serve IMAGE from there on' },
  { long: 'bitmap', short: 'B', value: 'NAME', help: 'offer this dirty bitmap of IMAGE', repeats: true },
  { long: 'allocation-depth', short: 'A', help: 'offer qemu:allocation-depth' },
  { long: 'resizable', help: 'let a client that is alone change the size (NBD_CMD_RESIZE)' },
  { long: 'shared', short: 'e', value: 'N', help: 'clients that are served at once (default 1, 0: up to 100)' },
  {
    long: 'processes',
    value: 'N',
    help: 'with -e above 1: serve clients of a raw or read-only IMAGE in up to N processes (default: the cores, up to 4)',
  },
  { long: 'persistent', short: 't', help: 'do not exit when the last client has left' },
  {
    long: 'handshake-limit',
    value: 'S',
    help: 'seconds that a client has for its handshake (default 10, 0: no limit)',
  },
  {
    long: 'poll-max-ns',
    value: 'NS',
    help: 'behind a reply, look out for the next request for so long before sleeping (default 50000, 0: never)',
  },
  {
    long: 'sendfile',
    value: 'on|off',
    help: 'large reads of a raw IMAGE go from the kernel to the socket without copies, where it can and that is not slower (default on)',
  },
  {
    long: 'no-sr',
    help: 'simple replies only, as with nbdkit: a little faster for small requests; no block status, no texts of errors',
  },
  { long: 'cache', value: 'MODE', help: 'writethrough and directsync: every write is flushed (default writeback)' },
  { long: 'fork', help: 'go on in the background once clients can connect' },
  { long: 'pid-file', value: 'PATH', help: 'write the process id there once clients can connect' },
  { long: 'list', short: 'L', help: 'list the exports of the server at -k or -b/-p' },
  {
    long: 'tls-creds',
    value: 'PATH|ID',
    help: "TLS: a folder with QEMU's names, or a keys.psk; or the id of an --object",
  },
  { long: 'tls-mode', value: 'require|allow', help: 'allow: clients may come without TLS (default require)' },
  { long: 'tls-authz', value: 'NAME|ID', help: 'let in only this subject (CN=…,O=…), DNS:name, or PSK user' },
  { long: 'tls-hostname', value: 'NAME', help: "with -L: name in the server's certificate, if it is not ADDRESS" },
  { long: 'tls-user', value: 'NAME', help: 'with -L: PSK user, if the file has several' },
  {
    long: 'object',
    value: 'OBJECT',
    help: 'tls-creds-x509, tls-creds-psk [,priority=NORMAL: TLS 1.2, too], authz-simple, authz-list; secret,id=ID,file=FILE',
    repeats: true,
  },
  { long: 'websocket', value: '[HOST:]PORT', help: 'also serve NBD over WebSocket, subprotocol nbd' },
  { long: 'websocket-origin', value: 'URL', help: 'let pages of this origin in; programs need none', repeats: true },
  { long: 'metrics', value: '[HOST:]PORT', help: 'counters by client at http://HOST:PORT/metrics, for Prometheus' },
  {
    long: 'qemu-nbd',
    help: 'answer as qemu-nbd does: its texts, and no line with the URI; bin/qemu-nbd does the same',
  },
  { long: 'verbose', short: 'v', help: 'print a line for each client that has left' },
  { long: 'version', short: 'V', help: 'print the version' },
  { long: 'help', short: 'h', help: 'print this help' },
  // Words of qemu-nbd that change nothing here.
  { long: 'nocache', short: 'n' },
  { long: 'aio', value: 'MODE' },
  { long: 'detect-zeroes', value: 'MODE' },
  { long: 'trace', short: 'T', value: 'OPTIONS', repeats: true },
  // And those that cannot be done.
  { long: 'connect', short: 'c', value: 'DEVICE' },
  { long: 'disconnect', short: 'd' },
  { long: 'selinux-label', value: 'LABEL' },
];

/** Words of qemu-nbd that are refused, and why */
const REFUSED: Readonly<Record<string, string>> = {
  connect: 'devices of the kernel are nbd-client’s work',
  disconnect: 'devices of the kernel are nbd-client’s work',
  'selinux-label': 'labels of sockets cannot be set',
};

/** One line for each option. */
export function nbdOptionsHelp(): string {
  return RULES.filter((rule) => rule.help !== undefined)
    .map((rule) => {
      const long = `--${rule.long}${rule.value === undefined ? '' : `=${rule.value}`}`;
      return `  ${rule.short === undefined ? '   ' : `-${rule.short},`} ${long.padEnd(24)} ${rule.help}`;
    })
    .join('\n');
}

/** The options of one command line. */
export class NbdArguments {
  readonly #values: ReadonlyMap<string, readonly string[]>;
  readonly operands: readonly string[];

  /** `-k PATH`, `-kPATH`, `--socket PATH`, `--socket=PATH`, `-rt`, and `--` before operands. @throws UsageError */
  constructor(args: readonly string[]) {
    const values = new Map<string, string[]>();
    const operands: string[] = [];
    const queue = [...args];
    const set = (rule: OptionRule, shown: string, given: string | undefined): void => {
      const refused = REFUSED[rule.long];
      if (refused !== undefined) throw new UsageError(`Cannot use ${shown}: ${refused}`);
      if (rule.value === undefined && given !== undefined) {
        throw new UsageError(`Cannot use ${shown}=${given}: the option takes no value`);
      }
      const value = rule.value === undefined ? '' : (given ?? queue.shift());
      if (value === undefined) throw new UsageError(`Cannot use ${shown}: its ${rule.value} is missing`);
      const before = values.get(rule.long);
      if (before !== undefined && rule.value !== undefined && rule.repeats !== true) {
        throw new UsageError(`Cannot use ${shown} twice`);
      }
      values.set(rule.long, [...(before ?? []), value]);
    };
    for (let arg = queue.shift(); arg !== undefined; arg = queue.shift()) {
      if (arg === '--') operands.push(...queue.splice(0));
      else if (arg.startsWith('--')) {
        const equals = arg.indexOf('=');
        const name = arg.slice(2, equals === -1 ? undefined : equals);
        const rule = RULES.find((known) => known.long === name) ?? unknown(`--${name}`);
        set(rule, `--${name}`, equals === -1 ? undefined : arg.slice(equals + 1));
      } else if (arg.startsWith('-') && arg.length > 1) {
        for (let at = 1; at < arg.length; at++) {
          const rule = RULES.find((known) => known.short === arg![at]) ?? unknown(`-${arg[at]}`);
          const rest = arg.slice(at + 1);
          set(rule, `-${arg[at]}`, rule.value !== undefined && rest !== '' ? rest : undefined);
          if (rule.value !== undefined) break;
        }
      } else operands.push(arg);
    }
    this.#values = values;
    this.operands = operands;
  }

  has(long: string): boolean {
    return this.#values.has(long);
  }

  get(long: string): string | undefined {
    return this.#values.get(long)?.at(-1);
  }

  all(long: string): readonly string[] {
    return this.#values.get(long) ?? [];
  }

  /** @throws UsageError */
  integer(long: string, absent: number, min: number, max: number): number {
    const text = this.get(long);
    if (text === undefined) return absent;
    const value = Number(text);
    if (!/^[0-9]+$/.test(text) || value < min || value > max) {
      throw new UsageError(`Cannot use --${long}=${text}: expected a number from ${min} to ${max}`);
    }
    return value;
  }

  /** @throws UsageError */
  oneOf<T extends string>(long: string, allowed: readonly T[], absent: T): T {
    const text = this.get(long);
    if (text === undefined) return absent;
    const found = allowed.find((candidate) => candidate === text);
    if (found !== undefined) return found;
    throw new UsageError(`Cannot use --${long}=${text}: expected ${allowed.join(', ')}`);
  }
}

function unknown(option: string): never {
  const candidates = RULES.flatMap((rule) => [
    `--${rule.long}`,
    ...(rule.short === undefined ? [] : [`-${rule.short}`]),
  ]);
  throw new UsageError(`Cannot use ${option}: unknown option${didYouMean(option, candidates)}`);
}
