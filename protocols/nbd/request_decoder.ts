import { WireError } from '../bytes/mod.ts';
import { decodeBlockStatusFilter } from './block_status.ts';
import { CMD, CMD_FLAG, NBD_ERROR } from './constants.ts';
import { MAX_SKIPPED_PAYLOAD_BYTES } from './limits.ts';
import {
  EXTENDED_REQUEST_HEADER_BYTES,
  REQUEST_HEADER_BYTES,
  type Request,
  readRequest,
  requestPayloadBytes,
} from './request.ts';
import { type CheckedRequest, type TransmissionTerms, type Verdict, validateRequest } from './validate_request.ts';

/** Where the decoder gets memory for payloads that come in pieces. */
export interface PayloadBuffers {
  /** At least `lengthBytes` long; contents do not matter */
  take(lengthBytes: number): Uint8Array;
  give(buffer: Uint8Array): void;
  /** One of at least `lengthBytes` that exists and is not in use, or undefined: costs no new memory */
  takeIdle?(lengthBytes: number): Uint8Array | undefined;
  /** Asked once before a payload of `lengthBytes` is collected. False: not now; next() gives nothing until it is true */
  reserve?(lengthBytes: number): boolean;
  /** A payload that was reserved for will never be whole */
  release?(lengthBytes: number): void;
}

/** One request, judged, with the data of an accepted WRITE. */
export interface ReceivedRequest {
  readonly header: Request;
  readonly verdict: Verdict;
  /** Data of an accepted WRITE; empty otherwise */
  readonly payload: Uint8Array;
  /** The whole buffer of `payload`, to give back once written; undefined when it is a view of the input */
  readonly buffer: Uint8Array | undefined;
}

/** A payload's new buffer starts at most this large and grows with what has really arrived */
const FIRST_PAYLOAD_BYTES = 256 * 1024;
/** Payloads from here on are read straight into their buffers; several smaller ones fit one read, in `bytes` */
const DIRECT_PAYLOAD_BYTES = 256 * 1024;
/** Less than this of one is not worth a read of its own, in `bytes` */
const MIN_DIRECT_BYTES = 16 * 1024;
/** Behind a payload that was read so, the next header is read with little behind it: that has to be copied, in `bytes` */
const HEADER_WINDOW_BYTES = 4096;
const EMPTY = new Uint8Array(0);
/** Views of payloads that are kept: as many as one read of a socket has of 4 KiB */
const KEPT_PAYLOADS = 64;

/** Views of all the memory that a chunk is a part of, which cost more to make than most requests. */
interface Views {
  readonly view: DataView;
  readonly payloads: Uint8Array[];
}

/** Stands for the verdict that a payload brings */
const FILTERED = { accepted: true, request: undefined as unknown as CheckedRequest } as const satisfies Verdict;

const justAllocate: PayloadBuffers = {
  take: (lengthBytes) => new Uint8Array(lengthBytes),
  give: () => {},
};

/**
 * Cuts the transmission phase's stream into judged requests. Pull-based: bytes wait here, unparsed, while the
 * session has too much in flight, and the session must stop its stream then. A payload that lies whole in one
 * chunk is a view of it; the payload of a refused WRITE is skipped without being kept.
 */
export class RequestDecoder {
  readonly #terms: TransmissionTerms;
  readonly #buffers: PayloadBuffers;
  readonly #extended: boolean;
  readonly #headerBytes: number;
  readonly #header: Uint8Array;
  readonly #headerView: DataView;
  #headerFilled = 0;
  #chunks: Uint8Array[] = [];
  /** What the first chunk lies in, once a header in it was looked at */
  #views: Views | undefined;
  /** Views of memory that comes back with every chunk that is only lent */
  #lentViews: Views | undefined;
  /** The last chunk was only lent */
  #borrowed = false;
  /** Payloads of the first chunk so far */
  #payloads = 0;
  #at = 0;
  #buffered = 0;
  #request: Request | undefined;
  #verdict: Verdict | undefined;
  #payload: Uint8Array | undefined;
  #payloadFilled = 0;
  #skip = 0;
  /** The stream's owner may be writing into #payload behind what is filled */
  #lent = false;
  /** This payload, or the last one, is read straight into its buffer */
  #large = false;

  constructor(terms: TransmissionTerms, buffers: PayloadBuffers = justAllocate) {
    this.#terms = terms;
    this.#extended = terms.extended === true;
    this.#headerBytes = this.#extended ? EXTENDED_REQUEST_HEADER_BYTES : REQUEST_HEADER_BYTES;
    this.#header = new Uint8Array(this.#headerBytes);
    this.#headerView = new DataView(this.#header.buffer);
    this.#buffers = buffers;
  }

  /** Pushed and not yet parsed, in `bytes` */
  get buffered(): number {
    return this.#buffered;
  }

  /** A request has begun and is not whole: the client owes the rest of it */
  get isMidRequest(): boolean {
    return (this.#request !== undefined || this.#headerFilled > 0) && !this.#isWhole;
  }

  /** There is something for next() to look at */
  get hasInput(): boolean {
    return this.#buffered > 0 || this.#isWhole;
  }

  /** All of a payload has been read into its buffer, and nobody has asked for the request since */
  get #isWhole(): boolean {
    return this.#payload !== undefined && this.#payloadFilled === requestPayloadBytes(this.#request!, this.#extended);
  }

  /** The stream stands between two requests */
  get idle(): boolean {
    return this.#request === undefined && this.#headerFilled === 0 && this.#buffered === 0;
  }

  /**
   * Where the stream's next bytes should be read to: the rest of a payload goes straight into its buffer, and comes
   * back to push() as a view of it. A number is how many bytes to read elsewhere at most; undefined: anything.
   */
  room(): Uint8Array | number | undefined {
    this.#lent = false;
    const payload = this.#payload;
    if (payload === undefined) return this.#large ? HEADER_WINDOW_BYTES : undefined;
    const end = Math.min(payload.length, requestPayloadBytes(this.#request!, this.#extended));
    if (!this.#large || this.#buffered > 0 || end - this.#payloadFilled < MIN_DIRECT_BYTES) return undefined;
    this.#lent = true;
    return payload.subarray(this.#payloadFilled, end);
  }

  /** `borrowed`: the same memory comes again, with other bytes; {@link keep} is called before. */
  push(chunk: Uint8Array, borrowed = false): void {
    if (chunk.length === 0) return;
    if (this.#lent && chunk.buffer === this.#payload?.buffer) {
      this.#payloadFilled += chunk.length;
      return;
    }
    this.#chunks.push(chunk);
    this.#borrowed = borrowed;
    this.#buffered += chunk.length;
  }

  /** The last chunk was only lent, and its owner wants it back: what is not parsed yet is copied. */
  keep(): void {
    const last = this.#chunks.length - 1;
    if (last < 0) return;
    if (last > 0) this.#chunks[last] = this.#chunks[last]!.slice();
    else {
      this.#chunks[0] = this.#chunks[0]!.slice(this.#at);
      this.#at = 0;
      this.#views = undefined;
    }
  }

  /**
   * The next request, or undefined until more bytes come.
   * @throws WireError when the stream cannot be followed any further: wrong magic, a payload too long to skip
   */
  next(): ReceivedRequest | undefined {
    if (this.#request === undefined && !this.#readHeader()) return undefined;
    const header = this.#request!;
    const verdict = this.#verdict!;
    if (this.#skip > 0) {
      this.#skip -= this.#drop(this.#skip);
      if (this.#skip > 0) return undefined;
      return this.#finish(header, verdict, EMPTY, undefined);
    }
    const length = verdict.accepted ? requestPayloadBytes(header, this.#extended) : 0;
    if (length === 0) return this.#finish(header, verdict, EMPTY, undefined);
    if (this.#payload === undefined) {
      const first = this.#chunks[0];
      if (first !== undefined && first.length - this.#at >= length) {
        const view = this.#payloadView(first, length);
        this.#consume(length);
        this.#large = false;
        return this.#finish(header, verdict, view, undefined);
      }
      if (this.#buffered === 0) return undefined;
      if (this.#buffers.reserve?.(length) === false) return undefined;
      this.#payload = this.#buffers.takeIdle?.(length) ?? this.#buffers.take(Math.min(length, FIRST_PAYLOAD_BYTES));
      this.#large = length >= DIRECT_PAYLOAD_BYTES;
    }
    if (!this.#fillPayload(length)) return undefined;
    const buffer = this.#payload;
    return this.#finish(header, verdict, buffer.subarray(0, length), buffer);
  }

  /** Gives back what a request that will never be whole holds. */
  close(): void {
    if (this.#payload !== undefined) {
      // What may still be written into is nobody's: the collector takes it when the stream has let go.
      if (!this.#lent) this.#buffers.give(this.#payload);
      this.#buffers.release?.(requestPayloadBytes(this.#request!, this.#extended));
    }
    this.#payload = undefined;
    this.#lent = false;
    this.#large = false;
    this.#chunks = [];
    this.#views = undefined;
    this.#lentViews = undefined;
    this.#buffered = 0;
  }

  #viewsOf(first: Uint8Array): Views {
    if (this.#views !== undefined) return this.#views;
    this.#payloads = 0;
    const { buffer } = first;
    const isLent = this.#borrowed && this.#chunks.length === 1;
    if (isLent && this.#lentViews?.view.buffer === buffer) this.#views = this.#lentViews;
    else this.#views = { view: new DataView(buffer), payloads: [] };
    // Others than what is lent go with their chunk.
    if (isLent) this.#lentViews = this.#views;
    return this.#views;
  }

  /** `length` bytes of the first chunk. In memory that comes again, requests of one size have theirs where others had. */
  #payloadView(first: Uint8Array, length: number): Uint8Array {
    const views = this.#views;
    if (views === undefined || views !== this.#lentViews) return first.subarray(this.#at, this.#at + length);
    const index = this.#payloads++;
    const known = views.payloads[index];
    if (known?.length === length && known.byteOffset === first.byteOffset + this.#at) return known;
    const made = first.subarray(this.#at, this.#at + length);
    if (index < KEPT_PAYLOADS) views.payloads[index] = made;
    return made;
  }

  #readHeader(): boolean {
    const first = this.#chunks[0];
    const size = this.#headerBytes;
    let request: Request;
    if (this.#headerFilled === 0 && first !== undefined && first.length - this.#at >= size) {
      const { view } = this.#viewsOf(first);
      const at = first.byteOffset + this.#at;
      request = readRequest(view, at, this.#extended);
      this.#consume(size);
    } else {
      this.#headerFilled += this.#copy(this.#header, this.#headerFilled, size);
      if (this.#headerFilled < size) return false;
      this.#headerFilled = 0;
      request = readRequest(this.#headerView, 0, this.#extended);
    }
    const verdict = this.#isFiltered(request) ? FILTERED : validateRequest(request, this.#terms);
    if (!verdict.accepted) {
      this.#skip = requestPayloadBytes(request, this.#extended);
      if (this.#skip > MAX_SKIPPED_PAYLOAD_BYTES) {
        throw new WireError(
          'ERR_WIRE_LIMIT',
          `Cannot skip a payload of ${this.#skip} bytes: limit is ${MAX_SKIPPED_PAYLOAD_BYTES}`,
          { message: 'NBD request' },
        );
      }
    }
    this.#request = request;
    this.#verdict = verdict;
    return true;
  }

  /** A BLOCK_STATUS whose payload decides; of any other size it is refused as a payload that nobody expects. */
  #isFiltered(request: Request): boolean {
    const { type, flags, length } = request;
    if (!this.#extended || type !== CMD.BLOCK_STATUS || (flags & CMD_FLAG.PAYLOAD_LEN) === 0) return false;
    return length >= 8 && length % 4 === 0 && length <= 8 + 4 * this.#terms.contexts && this.#terms.contexts > 0;
  }

  #judgeFilter(request: Request, payload: Uint8Array): Verdict {
    try {
      const { lengthBytes, contextIds } = decodeBlockStatusFilter(payload, this.#terms.contexts);
      const flags = request.flags & ~CMD_FLAG.PAYLOAD_LEN;
      const verdict = validateRequest({ ...request, flags, length: lengthBytes }, this.#terms);
      return verdict.accepted ? { accepted: true, request: { ...verdict.request, contextIds } } : verdict;
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      return { accepted: false, error: NBD_ERROR.EINVAL, text: error.message };
    }
  }

  #fillPayload(length: number): boolean {
    for (;;) {
      const payload = this.#payload!;
      const end = Math.min(payload.length, length);
      this.#payloadFilled += this.#copy(payload, this.#payloadFilled, end);
      if (this.#payloadFilled === length) return true;
      if (this.#payloadFilled < end) return false;
      // Full but not whole: the announced length is believed only as far as its bytes have come.
      const larger = this.#buffers.take(Math.min(length, end * 2));
      larger.set(payload.subarray(0, end));
      this.#buffers.give(payload);
      this.#payload = larger;
    }
  }

  #finish(header: Request, judged: Verdict, payload: Uint8Array, buffer: Uint8Array | undefined): ReceivedRequest {
    let verdict = judged;
    if (judged === FILTERED) {
      verdict = this.#judgeFilter(header, payload);
      if (buffer !== undefined) {
        this.#buffers.give(buffer);
        this.#buffers.release?.(header.length);
      }
    }
    this.#request = undefined;
    this.#verdict = undefined;
    this.#payload = undefined;
    this.#payloadFilled = 0;
    return judged === FILTERED
      ? { header, verdict, payload: EMPTY, buffer: undefined }
      : { header, verdict, payload, buffer };
  }

  /** Moves bytes of the stream into `into[from..to)`; gives how many. */
  #copy(into: Uint8Array, from: number, to: number): number {
    let filled = from;
    while (filled < to && this.#buffered > 0) {
      const chunk = this.#chunks[0]!;
      const piece = Math.min(chunk.length - this.#at, to - filled);
      into.set(chunk.subarray(this.#at, this.#at + piece), filled);
      filled += piece;
      this.#consume(piece);
    }
    return filled - from;
  }

  #drop(count: number): number {
    let dropped = 0;
    while (dropped < count && this.#buffered > 0) {
      const piece = Math.min(this.#chunks[0]!.length - this.#at, count - dropped);
      dropped += piece;
      this.#consume(piece);
    }
    return dropped;
  }

  /** `count` bytes of the first chunk are done. */
  #consume(count: number): void {
    this.#at += count;
    this.#buffered -= count;
    if (this.#at === this.#chunks[0]!.length) {
      this.#chunks.shift();
      this.#at = 0;
      this.#views = undefined;
    }
  }
}
