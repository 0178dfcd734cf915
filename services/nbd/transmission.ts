import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  type CheckedRequest,
  CMD,
  changesExport,
  encodeBlockStatus,
  encodeExtendedBlockStatus,
  isReadOnly,
  MAX_PAYLOAD_BYTES,
  type MetaContext,
  NBD_ERROR,
  REPLY_TYPE,
  type ReceivedRequest,
  RequestDecoder,
  type TransmissionTerms,
  validateRequest,
} from '../../protocols/nbd/mod.ts';
import type { BufferPool } from './buffer_pool.ts';
import { contextStatus } from './context_status.ts';
import { asImageError, type DiskImage } from './images/mod.ts';
import { InFlight } from './in_flight.ts';
import { PeerBudget } from './peer_budget.ts';
import { prefetch } from './prefetch.ts';
import { ReplyQueue } from './reply_queue.ts';
import { type Addressed, ReplyWriter } from './reply_writer.ts';
import type { Negotiated } from './server_handshake.ts';
import type { NbdServerLimits } from './server_limits.ts';

/** What one turn of the event loop does for one client before others get theirs */
const TURN_REQUESTS = 64;
const TURN_BYTES = 1 << 20;
/** Reads up to here are built in the reply slab, in `bytes` */
const SLAB_READ_BYTES = 64 * 1024;

/** Counted for each session; for metrics. */
export interface TransmissionCounters {
  requests: number;
  refused: number;
  /** Accepted, and failed in the image */
  failed: number;
  readBytes: number;
  writtenBytes: number;
  /** Most requests that were worked on at once */
  maxInFlight: number;
}

export function newCounters(): TransmissionCounters {
  return { requests: 0, refused: 0, failed: 0, readBytes: 0, writtenBytes: 0, maxInFlight: 0 };
}

export interface TransmissionEvents {
  /** No more requests will be answered; the stream may end. `error` where the client is to blame */
  finished(error: WireError | undefined): void;
  /** The last access to the image is over */
  settled(): void;
}

/** Who uses an image at the moment: RESIZE needs to be alone. */
const users = new WeakMap<DiskImage, Set<Transmission>>();

/**
 * The transmission phase of one session: takes requests off the stream as long as its budgets allow, runs them
 * against the image, in place where the image says so, and queues replies in the order in which they are ready.
 */
export class Transmission {
  readonly #stream: Duplex;
  readonly #image: DiskImage;
  readonly #limits: NbdServerLimits;
  readonly #events: TransmissionEvents;
  /** Blocks and the like are fixed; only RESIZE changes the size */
  readonly #terms: { -readonly [K in keyof TransmissionTerms]: TransmissionTerms[K] };
  readonly #contexts: readonly MetaContext[];
  readonly #budget: PeerBudget;
  readonly #pool: BufferPool;
  readonly #decoder: RequestDecoder;
  readonly #replies: ReplyQueue;
  readonly #writer: ReplyWriter;
  readonly #inFlight: InFlight;
  /** Parsed, and waiting for one that it overlaps or for budget */
  #held: ReceivedRequest | undefined;
  #yielding = false;
  #running = false;
  #stopping = false;
  #finished = false;
  #settled = false;
  /** Runs while the client owes the rest of a request */
  #payloadTimer: NodeJS.Timeout | undefined;
  readonly counters = newCounters();

  constructor(
    stream: Duplex,
    negotiated: Negotiated,
    options: { limits: NbdServerLimits; pool: BufferPool; budget?: PeerBudget },
    events: TransmissionEvents,
  ) {
    this.#stream = stream;
    this.#image = negotiated.served.image;
    this.#limits = options.limits;
    this.#events = events;
    this.#contexts = negotiated.contexts;
    this.#inFlight = new InFlight(options.limits);
    this.#pool = options.pool;
    this.#budget = options.budget ?? new PeerBudget(options.limits.requestBytes);
    const { description, structured, extended, contexts } = negotiated;
    this.#terms = {
      sizeBytes: description.sizeBytes,
      flags: description.flags,
      blockSizes: description.blockSizes,
      structured,
      extended,
      contexts: contexts.length,
      maxPayloadBytes: MAX_PAYLOAD_BYTES,
    };
    this.#decoder = new RequestDecoder(this.#terms, {
      take: (lengthBytes) => this.#pool.take(lengthBytes),
      give: (buffer) => this.#pool.give(buffer),
      reserve: (lengthBytes) => this.#budget.take(lengthBytes, this.#retry),
      release: (lengthBytes) => this.#budget.give(lengthBytes),
    });
    this.#replies = new ReplyQueue(stream, this.#pool, () => this.#schedule());
    this.#writer = new ReplyWriter(this.#replies, { structured, extended });
    const others = users.get(this.#image) ?? new Set();
    users.set(this.#image, others.add(this));
  }

  /** Bytes that this session holds for the client at the moment */
  get heldBytes(): number {
    return this.#inFlight.bytes + this.#replies.pendingBytes + this.#decoder.buffered;
  }

  /** Requests that are worked on */
  get inFlight(): number {
    return this.#inFlight.size;
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
    if (this.#finished) return;
    this.#leave();
    this.#settle();
  }

  readonly #retry = (): void => {
    setImmediate(() => this.#schedule());
  };

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
    this.#watchPayload();
    if (this.#stopping && this.#held === undefined && this.#inFlight.size === 0 && !this.#yielding) {
      this.#finish(undefined);
      return;
    }
    if (this.#held !== undefined || this.#yielding || this.#decoder.buffered > 0) this.#stream.pause();
    else if (this.#stream.isPaused()) this.#stream.resume();
  }

  /** A client that begins a request has to end it: what was reserved for it is missed by others. */
  #watchPayload(): void {
    const { payloadMs } = this.#limits;
    // Where we are the ones who wait, for room or for the image, the client is not to blame.
    const owed = this.#decoder.isMidRequest && this.#decoder.buffered === 0 && this.#held === undefined;
    if (!owed || payloadMs === 0) {
      clearTimeout(this.#payloadTimer);
      this.#payloadTimer = undefined;
      return;
    }
    this.#payloadTimer ??= setTimeout(() => {
      this.#finish(new WireError('ERR_WIRE_TIMEOUT', `Cannot wait for the rest of an NBD request: ${payloadMs} ms`));
    }, payloadMs);
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
      if (received.verdict.accepted && !this.#inFlight.admits(received.verdict.request)) {
        this.#held = received;
        return;
      }
      // The next request has its own time.
      clearTimeout(this.#payloadTimer);
      this.#payloadTimer = undefined;
      turnRequests++;
      turnBytes += received.header.length;
      this.#perform(received);
    }
  }

  #next(): ReceivedRequest | undefined {
    return this.#stopping ? undefined : this.#decoder.next();
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
        this.#launch(request, () => prefetch(this.#image, this.#pool, request.offset, request.length));
        return;
      case CMD.BLOCK_STATUS:
        this.#blockStatus(request);
        return;
      case CMD.RESIZE:
        this.#resize(request);
        return;
      default:
        throw new Error(`No code for accepted ${request.type}`);
    }
  }

  #read(request: CheckedRequest): void {
    const { offset, length } = request;
    this.counters.readBytes += length;
    if (length === 0) {
      this.#writer.succeed(request);
      return;
    }
    if (length <= SLAB_READ_BYTES) {
      const headerBytes = this.#writer.readHeaderBytes;
      const at = this.#replies.reserve(headerBytes + length);
      const data = this.#replies.bytes.subarray(at + headerBytes, at + headerBytes + length);
      const inPlace = this.#tryNow(request, () => this.#image.readNow(offset, data));
      if (inPlace === undefined) return;
      if (inPlace) {
        this.#writer.commitRead(request, data, at);
        return;
      }
    }
    const buffer = this.#pool.take(length);
    const data = buffer.subarray(0, length);
    const inPlace =
      length > SLAB_READ_BYTES ? this.#tryNow(request, () => this.#image.readNow(offset, data)) : (false as const);
    if (inPlace !== false) {
      if (inPlace === undefined || !this.#writer.sendRead(request, buffer)) this.#pool.give(buffer);
      return;
    }
    this.#track(request, this.#image.read(offset, data), {
      done: () => {
        if (!this.#writer.sendRead(request, buffer)) this.#pool.give(buffer);
      },
      failed: (error) => {
        this.#pool.give(buffer);
        this.#failWith(request, error);
      },
    });
  }

  /** What `access` says; undefined when it failed, which the client has been told. */
  #tryNow(request: CheckedRequest, access: () => boolean): boolean | undefined {
    try {
      return access();
    } catch (error) {
      this.#failWith(request, error);
      return undefined;
    }
  }

  #write(request: CheckedRequest, received: ReceivedRequest): void {
    const { offset, length, fua } = request;
    this.counters.writtenBytes += length;
    const { payload } = received;
    const inPlace = length === 0 || this.#tryNow(request, () => this.#image.writeNow(offset, payload));
    if (inPlace === undefined || (inPlace && !fua)) {
      this.#release(received);
      if (inPlace) this.#writer.succeed(request);
      return;
    }
    const work = async (): Promise<void> => {
      if (!inPlace) await this.#image.write(offset, payload);
      if (fua) await this.#image.flush();
    };
    this.#track(request, work(), {
      done: () => {
        this.#release(received);
        this.#writer.succeed(request);
      },
      failed: (error) => {
        this.#release(received);
        this.#failWith(request, error);
      },
    });
  }

  /** One chunk a context, all of the same moment as far as one image can say. */
  #blockStatus(request: CheckedRequest): void {
    const { contextIds } = request;
    const asked = this.#contexts.filter(({ id }) => contextIds === undefined || contextIds.includes(id));
    let found: Awaited<ReturnType<typeof contextStatus>>[] = [];
    const work = async (): Promise<void> => {
      found = await Promise.all(asked.map(({ name }) => contextStatus(this.#image, name, request)));
    };
    const { extended } = this.#terms;
    this.#track(request, work(), {
      done: () => {
        for (const [index, { id }] of asked.entries()) {
          const status = { contextId: id, extents: found[index]! };
          const payload = extended ? encodeExtendedBlockStatus(status) : encodeBlockStatus(status);
          const type = extended ? REPLY_TYPE.BLOCK_STATUS_EXT : REPLY_TYPE.BLOCK_STATUS;
          this.#writer.chunk(request, type, payload, index === asked.length - 1);
        }
      },
      failed: (error) => this.#failWith(request, error),
    });
  }

  /** The new size holds for this session; another one that writes would have the old one, so there must be none. */
  #resize(request: CheckedRequest): void {
    for (const other of users.get(this.#image)!) {
      if (other !== this && !isReadOnly(other.#terms.flags)) {
        this.counters.refused++;
        this.#fail(request, NBD_ERROR.EPERM, 'Cannot run NBD_CMD_RESIZE: another client writes to the export');
        return;
      }
    }
    this.#launch(request, async () => {
      await this.#image.resize!(request.offset);
      this.#terms.sizeBytes = BigInt(this.#image.sizeBytes);
      // What came behind was judged by the old size.
      const held = this.#held;
      if (held?.verdict.accepted && held.header.type !== CMD.BLOCK_STATUS) {
        const verdict = validateRequest(held.header, this.#terms);
        if (!verdict.accepted) this.#release(held);
        this.#held = { ...held, verdict, ...(verdict.accepted ? {} : { buffer: undefined }) };
      }
    });
  }

  /** A command without data in its reply. FUA holds for every command that changes the disk. */
  #launch(request: CheckedRequest, work: () => Promise<void>): void {
    const { fua } = request;
    const run = async (): Promise<void> => {
      await work();
      if (fua && changesExport(request.type)) await this.#image.flush();
    };
    this.#track(request, run(), {
      done: () => this.#writer.succeed(request),
      failed: (error) => this.#failWith(request, error),
    });
  }

  #track(
    request: CheckedRequest,
    work: Promise<void>,
    outcome: { done: () => void; failed: (error: unknown) => void },
  ): void {
    const over = this.#inFlight.enter(request);
    this.counters.maxInFlight = Math.max(this.counters.maxInFlight, this.#inFlight.size);
    const leave = (report: () => void): void => {
      over();
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

  #failWith(request: Addressed, error: unknown): void {
    this.counters.failed++;
    const { code, message, offset } = asImageError(error);
    // ERROR_OFFSET where the image knows the place: what lies before it may be read by itself.
    const place = offset === undefined || offset < Number(request.offset) ? {} : { offset: BigInt(offset) };
    this.#writer.fail(request, { error: NBD_ERROR[code], text: message, ...place });
  }

  #fail(request: Addressed, error: number, text: string): void {
    this.#writer.fail(request, { error, text });
  }

  #release(received: ReceivedRequest): void {
    if (received.buffer === undefined) return;
    this.#pool.give(received.buffer);
    this.#budget.give(received.payload.length);
  }

  #finish(error: WireError | undefined): void {
    if (this.#finished) return;
    this.#replies.flush();
    this.#leave();
    this.#events.finished(error);
    this.#settle();
  }

  /** Nothing more is taken from the client, and what was kept for it is free. */
  #leave(): void {
    this.#finished = true;
    clearTimeout(this.#payloadTimer);
    if (this.#held !== undefined) this.#release(this.#held);
    this.#held = undefined;
    this.#decoder.close();
    this.#budget.forget(this.#retry);
  }

  #settle(): void {
    if (this.#settled || this.#inFlight.size > 0) return;
    this.#settled = true;
    users.get(this.#image)!.delete(this);
    this.#events.settled();
  }
}
