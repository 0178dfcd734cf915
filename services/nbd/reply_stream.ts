import type { Duplex } from 'node:stream';
import { descriptorOf } from './borrowing_socket.ts';
import type { BufferPool } from './buffer_pool.ts';
import { asImageError, type DiskImage, ImageError } from './images/disk_image.ts';
import { zeroes } from './images/zeroes.ts';

/** One turn of the event loop sends at most this from an image, in `bytes`: then others have theirs */
const TURN_BYTES = 1 << 20;
/** … and one call this: with more on its way at once over TCP, its receiver is slower, in `bytes` */
const CALL_BYTES = 256 * 1024;
/** Copied to learn when the socket takes more again, in `bytes`: as little as the kernel sends without a loss */
const PROBE_BYTES = 4096;
/** Copied where sending does not help, in `bytes` */
const COPY_BYTES = 256 * 1024;

/**
 * TLS encrypts all that it is given before the first of it leaves, and Node puts together what waits: the other end would
 * have nothing to do meanwhile. So it is given this much, and the next when that is gone, in `bytes`
 */
const TLS_PIECE_BYTES = 128 * 1024;

/** A part of an image that goes out from where it is, behind a header that has announced it. */
export interface ImagePart {
  /** One that can send */
  readonly image: DiskImage;
  readonly offset: number;
  readonly lengthBytes: number;
  /** What follows the last byte. With `error` nothing from its offset on could be read, and zeroes are in its place */
  end(error: ImageError | undefined): Uint8Array;
  /** The image is not looked at any more, whether or not the client has got all of it */
  over(): void;
}

/** Of one that waits for its turn */
interface WaitingPart {
  readonly part: ImagePart;
  /** What is behind the image fetches it */
  announced: boolean;
}

interface Piece {
  readonly bytes: Uint8Array;
  readonly gone: () => void;
}

/** Bytes that are handed over in pieces. */
interface Cut extends Piece {
  /** Where the next piece begins */
  at: number;
}

/** The part that goes out at the moment. */
interface Sending {
  readonly part: ImagePart;
  /** Where its next byte is */
  at: number;
  left: number;
  /** Calls that have sent nothing since the last one that did */
  fruitless: number;
  /** image.read() is under way */
  reading: boolean;
  announced: boolean;
  error: ImageError | undefined;
}

/**
 * What goes to one client, in order: bytes from memory, by the stream, and parts of images, by the kernel from the file
 * to the socket. The stream knows nothing of the latter, so that they begin when all before them is in the kernel, and
 * what follows waits for their end. Where the socket is full, the next few bytes of a part go by the stream: when they
 * are gone there is room again, and if the file cannot be read, reading them has said why.
 */
export class ReplyStream {
  readonly #stream: Duplex;
  readonly #pool: BufferPool;
  readonly #onSent: () => void;
  /** What the stream is given at once */
  readonly #pieceBytes: number;
  #pendingBytes = 0;
  /** Writes that the stream has not done yet */
  #writes = 0;
  #sending: Sending | undefined;
  #cut: Cut | undefined;
  /** Behind one of them, in order */
  #waiting: (Piece | WaitingPart)[] = [];
  #parts = 0;
  #partBytes = 0;
  #whenSent: (() => void) | undefined;
  /** A write has failed, or the stream is gone: nothing more goes out */
  #broken = false;
  #closed = false;

  /** `onSent` is called whenever {@link pendingBytes} has become smaller. */
  constructor(stream: Duplex, pool: BufferPool, onSent: () => void) {
    this.#stream = stream;
    this.#pool = pool;
    this.#onSent = onSent;
    const isTls = (stream as { readonly encrypted?: boolean }).encrypted === true;
    this.#pieceBytes = isTls ? TLS_PIECE_BYTES : Number.POSITIVE_INFINITY;
  }

  /** In memory and not yet taken by the kernel, in `bytes` */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  /** Parts of images that are not over */
  get parts(): number {
    return this.#parts;
  }

  /** What they were in all, in `bytes`: nothing of it is held in memory but what {@link pendingBytes} counts */
  get partBytes(): number {
    return this.#partBytes;
  }

  /** Parts of images have a way to the client. */
  get takesParts(): boolean {
    return descriptorOf(this.#stream) !== undefined;
  }

  /** `gone` is called when the bytes may be overwritten. */
  write(bytes: Uint8Array, gone: () => void): void {
    if (this.#broken) {
      gone();
      return;
    }
    this.#pendingBytes += bytes.length;
    if (this.#isBusy) this.#waiting.push({ bytes, gone });
    else this.#hand(bytes, gone);
  }

  send(part: ImagePart): void {
    this.#parts++;
    this.#partBytes += part.lengthBytes;
    if (this.#closed) this.#over(part);
    else if (this.#isBusy) this.#waiting.push({ part, announced: false });
    else this.#begin({ part, announced: false });
  }

  /** What is written by turns leaves at once. */
  together(write: () => void): void {
    if (this.#broken) {
      write();
      return;
    }
    this.#stream.cork();
    write();
    this.#stream.uncork();
  }

  /** Calls back once the last part is with the kernel and what is behind it with the stream; never where that closes. */
  whenSent(callback: () => void): void {
    if (this.#isBusy) this.#whenSent = callback;
    else callback();
  }

  /** The stream is gone: nobody waits for anything. */
  abandon(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#broken = true;
    const sending = this.#sending;
    if (sending !== undefined && !sending.reading) this.#over(sending.part);
    for (const waiting of this.#waiting) {
      if ('bytes' in waiting) waiting.gone();
      else this.#over(waiting.part);
    }
    this.#waiting = [];
  }

  /** What comes has to wait. */
  get #isBusy(): boolean {
    return this.#sending !== undefined || this.#cut !== undefined;
  }

  #hand(bytes: Uint8Array, gone: () => void): void {
    if (bytes.length > this.#pieceBytes) {
      this.#cut = { bytes, gone, at: 0 };
      this.#handPiece(this.#cut);
      return;
    }
    this.#writes++;
    this.#stream.write(bytes, (error) => {
      // Nothing reads the bytes any more, with an error neither.
      this.#writes--;
      this.#pendingBytes -= bytes.length;
      if (error) {
        // Node tells each write that it holds, and keeps all in its list until it is through: were one more made here, it
        // would begin with the list anew, and tell some twice. Their memory would be given back twice, and then be two
        // clients' at once.
        this.#broken = true;
        gone();
        return;
      }
      gone();
      this.#onSent();
      if (this.#sending !== undefined && this.#writes === 0) this.#advance(this.#sending);
    });
  }

  #handPiece(cut: Cut): void {
    const { bytes, at, gone } = cut;
    const end = at + this.#pieceBytes;
    if (end >= bytes.length) {
      this.#cut = undefined;
      this.#hand(bytes.subarray(at), gone);
      this.#drain();
      return;
    }
    cut.at = end;
    this.#hand(bytes.subarray(at, end), () => {
      if (this.#broken) gone();
      else this.#handPiece(cut);
    });
  }

  /** What has waited, up to the next that others have to wait for. */
  #drain(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const next of waiting) {
      if (this.#isBusy) this.#waiting.push(next);
      else if ('bytes' in next) this.#hand(next.bytes, next.gone);
      else this.#begin(next);
    }
    if (this.#isBusy) return;
    this.#whenSent?.();
    this.#whenSent = undefined;
  }

  #begin({ part, announced }: WaitingPart): void {
    const { offset, lengthBytes } = part;
    const sending = { part, at: offset, left: lengthBytes, fruitless: 0, reading: false, announced, error: undefined };
    this.#sending = sending;
    if (this.#writes === 0) this.#advance(sending);
  }

  /** All before it is in the kernel. */
  #advance(sending: Sending): void {
    let turnBytes = 0;
    while (sending.left > 0) {
      const socket = this.#broken ? undefined : descriptorOf(this.#stream);
      // It is closing, and abandon() will follow.
      if (socket === undefined) return;
      if (turnBytes >= TURN_BYTES) {
        setImmediate(() => this.#advance(sending));
        return;
      }
      const sent = this.#sendSome(sending, socket, TURN_BYTES - turnBytes);
      if (sent === 0) return;
      turnBytes += sent;
    }
    this.#end(sending);
  }

  /** How many bytes went from the image to the socket; 0: the next ones go by the stream, and then it goes on */
  #sendSome(sending: Sending, socket: number, mostBytes: number): number {
    const { part, at, left } = sending;
    if (sending.error !== undefined) {
      this.#copied(sending, zeroes().subarray(0, Math.min(left, COPY_BYTES)), () => {});
      return 0;
    }
    let sent: number | undefined;
    try {
      sent = part.image.sendNow!(socket, at, Math.min(left, mostBytes, CALL_BYTES));
    } catch {
      sent = 0; // read() says it, too
    }
    if (sent === undefined) {
      this.#announce(sending);
      void this.#copy(sending, Math.min(left, COPY_BYTES), false);
      return 0;
    }
    sending.at += sent;
    sending.left -= sent;
    if (sent > 0) {
      sending.fruitless = 0;
      return sent;
    }
    const copiedBytes = Math.min(PROBE_BYTES << sending.fruitless, COPY_BYTES);
    sending.fruitless = Math.min(sending.fruitless + 1, 8);
    void this.#copy(sending, Math.min(left, copiedBytes), true);
    return 0;
  }

  /** Not at hand: storage works on all that is asked for, while parts go out one after the other. */
  #announce(sending: Sending): void {
    const { image } = sending.part;
    if (!sending.announced) image.willSend?.(sending.at, sending.left);
    sending.announced = true;
    for (const waiting of this.#waiting) {
      if ('bytes' in waiting || waiting.announced) continue;
      waiting.announced = true;
      waiting.part.image.willSend?.(waiting.part.offset, waiting.part.lengthBytes);
    }
  }

  async #copy(sending: Sending, lengthBytes: number, inPlace: boolean): Promise<void> {
    const { image } = sending.part;
    const buffer = this.#pool.take(lengthBytes);
    const data = buffer.subarray(0, lengthBytes);
    const gone = (): void => this.#pool.give(buffer);
    try {
      if (!inPlace || !image.readNow(sending.at, data)) {
        sending.reading = true;
        await image.read(sending.at, data);
      }
    } catch (error) {
      const { code, message } = asImageError(error);
      // All before it is valid; what was read behind it was not sent.
      sending.error = new ImageError(code, message, { cause: error, offset: sending.at });
    }
    const hasWaited = sending.reading;
    sending.reading = false;
    if (this.#broken) {
      gone();
      // abandon() has left it to us; where it is still to come, it will see to it.
      if (this.#closed && hasWaited) this.#over(sending.part);
    } else if (sending.error !== undefined) {
      gone();
      this.#advance(sending);
    } else this.#copied(sending, data, gone);
  }

  #copied(sending: Sending, bytes: Uint8Array, gone: () => void): void {
    sending.at += bytes.length;
    sending.left -= bytes.length;
    this.#pendingBytes += bytes.length;
    this.#hand(bytes, gone);
  }

  #end({ part, error }: Sending): void {
    this.#sending = undefined;
    this.together(() => {
      this.write(part.end(error), () => {});
      this.#drain();
    });
    this.#over(part);
  }

  #over(part: ImagePart): void {
    this.#parts--;
    this.#partBytes -= part.lengthBytes;
    part.over();
  }
}
