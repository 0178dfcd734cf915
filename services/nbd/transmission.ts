import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  BASE_ALLOCATION,
  CHUNK_HEADER_BYTES,
  type CheckedRequest,
  CMD,
  EXTENDED_CHUNK_HEADER_BYTES,
  encodeBlockStatus,
  encodeExtendedBlockStatus,
  encodeReplyError,
  fitExtents,
  MAX_PAYLOAD_BYTES,
  MAX_SENT_EXTENTS,
  NBD_ERROR,
  putChunkHeader,
  putExtendedChunkHeader,
  putSimpleReply,
  REPLY_FLAG_DONE,
  REPLY_TYPE,
  type ReceivedRequest,
  RequestDecoder,
  SIMPLE_REPLY_BYTES,
} from '../../protocols/nbd/mod.ts';
import type { BufferPool } from './buffer_pool.ts';
import { asImageError, type DiskImage } from './images/mod.ts';
import { isZero } from './images/zeroes.ts';
import { ReplyQueue } from './reply_queue.ts';
import type { Negotiated } from './server_handshake.ts';
import type { NbdServerLimits } from './server_limits.ts';

/** What one turn of the event loop does for one client before others get theirs */
const TURN_REQUESTS = 64;
const TURN_BYTES = 1 << 20;
/** Reads up to here are built in the reply slab, in `bytes` */
const SLAB_READ_BYTES = 64 * 1024;
/** Smaller reads are not searched for zeroes, in `bytes` */
const MIN_HOLE_BYTES = 4096;
const PREFETCH_PIECE_BYTES = 1 << 20;
const MAX_PREFETCH_BYTES = 32 << 20;

/** Counted for each session; for metrics. */
export interface TransmissionCounters {
  requests: number;
  refused: number;
  readBytes: number;
  writtenBytes: number;
}

export interface TransmissionEvents {
  /** No more requests will be answered; the stream may end. `error` where the client is to blame */
  finished(error: WireError | undefined): void;
  /** The last access to the image is over */
  settled(): void;
}

interface InFlight {
  readonly offset: number;
  readonly end: number;
  readonly writes: boolean;
}

/** What a reply says again of its request. */
interface Addressed {
  readonly cookie: bigint;
  readonly offset: number | bigint;
}

/**
 * The transmission phase of one session: takes requests off the stream as long as its budgets allow, runs them
 * against the image, in place where the image says so, and queues replies in the order in which they are ready.
 */
export class Transmission {
  readonly #stream: Duplex;
  readonly #image: DiskImage;
  readonly #limits: NbdServerLimits;
  readonly #events: TransmissionEvents;
  readonly #structured: boolean;
  /** Chunks have the longer header */
  readonly #extended: boolean;
  readonly #chunkHeaderBytes: number;
  readonly #contextId: number | undefined;
  readonly #pool: BufferPool;
  readonly #decoder: RequestDecoder;
  readonly #replies: ReplyQueue;
  readonly #inFlight = new Set<InFlight>();
  #inFlightBytes = 0;
  /** Parsed, and waiting for one that it overlaps or for budget */
  #held: ReceivedRequest | undefined;
  #yielding = false;
  #running = false;
  #stopping = false;
  #finished = false;
  #settled = false;
  readonly counters: TransmissionCounters = { requests: 0, refused: 0, readBytes: 0, writtenBytes: 0 };

  constructor(
    stream: Duplex,
    negotiated: Negotiated,
    options: { limits: NbdServerLimits; pool: BufferPool },
    events: TransmissionEvents,
  ) {
    this.#stream = stream;
    this.#image = negotiated.served.image;
    this.#limits = options.limits;
    this.#events = events;
    this.#structured = negotiated.structured;
    this.#extended = negotiated.extended;
    this.#chunkHeaderBytes = negotiated.extended ? EXTENDED_CHUNK_HEADER_BYTES : CHUNK_HEADER_BYTES;
    this.#contextId = negotiated.contexts.find((context) => context.name === BASE_ALLOCATION)?.id;
    this.#pool = options.pool;
    const { description } = negotiated;
    this.#decoder = new RequestDecoder(
      {
        sizeBytes: description.sizeBytes,
        flags: description.flags,
        blockSizes: description.blockSizes,
        structured: negotiated.structured,
        extended: negotiated.extended,
        contexts: negotiated.contexts.length,
        maxPayloadBytes: MAX_PAYLOAD_BYTES,
      },
      this.#pool,
    );
    this.#replies = new ReplyQueue(stream, this.#pool, () => this.#schedule());
  }

  /** Bytes that this session holds for the client at the moment */
  get heldBytes(): number {
    return this.#inFlightBytes + this.#replies.pendingBytes + this.#decoder.buffered;
  }

  receive(chunk: Uint8Array): void {
    if (this.#finished) return;
    this.#decoder.push(chunk);
    this.#run();
  }

  /** The client sends no more: finish what it asked for. */
  inputEnded(): void {
    this.#stopping = true;
    this.#run();
  }

  /** Requests that wait get ESHUTDOWN; the session ends when the work in flight is done. */
  shutdown(): void {
    if (this.#finished || this.#stopping) return;
    this.#stopping = true;
    try {
      let waiting = this.#held ?? this.#decoder.next();
      this.#held = undefined;
      for (; waiting !== undefined; waiting = this.#decoder.next()) {
        this.#release(waiting);
        if (waiting.header.type === CMD.DISC) break;
        this.#fail(waiting.header, NBD_ERROR.ESHUTDOWN, 'Cannot start a request: server is shutting down');
      }
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      this.#finish(error);
      return;
    }
    this.#run();
  }

  /** The stream is gone; only the image is waited for. */
  abandon(): void {
    this.#finished = true;
    if (this.#held !== undefined) this.#release(this.#held);
    this.#held = undefined;
    this.#decoder.close();
    this.#settle();
  }

  #schedule(): void {
    if (!this.#finished && !this.#running && !this.#yielding) this.#run();
  }

  #run(): void {
    if (this.#running || this.#finished || this.#yielding) return;
    this.#running = true;
    try {
      this.#takeRequests();
      this.#replies.flush();
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      this.#finish(error);
      return;
    } finally {
      this.#running = false;
    }
    if (this.#finished) return;
    if (this.#stopping && this.#held === undefined && this.#inFlight.size === 0 && !this.#yielding) {
      this.#finish(undefined);
      return;
    }
    if (this.#held !== undefined || this.#yielding || this.#decoder.buffered > 0) this.#stream.pause();
    else if (this.#stream.isPaused()) this.#stream.resume();
  }

  #takeRequests(): void {
    let turnRequests = 0;
    let turnBytes = 0;
    for (;;) {
      if (this.#replies.pendingBytes >= this.#limits.replyBytes) return;
      if (turnRequests >= TURN_REQUESTS || turnBytes >= TURN_BYTES) {
        this.#yielding = true;
        setImmediate(() => {
          this.#yielding = false;
          this.#schedule();
        });
        return;
      }
      const received = this.#held ?? this.#next();
      if (received === undefined) return;
      this.#held = undefined;
      if (received.verdict.accepted && !this.#admissible(received.verdict.request)) {
        this.#held = received;
        return;
      }
      turnRequests++;
      turnBytes += received.header.length;
      this.#perform(received);
    }
  }

  #next(): ReceivedRequest | undefined {
    return this.#stopping ? undefined : this.#decoder.next();
  }

  /** Within the budget, and not overlapping work in flight unless both only read: replies then tell the truth. */
  #admissible(request: CheckedRequest): boolean {
    if (this.#inFlight.size === 0) return true;
    if (this.#inFlight.size >= this.#limits.requests) return false;
    if (this.#inFlightBytes + memoryOf(request) > this.#limits.requestBytes) return false;
    const writes = changes(request.type);
    const end = request.offset + request.length;
    for (const other of this.#inFlight) {
      if ((writes || other.writes) && request.offset < other.end && other.offset < end) return false;
    }
    return true;
  }

  #perform(received: ReceivedRequest): void {
    this.counters.requests++;
    const { verdict, header } = received;
    if (!verdict.accepted) {
      this.counters.refused++;
      this.#fail(header, verdict.error, verdict.text);
      return;
    }
    const { request } = verdict;
    switch (request.type) {
      case CMD.READ:
        this.#read(request);
        return;
      case CMD.WRITE:
        this.#write(request, received);
        return;
      case CMD.DISC:
        // "NBD_CMD_DISC: no reply; the server finishes outstanding work"; nothing behind it is looked at.
        this.#stopping = true;
        return;
      case CMD.FLUSH:
        this.#launch(request, () => this.#image.flush());
        return;
      case CMD.TRIM:
        this.#launch(request, () => this.#image.discard(request.offset, request.length));
        return;
      case CMD.WRITE_ZEROES: {
        const options = { mayUnmap: !request.noHole, fast: request.fastZero };
        this.#launch(request, () => this.#image.writeZeroes(request.offset, request.length, options));
        return;
      }
      case CMD.CACHE:
        this.#launch(request, () => this.#prefetch(request.offset, request.length));
        return;
      case CMD.BLOCK_STATUS:
        this.#blockStatus(request);
        return;
      default:
        throw new Error(`No code for accepted ${request.type}`);
    }
  }

  #read(request: CheckedRequest): void {
    const { offset, length } = request;
    this.counters.readBytes += length;
    if (length === 0) {
      this.#succeed(request);
      return;
    }
    const headerBytes = this.#structured ? this.#chunkHeaderBytes + 8 : SIMPLE_REPLY_BYTES;
    if (length <= SLAB_READ_BYTES) {
      const at = this.#replies.reserve(headerBytes + length);
      const data = this.#replies.bytes.subarray(at + headerBytes, at + headerBytes + length);
      let inPlace: boolean;
      try {
        inPlace = this.#image.readNow(offset, data);
      } catch (error) {
        this.#failWith(request, error);
        return;
      }
      if (inPlace) {
        this.#commitRead(request, data, at);
        return;
      }
    }
    const buffer = this.#pool.take(length);
    const data = buffer.subarray(0, length);
    let inPlace = false;
    if (length > SLAB_READ_BYTES) {
      try {
        inPlace = this.#image.readNow(offset, data);
      } catch (error) {
        this.#pool.give(buffer);
        this.#failWith(request, error);
        return;
      }
    }
    if (inPlace) {
      this.#sendRead(request, buffer, data);
      return;
    }
    this.#track(request, this.#image.read(offset, data), {
      done: () => this.#sendRead(request, buffer, data),
      failed: (error) => {
        this.#pool.give(buffer);
        this.#failWith(request, error);
      },
    });
  }

  /** The data stands in the slab behind room for its header. */
  #commitRead(request: CheckedRequest, data: Uint8Array, at: number): void {
    const { cookie, length } = request;
    if (!this.#structured) {
      putSimpleReply(this.#replies.view, at, NBD_ERROR.OK, cookie);
      this.#replies.commit(SIMPLE_REPLY_BYTES + length);
    } else if (length >= MIN_HOLE_BYTES && isZero(data)) {
      this.#replies.commit(this.#putHole(request, at));
    } else {
      this.#replies.commit(this.#putData(request, at) + length);
    }
  }

  #sendRead(request: CheckedRequest, buffer: Buffer, data: Buffer): void {
    const { cookie, length } = request;
    if (this.#structured && length >= MIN_HOLE_BYTES && isZero(data)) {
      const at = this.#replies.reserve(this.#chunkHeaderBytes + 12);
      this.#replies.commit(this.#putHole(request, at));
      this.#pool.give(buffer);
      return;
    }
    const headerBytes = this.#structured ? this.#chunkHeaderBytes + 8 : SIMPLE_REPLY_BYTES;
    const at = this.#replies.reserve(headerBytes);
    if (this.#structured) this.#putData(request, at);
    else putSimpleReply(this.#replies.view, at, NBD_ERROR.OK, cookie);
    this.#replies.commit(headerBytes);
    this.#replies.appendOwned(buffer, length);
  }

  #write(request: CheckedRequest, received: ReceivedRequest): void {
    const { offset, length, fua } = request;
    this.counters.writtenBytes += length;
    const { payload } = received;
    let inPlace = false;
    try {
      inPlace = length === 0 || this.#image.writeNow(offset, payload);
    } catch (error) {
      this.#release(received);
      this.#failWith(request, error);
      return;
    }
    if (inPlace && !fua) {
      this.#release(received);
      this.#succeed(request);
      return;
    }
    const work = async (): Promise<void> => {
      if (!inPlace) await this.#image.write(offset, payload);
      if (fua) await this.#image.flush();
    };
    this.#track(request, work(), {
      done: () => {
        this.#release(received);
        this.#succeed(request);
      },
      failed: (error) => {
        this.#release(received);
        this.#failWith(request, error);
      },
    });
  }

  #blockStatus(request: CheckedRequest): void {
    const { offset, length } = request;
    const maxExtents = request.oneExtent ? 1 : MAX_SENT_EXTENTS;
    let found: ReturnType<typeof fitExtents> = [];
    const work = async (): Promise<void> => {
      const extents = await this.#image.blockStatus(offset, length, maxExtents);
      found = fitExtents(extents, { lengthBytes: length, maxExtents, minimumBlockBytes: this.#image.blockBytes });
    };
    this.#track(request, work(), {
      done: () => {
        const status = { contextId: this.#contextId!, extents: found };
        if (this.#extended) this.#chunk(request, REPLY_TYPE.BLOCK_STATUS_EXT, encodeExtendedBlockStatus(status));
        else this.#chunk(request, REPLY_TYPE.BLOCK_STATUS, encodeBlockStatus(status));
      },
      failed: (error) => this.#failWith(request, error),
    });
  }

  /** NBD_CMD_CACHE: reading pulls the range into the page cache. */
  async #prefetch(offset: number, length: number): Promise<void> {
    const end = offset + Math.min(length, MAX_PREFETCH_BYTES);
    const buffer = this.#pool.take(Math.min(PREFETCH_PIECE_BYTES, Math.max(end - offset, 1)));
    try {
      for (let at = offset; at < end; at += PREFETCH_PIECE_BYTES) {
        await this.#image.read(at, buffer.subarray(0, Math.min(PREFETCH_PIECE_BYTES, end - at)));
      }
    } finally {
      this.#pool.give(buffer);
    }
  }

  /** A command without data in its reply. FUA holds for every command that changes the disk. */
  #launch(request: CheckedRequest, work: () => Promise<void>): void {
    const { fua } = request;
    const run = async (): Promise<void> => {
      await work();
      if (fua && changes(request.type)) await this.#image.flush();
    };
    this.#track(request, run(), {
      done: () => this.#succeed(request),
      failed: (error) => this.#failWith(request, error),
    });
  }

  #track(
    request: CheckedRequest,
    work: Promise<void>,
    outcome: { done: () => void; failed: (error: unknown) => void },
  ): void {
    const entry: InFlight = {
      offset: request.offset,
      end: request.offset + request.length,
      writes: changes(request.type),
    };
    const bytes = memoryOf(request);
    this.#inFlight.add(entry);
    this.#inFlightBytes += bytes;
    const leave = (report: () => void): void => {
      this.#inFlight.delete(entry);
      this.#inFlightBytes -= bytes;
      // Without a client there is nobody to tell; buffers come back with the garbage collector.
      if (!this.#finished) report();
      if (this.#finished) this.#settle();
      else this.#schedule();
    };
    work.then(
      () => leave(outcome.done),
      (error: unknown) => leave(() => outcome.failed(error)),
    );
  }

  #succeed(request: Addressed): void {
    // Commands without data may be answered by a simple reply even when structured replies are on, but not READ;
    // one form for all keeps clients simple.
    if (this.#structured) this.#chunk(request, REPLY_TYPE.NONE, undefined);
    else this.#simple(request, NBD_ERROR.OK);
  }

  #failWith(request: Addressed, error: unknown): void {
    const failure = asImageError(error);
    this.#fail(request, NBD_ERROR[failure.code], failure.message);
  }

  #fail(request: Addressed, error: number, text: string): void {
    if (this.#structured) this.#chunk(request, REPLY_TYPE.ERROR, encodeReplyError({ error, text }));
    else this.#simple(request, error);
  }

  #simple(request: Addressed, error: number): void {
    const at = this.#replies.reserve(SIMPLE_REPLY_BYTES);
    putSimpleReply(this.#replies.view, at, error, request.cookie);
    this.#replies.commit(SIMPLE_REPLY_BYTES);
  }

  /** One chunk that is the whole reply. */
  #chunk(request: Addressed, type: number, payload: Uint8Array | undefined): void {
    const at = this.#replies.reserve(this.#chunkHeaderBytes);
    this.#putHeader(request, at, type, payload?.length ?? 0);
    this.#replies.commit(this.#chunkHeaderBytes);
    if (payload !== undefined) this.#replies.append(payload);
  }

  /** Header and offset in front of data; gives their size. */
  #putData(request: CheckedRequest, at: number): number {
    this.#putHeader(request, at, REPLY_TYPE.OFFSET_DATA, 8 + request.length);
    this.#replies.view.setBigUint64(at + this.#chunkHeaderBytes, BigInt(request.offset));
    return this.#chunkHeaderBytes + 8;
  }

  #putHole(request: CheckedRequest, at: number): number {
    this.#putHeader(request, at, REPLY_TYPE.OFFSET_HOLE, 12);
    this.#replies.view.setBigUint64(at + this.#chunkHeaderBytes, BigInt(request.offset));
    this.#replies.view.setUint32(at + this.#chunkHeaderBytes + 8, request.length);
    return this.#chunkHeaderBytes + 12;
  }

  #putHeader(request: Addressed, at: number, type: number, length: number): void {
    const header = { flags: REPLY_FLAG_DONE, type, cookie: request.cookie, length };
    if (this.#extended) putExtendedChunkHeader(this.#replies.view, at, header, BigInt(request.offset));
    else putChunkHeader(this.#replies.view, at, header);
  }

  #release(received: ReceivedRequest): void {
    if (received.buffer !== undefined) this.#pool.give(received.buffer);
  }

  #finish(error: WireError | undefined): void {
    if (this.#finished) return;
    this.#finished = true;
    this.#replies.flush();
    if (this.#held !== undefined) this.#release(this.#held);
    this.#held = undefined;
    this.#decoder.close();
    this.#events.finished(error);
    this.#settle();
  }

  #settle(): void {
    if (this.#settled || this.#inFlight.size > 0) return;
    this.#settled = true;
    this.#events.settled();
  }
}

function changes(type: number): boolean {
  return type === CMD.WRITE || type === CMD.TRIM || type === CMD.WRITE_ZEROES;
}

/** Memory that a request holds while it runs, in `bytes`; the length of a WRITE_ZEROES says nothing about that. */
function memoryOf(request: CheckedRequest): number {
  return request.type === CMD.READ || request.type === CMD.WRITE ? request.length : 0;
}
