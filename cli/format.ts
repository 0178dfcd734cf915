const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** `1.5 GiB` */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number.isInteger(value) || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** `850 ms`, `12.3 s`, `5 min`, `3 h`, `2 d` */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min`;
  return ms < 86_400_000 ? `${Math.floor(ms / 3_600_000)} h` : `${Math.floor(ms / 86_400_000)} d`;
}

/** The text of an error for a terminal: an image, a server or a peer may have put words of its own into it. */
export function errorText(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).replace(/[^\P{Cc}\n\t]/gu, '?');
}

/**
 * The same for people who did not ask for qemu-nbd or qemu-img: what Node says of a call that failed ("ENOENT: …, open
 * 'x'", "listen EADDRINUSE: …") becomes a sentence, with what to do where that is known. `words`: a command's own for disks.
 */
export function plainErrorText(error: unknown, words: DiskWords = {}): string {
  const text = errorText(error);
  const file = /^(.*?)(E[A-Z0-9]+): ([^,]+), (\w+)(?: '(.*)')?$/s.exec(text);
  if (file !== null) {
    const [, before, code, why, call, path] = file;
    return `${before}Cannot ${call}${path === undefined ? '' : ` ${path}`}: ${why} (${code})`;
  }
  const net = /^(.*?)(listen|connect) (E[A-Z0-9]+)(?:: ([^:]+?))? (\S+)( - Local .*)?$/s.exec(text);
  if (net === null) return text + adviceOn(text, words);
  const [, before, call, code, why, address] = net;
  const reason = why ?? NETWORK_ERRORS[code!] ?? 'it failed';
  const advice = ADVICE[`${call} ${code}`] ?? '';
  return `${before}Cannot ${call} ${call === 'listen' ? 'on' : 'to'} ${address}: ${reason} (${code})${advice}`;
}

/** What to say to a command where an image cannot be opened without it. */
export interface DiskWords {
  readonly under?: string;
  readonly passphrase?: string;
  readonly readOnly?: string;
}

function adviceOn(text: string, words: DiskWords): string {
  const magic = /Cannot (?:accept|read) (qcow2|LUKS) header magic: |Cannot accept (VHD) footer cookie: /.exec(text);
  if (magic !== null) return `; so it is no ${magic[1] ?? magic[2]} image`;
  const word = text.endsWith('and none was given')
    ? words.under
    : text.endsWith('no passphrase was given')
      ? words.passphrase
      : text.endsWith('open it read-only')
        ? words.readOnly
        : undefined;
  return word === undefined ? '' : `; ${word}`;
}

const NETWORK_ERRORS: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'nobody listens there',
  ECONNRESET: 'the other side has closed the connection',
  EHOSTUNREACH: 'there is no way to that host',
  ENETUNREACH: 'there is no way to that network',
  ENOENT: 'there is no such socket',
  ETIMEDOUT: 'no answer',
};

const ADVICE: Readonly<Record<string, string>> = {
  'listen EADDRINUSE': '; another program listens there, choose another port',
  'listen EADDRNOTAVAIL': '; it is no address of this computer',
  'listen EACCES': '; is its folder there, and may you write to it?',
  'listen ENOENT': '; its folder is not there',
  'listen EINVAL': '; a path of more than 107 bytes is too long for a socket',
};
