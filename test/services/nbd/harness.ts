import { Socket } from 'node:net';
import { type Duplex, duplexPair } from 'node:stream';
import {
  CLIENT_FLAG,
  CMD,
  decodeChunkHeader,
  decodeOptionReply,
  decodeSimpleReply,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  encodeRequest,
  OPT,
  type OptionReply,
  REPLY_TYPE,
  type Request,
  STRUCTURED_REPLY_MAGIC,
} from '../../../protocols/nbd/mod.ts';
import {
  type ExportDirectory,
  ExportSet,
  MemoryImage,
  type NbdSessionSummary,
  type ServeNbdOptions,
  serveNbd,
} from '../../../services/nbd/mod.ts';

import type { TlsClient } from '../../../services/shared/mod.ts';

export const BOTH_FLAGS = CLIENT_FLAG.FIXED_NEWSTYLE | CLIENT_FLAG.NO_ZEROES;

/** Two exports: a writable memory disk of 1 MiB as the default one, and a read-only one. */
export function twoDisks(): { exports: ExportSet; image: MemoryImage } {
  const image = new MemoryImage(1 << 20);
  const exports = new ExportSet();
  exports.add({ name: 'disk', description: 'a disk', image, writable: true });
  exports.add({ name: 'locked', image, writable: false });
  return { exports, image };
}

/** A hand-made client: sends any bytes, and reads what comes back piece by piece. */
export class ByteClient {
  stream: Duplex;
  readonly summary: Promise<NbdSessionSummary>;
  #received: Uint8Array[] = [];
  #bytes = 0;
  #ended = false;
  #wake: (() => void) | undefined;

  constructor(
    exports: ExportDirectory = twoDisks().exports,
    options: ServeNbdOptions = {},
    [near, far]: [Duplex, Duplex] = duplexPair(),
  ) {
    this.stream = near;
    this.summary = serveNbd(far, exports, options);
    this.#listen();
  }

  #listen(): void {
    this.stream.on('data', (chunk: Uint8Array) => {
      this.#received.push(chunk);
      this.#bytes += chunk.length;
      this.#wake?.();
    });
    const end = (): void => {
      this.#ended = true;
      this.#wake?.();
    };
    this.stream.on('end', end);
    this.stream.on('close', end);
    this.stream.on('error', end);
    // A server that destroys its end of an in-process pair is not seen at the other one.
    if (!(this.stream instanceof Socket)) void this.summary.then(end);
  }

  send(...parts: Uint8Array[]): this {
    for (const part of parts) this.stream.write(part);
    return this;
  }

  /** Exactly `count` bytes, or fewer when the server closed before. */
  async take(count: number): Promise<Uint8Array> {
    while (this.#bytes < count && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const all = Buffer.concat(this.#received);
    this.#received = [all.subarray(count)];
    this.#bytes = Math.max(all.length - count, 0);
    return new Uint8Array(all.subarray(0, count));
  }

  /** Everything until the server closes. */
  async rest(): Promise<Uint8Array> {
    return this.take(Number.MAX_SAFE_INTEGER);
  }

  async optionReply(): Promise<OptionReply | undefined> {
    const header = await this.take(20);
    if (header.length < 20) return undefined;
    const data = await this.take(new DataView(header.buffer, header.byteOffset).getUint32(16));
    return decodeOptionReply(Uint8Array.from([...header, ...data]));
  }

  /** STARTTLS and the client's end of TLS; everything after it goes inside. */
  async startTls(tls: TlsClient, serverName = 'localhost'): Promise<this> {
    this.send(encodeOption(OPT.STARTTLS));
    const types = await this.answers();
    if (types.at(-1) !== 1) throw new Error(`STARTTLS was answered with ${types}`);
    const plain = this.stream;
    for (const event of ['data', 'end', 'close']) plain.removeAllListeners(event);
    plain.pause();
    this.stream = (await tls.upgrade(plain, { serverName })).stream;
    this.#listen();
    return this;
  }

  /** Types of all replies to one option, up to the one that ends it; empty when the server closed. */
  async answers(): Promise<number[]> {
    const types: number[] = [];
    for (;;) {
      const reply = await this.optionReply();
      if (reply === undefined) return types;
      types.push(reply.type);
      if (reply.type === 1 || reply.type >= 0x8000_0000) return types;
    }
  }

  /** Greeting and flags. */
  async hello(flags: number = BOTH_FLAGS): Promise<this> {
    await this.take(18);
    return this.send(encodeClientFlags(flags));
  }

  /** Straight to the transmission phase. */
  async go(name = '', options: { structured?: boolean; context?: boolean } = {}): Promise<this> {
    await this.hello();
    if (options.structured || options.context) {
      this.send(encodeOption(OPT.STRUCTURED_REPLY));
      await this.answers();
    }
    if (options.context) {
      const data = encodeMetaContextRequest({ exportName: name, queries: ['base:allocation'] });
      this.send(encodeOption(OPT.SET_META_CONTEXT, data));
      await this.answers();
    }
    this.send(goOption(name));
    const types = await this.answers();
    if (types.at(-1) !== 1) throw new Error(`GO was answered with ${types}`);
    return this;
  }

  /** Sends one request and gives the error number and data of its reply; undefined when the server closed. */
  async ask(
    request: Partial<Request>,
    data: Uint8Array = new Uint8Array(0),
  ): Promise<{ error: number; cookie: bigint; data: Uint8Array; type?: number } | undefined> {
    this.send(requestBytes(request), data);
    return this.reply(request.type === undefined || request.type === CMD.READ ? (request.length ?? 0) : 0);
  }

  /** The next reply; a simple one is followed by `dataBytes` when it is no error. */
  async reply(dataBytes = 0): Promise<{ error: number; cookie: bigint; data: Uint8Array; type?: number } | undefined> {
    const magic = await this.take(4);
    if (magic.length < 4) return undefined;
    const isChunk = new DataView(magic.buffer, magic.byteOffset).getUint32(0) === STRUCTURED_REPLY_MAGIC;
    const header = Uint8Array.from([...magic, ...(await this.take(isChunk ? 16 : 12))]);
    if (!isChunk) {
      const { error, cookie } = decodeSimpleReply(header);
      return { error, cookie, data: await this.take(error === 0 ? dataBytes : 0) };
    }
    const { cookie, type, length } = decodeChunkHeader(header);
    const data = await this.take(length);
    const error = type === REPLY_TYPE.ERROR ? new DataView(data.buffer, data.byteOffset).getUint32(0) : 0;
    return { error, cookie, data, type };
  }
}

export function goOption(name = '', requests: readonly number[] = []): Uint8Array {
  return encodeOption(OPT.GO, encodeInfoRequest({ name, requests }));
}

export function requestBytes(request: Partial<Request>): Uint8Array {
  return encodeRequest({ flags: 0, type: CMD.READ, cookie: 1n, offset: 0n, length: 0, ...request });
}

export function joined(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}
