import process from 'node:process';
import { formatNbdUri, NBD_PORT } from '../../protocols/nbd/mod.ts';
import {
  DEFAULT_NBD_LIMITS,
  ExportSet,
  IMAGE_FORMATS,
  type ImageFormat,
  type ImageSource,
  NbdClient,
  type NbdClientTls,
  type NbdListenAddress,
  NbdListener,
  type NbdListenerOptions,
  openImage,
} from '../../services/nbd/mod.ts';
import { readTlsCredentials, TlsClient, type TlsIdentity, TlsServer } from '../../services/shared/mod.ts';

/** The command line is wrong: exit status 2. */
class UsageError extends Error {
  override readonly name = 'UsageError';
}

interface OptionRule {
  readonly long: string;
  readonly short?: string;
  /** What its value is called in the help; absent: the option takes none */
  readonly value?: string;
  readonly help: string;
  /** May be given more than once; the values are kept with NUL between them */
  readonly repeats?: true;
}

const rules: readonly OptionRule[] = [
  { long: 'socket', short: 'k', value: 'PATH', help: 'listen on a UNIX socket' },
  { long: 'port', short: 'p', value: 'PORT', help: `listen on a TCP port (default ${NBD_PORT}; 0 takes a free one)` },
  { long: 'bind', short: 'b', value: 'ADDRESS', help: 'listen on this address (default 127.0.0.1)' },
  { long: 'format', short: 'f', value: 'FORMAT', help: `format of IMAGE, ${IMAGE_FORMATS.join(', ')}; never guessed` },
  {
    long: 'backing',
    value: 'F:PATH',
    help: 'image of format F under an IMAGE that has one; again: what is under that one',
    repeats: true,
  },
  { long: 'allow-extents', help: 'let a vmdk IMAGE open the files that it names in its own folder' },
  { long: 'export-name', short: 'x', value: 'NAME', help: "name of the export (default '')" },
  { long: 'description', short: 'D', value: 'TEXT', help: 'description of the export' },
  {
    long: 'discard',
    value: 'ignore|unmap',
    help: "unmap: a raw IMAGE gives space back on TRIM and zeroes, by Node's experimental ffi (default ignore)",
  },
  { long: 'read-only', short: 'r', help: 'open and export IMAGE read-only' },
  { long: 'shared', short: 'e', value: 'N', help: 'clients that are served at once (default 1, 0: up to 100)' },
  { long: 'persistent', short: 't', help: 'do not exit when the last client has left' },
  { long: 'list', short: 'L', help: 'list the exports of the server at -k or -b/-p' },
  { long: 'tls-creds', value: 'PATH', help: "require TLS: a folder of certificates with QEMU's names, or a keys.psk" },
  { long: 'tls-authz', value: 'NAME', help: 'let in only this subject (CN=…,O=…), DNS:name, or PSK user' },
  { long: 'tls-hostname', value: 'NAME', help: "with -L: name in the server's certificate, if it is not ADDRESS" },
  { long: 'tls-user', value: 'NAME', help: 'with -L: PSK user, if the file has several' },
  { long: 'verbose', short: 'v', help: 'print a line for each client that has left' },
  { long: 'help', short: 'h', help: 'print this help' },
];

const help = `caisson nbd [OPTIONS] IMAGE
Serves a disk image over NBD, with the options of qemu-nbd.

${rules
  .map((rule) => {
    const long = `--${rule.long}${rule.value === undefined ? '' : `=${rule.value}`}`;
    return `  ${rule.short === undefined ? '   ' : `-${rule.short},`} ${long.padEnd(20)} ${rule.help}`;
  })
  .join('\n')}

  caisson nbd -k /tmp/disk.sock -f raw disk.raw &
  nbdinfo 'nbd+unix:///?socket=/tmp/disk.sock'
`;

/** `caisson nbd`: gives the exit status, 0 done, 1 it failed, 2 the command line is wrong. */
export const nbdVerb = {
  name: 'nbd',
  summary: 'serve a disk image over NBD',
  help,
  async run(args: string[]): Promise<number> {
    try {
      const { values, operands } = parse(args);
      if (values.has('help')) {
        process.stdout.write(help);
        return 0;
      }
      const address = addressOf(values);
      return values.has('list') ? await list(address, values, operands) : await serve(address, values, operands);
    } catch (error) {
      process.stderr.write(`caisson nbd: ${error instanceof Error ? error.message : String(error)}\n`);
      return error instanceof UsageError ? 2 : 1;
    }
  },
};

async function serve(
  address: NbdListenAddress,
  values: ReadonlyMap<string, string>,
  operands: readonly string[],
): Promise<number> {
  const [path, ...more] = operands;
  if (path === undefined) throw new UsageError('Cannot serve: no IMAGE is given');
  if (more.length > 0) throw new UsageError(`Cannot serve ${more[0]}: one IMAGE at a time`);
  const source = sourceOf(path, values);
  const readOnly = values.has('read-only');
  const shared = integer(values, 'shared', 1, 0, DEFAULT_NBD_LIMITS.connections) || DEFAULT_NBD_LIMITS.connections;
  const persistent = values.has('persistent');
  const name = values.get('export-name') ?? '';
  const description = values.get('description');
  for (const other of ['tls-hostname', 'tls-user']) {
    if (values.has(other)) throw new UsageError(`Cannot use --${other}: it is for --list`);
  }
  const tls = serverTls(values);

  const image = await openImage(source, { readOnly, unmap: discards(values) });
  const stopped = Promise.withResolvers<void>();
  const stop = (): void => stopped.resolve();
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  try {
    const exports = new ExportSet();
    exports.add({
      name,
      image,
      writable: !readOnly,
      multiConn: shared > 1,
      ...(description === undefined ? {} : { description }),
    });
    const listener = await NbdListener.listen(address, exports, {
      shared,
      ...(tls === undefined ? {} : { tls }),
      onSession: ({ exportName, counters, peer, error }) => {
        if (values.has('verbose')) {
          const { requests, readBytes, writtenBytes } = counters;
          const why = error === undefined ? '' : `; ${error.message}`;
          const who = peer === undefined ? 'client' : `client ${nameOf(peer)}`;
          process.stderr.write(
            `caisson nbd: ${who} left after ${requests} requests, ${readBytes} bytes read, ${writtenBytes} written${why}\n`,
          );
        }
        // As qemu-nbd: who only looked at the greeting does not count.
        if (!persistent && exportName !== undefined && listener.connections === 0) stop();
      },
    });
    process.stdout.write(`${listener.uriOf(name)}\n`);
    await stopped.promise;
    await listener.close();
    await image.flush();
  } finally {
    process.off('SIGINT', stop);
    process.off('SIGTERM', stop);
    await image.close();
  }
  return 0;
}

function discards(values: ReadonlyMap<string, string>): boolean {
  const value = values.get('discard') ?? 'ignore';
  if (value === 'ignore' || value === 'unmap') return value === 'unmap';
  throw new UsageError(`Cannot use --discard=${value}: expected ignore or unmap`);
}

/** Certificates or keys are read, and found to be good, before anything listens. */
function serverTls(values: ReadonlyMap<string, string>): NbdListenerOptions['tls'] {
  const path = values.get('tls-creds');
  const name = values.get('tls-authz');
  if (path === undefined) {
    if (name !== undefined) throw new UsageError('Cannot use --tls-authz without --tls-creds');
    return undefined;
  }
  const authorize = (peer: TlsIdentity): boolean =>
    (peer.kind === 'psk' && peer.user === name) ||
    (peer.kind === 'x509' && (peer.subject === name || peer.altNames.includes(name!)));
  const server = new TlsServer(readTlsCredentials(path, 'server'), name === undefined ? {} : { authorize });
  return { server, mode: 'require' };
}

function clientTls(values: ReadonlyMap<string, string>, host: string): NbdClientTls | undefined {
  const path = values.get('tls-creds');
  if (values.has('tls-authz')) throw new UsageError('Cannot use --tls-authz with --list');
  if (path === undefined) {
    for (const other of ['tls-hostname', 'tls-user']) {
      if (values.has(other)) throw new UsageError(`Cannot use --${other} without --tls-creds`);
    }
    return undefined;
  }
  const user = values.get('tls-user');
  const client = new TlsClient(readTlsCredentials(path, 'client'), user === undefined ? {} : { user });
  return { client, mode: 'require', serverName: values.get('tls-hostname') ?? host };
}

function nameOf(peer: TlsIdentity): string {
  if (peer.kind === 'psk') return printable(peer.user);
  return peer.kind === 'x509' ? printable(peer.subject) : 'without a name';
}

async function list(
  address: Exclude<NbdListenAddress, { type: 'fd' }>,
  values: ReadonlyMap<string, string>,
  operands: readonly string[],
): Promise<number> {
  if (operands.length > 0) throw new UsageError(`Cannot list: ${operands[0]} is too much`);
  const target =
    address.type === 'unix'
      ? formatNbdUri({ address, exportName: '' })
      : formatNbdUri({
          address: { type: 'inet', host: address.host ?? '127.0.0.1', port: address.port ?? NBD_PORT },
          exportName: '',
        });
  const tls = clientTls(values, address.type === 'inet' ? (address.host ?? '127.0.0.1') : 'localhost');
  const exports = await NbdClient.list(target, tls === undefined ? {} : { tls });
  process.stdout.write(`exports available: ${exports.length}\n`);
  for (const summary of exports) {
    process.stdout.write(` export: ${printable(summary.name)}\n`);
    if (summary.description !== undefined) process.stdout.write(`  description: ${printable(summary.description)}\n`);
  }
  return 0;
}

/** IMAGE with what `--backing` puts under it, the nearest first. What an image says itself opens no file. */
function sourceOf(path: string, values: ReadonlyMap<string, string>): ImageSource {
  const format = values.get('format');
  if (format === undefined) throw new UsageError(`Cannot serve ${path}: its format is not given; add -f raw`);
  const under = values.get('backing')?.split('\0') ?? [];
  let backing: ImageSource | undefined;
  for (const text of under.reverse()) {
    const colon = text.indexOf(':');
    if (colon < 1 || colon === text.length - 1) {
      throw new UsageError(`Cannot use --backing=${text}: expected a format, a colon and a path`);
    }
    backing = imageSource(text.slice(colon + 1), text.slice(0, colon), backing);
  }
  const source = imageSource(path, format, backing);
  if (!values.has('allow-extents')) return source;
  if (format !== 'vmdk') throw new UsageError('Cannot use --allow-extents: it is for -f vmdk');
  return { ...source, allowExtents: true };
}

function imageSource(path: string, format: string, backing: ImageSource | undefined): ImageSource {
  const known = IMAGE_FORMATS.find((name): name is ImageFormat => name === format);
  if (known === undefined) {
    throw new UsageError(`Cannot serve ${path}: format ${format} is not known, expected ${IMAGE_FORMATS.join(' or ')}`);
  }
  return { path, format: known, ...(backing === undefined ? {} : { backing }) };
}

/** A server's texts go to a terminal: no control characters. */
function printable(text: string): string {
  return JSON.stringify(text.slice(0, 200)).replace(/[\x7f-\x9f]/g, '?');
}

function addressOf(values: ReadonlyMap<string, string>): Exclude<NbdListenAddress, { type: 'fd' }> {
  const path = values.get('socket');
  if (path === undefined) {
    const host = values.get('bind') ?? '127.0.0.1';
    return { type: 'inet', host, port: integer(values, 'port', NBD_PORT, 0, 65535) };
  }
  for (const other of ['port', 'bind']) {
    if (values.has(other)) throw new UsageError(`Cannot use --socket and --${other} together`);
  }
  if (path === '') throw new UsageError('Cannot use --socket: its path is empty');
  return { type: 'unix', path };
}

function integer(values: ReadonlyMap<string, string>, name: string, absent: number, min: number, max: number): number {
  const text = values.get(name);
  if (text === undefined) return absent;
  const value = Number(text);
  if (!/^[0-9]+$/.test(text) || value < min || value > max) {
    throw new UsageError(`Cannot use --${name}=${text}: expected a number from ${min} to ${max}`);
  }
  return value;
}

/** `-k PATH`, `-kPATH`, `--socket PATH`, `--socket=PATH`, `-rt`, and `--` before operands. */
function parse(args: readonly string[]): { values: ReadonlyMap<string, string>; operands: readonly string[] } {
  const values = new Map<string, string>();
  const operands: string[] = [];
  const queue = [...args];
  const set = (rule: OptionRule, shown: string, given: string | undefined): void => {
    if (rule.value === undefined) {
      if (given !== undefined) throw new UsageError(`Cannot use ${shown}=${given}: the option takes no value`);
      values.set(rule.long, '');
      return;
    }
    const value = given ?? queue.shift();
    if (value === undefined) throw new UsageError(`Cannot use ${shown}: its ${rule.value} is missing`);
    const before = values.get(rule.long);
    if (before !== undefined && rule.repeats !== true) throw new UsageError(`Cannot use ${shown} twice`);
    values.set(rule.long, before === undefined ? value : `${before}\0${value}`);
  };
  for (let arg = queue.shift(); arg !== undefined; arg = queue.shift()) {
    if (arg === '--') operands.push(...queue.splice(0));
    else if (arg.startsWith('--')) {
      const equals = arg.indexOf('=');
      const name = arg.slice(2, equals === -1 ? undefined : equals);
      const rule = rules.find((known) => known.long === name) ?? unknown(`--${name}`);
      set(rule, `--${name}`, equals === -1 ? undefined : arg.slice(equals + 1));
    } else if (arg.startsWith('-') && arg.length > 1) {
      for (let at = 1; at < arg.length; at++) {
        const rule = rules.find((known) => known.short === arg![at]) ?? unknown(`-${arg[at]}`);
        const rest = arg.slice(at + 1);
        set(rule, `-${arg[at]}`, rule.value !== undefined && rest !== '' ? rest : undefined);
        if (rule.value !== undefined) break;
      }
    } else operands.push(arg);
  }
  return { values, operands };
}

function unknown(option: string): never {
  const candidates = rules.flatMap((rule) => [
    `--${rule.long}`,
    ...(rule.short === undefined ? [] : [`-${rule.short}`]),
  ]);
  const nearest = candidates
    .filter((candidate) => candidate.startsWith('--') === option.startsWith('--'))
    .map((candidate) => ({ candidate, distance: editDistance(option.toLowerCase(), candidate.toLowerCase()) }))
    .sort((a, b) => a.distance - b.distance)[0];
  throw new UsageError(`Cannot use ${option}: unknown option; the nearest known one is ${nearest!.candidate}`);
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitute = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substitute, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}
