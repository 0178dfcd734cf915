import { performance } from 'node:perf_hooks';
import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  type CheckedRequest,
  CMD,
  isReadOnly,
  MAX_PAYLOAD_BYTES,
  NBD_ERROR,
  type ReceivedRequest,
  RequestDecoder,
  type TransmissionTerms,
  validateRequest,
} from '../../protocols/nbd/mod.ts';
import { AdaptivePolling } from './adaptive_polling.ts';
import { receiveInto } from './borrowing_socket.ts';
import type { BufferPool } from './buffer_pool.ts';
import { CommandRunner, newCounters } from './command_runner.ts';
import type { DiskImage } from './images/mod.ts';
import { InFlight } from './in_flight.ts';
import { type HeldBytes, PeerBudget } from './peer_budget.ts';
import { ReplyQueue } from './reply_queue.ts';
import { type Addressed, ReplyWriter } from './reply_writer.ts';
import type { Negotiated } from './server_handshake.ts';
import type { NbdServerLimits } from './server_limits.ts';

/** What one turn of the event loop does for one client before others get theirs */
const TURN_REQUESTS = 64;
const TURN_BYTES = 1 << 20;
/** … and how long it may take, in `ms`: looked at after every {@link CLOCK_REQUESTS} */
const TURN_MS = 4;
const CLOCK_REQUESTS = 8;
/** Data of reads in work and of replies that wait: more would not make a disk faster, and be memory, in `bytes` */
const READ_AHEAD_BYTES = 8 << 20;
/** Of that, replies that wait, where reads are large: what is not yet taken should still be in the cache, in `bytes` */
const WAITING_BYTES = 2 << 20;
/** Larger reads wait while the peer's other sessions hold much, in `bytes` */
const SHARED_READ_BYTES = 64 * 1024;

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
  readonly #budget: PeerBudget;
  readonly #pool: BufferPool;
  readonly #decoder: RequestDecoder;
  readonly #replies: ReplyQueue;
  readonly #writer: ReplyWriter;
  readonly #commands: CommandRunner;
  readonly #inFlight: InFlight;
  /** All sessions of the image, this one among them */
  readonly #users: Set<Transmission>;
  readonly #polling: AdaptivePolling;
  /** Parsed, and waiting for one that it overlaps or for budget */
  #held: ReceivedRequest | undefined;
  #yielding = false;
  #scheduled = false;
  /** The chunk that is being parsed is only lent */
  #borrowing = false;
  #running = false;
  #stopping = false;
  #finished = false;
  #settled = false;
  /** The stream is: nothing waits to be taken by the client */
  #gone = false;
  /** The size is not what it was when the session began */
  #resized = false;
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
    this.#inFlight = new InFlight(options.limits);
    this.#polling = new AdaptivePolling(options.limits.pollMs);
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
      takeIdle: (lengthBytes) => this.#pool.takeIdle(lengthBytes),
      reserve: (lengthBytes) => this.#budget.take(lengthBytes, this.#retry),
      release: (lengthBytes) => this.#budget.give(lengthBytes),
    });
    receiveInto(stream, () => (this.#finished ? undefined : this.#decoder.room()));
    this.#replies = new ReplyQueue(stream, this.#pool, () => this.#sent());
    this.#writer = new ReplyWriter(this.#replies, { structured, extended });
    this.#commands = new CommandRunner({
      image: this.#image,
      contexts,
      extended,
      writeThrough: negotiated.served.writeThrough === true,
      pool: this.#pool,
      replies: this.#replies,
      writer: this.#writer,
      inFlight: this.#inFlight,
      counters: this.counters,
      own: (received) => this.#owned(received),
      release: (received) => this.#release(received),
      isAlone: () => this.#inFlight.size === 0 && !this.#decoder.hasInput && this.#users.size === 1,
      isOpen: () => !this.#finished,
      over: () => {
        this.#budget.wake();
        if (this.#finished) this.#settle();
        else this.#scheduleSoon();
      },
    });
    this.#budget.join(this.#share);
    this.#users = users.get(this.#image) ?? new Set();
    users.set(this.#image, this.#users.add(this));
  }

  /** What goes from an image to the socket is bounded as work, for each session, and is no memory. */
  readonly #share: HeldBytes = () => this.#inFlight.bytes - this.#replies.partBytes + this.#replies.pendingBytes;

  /** Bytes that this session holds for the client at the moment */
  get heldBytes(): number {
    return this.#share() + this.#decoder.buffered;
  }

  /** Requests that are worked on */
  get inFlight(): number {
    return this.#inFlight.size;
  }

  /** With `borrowed` the chunk is not ours any more when this returns. */
  receive(chunk: Uint8Array, borrowed = false): void {
    if (this.#finished) return;
    this.#polling.arrived();
    this.#decoder.push(chunk, borrowed);
    this.#borrowing = borrowed;
    this.#run();
    if (!borrowed) return;
    this.#borrowing = false;
    this.#decoder.keep();
  }

  /** With a payload that stays, also where it lies in a chunk that was only lent. */
  #owned(received: ReceivedRequest): ReceivedRequest {
    const { payload, buffer } = received;
    if (!this.#borrowing || buffer !== undefined || payload.length === 0) return received;
    const copy = this.#pool.take(payload.length);
    copy.set(payload);
    this.#budget.add(payload.length);
    return { ...received, payload: copy.subarray(0, payload.length), buffer: copy };
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

  /** Calls back when all replies are with the stream; never where that closes before. */
  whenSent(callback: () => void): void {
    this.#replies.whenSent(callback);
  }

  /** The stream is gone; only the image is waited for. */
  abandon(): void {
    this.#gone = true;
    this.#replies.abandon();
    if (this.#finished) {
      if (this.#settled) this.#budget.leave(this.#share);
      return;
    }
    this.#leave();
    this.#settle();
  }

  readonly #retry = (): void => {
    setImmediate(() => this.#schedule());
  };

  /** There is room for replies again; most of the time nothing has waited for it. */
  #sent(): void {
    this.#budget.wake();
    if (this.#held !== undefined || this.#stopping || this.#decoder.hasInput || this.#stream.isPaused())
      this.#schedule();
  }

  /** Behind all completions of this turn of the event loop: their replies leave in one write. */
  #scheduleSoon(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#schedule();
    });
  }

  #schedule(): void {
    if (!this.#finished && !this.#running && !this.#yielding) this.#run();
  }

  #run(): void {
    if (this.#running || this.#finished || this.#yielding) return;
    this.#running = true;
    let taken = 0;
    try {
      taken = this.#takeRequests();
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
    // What only has to be sent is the client's to wait for, within the time that it gets.
    const isIdle = this.#held === undefined && this.#inFlight.size === this.#replies.parts && !this.#yielding;
    if (this.#stopping && isIdle) {
      this.#finish(undefined);
      return;
    }
    if (this.#held !== undefined || this.#yielding || this.#decoder.hasInput) this.#stream.pause();
    else if (this.#stream.isPaused()) this.#stream.resume();
    else if (taken === 1 && this.#inFlight.size === 0) this.#polling.replied();
  }

  /** A client that begins a request has to end it: what was reserved for it is missed by others. */
  #watchPayload(): void {
    const { payloadMs } = this.#limits;
    // Where we are the ones who wait, for room or for the image, the client is not to blame.
    const owed = this.#decoder.isMidRequest && !this.#decoder.hasInput && this.#held === undefined;
    if (!owed || payloadMs === 0) {
      if (this.#payloadTimer !== undefined) clearTimeout(this.#payloadTimer);
      this.#payloadTimer = undefined;
      return;
    }
    this.#payloadTimer ??= setTimeout(() => {
      this.#finish(new WireError('ERR_WIRE_TIMEOUT', `Cannot wait for the rest of an NBD request: ${payloadMs} ms`));
    }, payloadMs);
  }

  /** How many were taken */
  #takeRequests(): number {
    let turnRequests = 0;
    let turnBytes = 0;
    const startMs = performance.now();
    let isLate = false;
    for (;;) {
      if (this.#replies.pendingBytes >= this.#limits.replyBytes) return turnRequests;
      if (turnRequests >= TURN_REQUESTS || turnBytes >= TURN_BYTES || isLate) {
        // A client with just as many at once sends no more before these are answered: nobody waits for a turn of ours.
        if (this.#held === undefined && !this.#decoder.hasInput) return turnRequests;
        this.#yielding = true;
        setImmediate(() => {
          this.#yielding = false;
          this.#schedule();
        });
        return turnRequests;
      }
      const received = this.#held ?? this.#next();
      if (received === undefined) return turnRequests;
      this.#held = undefined;
      if (received.verdict.accepted && !this.#admits(received.verdict.request)) {
        this.#held = this.#owned(received);
        return turnRequests;
      }
      if (this.#payloadTimer !== undefined) {
        // The next request has its own time.
        clearTimeout(this.#payloadTimer);
        this.#payloadTimer = undefined;
      }
      turnRequests++;
      turnBytes += received.header.length;
      this.#perform(received);
      isLate = turnRequests % CLOCK_REQUESTS === 0 && performance.now() - startMs > TURN_MS;
    }
  }

  #admits(request: CheckedRequest): boolean {
    if (!this.#inFlight.admits(request)) return false;
    // Smaller replies are bounded for each session, by `replyBytes`.
    const { type, length } = request;
    if (type !== CMD.READ || length <= SHARED_READ_BYTES) return true;
    // Whatever is under way wakes us when it is over.
    const held = this.#inFlight.bytes + this.#replies.pendingBytes;
    if (held > 0 && held + length > READ_AHEAD_BYTES) return false;
    const { pendingBytes } = this.#replies;
    if (pendingBytes > 0 && pendingBytes + length > WAITING_BYTES) return false;
    return this.#budget.admitsReply(length, this.#retry);
  }

  #next(): ReceivedRequest | undefined {
    const received = this.#stopping ? undefined : this.#decoder.next();
    return received !== undefined && this.#resized ? this.#judgedAnew(received) : received;
  }

  /** By the size of now: a header may have come before a RESIZE, and its data after it. */
  #judgedAnew(received: ReceivedRequest): ReceivedRequest {
    if (!received.verdict.accepted || received.header.type === CMD.BLOCK_STATUS) return received;
    const verdict = validateRequest(received.header, this.#terms);
    if (verdict.accepted) return { ...received, verdict };
    this.#release(received);
    return { ...received, verdict, buffer: undefined };
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
    // "NBD_CMD_DISC: no reply; the server finishes outstanding work"; nothing behind it is looked at.
    if (request.type === CMD.DISC) this.#stopping = true;
    else if (request.type === CMD.RESIZE) this.#resize(request);
    else this.#commands.run(request, received);
  }

  /** The new size holds for this session; another one that writes would have the old one, so there must be none. */
  #resize(request: CheckedRequest): void {
    for (const other of this.#users) {
      if (other !== this && !isReadOnly(other.#terms.flags)) {
        this.counters.refused++;
        this.#fail(request, NBD_ERROR.EPERM, 'Cannot run NBD_CMD_RESIZE: another client writes to the export');
        return;
      }
    }
    this.#commands.launch(request, async () => {
      await this.#image.resize!(request.offset);
      this.#terms.sizeBytes = BigInt(this.#image.sizeBytes);
      // What came behind was judged by the old size.
      this.#resized = true;
      if (this.#held !== undefined) this.#held = this.#judgedAnew(this.#held);
    });
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
    this.#polling.stop();
    clearTimeout(this.#payloadTimer);
    if (this.#held !== undefined) this.#release(this.#held);
    this.#held = undefined;
    this.#decoder.close();
    this.#budget.forget(this.#retry);
  }

  #settle(): void {
    if (this.#settled || this.#inFlight.size > 0) return;
    this.#settled = true;
    this.#users.delete(this);
    if (this.#gone) this.#budget.leave(this.#share);
    this.#events.settled();
  }
}
