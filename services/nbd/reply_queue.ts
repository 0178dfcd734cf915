import type { Duplex } from 'node:stream';
import type { BufferPool } from './buffer_pool.ts';
import { type ImagePart, ReplyStream } from './reply_stream.ts';

const SLAB_BYTES = 256 * 1024;
/** Views of one slab that are kept: as many as requests of 4 KiB fit */
const KEPT_PIECES = 64;

/** Views of a buffer, which cost more to make than most replies. */
interface Views {
  readonly buffer: Buffer;
  readonly view: DataView;
  /** In the order of their places: requests of one size have theirs where those before them had */
  readonly pieces: Uint8Array[];
  /** What was sent last */
  sent: Buffer;
}

/** Kept as long as the buffer, whoever takes it out of the pool next */
const viewsOf = new WeakMap<Buffer, Views>();

function viewsFor(buffer: Buffer): Views {
  const known = viewsOf.get(buffer);
  if (known !== undefined) return known;
  const view = new DataView(buffer.buffer, buffer.byteOffset, buffer.length);
  const views = { buffer, view, pieces: [], sent: buffer };
  viewsOf.set(buffer, views);
  return views;
}

/** One slab, in use until it is full and all that was written from it is gone. */
interface Slab {
  readonly views: Views;
  /** First byte that is not handed to the stream yet */
  start: number;
  end: number;
  /** Writes of it that the stream still holds */
  writes: number;
  /** Views that were asked for since the start of the slab */
  asked: number;
}

/**
 * Builds replies back to back in reused slabs and sends all that one turn made in one write. A read's data can be
 * read straight behind its header: {@link reserve}, fill, {@link commit}; nothing else may touch the queue between.
 * Writes go on in the same slab: for a client that does not read, what is held is what was built, not a slab each.
 */
export class ReplyQueue {
  readonly #stream: ReplyStream;
  readonly #pool: BufferPool;
  #slab: Slab | undefined;

  /** `onSent` is called whenever {@link pendingBytes} has become smaller. */
  constructor(stream: Duplex, pool: BufferPool, onSent: () => void) {
    this.#stream = new ReplyStream(stream, pool, onSent);
    this.#pool = pool;
  }

  /** Built and not yet taken by the kernel, in `bytes` */
  get pendingBytes(): number {
    const slab = this.#slab;
    return this.#stream.pendingBytes + (slab === undefined ? 0 : slab.end - slab.start);
  }

  /** Parts of images that {@link appendPart} has taken and that are not over */
  get parts(): number {
    return this.#stream.parts;
  }

  /** As {@link ReplyStream.partBytes} */
  get partBytes(): number {
    return this.#stream.partBytes;
  }

  /** {@link appendPart} may be called. */
  get takesParts(): boolean {
    return this.#stream.takesParts;
  }

  /** Largest piece that fits a slab, in `bytes` */
  static readonly maxPieceBytes = 64 * 1024 + 64;

  /** Room for `lengthBytes` (at most maxPieceBytes) behind what is built so far; gives its place in {@link bytes}. */
  reserve(lengthBytes: number): number {
    const slab = this.#slab;
    if (slab !== undefined && slab.end + lengthBytes <= SLAB_BYTES) return slab.end;
    if (slab !== undefined) this.flush();
    // Where the stream is broken, flush() has given it back.
    if (slab !== undefined && slab === this.#slab) {
      this.#slab = undefined;
      if (slab.writes === 0) this.#pool.give(slab.views.buffer);
    }
    this.#slab = { views: viewsFor(this.#pool.take(SLAB_BYTES)), start: 0, end: 0, writes: 0, asked: 0 };
    return 0;
  }

  /** The slab, valid from reserve() to commit() */
  get bytes(): Buffer {
    return this.#slab!.views.buffer;
  }

  /** `lengthBytes` of {@link bytes} from `at` on, inside what was reserved last */
  piece(at: number, lengthBytes: number): Uint8Array {
    const slab = this.#slab!;
    const index = slab.asked++;
    const { buffer, pieces } = slab.views;
    const known = pieces[index];
    if (known !== undefined && known.byteOffset === buffer.byteOffset + at && known.length === lengthBytes) {
      return known;
    }
    const made = new Uint8Array(buffer.buffer, buffer.byteOffset + at, lengthBytes);
    if (index < KEPT_PIECES) pieces[index] = made;
    return made;
  }

  get view(): DataView {
    return this.#slab!.views.view;
  }

  commit(lengthBytes: number): void {
    this.#slab!.end += lengthBytes;
  }

  append(bytes: Uint8Array): void {
    if (bytes.length > ReplyQueue.maxPieceBytes) {
      this.#send(bytes, () => {});
      return;
    }
    const at = this.reserve(bytes.length);
    this.bytes.set(bytes, at);
    this.commit(bytes.length);
  }

  /** Sends a pool buffer's first `lengthBytes` behind what is built; once they are gone, gives the buffer back, and tells. */
  appendOwned(buffer: Buffer, lengthBytes: number, gone?: (lengthBytes: number) => void): void {
    this.#send(buffer.subarray(0, lengthBytes), () => {
      this.#pool.give(buffer);
      gone?.(lengthBytes);
    });
  }

  /** Sends a part of an image behind what is built. */
  appendPart(part: ImagePart): void {
    this.flush();
    this.#stream.send(part);
  }

  /** As {@link ReplyStream.whenSent}, for what was flushed */
  whenSent(callback: () => void): void {
    this.#stream.whenSent(callback);
  }

  /** The stream is gone. */
  abandon(): void {
    this.#stream.abandon();
  }

  /** Hands what is built to the stream. */
  flush(): void {
    const slab = this.#slab;
    if (slab === undefined || slab.start === slab.end) return;
    const { views } = slab;
    let piece = views.sent;
    if (piece.byteOffset !== views.buffer.byteOffset + slab.start || piece.length !== slab.end - slab.start) {
      piece = views.buffer.subarray(slab.start, slab.end);
      views.sent = piece;
    }
    slab.start = slab.end;
    slab.writes++;
    this.#stream.write(piece, () => {
      slab.writes--;
      if (slab.writes > 0) return;
      if (slab !== this.#slab) this.#pool.give(slab.views.buffer);
      else if (this.#pool.recycles && slab.start === slab.end) {
        // Nothing is under way: an idle session holds no slab, a busy one gets this one again.
        this.#slab = undefined;
        this.#pool.give(slab.views.buffer);
      }
    });
  }

  #send(bytes: Uint8Array, gone: () => void): void {
    this.#stream.together(() => {
      this.flush();
      this.#stream.write(bytes, gone);
    });
  }
}
