import { Cursor, WireError } from '../bytes/mod.ts';
import { decodeBlockStatus, decodeExtendedBlockStatus, type Extent } from './block_status.ts';
import {
  CMD,
  commandName,
  EXTENDED_REPLY_MAGIC,
  errorName,
  type NbdErrorName,
  REPLY_FLAG_DONE,
  REPLY_TYPE,
  REPLY_TYPE_ERROR_BIT,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from './constants.ts';
import { MAX_RECEIVED_EXTENTS, MAX_REPLY_CHUNKS, MAX_STRING_BYTES } from './limits.ts';
import { ReadCover } from './read_cover.ts';
import { decodeSimpleReply, SIMPLE_REPLY_BYTES } from './simple_reply.ts';
import {
  CHUNK_HEADER_BYTES,
  type ChunkHeader,
  decodeChunkHeader,
  decodeExtendedChunkHeader,
  decodeHole,
  decodeReplyError,
  EXTENDED_CHUNK_HEADER_BYTES,
} from './structured_reply.ts';

/** A request that waits for its reply. */
export interface Outstanding {
  /** As sent; below 2^53 */
  readonly cookie: number;
  /** One of CMD */
  readonly type: number;
  readonly offset: number;
  readonly length: number;
  /** READ: where the data goes, `length` bytes */
  readonly into?: Uint8Array;
  /** BLOCK_STATUS: the contexts that were asked for (default: all that were selected) */
  readonly contextIds?: ReadonlySet<number>;
}

/** How a request ended. */
export interface Completion {
  readonly cookie: number;
  readonly error: { readonly name: NbdErrorName; readonly text: string } | undefined;
  /** BLOCK_STATUS: extents of each context id */
  readonly extents: ReadonlyMap<number, readonly Extent[]>;
}

interface Assembly {
  readonly request: Outstanding;
  /** READ: what has come, relative to the request */
  readonly cover: ReadCover;
  chunks: number;
  error: Completion['error'];
  readonly extents: Map<number, readonly Extent[]>;
}

type State =
  | { readonly kind: 'header' }
  /** Data goes straight to the reader's memory; `done` ends the reply behind it */
  | { readonly kind: 'data'; readonly assembly: Assembly; at: number; readonly end: number; readonly done: boolean }
  /** A small payload that must be whole before it says anything */
  | {
      readonly kind: 'payload';
      readonly assembly: Assembly;
      readonly header: ChunkHeader;
      readonly bytes: Uint8Array;
      filled: number;
    }
  /** Offset in front of data */
  | {
      readonly kind: 'data-offset';
      readonly assembly: Assembly;
      readonly header: ChunkHeader;
      readonly bytes: Uint8Array;
      filled: number;
    };

/** Less is copied: a read of the system for it alone costs more, in `bytes` */
const MIN_ROOM_BYTES = 16 * 1024;

const NO_EXTENTS: ReadonlyMap<number, readonly Extent[]> = new Map();

/**
 * Puts the server's replies together, any split of the stream, simple and structured. Nothing is buffered but
 * headers and small payloads: data goes where the reader wants it. The server is untrusted: a chunk outside its
 * request, an overlap, a hole in the cover, an unknown cookie or context, a length beyond what was asked end the
 * session with WireError before anything is allocated or written.
 */
export class ReplyAssembler {
  readonly #structured: boolean;
  readonly #extended: boolean;
  readonly #contextIds: ReadonlySet<number>;
  readonly #outstanding = new Map<number, Assembly>();
  readonly #header = new Uint8Array(EXTENDED_CHUNK_HEADER_BYTES);
  #headerFilled = 0;
  #state: State = { kind: 'header' };

  /** With `extended` nothing but extended headers is taken. */
  constructor(options: { structured: boolean; extended?: boolean; contextIds: Iterable<number> }) {
    this.#structured = options.structured;
    this.#extended = options.extended === true;
    this.#contextIds = new Set(options.contextIds);
  }

  /** Requests without an answer yet */
  get outstanding(): number {
    return this.#outstanding.size;
  }

  expect(request: Outstanding): void {
    if (this.#outstanding.has(request.cookie)) throw new RangeError(`Cookie ${request.cookie} is in use`);
    const cover = new ReadCover(request.length);
    this.#outstanding.set(request.cookie, { request, cover, chunks: 0, error: undefined, extents: new Map() });
  }

  /**
   * Where the next bytes of the stream may be read to, so that push() of them has nothing to copy: the rest of a READ's
   * data, in the reader's memory. Undefined: anywhere.
   */
  room(): Uint8Array | undefined {
    const state = this.#state;
    if (state.kind !== 'data' || state.end - state.at < MIN_ROOM_BYTES) return undefined;
    return state.assembly.request.into?.subarray(state.at, state.end);
  }

  /**
   * Takes the next bytes of the stream, of which nothing is kept, and gives what they completed.
   * @throws WireError when the stream cannot be followed or trusted any further
   */
  push(chunk: Uint8Array): Completion[] {
    const completions: Completion[] = [];
    let at = 0;
    while (at < chunk.length) {
      const state = this.#state;
      if (state.kind === 'header') at += this.#takeHeader(chunk, at, completions);
      else if (state.kind === 'data') at += this.#takeData(state, chunk, at, completions);
      else at += this.#takePayload(state, chunk, at, completions);
    }
    return completions;
  }

  #takeHeader(chunk: Uint8Array, at: number, completions: Completion[]): number {
    let used = this.#fillHeader(4, chunk, at);
    if (this.#headerFilled < 4) return used;
    const magic = new Cursor(this.#header, 'NBD reply').u32('magic');
    const size = this.#headerBytes(magic);
    used += this.#fillHeader(size, chunk, at + used);
    if (this.#headerFilled < size) return used;
    this.#headerFilled = 0;
    const header = this.#header.subarray(0, size);
    if (size === SIMPLE_REPLY_BYTES) this.#onSimple(header, completions);
    else if (size === CHUNK_HEADER_BYTES) this.#onChunk(decodeChunkHeader(header), completions);
    else {
      const extended = decodeExtendedChunkHeader(header);
      const { request } = this.#find(extended.cookie);
      if (extended.offset !== BigInt(request.offset)) {
        throw wrong(
          'ERR_WIRE_VALUE',
          `Cannot accept a reply at ${extended.offset}: the request was at ${request.offset}`,
        );
      }
      this.#onChunk(extended, completions);
    }
    return used;
  }

  /** Size of the header that a magic announces, in `bytes`. Each session knows one or two of the three kinds. */
  #headerBytes(magic: number): number {
    if (magic === EXTENDED_REPLY_MAGIC && this.#extended) return EXTENDED_CHUNK_HEADER_BYTES;
    if (magic === STRUCTURED_REPLY_MAGIC && this.#structured && !this.#extended) return CHUNK_HEADER_BYTES;
    if (magic === SIMPLE_REPLY_MAGIC && !this.#extended) return SIMPLE_REPLY_BYTES;
    const known = [EXTENDED_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC].includes(magic);
    if (known) throw wrong('ERR_WIRE_STATE', 'Cannot accept an NBD reply: its kind of header was not negotiated');
    throw wrong('ERR_WIRE_MAGIC', `Cannot accept NBD reply: magic 0x${magic.toString(16)}`);
  }

  #fillHeader(size: number, chunk: Uint8Array, at: number): number {
    const piece = Math.min(Math.max(size - this.#headerFilled, 0), chunk.length - at);
    this.#header.set(chunk.subarray(at, at + piece), this.#headerFilled);
    this.#headerFilled += piece;
    return piece;
  }

  #onSimple(header: Uint8Array, completions: Completion[]): void {
    const reply = decodeSimpleReply(header);
    const assembly = this.#find(reply.cookie);
    const { request } = assembly;
    if (this.#structured && request.type === CMD.READ) {
      throw wrong('ERR_WIRE_STATE', 'Cannot accept a simple reply to NBD_CMD_READ: structured replies are on');
    }
    if (assembly.chunks > 0) throw wrong('ERR_WIRE_STATE', 'Cannot accept a simple reply within a structured one');
    if (reply.error !== 0) {
      assembly.error = { name: errorName(reply.error), text: '' };
    } else if (request.type === CMD.BLOCK_STATUS) {
      throw wrong('ERR_WIRE_STATE', 'Cannot accept a simple reply to NBD_CMD_BLOCK_STATUS without an error');
    } else if (request.type === CMD.READ) {
      assembly.cover.add(0, request.length);
      if (request.length > 0) {
        this.#state = { kind: 'data', assembly, at: 0, end: request.length, done: true };
        return;
      }
    }
    this.#complete(assembly, completions);
  }

  #onChunk(header: ChunkHeader, completions: Completion[]): void {
    const assembly = this.#find(header.cookie);
    const { request } = assembly;
    if (++assembly.chunks > MAX_REPLY_CHUNKS) {
      throw wrong('ERR_WIRE_LIMIT', `Cannot accept a reply of more than ${MAX_REPLY_CHUNKS} chunks`);
    }
    const name = commandName(request.type);
    const { type, length } = header;
    if (type === REPLY_TYPE.NONE) {
      if (length !== 0 || (header.flags & REPLY_FLAG_DONE) === 0) {
        throw wrong('ERR_WIRE_VALUE', 'Cannot accept NBD_REPLY_TYPE_NONE: not empty, or not the last chunk');
      }
      this.#complete(assembly, completions);
      return;
    }
    if (type === REPLY_TYPE.OFFSET_DATA) {
      if (request.type !== CMD.READ) throw wrong('ERR_WIRE_STATE', `Cannot accept data for ${name}`);
      // Before a byte is taken: 8 of offset, then at least one and no more than was asked for.
      if (length <= 8 || length - 8 > request.length) {
        throw wrong('ERR_WIRE_LIMIT', `Cannot accept ${length - 8} bytes of data: ${request.length} were asked for`);
      }
      this.#state = { kind: 'data-offset', assembly, header, bytes: new Uint8Array(8), filled: 0 };
      return;
    }
    const limit = payloadLimit(header, request, this.#extended, this.#contextIds.size);
    if (limit === undefined) throw wrong('ERR_WIRE_STATE', `Cannot accept chunk type ${type} for ${name}`);
    if (length > limit || length === 0) {
      throw wrong('ERR_WIRE_LIMIT', `Cannot accept chunk type ${type} of ${length} bytes: limit is ${limit}`);
    }
    // Block status may be large: its memory grows with what arrives.
    this.#state = { kind: 'payload', assembly, header, bytes: new Uint8Array(Math.min(length, 8192)), filled: 0 };
  }

  #takeData(state: Extract<State, { kind: 'data' }>, chunk: Uint8Array, at: number, completions: Completion[]): number {
    const piece = Math.min(state.end - state.at, chunk.length - at);
    const { into } = state.assembly.request;
    const isThere =
      into !== undefined && chunk.buffer === into.buffer && chunk.byteOffset + at === into.byteOffset + state.at;
    if (!isThere) into?.set(chunk.subarray(at, at + piece), state.at);
    state.at += piece;
    if (state.at === state.end) {
      this.#state = { kind: 'header' };
      if (state.done) this.#complete(state.assembly, completions);
    }
    return piece;
  }

  #takePayload(
    state: Extract<State, { kind: 'payload' | 'data-offset' }>,
    chunk: Uint8Array,
    at: number,
    completions: Completion[],
  ): number {
    const { header, assembly } = state;
    const total = state.kind === 'data-offset' ? 8 : header.length;
    const piece = Math.min(state.bytes.length - state.filled, chunk.length - at);
    state.bytes.set(chunk.subarray(at, at + piece), state.filled);
    state.filled += piece;
    if (state.filled < state.bytes.length) return piece;
    if (state.filled < total) {
      const larger = new Uint8Array(Math.min(total, state.bytes.length * 2));
      larger.set(state.bytes);
      this.#state = { ...state, bytes: larger };
      return piece;
    }
    const done = (header.flags & REPLY_FLAG_DONE) !== 0;
    if (state.kind === 'data-offset') {
      const offset = new Cursor(state.bytes, 'NBD_REPLY_TYPE_OFFSET_DATA').u64('offset');
      const start = take(assembly, offset, header.length - 8);
      this.#state = { kind: 'data', assembly, at: start, end: start + header.length - 8, done };
      return piece;
    }
    this.#state = { kind: 'header' };
    this.#onPayload(assembly, header.type, state.bytes);
    if (done) this.#complete(assembly, completions);
    return piece;
  }

  #onPayload(assembly: Assembly, type: number, payload: Uint8Array): void {
    if (type === REPLY_TYPE.OFFSET_HOLE) {
      const hole = decodeHole(payload);
      const start = take(assembly, hole.offset, hole.lengthBytes);
      assembly.request.into?.fill(0, start, start + hole.lengthBytes);
      return;
    }
    if (type === REPLY_TYPE.BLOCK_STATUS || type === REPLY_TYPE.BLOCK_STATUS_EXT) {
      const status = this.#extended ? decodeExtendedBlockStatus(payload) : decodeBlockStatus(payload);
      if (!(assembly.request.contextIds ?? this.#contextIds).has(status.contextId)) {
        throw wrong('ERR_WIRE_VALUE', `Cannot accept block status of context ${status.contextId}: not asked for`);
      }
      if (assembly.extents.has(status.contextId)) {
        throw wrong('ERR_WIRE_VALUE', `Cannot accept block status of context ${status.contextId}: it came twice`);
      }
      assembly.extents.set(status.contextId, status.extents);
      return;
    }
    const failure = decodeReplyError(type, payload);
    if (failure.offset !== undefined) {
      const { offset, length } = assembly.request;
      if (failure.offset < BigInt(offset) || failure.offset > BigInt(offset + length)) {
        throw wrong('ERR_WIRE_VALUE', `Cannot accept an error at ${failure.offset}: outside of the request`);
      }
    }
    assembly.error ??= { name: errorName(failure.error), text: failure.text };
  }

  #find(cookie: bigint): Assembly {
    const assembly = cookie <= BigInt(Number.MAX_SAFE_INTEGER) ? this.#outstanding.get(Number(cookie)) : undefined;
    if (assembly === undefined) throw wrong('ERR_WIRE_VALUE', `Cannot accept a reply to cookie ${cookie}: not sent`);
    return assembly;
  }

  #complete(assembly: Assembly, completions: Completion[]): void {
    const { request, cover, error } = assembly;
    if (error === undefined && request.type === CMD.READ && !cover.isWhole) {
      throw wrong('ERR_WIRE_VALUE', 'Cannot accept the end of a read reply: not all bytes came');
    }
    if (error === undefined && request.type === CMD.BLOCK_STATUS) {
      // CVE-2023-5871: success must bring every selected context.
      if (assembly.extents.size !== (request.contextIds ?? this.#contextIds).size) {
        throw wrong('ERR_WIRE_VALUE', 'Cannot accept the end of a block status reply: a context is missing');
      }
    }
    this.#outstanding.delete(request.cookie);
    completions.push({
      cookie: request.cookie,
      error,
      extents: assembly.extents.size === 0 ? NO_EXTENTS : assembly.extents,
    });
  }
}

/** Largest payload of a chunk type for a request, in `bytes`; undefined: the type does not belong there. */
function payloadLimit(
  header: ChunkHeader,
  request: Outstanding,
  extended: boolean,
  contexts: number,
): number | undefined {
  if (header.type === REPLY_TYPE.OFFSET_HOLE) return request.type === CMD.READ ? 12 : undefined;
  if (header.type === (extended ? REPLY_TYPE.BLOCK_STATUS_EXT : REPLY_TYPE.BLOCK_STATUS)) {
    const limit = extended ? 8 + MAX_RECEIVED_EXTENTS * 16 : 4 + MAX_RECEIVED_EXTENTS * 8;
    return request.type === CMD.BLOCK_STATUS && contexts > 0 ? limit : undefined;
  }
  if ((header.type & REPLY_TYPE_ERROR_BIT) !== 0) return 6 + MAX_STRING_BYTES + 8;
  return undefined;
}

/** Marks bytes of a READ as come; gives their start in the request. Overlaps and strays are refused. */
function take({ request, cover }: Assembly, offset: bigint, lengthBytes: number): number {
  const relative = offset - BigInt(request.offset);
  if (lengthBytes === 0 || relative < 0n || relative + BigInt(lengthBytes) > BigInt(request.length)) {
    throw wrong(
      'ERR_WIRE_VALUE',
      `Cannot accept ${lengthBytes} bytes at ${offset}: ${request.length} at ${request.offset} were asked for`,
    );
  }
  const start = Number(relative);
  if (cover.add(start, start + lengthBytes)) return start;
  throw wrong('ERR_WIRE_VALUE', `Cannot accept ${lengthBytes} bytes at ${offset}: they came before`);
}

function wrong(code: WireError['code'], text: string): WireError {
  return new WireError(code, text, { message: 'NBD reply' });
}
