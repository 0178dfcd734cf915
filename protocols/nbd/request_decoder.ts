import { WireError } from '../bytes/mod.ts';
import { decodeBlockStatusFilter } from './block_status.ts';
import { CMD, CMD_FLAG, NBD_ERROR } from './constants.ts';
import { MAX_SKIPPED_PAYLOAD_BYTES } from './limits.ts';
import {
  decodeExtendedRequest,
  decodeRequest,
  EXTENDED_REQUEST_HEADER_BYTES,
  REQUEST_HEADER_BYTES,
  type Request,
  requestPayloadBytes,
} from './request.ts';
import { type CheckedRequest, type TransmissionTerms, type Verdict, validateRequest } from './validate_request.ts';

/** Where the decoder gets memory for payloads that come in pieces. */
export interface PayloadBuffers {
  /** At least `lengthBytes` long; contents do not matter */
  take(lengthBytes: number): Uint8Array;
  give(buffer: Uint8Array): void;
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

/** A payload's buffer starts at most this large and grows with what has really arrived */
const FIRST_PAYLOAD_BYTES = 256 * 1024;
const EMPTY = new Uint8Array(0);
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
  readonly #header = new Uint8Array(EXTENDED_REQUEST_HEADER_BYTES);
  #headerFilled = 0;
  #chunks: Uint8Array[] = [];
  #at = 0;
  #buffered = 0;
  #request: Request | undefined;
  #verdict: Verdict | undefined;
  #payload: Uint8Array | undefined;
  #payloadFilled = 0;
  #skip = 0;

  constructor(terms: TransmissionTerms, buffers: PayloadBuffers = justAllocate) {
    this.#terms = terms;
    this.#extended = terms.extended === true;
    this.#headerBytes = this.#extended ? EXTENDED_REQUEST_HEADER_BYTES : REQUEST_HEADER_BYTES;
    this.#buffers = buffers;
  }

  /** Pushed and not yet parsed, in `bytes` */
  get buffered(): number {
    return this.#buffered;
  }

  /** A request has begun and is not whole: the client owes the rest of it */
  get isMidRequest(): boolean {
    return this.#request !== undefined || this.#headerFilled > 0;
  }

  /** The stream stands between two requests */
  get idle(): boolean {
    return this.#request === undefined && this.#headerFilled === 0 && this.#buffered === 0;
  }

  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
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
        const view = first.subarray(this.#at, this.#at + length);
        this.#consume(length);
        return this.#finish(header, verdict, view, undefined);
      }
      if (this.#buffered === 0) return undefined;
      if (this.#buffers.reserve?.(length) === false) return undefined;
      this.#payload = this.#buffers.take(Math.min(length, FIRST_PAYLOAD_BYTES));
    }
    if (!this.#fillPayload(length)) return undefined;
    const buffer = this.#payload;
    return this.#finish(header, verdict, buffer.subarray(0, length), buffer);
  }

  /** Gives back what a request that will never be whole holds. */
  close(): void {
    if (this.#payload !== undefined) {
      this.#buffers.give(this.#payload);
      this.#buffers.release?.(requestPayloadBytes(this.#request!, this.#extended));
    }
    this.#payload = undefined;
    this.#chunks = [];
    this.#buffered = 0;
  }

  #readHeader(): boolean {
    let header: Uint8Array;
    const first = this.#chunks[0];
    if (this.#headerFilled === 0 && first !== undefined && first.length - this.#at >= this.#headerBytes) {
      header = first.subarray(this.#at, this.#at + this.#headerBytes);
      this.#consume(this.#headerBytes);
    } else {
      this.#headerFilled += this.#copy(this.#header, this.#headerFilled, this.#headerBytes);
      if (this.#headerFilled < this.#headerBytes) return false;
      header = this.#header.subarray(0, this.#headerBytes);
      this.#headerFilled = 0;
    }
    const request = this.#extended ? decodeExtendedRequest(header) : decodeRequest(header);
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
    }
  }
}
