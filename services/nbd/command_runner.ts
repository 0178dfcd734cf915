import {
  type CheckedRequest,
  CMD,
  changesExport,
  encodeBlockStatus,
  encodeExtendedBlockStatus,
  type MetaContext,
  NBD_ERROR,
  REPLY_TYPE,
  type ReceivedRequest,
  type ReplyError,
} from '../../protocols/nbd/mod.ts';
import type { BufferPool } from './buffer_pool.ts';
import { contextStatus } from './context_status.ts';
import { asImageError, type DiskImage, type ImageError } from './images/disk_image.ts';
import { isZero } from './images/zeroes.ts';
import type { InFlight } from './in_flight.ts';
import { prefetch } from './prefetch.ts';
import type { ReplyQueue } from './reply_queue.ts';
import type { Addressed, ReplyWriter } from './reply_writer.ts';
import { SendOrCopy } from './send_or_copy.ts';

/** Reads up to here are built in the reply slab, in `bytes` */
const SLAB_READ_BYTES = 64 * 1024;

/** … and of larger ones this much, before the rest may go from the image to the socket, in `bytes` */
const FIRST_BYTES = 4096;

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

/** What a session lends to its commands. */
export interface CommandContext {
  readonly image: DiskImage;
  readonly contexts: readonly MetaContext[];
  readonly extended: boolean;
  /** Every change is flushed before it is answered */
  readonly writeThrough: boolean;
  readonly pool: BufferPool;
  readonly replies: ReplyQueue;
  readonly writer: ReplyWriter;
  readonly inFlight: InFlight;
  readonly counters: TransmissionCounters;
  /** The same request with a payload that stays until {@link release} */
  own(received: ReceivedRequest): ReceivedRequest;
  release(received: ReceivedRequest): void;
  /** The request that is run is all that this client and other clients of the image wait for */
  isAlone(): boolean;
  /** The client is still there to be answered */
  isOpen(): boolean;
  /** A request is over, whoever is there to know */
  over(): void;
}

/** Runs accepted requests against the image, in place where the image says so, and queues their replies. */
export class CommandRunner {
  readonly #context: CommandContext;
  readonly #sendOrCopy = new SendOrCopy();
  readonly #copied = (lengthBytes: number): void => this.#sendOrCopy.over('copy', lengthBytes);

  constructor(context: CommandContext) {
    this.#context = context;
  }

  /** `request` is what was accepted of `received`; not DISC or RESIZE, which are the session's. */
  run(request: CheckedRequest, received: ReceivedRequest): void {
    const { image, pool } = this.#context;
    switch (request.type) {
      case CMD.READ:
        this.#read(request);
        return;
      case CMD.WRITE:
        this.#write(request, received);
        return;
      case CMD.FLUSH:
        this.launch(request, () => image.flush());
        return;
      case CMD.TRIM:
        this.launch(request, () => image.discard(request.offset, request.length));
        return;
      case CMD.WRITE_ZEROES: {
        const options = { mayUnmap: !request.noHole, fast: request.fastZero };
        this.launch(request, () => image.writeZeroes(request.offset, request.length, options));
        return;
      }
      case CMD.CACHE:
        this.launch(request, () => prefetch(image, pool, request.offset, request.length));
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
    this.#context.counters.readBytes += length;
    if (length === 0) {
      this.#context.writer.succeedRead(request);
      return;
    }
    if (length <= SLAB_READ_BYTES) {
      const headerBytes = this.#context.writer.readHeaderBytes;
      const at = this.#context.replies.reserve(headerBytes + length);
      const data = this.#context.replies.piece(at + headerBytes, length);
      const inPlace = this.#readNow(request, data);
      if (inPlace === undefined) return;
      if (inPlace) {
        this.#context.writer.commitRead(request, data, at);
        return;
      }
    } else if (this.#sendOrCopy.way === 'send' && this.#send(request)) return;
    const buffer = this.#context.pool.take(length);
    const data = buffer.subarray(0, length);
    const inPlace = length > SLAB_READ_BYTES ? this.#readNow(request, data) : (false as const);
    if (inPlace !== false) {
      if (inPlace === undefined || !this.#context.writer.sendRead(request, buffer, this.#copied))
        this.#context.pool.give(buffer);
      return;
    }
    this.#track(request, this.#context.image.read(offset, data), {
      done: () => {
        if (!this.#context.writer.sendRead(request, buffer, this.#copied)) this.#context.pool.give(buffer);
      },
      failed: (error) => {
        this.#context.pool.give(buffer);
        this.#failWith(request, error);
      },
    });
  }

  /**
   * A large read without copies: its first bytes are read, and what follows goes from the image to the socket. They say
   * that it is not a hole, and that the image can be read; what fails later has its place in the last chunk. False: it
   * has to be read.
   */
  #send(request: CheckedRequest): boolean {
    const { image, replies, writer } = this.#context;
    if (image.canSend !== true || !writer.structured || !replies.takesParts) return false;
    const at = replies.reserve(writer.readHeaderBytes + FIRST_BYTES);
    const first = replies.piece(at + writer.readHeaderBytes, FIRST_BYTES);
    const inPlace = this.#readNow(request, first);
    if (inPlace !== true) return inPlace === undefined;
    if (isZero(first)) return false;
    writer.commitReadStart(request, at, FIRST_BYTES);
    const leave = this.#enter(request);
    replies.appendPart({
      image,
      offset: request.offset + FIRST_BYTES,
      lengthBytes: request.length - FIRST_BYTES,
      end: (error) => {
        if (error !== undefined) this.#context.counters.failed++;
        return writer.readEnd(request, error === undefined ? undefined : replyError(request, error));
      },
      over: () => {
        this.#sendOrCopy.over('send', request.length);
        leave();
        this.#context.over();
      },
    });
    return true;
  }

  /** What the image says; undefined when it failed, which the client has been told. */
  #readNow(request: CheckedRequest, data: Uint8Array): boolean | undefined {
    try {
      return this.#context.image.readNow(request.offset, data, this.#context.isAlone());
    } catch (error) {
      this.#failWith(request, error);
      return undefined;
    }
  }

  /** As {@link #readNow} */
  #writeNow(request: CheckedRequest, data: Uint8Array): boolean | undefined {
    try {
      return data.length === 0 || this.#context.image.writeNow(request.offset, data);
    } catch (error) {
      this.#failWith(request, error);
      return undefined;
    }
  }

  #write(request: CheckedRequest, received: ReceivedRequest): void {
    const fua = request.fua || this.#context.writeThrough;
    this.#context.counters.writtenBytes += request.length;
    const inPlace = this.#writeNow(request, received.payload);
    if (inPlace === undefined || (inPlace && !fua)) {
      this.#context.release(received);
      if (inPlace) this.#context.writer.succeed(request);
      return;
    }
    const kept = inPlace ? received : this.#context.own(received);
    const work = async (): Promise<void> => {
      if (!inPlace) await this.#context.image.write(request.offset, kept.payload);
      if (fua) await this.#context.image.flush();
    };
    // Given back whether or not the client is still there: others of the same peer wait for it.
    const released = work().finally(() => this.#context.release(kept));
    this.#track(request, released, {
      done: () => this.#context.writer.succeed(request),
      failed: (error) => this.#failWith(request, error),
    });
  }

  /** One chunk a context, all of the same moment as far as one image can say. */
  #blockStatus(request: CheckedRequest): void {
    const { contextIds } = request;
    const asked = this.#context.contexts.filter(({ id }) => contextIds === undefined || contextIds.includes(id));
    let found: Awaited<ReturnType<typeof contextStatus>>[] = [];
    const work = async (): Promise<void> => {
      found = await Promise.all(asked.map(({ name }) => contextStatus(this.#context.image, name, request)));
    };
    const { extended } = this.#context;
    this.#track(request, work(), {
      done: () => {
        for (const [index, { id }] of asked.entries()) {
          const status = { contextId: id, extents: found[index]! };
          const payload = extended ? encodeExtendedBlockStatus(status) : encodeBlockStatus(status);
          const type = extended ? REPLY_TYPE.BLOCK_STATUS_EXT : REPLY_TYPE.BLOCK_STATUS;
          this.#context.writer.chunk(request, type, payload, index === asked.length - 1);
        }
      },
      failed: (error) => this.#failWith(request, error),
    });
  }

  /** A command without data in its reply. FUA holds for every command that changes the disk. */
  launch(request: CheckedRequest, work: () => Promise<void>): void {
    const fua = request.fua || this.#context.writeThrough;
    const run = async (): Promise<void> => {
      await work();
      if (fua && changesExport(request.type)) await this.#context.image.flush();
    };
    this.#track(request, run(), {
      done: () => this.#context.writer.succeed(request),
      failed: (error) => this.#failWith(request, error),
    });
  }

  #track(
    request: CheckedRequest,
    work: Promise<void>,
    outcome: { done: () => void; failed: (error: unknown) => void },
  ): void {
    const over = this.#enter(request);
    const leave = (report: () => void): void => {
      over();
      // Without a client there is nobody to tell; buffers come back with the garbage collector.
      if (this.#context.isOpen()) report();
      this.#context.over();
    };
    work.then(
      () => leave(outcome.done),
      (error: unknown) => leave(() => outcome.failed(error)),
    );
  }

  /** Gives the function that takes it out again. */
  #enter(request: CheckedRequest): () => void {
    const { inFlight, counters } = this.#context;
    const leave = inFlight.enter(request);
    counters.maxInFlight = Math.max(counters.maxInFlight, inFlight.size);
    return leave;
  }

  #failWith(request: Addressed, error: unknown): void {
    this.#context.counters.failed++;
    this.#context.writer.fail(request, replyError(request, asImageError(error)));
  }
}

/** ERROR_OFFSET where the image knows the place: what lies before it may be read by itself. */
function replyError(request: Addressed, { code, message, offset }: ImageError): ReplyError {
  const place = offset === undefined || offset < Number(request.offset) ? {} : { offset: BigInt(offset) };
  return { error: NBD_ERROR[code], text: message, ...place };
}
