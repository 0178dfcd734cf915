// Byte-level probes for any NBD server on a UNIX socket: what it answers to each bad message, from its own words on
// the wire. `node scripts/run.mjs conformance/nbd/probe.ts SOCKET…` prints a table of one column a server.
import { connect, type Socket } from 'node:net';
import process from 'node:process';
import {
  CMD,
  CMD_FLAG,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  encodeRequest,
  NBD_ERROR,
  OPT,
  REP,
  type Request,
} from '../../protocols/nbd/mod.ts';

/** Every server has to have it, with 64 KiB at least; the offsets below count on a name of four letters */
export const PROBED_EXPORT = 'disk';

const ANSWER_MS = 1500;
/** How long a server may be silent about a handshake that does not come */
const HANDSHAKE_MS = 12_500;

/** One connection, read piece by piece; silence is an answer, too. */
class ProbeClient {
  readonly #socket: Socket;
  #received = Buffer.alloc(0);
  #ended = false;
  #wake: (() => void) | undefined;

  private constructor(path: string) {
    this.#socket = connect(path);
    this.#socket.on('data', (chunk: Buffer) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#wake?.();
    });
    for (const event of ['end', 'close', 'error'] as const) {
      this.#socket.on(event, () => {
        this.#ended = true;
        this.#wake?.();
      });
    }
  }

  static async open(path: string, flags = 3): Promise<ProbeClient> {
    const client = new ProbeClient(path);
    if ((await client.take(18, 10_000)) === undefined) throw new Error(`Cannot probe ${path}: no greeting`);
    client.send(encodeClientFlags(flags));
    return client;
  }

  send(...parts: Uint8Array[]): void {
    for (const part of parts) this.#socket.write(part);
  }

  /** Undefined: closed, or silent for `waitMs` */
  async take(count: number, waitMs = ANSWER_MS): Promise<Buffer | undefined> {
    const deadline = performance.now() + waitMs;
    while (this.#received.length < count && !this.#ended && performance.now() < deadline) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, Math.max(deadline - performance.now(), 1));
      });
    }
    if (this.#received.length < count) return undefined;
    const taken = this.#received.subarray(0, count);
    this.#received = this.#received.subarray(count);
    return taken;
  }

  get silence(): string {
    return this.#ended ? 'close' : 'waits';
  }

  async silentFor(waitMs: number): Promise<string> {
    await this.take(Number.MAX_SAFE_INTEGER, waitMs);
    return this.silence;
  }

  /** The last reply to one option, by name. */
  async optionAnswer(): Promise<string> {
    for (;;) {
      const header = await this.take(20);
      if (header === undefined) return this.silence;
      const type = header.readUInt32BE(12);
      if ((await this.take(header.readUInt32BE(16))) === undefined) return this.silence;
      if (type === REP.ACK) return 'ACK';
      if (type >= 0x8000_0000) return nameOf(REP, type).replace('ERR_', '');
    }
  }

  /** The error of one reply, by name; data of a read is skipped. */
  async replyAnswer(dataBytes: number): Promise<string> {
    const magic = (await this.take(4))?.readUInt32BE(0);
    if (magic === undefined) return this.silence;
    if (magic === 0x6744_6698) {
      const rest = await this.take(12);
      if (rest === undefined) return this.silence;
      const error = rest.readUInt32BE(0);
      if (error !== 0) return nameOf(NBD_ERROR, error);
      return dataBytes === 0 || (await this.take(dataBytes)) !== undefined ? 'ok' : this.silence;
    }
    const rest = await this.take(16);
    if (rest === undefined || magic !== 0x668e_33ef) return rest === undefined ? this.silence : 'other magic';
    const payload = await this.take(rest.readUInt32BE(12));
    if (payload === undefined) return this.silence;
    if ((rest.readUInt16BE(2) & 0x8000) !== 0) return nameOf(NBD_ERROR, payload.readUInt32BE(0));
    return (rest.readUInt16BE(0) & 1) !== 0 ? 'ok' : this.replyAnswer(0);
  }

  destroy(): void {
    this.#socket.destroy();
  }
}

function nameOf(table: Readonly<Record<string, number>>, value: number): string {
  return Object.entries(table).find(([, known]) => known === value)?.[0] ?? `0x${value.toString(16)}`;
}

interface Probe {
  readonly what: string;
  run(path: string, terms: Terms): Promise<string>;
}

/** What a server says of the export */
interface Terms {
  readonly sizeBytes: bigint;
  readonly flags: number;
}

const raw = (...bytes: number[]): Uint8Array => Uint8Array.from(bytes);
const joined = (...parts: Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));
const withLength = (option: number, length: number): Uint8Array => {
  const bytes = encodeOption(option);
  new DataView(bytes.buffer).setUint32(12, length);
  return bytes;
};
const goWith = (change: (data: Uint8Array) => Uint8Array): Uint8Array =>
  encodeOption(OPT.GO, change(encodeInfoRequest({ name: PROBED_EXPORT, requests: [] })));
const structured = encodeOption(OPT.STRUCTURED_REPLY);
const meta = encodeMetaContextRequest({ exportName: PROBED_EXPORT, queries: ['base:allocation'] });

/** Options after each other; the answer to the last one counts. */
function options(what: string, ...messages: Uint8Array[]): Probe {
  return {
    what,
    run: (path) =>
      withClient(path, async (client) => {
        let answer = '';
        for (const message of messages) {
          client.send(message);
          answer = await client.optionAnswer();
        }
        return answer;
      }),
  };
}

/** One request after GO; `data` follows it. */
function request(
  what: string,
  make: (terms: Terms) => Partial<Request>,
  extra: { structured?: boolean; data?: Uint8Array; needs?: number; change?: (bytes: Uint8Array) => void } = {},
): Probe {
  return {
    what,
    run: (path, terms) =>
      withClient(path, async (client) => {
        // Some servers do not survive what they have not offered: then the probe says what was not offered.
        if (extra.structured) {
          client.send(structured);
          await client.optionAnswer();
        }
        client.send(goWith((data) => data));
        if ((await client.optionAnswer()) !== 'ACK') return 'no GO';
        const asked = { flags: 0, type: CMD.READ, cookie: 1n, offset: 0n, length: 0, ...make(terms) };
        const bytes = encodeRequest(asked);
        extra.change?.(bytes);
        client.send(bytes, extra.data ?? raw());
        return client.replyAnswer(asked.type === CMD.READ ? Math.min(asked.length, 1 << 20) : 0);
      }),
  };
}

async function withClient(path: string, work: (client: ProbeClient) => Promise<string>): Promise<string> {
  const client = await ProbeClient.open(path);
  try {
    return await work(client);
  } finally {
    client.destroy();
  }
}

/** The rows of the table. The last ones are slow, or may end a server. */
export const PROBES: readonly Probe[] = [
  {
    what: 'unknown client flag (bit 31)',
    run: async (path) => {
      const client = await ProbeClient.open(path, 0x8000_0003);
      client.send(encodeOption(OPT.LIST));
      const answer = await client.optionAnswer();
      client.destroy();
      return answer === 'close' ? answer : 'accepts';
    },
  },
  options('bad option magic', encodeOption(OPT.LIST).fill(0, 0, 8)),
  options('option length 2^32-1', withLength(OPT.LIST, 0xffff_ffff)),
  options('option length 64 MiB+1', withLength(OPT.LIST, (64 << 20) + 1)),
  options('unknown option', encodeOption(4711, raw(1, 2, 3))),
  options('LIST', encodeOption(OPT.LIST)),
  options('LIST with data', encodeOption(OPT.LIST, raw(0))),
  options('STARTTLS with data', encodeOption(OPT.STARTTLS, raw(0))),
  options(
    'GO name length > option',
    goWith((data) => data.fill(0xff, 0, 4)),
  ),
  options('GO name 4097', encodeOption(OPT.GO, encodeInfoRequest({ name: 'x'.repeat(4097), requests: [] }))),
  options('GO unknown name', encodeOption(OPT.GO, encodeInfoRequest({ name: 'no such export', requests: [] }))),
  options('name with 0xff and NUL', encodeOption(OPT.GO, raw(0, 0, 0, 2, 0xff, 0, 0, 0))),
  options(
    'trailing bytes after info list',
    goWith((data) => joined(data, raw(0, 0))),
  ),
  options(
    '65 535 info requests, none sent',
    goWith((data) => data.fill(0xff, 8, 10)),
  ),
  options('GO with 5 bytes of data', encodeOption(OPT.GO, raw(0, 0, 0, 0, 0))),
  options('STRUCTURED_REPLY with data', encodeOption(OPT.STRUCTURED_REPLY, raw(0))),
  options('STRUCTURED_REPLY twice', structured, structured),
  options('EXTENDED_HEADERS', encodeOption(OPT.EXTENDED_HEADERS)),
  options('SET_META before structured', encodeOption(OPT.SET_META_CONTEXT, meta)),
  options('SET_META base:allocation', structured, encodeOption(OPT.SET_META_CONTEXT, meta)),
  options(
    'SET_META with 2^32-1 queries',
    structured,
    encodeOption(OPT.SET_META_CONTEXT, meta.slice().fill(0xff, 8, 12)),
  ),
  options('SET_META query > option', structured, encodeOption(OPT.SET_META_CONTEXT, meta.slice().fill(0xff, 12, 16))),
  {
    what: '200 unknown options',
    run: (path) =>
      withClient(path, async (client) => {
        for (let count = 0; count < 200; count++) {
          client.send(encodeOption(4711));
          if ((await client.optionAnswer()) === 'close') return 'cap, then close';
        }
        return 'answers all';
      }),
  },
  request('zero-length read', () => ({})),
  request('read past end', ({ sizeBytes }) => ({ offset: sizeBytes, length: 512 })),
  request('read across end', ({ sizeBytes }) => ({ offset: sizeBytes - 512n, length: 1024 })),
  request('wrapping offset', () => ({ offset: (1n << 64n) - 512n, length: 1024 })),
  request('read > 32 MiB', () => ({ length: (32 << 20) + 1 })),
  request('write length 2^32-1', () => ({ type: CMD.WRITE, length: 0xffff_ffff })),
  request('write past end', ({ sizeBytes }) => ({ type: CMD.WRITE, offset: sizeBytes, length: 4 }), {
    data: raw(1, 2, 3, 4),
  }),
  request('trim across end', ({ sizeBytes }) => ({ type: CMD.TRIM, offset: sizeBytes - 512n, length: 1024 })),
  request('zeroes across end', ({ sizeBytes }) => ({ type: CMD.WRITE_ZEROES, offset: sizeBytes - 512n, length: 1024 })),
  request('unknown command', () => ({ type: 4711 })),
  request('unknown flag', () => ({ flags: 1 << 9, length: 512 })),
  request('DF without structured', () => ({ flags: CMD_FLAG.DF, length: 512 })),
  request('REQ_ONE on a read', () => ({ flags: CMD_FLAG.REQ_ONE, length: 512 })),
  request('PAYLOAD_LEN on a read', () => ({ flags: CMD_FLAG.PAYLOAD_LEN, length: 512 })),
  request('FUA on a read', () => ({ flags: CMD_FLAG.FUA, length: 512 })),
  request('BLOCK_STATUS without context', () => ({ type: CMD.BLOCK_STATUS, length: 512 }), { structured: true }),
  request('FLUSH with offset and length', () => ({ type: CMD.FLUSH, offset: 512n, length: 512 })),
  request('RESIZE not offered', () => ({ type: CMD.RESIZE, offset: 512n })),
  request('bad request magic', () => ({ length: 512 }), { change: (bytes) => bytes.fill(0, 0, 4) }),
  {
    what: 'silent after connect',
    run: async (path) => {
      const client = await ProbeClient.open(path);
      const answer = await client.silentFor(HANDSHAKE_MS);
      client.destroy();
      return answer === 'close' ? 'closed in time' : 'kept open';
    },
  },
  {
    what: 'client killed with requests in flight',
    run: async (path) => {
      const client = await ProbeClient.open(path);
      client.send(goWith((data) => data));
      await client.optionAnswer();
      for (let count = 0; count < 64; count++) {
        client.send(encodeRequest({ flags: 0, type: CMD.READ, cookie: BigInt(count), offset: 0n, length: 1 << 20 }));
      }
      await client.take(16);
      client.destroy();
      // Whoever ends by it does so a moment later.
      await new Promise((resolve) => setTimeout(resolve, 500));
      return 'connection only';
    },
  },
  request('FAST_ZERO, perhaps not advertised', () => ({
    type: CMD.WRITE_ZEROES,
    flags: CMD_FLAG.FAST_ZERO,
    length: 512,
  })),
];

/** Answers of one server, by the name of the probe; `gone` from where it does not answer any more. */
export async function probe(path: string): Promise<Map<string, string>> {
  const answers = new Map<string, string>();
  const terms = await termsOf(path);
  for (const { what, run } of PROBES) {
    let answer: string;
    try {
      answer = await run(path, terms);
    } catch {
      answer = 'gone';
    }
    answers.set(what, answer);
    if (answer !== 'gone' && !(await isAlive(path))) answers.set(what, `${answer}, server ends`);
  }
  return answers;
}

async function termsOf(path: string): Promise<Terms> {
  const client = await ProbeClient.open(path);
  try {
    client.send(goWith((data) => data));
    for (;;) {
      const header = await client.take(20, 5000);
      if (header === undefined) throw new Error(`Cannot probe ${path}: GO is not answered`);
      const data = await client.take(header.readUInt32BE(16));
      if (header.readUInt32BE(12) === REP.INFO && data?.readUInt16BE(0) === 0) {
        return { sizeBytes: data.readBigUInt64BE(2), flags: data.readUInt16BE(10) };
      }
      if (header.readUInt32BE(12) !== REP.INFO) throw new Error(`Cannot probe ${path}: GO is refused`);
    }
  } finally {
    client.destroy();
  }
}

async function isAlive(path: string): Promise<boolean> {
  for (let tries = 0; tries < 3; tries++) {
    try {
      (await ProbeClient.open(path)).destroy();
      return true;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
  return false;
}

/** A table in Markdown: rows where not all answers are the same are marked. */
export function table(columns: ReadonlyMap<string, ReadonlyMap<string, string>>): string {
  const names = [...columns.keys()];
  const lines = [`| probe | ${names.join(' | ')} | |`, `|---|${names.map(() => '---').join('|')}|---|`];
  for (const { what } of PROBES) {
    const answers = names.map((name) => columns.get(name)!.get(what) ?? '');
    lines.push(`| ${what} | ${answers.join(' | ')} | ${new Set(answers).size > 1 ? 'differs' : ''} |`);
  }
  return lines.join('\n');
}

const USAGE = `Sends bad messages to NBD servers and prints a table of what each answers, and where they differ.

  node scripts/run.mjs conformance/nbd/probe.ts SOCKET…

SOCKET is the path of a UNIX socket whose server has a writable export named ${PROBED_EXPORT}. Some servers end by it: not
for those that others need.
`;

if (import.meta.main) {
  const paths = process.argv.slice(2);
  if (paths.length === 0 || paths.some((path) => path.startsWith('-'))) {
    const helps = paths[0] === '--help' || paths[0] === '-h';
    (helps ? process.stdout : process.stderr).write(USAGE);
    process.exit(helps ? 0 : 2);
  }
  const columns = new Map<string, Map<string, string>>();
  for (const path of process.argv.slice(2)) columns.set(path, await probe(path));
  process.stdout.write(`${table(columns)}\n`);
}
