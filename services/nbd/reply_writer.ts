import {
  CHUNK_HEADER_BYTES,
  EXTENDED_CHUNK_HEADER_BYTES,
  encodeReplyError,
  NBD_ERROR,
  putChunkHeader,
  putExtendedChunkHeader,
  putSimpleReply,
  REPLY_FLAG_DONE,
  REPLY_TYPE,
  type ReplyError,
  SIMPLE_REPLY_BYTES,
} from '../../protocols/nbd/mod.ts';
import { isZero } from './images/zeroes.ts';
import type { ReplyQueue } from './reply_queue.ts';

/** Smaller reads are not searched for zeroes, in `bytes` */
const MIN_HOLE_BYTES = 4096;

/** Replies up to here are copied, so that all of a turn leave in one write; larger ones go from where they are, in `bytes` */
const COPIED_BYTES = 16 * 1024;

/** What a reply says again of its request. */
export interface Addressed {
  readonly cookie: bigint;
  readonly offset: number | bigint;
}

/** A READ whose data is to be sent. */
export interface AnsweredRead extends Addressed {
  readonly offset: number;
  readonly length: number;
}

/**
 * Writes replies in the form that the session agreed on: simple, structured, or extended. With structured ones, "if
 * structured replies are negotiated, the server … MAY use either a simple reply or a structured reply to all other
 * requests" than READ and those with a payload: a command that succeeds has a simple one, which clients take in one
 * read where a chunk's header takes them two. Errors have their text.
 */
export class ReplyWriter {
  readonly #queue: ReplyQueue;
  readonly #structured: boolean;
  /** Chunks have the longer header */
  readonly #extended: boolean;
  readonly #chunkHeaderBytes: number;

  constructor(queue: ReplyQueue, form: { readonly structured: boolean; readonly extended: boolean }) {
    this.#queue = queue;
    this.#structured = form.structured;
    this.#extended = form.extended;
    this.#chunkHeaderBytes = form.extended ? EXTENDED_CHUNK_HEADER_BYTES : CHUNK_HEADER_BYTES;
  }

  /** A reply may have several chunks */
  get structured(): boolean {
    return this.#structured;
  }

  /** What stands in front of the data of a READ, in `bytes` */
  get readHeaderBytes(): number {
    return this.#structured ? this.#chunkHeaderBytes + 8 : SIMPLE_REPLY_BYTES;
  }

  /** A command without data is done. */
  succeed(request: Addressed): void {
    if (this.#extended) this.chunk(request, REPLY_TYPE.NONE, undefined);
    else this.#simple(request, NBD_ERROR.OK);
  }

  /** A READ of no bytes is done: in the form of all READs. */
  succeedRead(request: Addressed): void {
    if (this.#structured) this.chunk(request, REPLY_TYPE.NONE, undefined);
    else this.#simple(request, NBD_ERROR.OK);
  }

  /** `offset` where the error has a place inside the request. */
  fail(request: Addressed, { error, text, offset }: ReplyError): void {
    if (!this.#structured) this.#simple(request, error);
    else if (offset === undefined) this.chunk(request, REPLY_TYPE.ERROR, encodeReplyError({ error, text }));
    else this.chunk(request, REPLY_TYPE.ERROR_OFFSET, encodeReplyError({ error, text, offset }));
  }

  /** One chunk; the last of its reply unless said otherwise. Structured replies only. */
  chunk(request: Addressed, type: number, payload: Uint8Array | undefined, done = true): void {
    const at = this.#queue.reserve(this.#chunkHeaderBytes);
    this.#putHeader(request, at, { type, length: payload?.length ?? 0, flags: done ? REPLY_FLAG_DONE : 0 });
    this.#queue.commit(this.#chunkHeaderBytes);
    if (payload !== undefined) this.#queue.append(payload);
  }

  /** The data stands in the queue's slab behind `readHeaderBytes` of room at `at`. */
  commitRead(request: AnsweredRead, data: Uint8Array, at: number): void {
    if (this.#structured && request.length >= MIN_HOLE_BYTES && isZero(data)) {
      this.#queue.commit(this.#putHole(request, at));
      return;
    }
    this.#putReadHeader(request, at);
    this.#queue.commit(this.readHeaderBytes + request.length);
  }

  /**
   * The data is the start of a pool buffer, which the queue gives back, and tells `gone`. False: it was not needed, and is
   * the caller's.
   */
  sendRead(request: AnsweredRead, buffer: Buffer, gone?: (lengthBytes: number) => void): boolean {
    const { length } = request;
    if (length <= COPIED_BYTES) {
      const start = this.#queue.reserve(this.readHeaderBytes + length);
      const data = this.#queue.piece(start + this.readHeaderBytes, length);
      data.set(buffer.subarray(0, length));
      this.commitRead(request, data, start);
      return false;
    }
    const at = this.#queue.reserve(this.readHeaderBytes + 12);
    if (this.#structured && length >= MIN_HOLE_BYTES && isZero(buffer.subarray(0, length))) {
      this.#queue.commit(this.#putHole(request, at));
      return false;
    }
    this.#putReadHeader(request, at);
    this.#queue.commit(this.readHeaderBytes);
    this.#queue.appendOwned(buffer, length, gone);
    return true;
  }

  /**
   * As {@link commitRead}, with only the first `firstBytes` of the data: what follows is the caller's, {@link readEnd} at
   * its end. Structured replies only.
   */
  commitReadStart(request: AnsweredRead, at: number, firstBytes: number): void {
    this.#putReadHeader(request, at, 0);
    this.#queue.commit(this.readHeaderBytes + firstBytes);
  }

  /**
   * The last chunk of a READ whose data was sent without saying that it was the last. With `error` part of that data is
   * not valid: "the server … MUST ensure that the content chunk is sent first if a content and error chunk cover the same
   * offset".
   */
  readEnd(request: AnsweredRead, error: ReplyError | undefined): Uint8Array {
    const payload = error === undefined ? new Uint8Array(0) : encodeReplyError(error);
    const bytes = new Uint8Array(this.#chunkHeaderBytes + payload.length);
    const type =
      error === undefined ? REPLY_TYPE.NONE : error.offset === undefined ? REPLY_TYPE.ERROR : REPLY_TYPE.ERROR_OFFSET;
    const chunk = { type, length: payload.length, flags: REPLY_FLAG_DONE };
    this.#putHeader(request, 0, chunk, new DataView(bytes.buffer));
    bytes.set(payload, this.#chunkHeaderBytes);
    return bytes;
  }

  #putReadHeader(request: AnsweredRead, at: number, flags: number = REPLY_FLAG_DONE): void {
    if (!this.#structured) {
      putSimpleReply(this.#queue.view, at, NBD_ERROR.OK, request.cookie);
      return;
    }
    this.#putHeader(request, at, { type: REPLY_TYPE.OFFSET_DATA, length: 8 + request.length, flags });
    putOffset(this.#queue.view, at + this.#chunkHeaderBytes, request.offset);
  }

  #putHole(request: AnsweredRead, at: number): number {
    this.#putHeader(request, at, { type: REPLY_TYPE.OFFSET_HOLE, length: 12, flags: REPLY_FLAG_DONE });
    putOffset(this.#queue.view, at + this.#chunkHeaderBytes, request.offset);
    this.#queue.view.setUint32(at + this.#chunkHeaderBytes + 8, request.length);
    return this.#chunkHeaderBytes + 12;
  }

  #putHeader(
    request: Addressed,
    at: number,
    chunk: { type: number; length: number; flags: number },
    into: DataView = this.#queue.view,
  ): void {
    const header = { type: chunk.type, length: chunk.length, flags: chunk.flags, cookie: request.cookie };
    if (this.#extended) putExtendedChunkHeader(into, at, header, BigInt(request.offset));
    else putChunkHeader(into, at, header);
  }

  #simple(request: Addressed, error: number): void {
    const at = this.#queue.reserve(SIMPLE_REPLY_BYTES);
    putSimpleReply(this.#queue.view, at, error, request.cookie);
    this.#queue.commit(SIMPLE_REPLY_BYTES);
  }
}

/** As setBigUint64(), without a bigint for each reply. */
function putOffset(into: DataView, at: number, offset: number): void {
  into.setUint32(at, Math.floor(offset / 2 ** 32));
  into.setUint32(at + 4, offset % 2 ** 32);
}
